"""The report: one page, markdown and LaTeX tables from the results of rollouts and training runs."""

"""The program `python -m benchmarks.paper_step`."""

from benchmarks.paper_step.steps import main

main()

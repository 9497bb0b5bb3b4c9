"""The report: results to html and markdown."""

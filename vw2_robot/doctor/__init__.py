"""Diagnostics of an installation: packages and data sets, and how to get the missing ones. Program `vw2-doctor`.

It changes nothing, apart from writing the requested report. It imports `data`, but no model and no simulator.
"""

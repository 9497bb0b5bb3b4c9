"""What is here and what is missing: packages and data sets, and what to do about the rest. Program `vw2-doctor`.

It looks and never changes anything, apart from the report that was asked for. Stands above `data` and knows neither
model nor simulator.
"""

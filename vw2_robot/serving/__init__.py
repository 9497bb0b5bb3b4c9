"""The agent in other people's loops: adapters that translate names, shapes and units, and do nothing else.

calvin_model   the two methods that the official CALVIN evaluator calls
"""

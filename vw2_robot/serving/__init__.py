"""Adapters of the agent for evaluators of other projects: they convert names, shapes and units, and do nothing else.

calvin_model   the two methods that the official CALVIN evaluator calls
export         program vw2-export: the folder that the Hugging Face Hub and LeRobot read
"""

"""The agent in stacks of other projects: adapters convert names, shapes and units, and do nothing else.

calvin_model   the two methods that the official CALVIN evaluator calls
serve          program: the agent behind openpi's websocket protocol (server, batching, requests, wire)
client         a client of that protocol, without torch
export         program vw2-export: the folder that the Hugging Face Hub and LeRobot read
"""

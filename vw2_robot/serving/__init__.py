"""The agent in stacks of other projects: adapters convert names, shapes and units, and do nothing else.

calvin_model     the two methods that the official CALVIN evaluator calls
simpler_model    the three methods that SimplerEnv's evaluator calls
vla_eval_server  a model server of vla-eval
ros2_node        a ROS 2 node in front of a served policy; control_loop is its part without ROS
serve            program: the agent behind openpi's websocket protocol (server, batching, requests, wire)
client           a client of that protocol, without torch
export           program vw2-export: the folder that the Hugging Face Hub and LeRobot read
"""

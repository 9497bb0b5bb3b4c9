"""Data: everything between files of robot data and the arrays that training uses.

sources -> episodes -> frame cache or stream -> clips -> dLDM; CALVIN -> labels, statistics -> action head. This package
imports no model, and `vw2_robot.models` imports nothing of it. Only `sources.rlds_builder` imports TensorFlow, when one
of its functions is called.
"""

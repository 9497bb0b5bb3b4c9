"""Everything between files of robot data and the arrays that training sees.

rlds -> episodes -> frames (the cache on disk) -> clips -> dLDM; calvin -> labels, statistics -> action head. Models are
not known here and nothing in this folder is imported by `vw2_robot.models`. TensorFlow is loaded by `rlds` only, when
one of its functions is called.
"""

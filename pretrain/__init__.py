"""Programs that learn from video without labels, in the order in which they run.

frames -> train_vdm -> train_dldm -> extract_latents -> train_policy; `pretrain_on_openx` runs them all.
"""

"""One folder for everybody: a policy as a checkpoint, a model on the Hugging Face Hub and a LeRobot policy at once.

policy_folder    writes the folder
lerobot_files    what LeRobot reads in it
model_card       its README.md, written from the run and from rollouts
repository       fetching from the Hub, and uploading to it
"""

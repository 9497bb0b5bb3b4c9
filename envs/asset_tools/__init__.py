"""The program that makes the assets in envs/assets."""

"""Programs that make the assets in envs/assets."""

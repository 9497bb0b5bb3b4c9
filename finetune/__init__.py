"""From latent tokens to robot actions: fine-tuning on labeled trajectories."""

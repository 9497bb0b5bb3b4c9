"""The video diffusion model: what the scene looks like, given codes."""

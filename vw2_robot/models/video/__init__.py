"""The video diffusion model: it renders video from latent codes and a first frame."""

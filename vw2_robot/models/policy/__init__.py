"""The autoregressive policy: instruction and image to latent codes and actions."""

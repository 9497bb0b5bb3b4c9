"""The dLDM: clip to latent codes and back."""

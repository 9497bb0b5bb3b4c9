"""What the latent codes contain: probes, maps, swaps."""

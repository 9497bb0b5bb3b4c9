"""Evaluation of latent codes: action probes, swap test, nuisances, maps."""

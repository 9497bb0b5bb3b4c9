"""Hydra configuration groups: yaml only."""

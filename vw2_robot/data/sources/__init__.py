"""Readers of episodes, one file per format."""

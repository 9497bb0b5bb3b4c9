"""The recording program: demonstrations to disk."""

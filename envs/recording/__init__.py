"""The recording program: demonstrations, written to disk."""

"""Recordings of the CALVIN tables rendered again, each time with another sampled appearance."""

"""Several ranks on one machine: how much faster, and how much less memory each."""

"""One training step of each stage at the width of the paper, within the memory of a common machine."""

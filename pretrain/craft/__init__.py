"""Video-CraftBench and its miniature: train the judge, imagine from first frames, compare code books."""

"""Evaluation on Video-CraftBench and its miniature: imagined videos are judged step by step."""

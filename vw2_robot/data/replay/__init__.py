"""Replays: windows of frames between ingest processes and trainers."""

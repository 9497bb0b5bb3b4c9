"""Scripted experts that solve tasks."""

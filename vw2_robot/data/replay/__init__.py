"""Reverb tables and the windows drawn from them."""

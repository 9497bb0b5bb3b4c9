"""Import of the files that the authors of VideoWorld 2 published, and the way back (docs/import.md)."""

"""What dLDM and video model have learned, on held-out clips: reconstruction, use of the codes, explained change."""

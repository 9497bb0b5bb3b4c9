"""What things cost beside a peer or a physical bound: `make bench`."""

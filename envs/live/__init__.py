"""The simulator for the page of `vw2-live`: what its parts look like, where they are, blocks that can be dragged."""

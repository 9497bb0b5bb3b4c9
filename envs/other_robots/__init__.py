"""Other robots in another world: unlabeled video that is not of CALVIN."""

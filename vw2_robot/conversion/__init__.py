"""The program `vw2-convert`: data sets in the formats of CALVIN, RLDS, LeRobot and video folders into one another."""

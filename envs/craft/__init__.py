"""Long block building in seven key steps, by a hand or by an arm: the craft bench in miniature."""

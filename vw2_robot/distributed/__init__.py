"""Training on several ranks: who they are, which samples each computes, how weights are sharded and stored."""

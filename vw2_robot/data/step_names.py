"""The names that RLDS gives to the entries of an episode and of a step.

They are those of the package `rlds` (a test compares), written out because that imports Reverb, which ends at Python
3.11.
"""

from __future__ import annotations

STEPS = "steps"
OBSERVATION = "observation"
ACTION = "action"
REWARD = "reward"
DISCOUNT = "discount"
IS_FIRST = "is_first"
IS_LAST = "is_last"
IS_TERMINAL = "is_terminal"

"""Names of the entries of an episode and of a step in RLDS.

They equal those of the package `rlds` (a test compares them). They are written out here because that package imports
Reverb, which does not exist for Python above 3.11.
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

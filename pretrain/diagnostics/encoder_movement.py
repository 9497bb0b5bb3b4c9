"""How far each phase moved the encoder: what phase 2 changes of the codes is at most what it moves (method 8.4)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

ENCODER = ("encoder.", "qformer.", "pre_quant.")
"""parts of the dLDM that decide a code"""
BUFFERS = ("frequencies", "running_mean", "running_var", "num_batches_tracked")
"""no weights: running statistics follow the data, position codes never move"""


def encoder_movement(
    initial: Mapping[str, Tensor], after_phase_1: Mapping[str, Tensor], at_end: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return the distances between the encoder's weights, and the share of phase 2.

    Args:
        initial: weights of the dLDM by name, untrained.
        after_phase_1: the same when phase 1 had ended.
        at_end: the same at the end.

    Returns:
        `phase_1` and `phase_2`, Euclidean distances, and `phase_2_share` of their sum.
    """

    def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
        names = [name for name in a if name.startswith(ENCODER) and not name.endswith(BUFFERS)]
        return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in names))

    first, second = distance(initial, after_phase_1), distance(after_phase_1, at_end)
    return {"phase_1": first, "phase_2": second, "phase_2_share": second / max(first + second, 1e-12)}

"""The domain probe: whether the codes of a step tell which data set it is from.

Codes of motion alone would not: robots, scenes and cameras differ in appearance, which the codes should leave out. A
linear probe reads the data set from one step, on demonstrations that it was not fitted on, with equally many rows of
each data set. Beside it the overlap of the code histograms: sum over codes of the smaller of the two shares, mean over
the N codes of a step. Histograms of few steps overlap little by chance, so the overlap of two data sets is to be
compared with that of one data set with itself: both are between one half of the demonstrations and another.
"""

# R rows (valid steps) · N codes per step · V codes
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .features import Quantizer, StepRows, one_hot_fsq, project, quantize_components
from .probes import Split, finite, fit_linear, score_ratio

STREAM_ROWS, STREAM_BOOTSTRAP, STREAM_HALVES = range(20, 23)


def probe_domains(
    sets: Sequence[StepRows], splits: Sequence[Split], quantizer: Quantizer, *, seed: int
) -> dict[str, Any] | None:
    """Return how well a linear probe reads the data set from codes and from pixel differences; None for a single set.

    Args:
        sets: the steps of each data set.
        splits: of their rows, by demonstrations.
        quantizer: of the dLDM, on the CPU.
        seed: of the rows that are left out for balance, of the halves, and of intervals.

    Returns:
        {"chance", "rows": test rows, "accuracy": {feature: {"ratio", "ci95"}}, "overlap": {feature: {a: {b: share}}}}.
    """
    if len(sets) < 2:
        return None
    rng = np.random.default_rng([seed, STREAM_ROWS])
    sides = [balanced([np.flatnonzero(split[side]) for split in splits], rng) for side in range(3)]
    chosen = [np.concatenate([side[number] for side in sides]) for number in range(len(sets))]
    split = Split(*(np.concatenate([np.isin(c, s) for c, s in zip(chosen, side, strict=True)]) for side in sides))
    domain = np.repeat(np.arange(len(sets)), [len(rows) for rows in chosen])
    # Demonstrations of two data sets may have the same numbers.
    pairs = np.stack([domain, np.concatenate([rows.group[c] for rows, c in zip(sets, chosen, strict=True)])])
    group = np.unique(pairs, axis=1, return_inverse=True)[1].ravel()

    # Components of all steps together, fitted on the balanced training rows.
    known = np.concatenate([rows.difference[c] for rows, c in zip(sets, chosen, strict=True)])[split.train]
    queries = sets[0].indices.shape[1]
    width = queries * sum(quantizer.levels)
    components = [project(known, rows.difference, width) for rows in sets]
    fitted_on = np.concatenate([part[c] for part, c in zip(components, chosen, strict=True)])[split.train]
    codes = {
        "codes_one_hot": [rows.indices for rows in sets],
        "pixels_quantized": [quantize_components(fitted_on, part, quantizer, queries) for part in components],
    }
    features: Mapping[str, list[NDArray[np.float32]]] = {
        **{name: [one_hot_fsq(indices, quantizer) for indices in parts] for name, parts in codes.items()},
        "pixels_equal": components,
    }
    accuracy = {}
    for name, parts in features.items():
        x = np.concatenate([part[c] for part, c in zip(parts, chosen, strict=True)])
        # A regression to one column for each data set; the largest one is the answer.
        probe = fit_linear(x, (domain[:, None] == np.arange(len(sets))).astype(float), split)
        right = probe.predict(x[split.test]).argmax(1) == domain[split.test]
        accuracy[name] = score_ratio(
            right.astype(float),
            np.ones(len(right)),
            group[split.test],
            rng=np.random.default_rng([seed, STREAM_BOOTSTRAP]),
        )
    return {
        "chance": finite(1 / len(sets)),
        "rows": int(split.test.sum()),
        "accuracy": accuracy,
        "overlap": {name: overlaps(sets, parts, quantizer, seed=seed) for name, parts in codes.items()},
    }


def balanced(rows: Sequence[NDArray[np.int64]], rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return equally many of the rows of each data set, sampled where one has more."""
    fewest = min(map(len, rows))
    return [np.sort(rng.permutation(one)[:fewest]) for one in rows]


def overlaps(
    sets: Sequence[StepRows], codes: Sequence[NDArray[np.int64]], quantizer: Quantizer, *, seed: int
) -> dict[str, dict[str, float | None]]:
    """Return the overlap of the histograms of each pair of data sets, and of each with itself.

    Args:
        sets: the steps of each data set.
        codes: int [R, N] of each of them.
        quantizer: gives V.
        seed: of the halves.
    """
    halves = []
    for rows, indices in zip(sets, codes, strict=True):
        groups = np.random.default_rng([seed, STREAM_HALVES]).permutation(np.unique(rows.group))
        first = np.isin(rows.group, groups[: len(groups) // 2])
        halves.append([histograms(indices[side], quantizer.vocabulary) for side in (first, ~first)])
    return {
        a.name: {b.name: finite(np.minimum(halves[i][0], halves[j][1]).sum(1).mean()) for j, b in enumerate(sets)}
        for i, a in enumerate(sets)
    }


def histograms(indices: NDArray[np.int64], vocabulary: int) -> NDArray[np.float64]:
    """Return the share of each code [N, V] in each place of a step; `indices` is [R, N]."""
    return np.stack([np.bincount(place, minlength=vocabulary) / max(len(place), 1) for place in indices.T])

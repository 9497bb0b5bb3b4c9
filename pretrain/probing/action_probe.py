"""The action probe: R2 of true actions predicted from codes and from baseline features, within a data set and across.

Rows of one demonstration are never on two sides. Across data sets, a probe is fitted in one and evaluated on the test
demonstrations of another, with sign accuracy and rank correlation beside R2. Where units differ (another robot), only
translations are compared, each data set's standardized by its mean and deviation.
"""

# R rows (valid steps) · D features · A targets
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vw2_robot.data.labeled_steps import target_names

from .features import Quantizer, StepRows, code_values, one_hot_fsq, project, quantize_components
from .probes import LinearProbe, Split, finite, fit_linear, fit_mlp, rank_correlation, score_r2, split_groups

Target = Literal["commanded", "moved"]
KINDS: tuple[Target, ...] = ("commanded", "moved")
COMPARED = ("codes_one_hot", "code_values", "pixels_equal", "pixels_quantized", "untrained_codes")
"""features that a small network is fitted on too, and that are compared across data sets"""
PIXELS = ("pixels_equal", "pixels_quantized")
WIDE = 256
SIGN_QUANTILE = 0.25
"""Sign accuracy leaves out the quarter of the rows that move least in that dimension: their sign is noise."""
STREAM_SPLIT, STREAM_RANDOM, STREAM_SHUFFLE, STREAM_BOOTSTRAP = range(4)


def split_sets(sets: Sequence[StepRows], *, shares: Sequence[float], seed: int) -> list[Split]:
    """Return the split of each data set by demonstrations.

    Args:
        sets: the steps of each data set.
        shares: of the demonstrations, in [0, 1], for validation and for test.
        seed: decides which demonstrations go where.
    """
    return [
        # A stream for each data set: one more at the end leaves the splits of the others as they were.
        split_groups(rows.group, rng=np.random.default_rng([seed, STREAM_SPLIT, i]), shares=shares)
        for i, rows in enumerate(sets)
    ]


def probe_actions(
    sets: Sequence[StepRows], untrained: Sequence[StepRows], splits: Sequence[Split], quantizer: Quantizer, *, seed: int
) -> dict[str, Any]:
    """Probe each data set, and each pair of them.

    Args:
        sets: the steps of each data set with the codes of the dLDM.
        untrained: the same steps with the codes of an untrained dLDM.
        splits: by demonstrations, of each data set.
        quantizer: of the dLDM, on the CPU.
        seed: of random features, small networks and intervals.

    Returns:
        {"widths", "rows", "in_scene": {set: {target: {feature: scores}}}, "transfer": see `transfer`}.
    """
    tables = [
        features_of(rows, baseline, split, quantizer, seed=seed)
        for rows, baseline, split in zip(sets, untrained, splits, strict=True)
    ]
    probed = [Probed(*one) for one in zip(sets, untrained, splits, strict=True)]
    in_scene = {
        rows.name: {
            kind: {
                feature: score_probes(table[feature], rows, split, kind, seed=seed, mlp=feature in COMPARED)
                for feature in table
            }
            for kind in kinds_of(rows)
        }
        for rows, table, split in zip(sets, tables, splits, strict=True)
    }
    return {
        "widths": {feature: int(values.shape[1]) for feature, values in tables[0].items()},
        "rows": {
            rows.name: {side: int(chosen.sum()) for side, chosen in split._asdict().items()}
            for rows, split in zip(sets, splits, strict=True)
        },
        "in_scene": in_scene,
        "transfer": {
            kind: transfer(known, quantizer, kind, seed=seed)
            for kind in KINDS
            if len(known := [one for one in probed if kind in kinds_of(one.rows)]) > 1
        },
    }


def kinds_of(rows: StepRows) -> tuple[Target, ...]:
    """Return which descriptions of motion a data set has."""
    return KINDS if rows.moved is not None else KINDS[:1]


def features_of(
    rows: StepRows, untrained: StepRows, split: Split, quantizer: Quantizer, *, seed: int
) -> dict[str, NDArray[np.float32]]:
    """Return every feature table [R, D] of one data set by name; components of pixels are fitted on training rows.

    Args:
        rows: with the codes of the dLDM.
        untrained: the same rows with those of an untrained dLDM.
        split: of the rows.
        quantizer: on the CPU.
        seed: of random and of shuffled codes.
    """
    one_hot = one_hot_fsq(rows.indices, quantizer)
    width = one_hot.shape[1]
    components = project(rows.difference[split.train], rows.difference, max(WIDE, width))
    pixel_codes = quantize_components(components[split.train], components, quantizer, rows.indices.shape[1])
    # Baselines: the width of codes without their content, and their content at the wrong steps.
    noise = np.random.default_rng([seed, STREAM_RANDOM]).integers(
        int(np.prod(quantizer.levels)), size=rows.indices.shape
    )
    order = np.random.default_rng([seed, STREAM_SHUFFLE]).permutation(len(rows))
    return {
        "codes_one_hot": one_hot,
        "code_values": code_values(rows.indices, quantizer),
        # As many numbers as the codes have: a wider input alone would raise R2.
        "pixels_equal": components[:, :width],
        # As coarse as the codes are: the quantization alone would lower R2.
        "pixels_quantized": one_hot_fsq(pixel_codes, quantizer),
        "pixels_wide": components,
        "untrained_codes": one_hot_fsq(untrained.indices, quantizer),
        "random_codes": one_hot_fsq(noise, quantizer),
        "shuffled_codes": one_hot[order],
    }


def targets_of(rows: StepRows, kind: Target) -> NDArray[np.float64]:
    """Return the motion [R, 7 or A] that a probe predicts."""
    values = rows.commanded if kind == "commanded" else rows.moved
    assert values is not None
    return values


def means_of(names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Return the averages that are reported beside the single dimensions, by name, with their dimensions."""
    rotation = {"rotation": names[3:6]} if len(names) >= 6 else {}
    return {"translation": names[:3], **rotation, "all": names}


def score_probes(
    features: NDArray[np.float32], rows: StepRows, split: Split, kind: Target, *, seed: int, mlp: bool
) -> dict[str, Any]:
    """Return the test scores of a linear probe on one feature, and with `mlp` those of a small network.

    Args:
        features: [R, D], one feature of all rows.
        rows: the steps of the data set; their motion is the target.
        split: of the rows.
        kind: which description of motion; "moved" only where `rows` has it.
        seed: of the small network and of the intervals.
        mlp: also fit a small network.

    Returns:
        {"linear": scores} or {"linear": scores, "mlp": scores}, with scores as in `score_r2`.
    """
    targets = targets_of(rows, kind)
    names = target_names(kind, rows.action_names)
    probe = fit_linear(features, targets, split)
    # Always on the test side: the penalty was chosen on validation.
    predicted = {"linear": probe.predict(features[split.test])}
    if mlp:
        predicted["mlp"] = fit_mlp(features, targets, split, seed=seed).predict(features[split.test])
    return {
        form: score_r2(
            targets[split.test],
            values,
            rows.group[split.test],
            names,
            rng=np.random.default_rng([seed, STREAM_BOOTSTRAP]),
            means=means_of(names),
        )
        for form, values in predicted.items()
    }


def fit_code_probe(rows: StepRows, split: Split, quantizer: Quantizer) -> LinearProbe:
    """Fit the linear probe from one-hot codes to the motion that can be seen [7].

    Args:
        rows: the steps of the data set, with their codes [R, N] and motion [R, 7].
        split: of the rows.
        quantizer: of the dLDM that made the codes, on the CPU.
    """
    return fit_linear(one_hot_fsq(rows.indices, quantizer), rows.motion, split)


class Probed(NamedTuple):
    """One data set, the same steps with codes of an untrained dLDM, and their split."""

    rows: StepRows
    untrained: StepRows
    split: Split

    def table(self, feature: str, quantizer: Quantizer) -> NDArray[np.float32]:
        """Return features [R, D]; of pixels the difference itself, as components depend on where a probe is fitted."""
        if feature in PIXELS:
            return self.rows.difference
        indices = self.untrained.indices if feature == "untrained_codes" else self.rows.indices
        return code_values(indices, quantizer) if feature == "code_values" else one_hot_fsq(indices, quantizer)

    def targets(self, kind: Target, *, comparable: bool) -> NDArray[np.float64]:
        """Return the motion [R, 7]; to be comparable, the translation [R, 3], standardized by the training rows."""
        values = targets_of(self.rows, kind)
        if not comparable:
            return values
        known = values[self.split.train, :3]
        return (values[:, :3] - known.mean(0)) / np.maximum(known.std(0), 1e-12)


def transfer(probed: Sequence[Probed], quantizer: Quantizer, kind: Target, *, seed: int) -> dict[str, Any]:
    """Fit in one data set and evaluate on the test demonstrations of each.

    Args:
        probed: all data sets that have this kind of motion.
        quantizer: on the CPU.
        kind: which description of motion.
        seed: of intervals.

    Returns:
        {feature: {from: {to: scores}}}. From `others`: fitted on all data sets in the same units but the one of `to`,
        where these are at least two.
    """
    sources = {one.rows.name: [one] for one in probed}
    found: dict[str, Any] = {}
    for feature in COMPARED:
        found[feature] = {
            name: {goal.rows.name: _transfer_to(source, goal, quantizer, feature, kind, seed=seed) for goal in probed}
            for name, source in sources.items()
        }
        others = {
            goal.rows.name: [one for one in probed if one is not goal and one.rows.units == goal.rows.units]
            for goal in probed
        }
        scores = {
            goal.rows.name: _transfer_to(others[goal.rows.name], goal, quantizer, feature, kind, seed=seed)
            for goal in probed
            if len(others[goal.rows.name]) > 1
        }
        found[feature] |= {"others": scores} if scores else {}
    return found


def _transfer_to(
    sources: Sequence[Probed], goal: Probed, quantizer: Quantizer, feature: str, kind: Target, *, seed: int
) -> dict[str, Any]:
    # Numbers of different units cannot be compared, standardized translations can.
    comparable = len({one.rows.units for one in (*sources, goal)}) > 1
    x = np.concatenate([source.table(feature, quantizer) for source in sources])
    y = np.concatenate([source.targets(kind, comparable=comparable) for source in sources])
    # The splits of all sources together; their test sides are not used here.
    split = Split(*(np.concatenate(sides) for sides in zip(*(source.split for source in sources), strict=True)))
    test = goal.table(feature, quantizer)[goal.split.test]
    if feature in PIXELS:
        # As many components as the codes have features, fitted where the probe is.
        queries = goal.rows.indices.shape[1]
        found = project(x[split.train], np.concatenate([x, test]), queries * sum(quantizer.levels))
        if feature == "pixels_quantized":
            codes = quantize_components(found[: len(x)][split.train], found, quantizer, queries)
            found = one_hot_fsq(codes, quantizer)
        x, test = found[: len(x)], found[len(x) :]
    predicted = fit_linear(x, y, split).predict(test)
    true = goal.targets(kind, comparable=comparable)[goal.split.test]
    names = target_names(kind, goal.rows.action_names)[: true.shape[1]]
    scores = score_r2(
        true,
        predicted,
        goal.rows.group[goal.split.test],
        names,
        rng=np.random.default_rng([seed, STREAM_BOOTSTRAP]),
        means={"translation": names} if comparable else means_of(names),
    )
    for a, name in enumerate(names):
        scores[name] |= {
            "rank_correlation": finite(rank_correlation(true[:, a], predicted[:, a])),
            "sign_accuracy": finite(sign_accuracy(true[:, a], predicted[:, a])),
        }
    return scores


def sign_accuracy(true: NDArray[np.float64], predicted: NDArray[np.float64]) -> float:
    """Return the share of right signs among the rows that move; NaN where nothing moves."""
    size = np.abs(true)
    # Where hardly anything moves, the sign is noise.
    moving = (size > np.quantile(size, SIGN_QUANTILE)) & (size > 1e-9)
    return float((np.sign(predicted) == np.sign(true))[moving].mean()) if moving.any() else float("nan")

"""Linear and small non-linear probes, and their scores with intervals over episodes.

Used to measure how much of an action latent codes contain. A probe is fitted on some episodes, its penalty is chosen on
others, and it is evaluated on a third set. Rows of one episode are never on two sides (`split_groups`), since
neighboring steps are nearly copies of each other. R2 is taken about the mean of the evaluated rows, so a probe without
information scores 0 or a little less, and a wrong one can be far below 0. Intervals resample whole episodes, since the
rows of one are not independent. The linear part is in float64 throughout.
"""

# n rows · D features · A targets · G groups (episodes) · S bootstrap samples
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Floats = NDArray[np.float64]
PENALTIES = tuple(10.0**power for power in np.arange(-5.0, 2.01, 0.5).tolist())
"""Ridge penalties to choose from; features have unit variance, so 1 is as much as one feature's own."""
BOOTSTRAP_SAMPLES = 1000


class Split(NamedTuple):
    """Boolean rows [n] of the three sides; each row is on exactly one."""

    train: NDArray[np.bool_]
    validation: NDArray[np.bool_]
    test: NDArray[np.bool_]


def split_groups(group_n: NDArray[np.integer[Any]], *, rng: np.random.Generator, shares: Sequence[float]) -> Split:
    """Split rows into train, validation and test by whole groups.

    Args:
        group_n: the group of each row.
        rng: decides which groups go where.
        shares: of the groups, for validation and for test; each side gets at least one.

    Raises:
        ValueError: fewer than three groups.
    """
    groups = np.unique(group_n)
    if len(groups) < 3:
        raise ValueError(f"a probe needs at least 3 episodes (training, validation, test), found {len(groups)}")
    order = rng.permutation(groups)
    validation, test = (max(1, round(share * len(groups))) for share in shares)
    # Few groups: training and test keep one each.
    validation = min(validation, len(groups) - 2)
    test = min(test, len(groups) - 1 - validation)
    sides = np.split(order, [len(groups) - validation - test, len(groups) - test])
    return Split(*(np.isin(group_n, side) for side in sides))


# ---------------------------------------------------------------------------------------------------------- linear


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """A ridge regression on standardized features.

    Attributes:
        mean: [D], subtracted from features.
        scale: [D], which they are then divided by.
        weight: [D, A].
        bias: [A].
        penalty: [A], chosen for each target separately.
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    penalty: Floats

    def predict(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Return targets [n, A] of features [n, D]."""
        predicted: Floats = (features.astype(np.float64) - self.mean) / self.scale @ self.weight + self.bias
        return predicted


def fit_linear(
    features: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]], split: Split, *, refit: bool = True
) -> LinearProbe:
    """Fit a ridge regression on train, choose its penalty on validation, then fit again on both.

    Args:
        features: [n, D].
        targets: [n, A].
        split: of the rows.
        refit: False leaves validation out of the final fit.
    """
    path = [ridge(features[split.train], targets[split.train], penalty) for penalty in PENALTIES]
    wanted = targets[split.validation]
    error = np.stack([((probe.predict(features[split.validation]) - wanted) ** 2).sum(0) for probe in path])
    best = np.asarray(PENALTIES)[error.argmin(0)]
    rows = split.train | split.validation if refit else split.train
    fitted = {penalty: ridge(features[rows], targets[rows], penalty) for penalty in np.unique(best).tolist()}
    # Mean, scale and bias do not depend on the penalty, so those of any fit will do.
    first = next(iter(fitted.values()))
    weight = np.stack([fitted[penalty].weight[:, a] for a, penalty in enumerate(best.tolist())], axis=1)
    return LinearProbe(first.mean, first.scale, weight, first.bias, best)


def ridge(features: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]], penalty: float) -> LinearProbe:
    """Fit a ridge regression with one penalty: (X'X / n + penalty I) W = X'Y / n on standardized X, centered Y.

    Args:
        features: [n, D], the rows that are fitted; they are standardized here.
        targets: [n, A], in any unit; predictions have the same.
        penalty: of the squared weights, the same for all targets.
    """
    x = features.astype(np.float64)
    y = targets.astype(np.float64)
    mean = x.mean(0)
    bias = y.mean(0)
    scale = x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)  # a constant feature stays 0
    x = (x - mean) / scale
    gram = x.T @ x / len(x)
    weight = np.linalg.solve(gram + penalty * np.eye(len(gram)), x.T @ (y - bias) / len(x))
    return LinearProbe(mean, scale, weight, bias, np.full(y.shape[1], penalty))


def principal_components(features: NDArray[np.floating[Any]], width: int) -> tuple[Floats, Floats]:
    """Return the mean [D] and the first `width` principal directions [D, width], or as many as the data have."""
    x = features.astype(np.float64)
    mean = x.mean(0)
    values, directions = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    # Directions in which the data do not vary are arbitrary, and differ between machines: they are left out.
    useful = min(width, int((values > 1e-12 * max(values[-1], 1e-300)).sum()))
    # `eigh` sorts upward, so the directions of the largest spread come last.
    return mean, directions[:, ::-1][:, :useful]


# ------------------------------------------------------------------------------------------------------ non-linear


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """A small network on standardized features, which predicts standardized targets."""

    mean: Floats
    scale: Floats
    target_mean: Floats
    target_scale: Floats
    net: nn.Module

    def predict(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Return targets [n, A] of features [n, D]."""
        with torch.no_grad():
            x = torch.from_numpy(((features - self.mean) / self.scale).astype(np.float32))
            y: Floats = self.net(x).double().numpy()
        return y * self.target_scale + self.target_mean


def fit_mlp(
    features: NDArray[np.floating[Any]],
    targets: NDArray[np.floating[Any]],
    split: Split,
    *,
    seed: int,
    hidden: int = 128,
    epochs: int = 60,
    batch_size: int = 128,
) -> MLPProbe:
    """Fit a network of two hidden layers with AdamW, and keep the weights of the epoch that is best on validation.

    Args:
        features: [n, D].
        targets: [n, A].
        split: of the rows.
        seed: of weights, dropout and batches.
        hidden: width of the hidden layers.
        epochs: how many.
        batch_size: rows of a batch.
    """
    # Statistics of the training side alone; validation only chooses the epoch.
    mean = features[split.train].mean(0)
    target_mean = targets[split.train].mean(0)
    scale, target_scale = (
        np.where(std > 1e-9, std, 1.0) for std in (features[split.train].std(0), targets[split.train].std(0))
    )
    x = torch.from_numpy(((features - mean) / scale).astype(np.float32))
    y = torch.from_numpy(((targets - target_mean) / target_scale).astype(np.float32))
    train, validation = (torch.from_numpy(np.flatnonzero(rows)) for rows in (split.train, split.validation))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Linear(x.shape[1], hidden), nn.GELU(), nn.Dropout(0.1),
            nn.Linear(hidden, hidden), nn.GELU(), nn.Dropout(0.1), nn.Linear(hidden, y.shape[1]),
        )  # fmt: skip
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.05)
        best = float("inf")
        kept = net.state_dict()
        for _ in range(epochs):
            net.train()
            for rows in train[torch.randperm(len(train))].split(batch_size):
                optimizer.zero_grad()
                (net(x[rows]) - y[rows]).square().mean().backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                error = float((net(x[validation]) - y[validation]).square().mean())
            if error < best:
                best = error
                # Cloned: a state dict refers to the weights that training goes on to change.
                kept = {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    return MLPProbe(mean, scale, target_mean, target_scale, net.eval())


# --------------------------------------------------------------------------------------------------------- scores


def resample_groups(
    sums_GX: Floats, *, rng: np.random.Generator, samples: int = BOOTSTRAP_SAMPLES
) -> tuple[Floats, Floats]:
    """Return sums [X] over all groups, and sums [S, X] over as many groups sampled with replacement.

    Args:
        sums_GX: of each group.
        rng: of the samples.
        samples: S.
    """
    count = len(sums_GX)
    # How often each group is in a sample is multinomial, so S samples are one matrix product.
    times = rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    return sums_GX.sum(0), times @ sums_GX


def interval95(samples: Floats) -> tuple[float, float]:
    """Return the 2.5 % and 97.5 % quantiles of bootstrap samples; those without a value are left out."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def sum_by_group(values: Floats, group_n: NDArray[np.integer[Any]]) -> Floats:
    """Return sums [G, ...] of values [n, ...] over the rows of each group, groups in ascending order."""
    groups, where = np.unique(group_n, return_inverse=True)
    sums = np.zeros((len(groups), *values.shape[1:]))
    np.add.at(sums, where, values)
    return sums


def score_r2(
    true: NDArray[np.floating[Any]],
    predicted: NDArray[np.floating[Any]],
    group_n: NDArray[np.integer[Any]],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
    means: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Return the R2 of each target with its 95 % interval over groups.

    Args:
        true: [n, A].
        predicted: [n, A].
        group_n: the group of each row.
        names: of the targets.
        rng: of the bootstrap.
        means: adds averages over several targets, such as {"translation": ["dx", "dy", "dz"]}.

    Returns:
        {name: {"r2": value, "ci95": [low, high]}}; None for a target that does not vary in these rows.
    """
    return _scores(*r2_samples(true, predicted, group_n, rng=rng), names, means or {}, key="r2")


def score_r2_difference(
    true: NDArray[np.floating[Any]],
    predicted: NDArray[np.floating[Any]],
    other: NDArray[np.floating[Any]],
    group_n: NDArray[np.integer[Any]],
    names: Sequence[str],
    *,
    seed: Sequence[int],
    means: Mapping[str, Sequence[str]],
) -> dict[str, dict[str, Any]]:
    """Return how much higher the R2 of `predicted` is than that of `other`, each target with its 95 % interval.

    Both have the same bootstrap samples of groups, so what makes a group hard cancels.

    Args:
        true: [n, A].
        predicted: [n, A].
        other: [n, A], predictions of the same rows.
        group_n: the group of each row.
        names: of the targets.
        seed: of the bootstrap.
        means: adds averages, as in `score_r2`.

    Returns:
        {name: {"difference": value, "ci95": [low, high]}}.
    """
    (whole, parts), (whole_other, parts_other) = (
        r2_samples(true, values, group_n, rng=np.random.default_rng(seed)) for values in (predicted, other)
    )
    return _scores(whole - whole_other, parts - parts_other, names, means, key="difference")


def r2_samples(
    true: NDArray[np.floating[Any]],
    predicted: NDArray[np.floating[Any]],
    group_n: NDArray[np.integer[Any]],
    *,
    rng: np.random.Generator,
) -> tuple[Floats, Floats]:
    """Return R2 [A] over all rows, and [S, A] over bootstrap samples of groups; NaN for a target that does not vary.

    Args:
        true: [n, A].
        predicted: [n, A].
        group_n: the group of each row.
        rng: of the bootstrap.
    """
    y = true.astype(np.float64)
    error = (y - predicted) ** 2
    # R2 is a function of sums over rows, so a bootstrap sample needs the sums of each group alone.
    table = np.concatenate([error, y, y**2, np.ones((len(y), 1))], axis=1)
    sums, samples = resample_groups(sum_by_group(table, group_n), rng=rng)
    return r2_of_sums(sums[None], y.shape[1])[0], r2_of_sums(samples, y.shape[1])


def _scores(
    whole: Floats, parts: Floats, names: Sequence[str], means: Mapping[str, Sequence[str]], *, key: str
) -> dict[str, dict[str, Any]]:
    """Return the entry of each column of [A] with its samples [S, A], and of each mean over columns."""
    scores = {name: _entry(whole[a], parts[:, a], key=key) for a, name in enumerate(names)}
    for mean, members in means.items():
        # Averages leave out targets that do not vary, which have no R2.
        chosen = [a for a, name in enumerate(names) if name in members and np.isfinite(whole[a])]
        if chosen:
            scores[mean] = _entry(whole[chosen].mean(), parts[:, chosen].mean(1), key=key)
    return scores


def score_correlation(
    true: NDArray[np.floating[Any]],
    found: NDArray[np.floating[Any]],
    group_n: NDArray[np.integer[Any]],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Return Pearson's correlation of each column and their mean (`mean`), with 95 % intervals over groups.

    Args:
        true: [n, A].
        found: [n, A].
        group_n: the group of each row.
        names: of the columns.
        rng: of the bootstrap.

    Returns:
        {name: {"correlation": value, "ci95": [low, high]}}; None where a column does not vary.
    """
    x = true.astype(np.float64)
    y = found.astype(np.float64)
    table = np.concatenate([x, y, x**2, y**2, x * y, np.ones((len(x), 1))], axis=1)
    sums, samples = resample_groups(sum_by_group(table, group_n), rng=rng)
    whole = correlations_of_sums(sums[None], len(names))[0]
    parts = correlations_of_sums(samples, len(names))
    scores = {name: _entry(whole[a], parts[:, a], key="correlation") for a, name in enumerate(names)}
    return scores | {"mean": _entry(whole.mean(), parts.mean(1), key="correlation")}


def correlations_of_sums(sums: Floats, columns: int) -> Floats:
    """Return correlations [S, A] from sums [S, 5A + 1] of x, y, x squared, y squared, x y and 1."""
    x, y, xx, yy, xy = (sums[:, i * columns : (i + 1) * columns] for i in range(5))
    n = sums[:, -1:]
    spread_x = xx - x**2 / n
    spread_y = yy - y**2 / n
    # Rounding leaves a little spread in a constant column, so it is compared with the size of its values.
    known = (spread_x > 1e-9 * np.maximum(xx, 1e-12)) & (spread_y > 1e-9 * np.maximum(yy, 1e-12))
    size = np.sqrt(np.where(known, spread_x * spread_y, 1.0))
    return np.where(known, (xy - x * y / n) / size, np.nan)


def score_ratio(
    above: NDArray[np.floating[Any]],
    below: NDArray[np.floating[Any]],
    group_n: NDArray[np.integer[Any]],
    *,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return mean(above) / mean(below) of two [n], with its 95 % interval over groups: {"ratio", "ci95"}.

    Args:
        above: [n], the values of the numerator.
        below: [n], the values of the denominator.
        group_n: [n], the group of each row; the bootstrap samples whole groups.
        rng: of the bootstrap.

    Returns:
        {"ratio": value, "ci95": [low, high]}; None where the mean of `below` is not positive.
    """
    table = np.stack([above, below], axis=1).astype(np.float64)
    sums, samples = resample_groups(sum_by_group(table, group_n), rng=rng)
    # The inner `where` keeps the division from dividing by zero where the outer one takes NaN.
    whole, parts = (
        np.where(pair[..., 1] > 0, pair[..., 0] / np.where(pair[..., 1] > 0, pair[..., 1], 1), np.nan)
        for pair in (sums, samples)
    )
    return _entry(float(whole), parts, key="ratio")


def r2_of_sums(sums: Floats, columns: int) -> Floats:
    """Return R2 [S, A] from sums [S, 3A + 1] of squared error, y, y squared and 1."""
    error, total, square = (sums[:, i * columns : (i + 1) * columns] for i in range(3))
    spread = square - total**2 / sums[:, -1:]
    # As in `correlations_of_sums`: rounding leaves a little spread in a constant column.
    known = spread > 1e-9 * np.maximum(square, 1e-12)
    return np.where(known, 1 - error / np.where(known, spread, 1.0), np.nan)


def _entry(value: float, samples: Floats, *, key: str) -> dict[str, Any]:
    low, high = interval95(samples)
    return {key: finite(value), "ci95": [finite(low), finite(high)]}


def finite(value: float) -> float | None:
    """Return a number that JSON can hold, rounded to 5 digits; None for one that is not finite."""
    return round(float(value), 5) if np.isfinite(value) else None


def rank_correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return Spearman's correlation of two vectors, ties sharing their mean rank; NaN where one does not vary."""
    return correlation(ranks(a), ranks(b))


def correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Return Pearson's correlation of two vectors; NaN where one does not vary."""
    x = a.astype(np.float64) - a.mean()
    y = b.astype(np.float64) - b.mean()
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size > 1e-12 else float("nan")


def ranks(values: NDArray[np.floating[Any]]) -> Floats:
    """Return the rank of each value, from 1 on; equal values share their mean rank."""
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    shared: Floats = (last - (count - 1) / 2)[where]
    return shared

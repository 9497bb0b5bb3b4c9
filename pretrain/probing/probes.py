"""How much of one thing can be read from another: linear and small non-linear probes, with intervals over episodes.

Used to ask whether latent codes are actions (method specification 4 and 7, item 16). A probe is fitted on some
episodes, its one free number is chosen on others, and it is judged on a third set; rows of one episode are never on two
sides (`split_groups`), since neighboring steps are nearly copies of each other. R2 is taken about the mean of the rows
that are judged, so a probe that knows nothing scores 0 or a little less, and a bad one can be far below 0. Intervals
resample whole episodes for the same reason. No simulator, no model of ours, float64 throughout the linear part.
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
    """Deal whole groups out to train, validation and test; `shares` are those of validation and test.

    Raises:
        ValueError: fewer than three groups.
    """
    groups = np.unique(group_n)
    if len(groups) < 3:
        raise ValueError(f"a probe needs at least 3 episodes (training, validation, test), found {len(groups)}")
    order = rng.permutation(groups)
    validation, test = (max(1, round(share * len(groups))) for share in shares)
    validation = min(validation, len(groups) - 2)
    test = min(test, len(groups) - 1 - validation)
    sides = np.split(order, [len(groups) - validation - test, len(groups) - test])
    return Split(*(np.isin(group_n, side) for side in sides))


# ---------------------------------------------------------------------------------------------------------- linear


@dataclass(frozen=True, eq=False)
class LinearProbe:
    """Standardize [D], then weights [D, A] and bias [A]; `penalty` [A] was chosen for each target on its own."""

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats
    penalty: Floats

    def predict(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Targets [n, A] of features [n, D]."""
        answer: Floats = (features.astype(np.float64) - self.mean) / self.scale @ self.weight + self.bias
        return answer


def fit_linear(
    features: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]], split: Split, *, refit: bool = True
) -> LinearProbe:
    """Ridge regression: fitted on train, penalty chosen on validation, then fitted again on both (`refit`)."""
    path = [_ridge(features[split.train], targets[split.train], penalty) for penalty in PENALTIES]
    wanted = targets[split.validation]
    error = np.stack([((probe.predict(features[split.validation]) - wanted) ** 2).sum(0) for probe in path])
    best = np.asarray(PENALTIES)[error.argmin(0)]
    rows = split.train | split.validation if refit else split.train
    fitted = {penalty: _ridge(features[rows], targets[rows], penalty) for penalty in np.unique(best).tolist()}
    first = next(iter(fitted.values()))
    weight = np.stack([fitted[penalty].weight[:, a] for a, penalty in enumerate(best.tolist())], axis=1)
    return LinearProbe(first.mean, first.scale, weight, first.bias, best)


def _ridge(features: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]], penalty: float) -> LinearProbe:
    x, y = features.astype(np.float64), targets.astype(np.float64)
    mean, bias, scale = x.mean(0), y.mean(0), x.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = (x - mean) / scale
    gram = x.T @ x / len(x)
    weight = np.linalg.solve(gram + penalty * np.eye(len(gram)), x.T @ (y - bias) / len(x))
    return LinearProbe(mean, scale, weight, bias, np.full(y.shape[1], penalty))


def principal_components(features: NDArray[np.floating[Any]], width: int) -> tuple[Floats, Floats]:
    """Mean [D] and the first `width` (or fewer, if the data have fewer) principal directions [D, width]."""
    x = features.astype(np.float64)
    mean = x.mean(0)
    values, directions = np.linalg.eigh((x - mean).T @ (x - mean) / len(x))
    useful = min(width, int((values > 1e-12 * max(values[-1], 1e-300)).sum()))
    return mean, directions[:, ::-1][:, :useful]


# ------------------------------------------------------------------------------------------------------ non-linear


@dataclass(frozen=True, eq=False)
class MLPProbe:
    """A small network on standardized features; targets are standardized inside."""

    mean: Floats
    scale: Floats
    target_mean: Floats
    target_scale: Floats
    net: nn.Module

    def predict(self, features: NDArray[np.floating[Any]]) -> Floats:
        """Targets [n, A] of features [n, D]."""
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
    batch: int = 128,
) -> MLPProbe:
    """Two hidden layers, AdamW; the weights of the epoch that is best on validation are kept."""
    mean, target_mean = features[split.train].mean(0), targets[split.train].mean(0)
    scale, target_scale = (
        np.where(v > 1e-9, v, 1.0) for v in (features[split.train].std(0), targets[split.train].std(0))
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
        best, kept = float("inf"), net.state_dict()
        for _ in range(epochs):
            net.train()
            for rows in train[torch.randperm(len(train))].split(batch):
                optimizer.zero_grad()
                (net(x[rows]) - y[rows]).square().mean().backward()
                optimizer.step()
            net.eval()
            with torch.no_grad():
                error = float((net(x[validation]) - y[validation]).square().mean())
            if error < best:
                best, kept = error, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    return MLPProbe(mean, scale, target_mean, target_scale, net.eval())


# ------------------------------------------------------------------------------------------------------- judgment


def resample_groups(
    sums_GX: Floats, *, rng: np.random.Generator, samples: int = BOOTSTRAP_SAMPLES
) -> tuple[Floats, Floats]:
    """Sums [X] over all groups, and sums [S, X] over as many groups drawn with replacement, `samples` times."""
    count = len(sums_GX)
    times = rng.multinomial(count, np.full(count, 1 / count), size=samples).astype(np.float64)
    return sums_GX.sum(0), times @ sums_GX


def interval95(samples: Floats) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles of bootstrap samples; those without a value are left out."""
    known = samples[np.isfinite(samples)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, (0.025, 0.975))
    return float(low), float(high)


def sum_by_group(values: Floats, group_n: NDArray[np.integer[Any]]) -> Floats:
    """Sums [G, ...] of values [n, ...] over the rows of each group, groups in ascending order."""
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
    """R2 of each target with its 95 % interval over groups: {name: {"r2": value, "ci95": [low, high]}}.

    `means` adds averages over several targets, such as {"translation": ["dx", "dy", "dz"]}. A target that does not move
    in these rows has no R2 and is given as None.
    """
    y, error = true.astype(np.float64), (true.astype(np.float64) - predicted) ** 2
    ones = np.ones((len(y), 1))
    columns = len(names)
    sums, drawn = resample_groups(sum_by_group(np.concatenate([error, y, y**2, ones], axis=1), group_n), rng=rng)
    whole, parts = _r2(sums[None], columns)[0], _r2(drawn, columns)
    scores = {name: _entry(whole[a], parts[:, a]) for a, name in enumerate(names)}
    for mean, members in (means or {}).items():
        chosen = [a for a, name in enumerate(names) if name in members and np.isfinite(whole[a])]
        if chosen:
            scores[mean] = _entry(whole[chosen].mean(), parts[:, chosen].mean(1))
    return scores


def score_correlation(
    true: NDArray[np.floating[Any]],
    found: NDArray[np.floating[Any]],
    group_n: NDArray[np.integer[Any]],
    names: Sequence[str],
    *,
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Pearson's correlation of each column and their mean (`mean`), with 95 % intervals over groups.

    {name: {"correlation": value, "ci95": [low, high]}}; None where a column does not vary.
    """
    x, y = true.astype(np.float64), found.astype(np.float64)
    table = np.concatenate([x, y, x**2, y**2, x * y, np.ones((len(x), 1))], axis=1)
    sums, drawn = resample_groups(sum_by_group(table, group_n), rng=rng)
    whole, parts = _correlations(sums[None], len(names))[0], _correlations(drawn, len(names))
    scores = {name: _entry(whole[a], parts[:, a], key="correlation") for a, name in enumerate(names)}
    return scores | {"mean": _entry(whole.mean(), parts.mean(1), key="correlation")}


def _correlations(sums: Floats, columns: int) -> Floats:
    """Correlations [S, A] from sums [S, 5A + 1] of x, y, x squared, y squared, x y and 1."""
    x, y, xx, yy, xy = (sums[:, i * columns : (i + 1) * columns] for i in range(5))
    n = sums[:, -1:]
    spread_x, spread_y = xx - x**2 / n, yy - y**2 / n
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
    """Mean of `above` [n] over mean of `below` [n], with its 95 % interval over groups: {"ratio", "ci95"}."""
    table = np.stack([above, below], axis=1).astype(np.float64)
    sums, drawn = resample_groups(sum_by_group(table, group_n), rng=rng)
    whole, parts = (
        np.where(pair[..., 1] > 0, pair[..., 0] / np.where(pair[..., 1] > 0, pair[..., 1], 1), np.nan)
        for pair in (sums, drawn)
    )
    return _entry(float(whole), parts, key="ratio")


def _r2(sums: Floats, columns: int) -> Floats:
    """R2 [S, A] from sums [S, 3A + 1] of squared error, y, y squared and 1."""
    error, total, square = (sums[:, i * columns : (i + 1) * columns] for i in range(3))
    spread = square - total**2 / sums[:, -1:]
    known = spread > 1e-9 * np.maximum(square, 1e-12)
    return np.where(known, 1 - error / np.where(known, spread, 1.0), np.nan)


def _entry(value: float, samples: Floats, *, key: str = "r2") -> dict[str, Any]:
    low, high = interval95(samples)
    return {key: finite(value), "ci95": [finite(low), finite(high)]}


def finite(value: float) -> float | None:
    """A number that JSON can hold, rounded to 5 digits; None for one that is not finite."""
    return round(float(value), 5) if np.isfinite(value) else None


def rank_correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Spearman's correlation of two vectors, ties sharing their mean rank; NaN where one does not vary."""
    return correlation(_ranks(a), _ranks(b))


def correlation(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> float:
    """Pearson's correlation of two vectors; NaN where one does not vary."""
    x, y = a.astype(np.float64) - a.mean(), b.astype(np.float64) - b.mean()
    size = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / size) if size > 1e-12 else float("nan")


def _ranks(values: NDArray[np.floating[Any]]) -> Floats:
    _, where, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    ranks: Floats = (last - (count - 1) / 2)[where]
    return ranks

"""A map of the codes: whether steps with similar motion have similar codes, in whatever data set.

Figure A.6 of the paper, with numbers. Every step that moves is a vector of its code values; its label is the direction
of its translation, one of six (the axis with the largest share, and its sign). A plot in two dimensions misleads
easily, so there are numbers beside it: silhouettes in the full space by direction (should be high) and by source
(should be near 0), and how often the nearest neighbors in another data set move in the same direction.
"""

# R rows (steps that move) · D numbers of a step's codes · k neighbors
from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vw2_robot.errors import InputError

from .features import Quantizer, StepRows, code_values, project
from .probes import Split, finite, principal_components, score_ratio

DIRECTIONS = ("+x", "-x", "+y", "-y", "+z", "-z")
NEIGHBORS = 10
MAX_POINTS = 1500


def moving_rows(translation: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return True for the half of the steps that moves more than the median."""
    size = np.linalg.norm(translation, axis=1)
    # Relative to the data set, since units and speed differ between robots.
    moving: NDArray[np.bool_] = size > np.median(size)
    return moving


def directions(translation: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number in `DIRECTIONS` of each row [R]; axes are first scaled to equal spread."""
    # A robot that moves mostly sideways would else have two directions.
    scaled = translation / np.maximum(np.sqrt((translation**2).mean(0)), 1e-12)
    axis = np.abs(scaled).argmax(1)
    # Numbered as in DIRECTIONS: plus, then minus, of each axis.
    return 2 * axis + (np.take_along_axis(scaled, axis[:, None], 1)[:, 0] < 0)


def latent_map(sets: Sequence[StepRows], splits: Sequence[Split], quantizer: Quantizer, *, seed: int) -> dict[str, Any]:
    """Return points, silhouettes and neighbors of the steps that move, over all data sets.

    Args:
        sets: the steps of each data set.
        splits: of their rows; queries of neighbors are on the test side.
        quantizer: on the CPU.
        seed: of the points that are plotted, of UMAP and of intervals.
    """
    parts = []
    # One basis for all data sets: coordinates in two bases are no distances.
    known = np.concatenate([rows.difference[split.train] for rows, split in zip(sets, splits, strict=True)])
    for number, (rows, split) in enumerate(zip(sets, splits, strict=True)):
        translation = rows.motion[:, :3]
        chosen = np.flatnonzero(moving_rows(translation))
        width = rows.indices.shape[1] * sum(quantizer.levels)  # as many components as the one-hot codes have
        parts.append(
            {
                "code": code_values(rows.indices[chosen], quantizer),
                "pixels": project(known, rows.difference[chosen], width),
                "direction": directions(translation[chosen]),
                "source": np.full(len(chosen), number),
                "group": rows.group[chosen],
                "test": split.test[chosen],
            }
        )
    rng = np.random.default_rng([seed, 5])
    whole = {key: np.concatenate([part[key] for part in parts]) for key in ("code", "direction", "source")}
    # Silhouettes take all pairs of points, so there is a limit to them.
    sampled = rng.permutation(len(whole["code"]))[:MAX_POINTS]
    code, direction, source = (whole[key][sampled] for key in ("code", "direction", "source"))
    found: dict[str, Any] = {
        "directions": list(DIRECTIONS),
        "sources": [rows.name for rows in sets],
        "points": {"direction": direction.tolist(), "source": source.tolist(), **embed(code, seed=seed)},
        "silhouette": {"direction": finite(silhouette(code, direction))},
        "neighbors": {
            feature: {
                sets[i].name: {
                    sets[j].name: neighbor_agreement(parts[i], parts[j], feature, same=i == j, seed=seed)
                    for j in range(len(sets))
                }
                for i in range(len(sets))
            }
            for feature in ("code", "pixels")
        },
    }
    if len(sets) > 1:
        found["silhouette"]["source"] = finite(silhouette(code, source))
    return found


def embed(code: NDArray[np.float32], *, seed: int) -> dict[str, Any]:
    """Return points in two dimensions by principal components and, where umap-learn is installed, by UMAP."""
    mean, axes = principal_components(code, 2)
    flat = (code - mean) @ axes
    # Codes that vary in one direction only have a flat map.
    flat = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
    found = {"pca": np.round(flat, 3).tolist()}
    if importlib.util.find_spec("umap") is not None:
        import umap

        # With a seed UMAP runs in one thread, and warns where it is told otherwise.
        points = umap.UMAP(n_components=2, n_jobs=1, random_state=seed).fit_transform(code)
        found["umap"] = np.round(points.astype(float), 3).tolist()
    return found


def squared_distances(a: NDArray[np.floating[Any]], b: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the squared Euclidean distances [len(a), len(b)]."""
    x = a.astype(np.float64)
    y = b.astype(np.float64)
    # Rounding can make |x|² + |y|² - 2xy of equal points negative.
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T, 0.0)


def silhouette(points: NDArray[np.floating[Any]], label: NDArray[np.integer[Any]]) -> float:
    """Return the mean silhouette coefficient; NaN for fewer than two labels. A point alone in its label counts 0.

    Rousseeuw 1987: (b - a) / max(a, b), with a the mean distance to the other points of the same label and b the
    smallest mean distance to the points of another one.
    """
    labels = np.unique(label)
    if len(labels) < 2:
        return float("nan")
    member = label[:, None] == labels
    size = member.sum(0)
    total = np.sqrt(squared_distances(points, points)) @ member
    same_label = np.take_along_axis(total, np.searchsorted(labels, label)[:, None], 1)[:, 0]
    label_size = size[np.searchsorted(labels, label)]
    inside = same_label / np.maximum(label_size - 1, 1)  # without the point itself
    outside = np.where(member, np.inf, total / size).min(1)
    largest = np.maximum(inside, outside)
    score = np.where((label_size > 1) & (largest > 0), (outside - inside) / np.where(largest > 0, largest, 1.0), 0.0)
    return float(score.mean())


def neighbor_agreement(
    known: dict[str, Any], queries: dict[str, Any], feature: str, *, same: bool, seed: int
) -> dict[str, Any]:
    """Return how often the majority of the k nearest known steps has the direction of the query.

    Beside it the share of the commonest known direction, which is what a guess would reach.

    Args:
        known: steps to search in; within one data set those that are not on the test side.
        queries: steps to search for; those on the test side.
        feature: code or pixels.
        same: whether both are one data set.
        seed: of intervals.
    """
    searched = ~known["test"] if same else np.ones(len(known["test"]), bool)
    test = queries["test"]
    direction = known["direction"][searched]
    commonest = np.bincount(direction, minlength=6).argmax()
    distance = squared_distances(queries[feature][test], known[feature][searched])
    # Stable, since equal codes are common and their order would else depend on the sort.
    near = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBORS]
    votes = (direction[near][..., None] == np.arange(6)).sum(1)
    true = queries["direction"][test]
    group = queries["group"][test]
    ones = np.ones(len(true))

    def share(right: NDArray[np.bool_]) -> dict[str, Any]:
        return score_ratio(right.astype(float), ones, group, rng=np.random.default_rng([seed, 6]))

    return {"accuracy": share(votes.argmax(1) == true), "commonest": share(true == commonest)}


def nearest_steps(
    sets: Sequence[StepRows], splits: Sequence[Split], quantizer: Quantizer, *, queries: int, neighbors: int, seed: int
) -> list[list[tuple[int, int]]]:
    """Return (set, row) of some moving test steps, each with those of its nearest steps from other demonstrations.

    Queries alternate between the data sets and, within one, between directions; no two neighbors are of the same
    demonstration.

    Args:
        sets: the steps of each data set.
        splits: of their rows.
        quantizer: on the CPU.
        queries: how many steps.
        neighbors: how many for each.
        seed: of the choice of queries.

    Raises:
        InputError: nothing moves on the test side of a data set.
    """
    code = [code_values(rows.indices, quantizer) for rows in sets]
    where = [(i, r) for i, rows in enumerate(sets) for r in range(len(rows))]
    everything = np.concatenate(code)
    rng = np.random.default_rng([seed, 7])
    found = []
    for number in range(queries):
        i = number % len(sets)
        translation = sets[i].motion[:, :3]
        pool = np.flatnonzero(moving_rows(translation) & splits[i].test)
        if not len(pool):
            raise InputError(
                f"{sets[i].name}: no latent step of the test demonstrations moves; use more demonstrations (episodes) "
                "or a larger test_share"
            )
        # All six directions are shown in turn, as far as the test side has them.
        wanted = pool[directions(translation)[pool] == (number // len(sets)) % 6]
        row = int(rng.choice(wanted if len(wanted) else pool))
        order = np.argsort(squared_distances(code[i][row : row + 1], everything)[0], kind="stable")
        taken = {(i, int(sets[i].group[row]))}
        strip = [(i, row)]
        for j, r in (where[n] for n in order):
            if len(strip) <= neighbors and (j, int(sets[j].group[r])) not in taken:
                taken.add((j, int(sets[j].group[r])))
                strip.append((j, r))
        found.append(strip)
    return found


def code_use(sets: Sequence[StepRows], quantizer: Quantizer) -> dict[str, Any]:
    """Return histograms of codes (in total and by slot), and used, dead and perplexity of each slot and data set."""
    indices = np.concatenate([rows.indices for rows in sets])
    by_slot = [np.bincount(slot, minlength=quantizer.vocabulary) for slot in indices.T]
    total = np.sum(by_slot, axis=0)
    return {
        "histogram": total.tolist(),
        "by_slot": [counts.tolist() for counts in by_slot],
        **usage(total),
        "slots": [usage(counts) for counts in by_slot],
        "sets": {rows.name: usage(np.bincount(rows.indices.ravel(), minlength=quantizer.vocabulary)) for rows in sets},
    }


def usage(counts: NDArray[np.integer[Any]]) -> dict[str, Any]:
    """Return how many codes occur, how many do not, and their perplexity."""
    # 0 log 0 = 0.
    share = counts[counts > 0] / max(int(counts.sum()), 1)
    return {
        "used": int((counts > 0).sum()),
        "dead": int((counts == 0).sum()),
        "perplexity": finite(float(np.exp(-(share * np.log(share)).sum()))),
    }

"""The choice of labeled trajectories for a label fraction: stratified, nested and exact.

"10 % labels" is comparable between runs only if all of them choose the same trajectories. The choice is a pure function
of (strata, episode ids, fraction, seed), independent of file order, platform and Python's hash seed.

All fractions are prefixes of ONE order of the episodes, so with one seed 10 % is a subset of 20 % is a subset of 100 %,
and a fraction f selects exactly round(f * total). Rounding every stratum on its own by largest remainders would not be
nested: a stratum can lose a place when the total grows (the "Alabama paradox"). The order below is nested:

- first one episode of every stratum, the largest strata first;
- then place n goes to the stratum with the earliest deadline among those that may still grow. With g of `total`
  episodes, a stratum may hold its j-th episode once n exceeds (j-1) * total / g and must hold it when n reaches
  j * total / g. Serving the earliest deadline first keeps all deadlines, because at most n of them lie at or before n.

Hence no stratum ever holds more than its proportional share rounded up, and from the moment when every stratum's share
is at least one, none holds less than its share rounded down: the histogram is within one of proportional. Before that
moment the first rule has priority. Inside a stratum the order is that of sha256(seed, episode id).

This file only chooses; the reader (`sources.calvin`) leaves the actions of unlabeled trajectories unread.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json

FORMAT_VERSION = 1


def label_stratum(*, task: str | None, scene: str, instruction: str) -> str:
    """Return the stratum of a trajectory: its task, or scene and instruction (case and spacing ignored) without one.

    Args:
        task: name of the task; None or empty: not known.
        scene: name of the scene; used only without a task.
        instruction: text of the instruction; used only without a task.

    Returns:
        "task:" and the task, or "text:", scene and instruction.
    """
    return f"task:{task}" if task else f"text:{scene}:{' '.join(instruction.casefold().split())}"


def label_budget(total: int, fraction: float) -> int:
    """Return round(fraction * total), halves up.

    Raises:
        InputError: the fraction is not in [0, 1], or is positive and yet selects nothing.
    """
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"label_fraction must lie in [0, 1], found {fraction}")
    # Halves up: Python's round would round 0.5 to 0 and 1.5 to 2.
    budget = math.floor(fraction * total + 0.5)
    if fraction > 0.0 and budget == 0:
        raise InputError(
            f"label_fraction {fraction} of {total} trajectories selects none; use at least {0.5 / max(total, 1):.2g}"
        )
    return budget


def select_labels(strata: Sequence[str], episode_ids: Sequence[str], *, fraction: float, seed: int) -> list[int]:
    """Return the positions of the selected episodes, ascending; `strata[i]` is the stratum of `episode_ids[i]`.

    Args:
        strata: stratum of each episode, as from `label_stratum`.
        episode_ids: unique id of each episode, in the order of `strata`.
        fraction: share of the episodes to select, in [0, 1].
        seed: of the random order of episodes inside a stratum, and of strata that are tied.

    Raises:
        InputError: as from `label_order` and `label_budget`.
    """
    return sorted(label_order(strata, episode_ids, seed=seed)[: label_budget(len(episode_ids), fraction)])


def label_order(strata: Sequence[str], episode_ids: Sequence[str], *, seed: int) -> list[int]:
    """Return all positions in the order in which a growing label budget reveals them.

    Args:
        strata: stratum of each episode, as from `label_stratum`.
        episode_ids: unique id of each episode, in the order of `strata`.
        seed: of the random order of episodes inside a stratum, and of strata that are tied.

    Returns:
        Every index into `episode_ids` once.

    Raises:
        InputError: the lists differ in length, or an episode id occurs twice.
    """
    if len(strata) != len(episode_ids):
        raise InputError(f"{len(strata)} strata were given for {len(episode_ids)} episodes")
    repeated = [name for name, count in Counter(episode_ids).items() if count > 1]
    if repeated:
        raise InputError(f"episode ids must be unique, found {len(repeated)} repeated, for example {repeated[0]!r}")
    # Inside a stratum episodes are in random order; which stratum comes next is decided below.
    members: dict[str, list[int]] = {}
    for position, stratum in enumerate(strata):
        members.setdefault(stratum, []).append(position)
    for positions in members.values():
        positions.sort(key=lambda position: _rank(seed, "episode", episode_ids[position]))
    sizes = {stratum: len(positions) for stratum, positions in members.items()}
    taken: Counter[str] = Counter()
    order = []
    for stratum in _stratum_order(sizes, seed=seed):
        order.append(members[stratum][taken[stratum]])
        taken[stratum] += 1
    return order


def _stratum_order(sizes: dict[str, int], *, seed: int) -> list[str]:
    """Return for each place in the order the stratum that gets it; see the top of this file."""
    total = sum(sizes.values())
    # Strata with equal deadlines are ordered at random, but equally on every machine.
    tie = {stratum: _rank(seed, "stratum", stratum) for stratum in sizes}
    # First rule: one episode of every stratum, the largest first.
    order = sorted(sizes, key=lambda stratum: (-sizes[stratum], tie[stratum]))

    def opens_at(stratum: str, number: int) -> int:  # first n at which the share, rounded up, admits episode `number`
        return (number - 1) * total // sizes[stratum] + 1

    def due_at(stratum: str, number: int) -> int:  # first n at which the share, rounded down, demands it
        return -(-number * total // sizes[stratum])

    # Two heaps: strata that must not grow yet, by the place from which on they may, and the others by their deadline.
    waiting = [(opens_at(stratum, 2), tie[stratum], stratum, 2) for stratum in sizes if sizes[stratum] > 1]
    heapq.heapify(waiting)
    ready: list[tuple[int, str, str, int]] = []
    # Second rule: each further place goes to the earliest deadline among the strata that may grow.
    for place in range(len(order) + 1, total + 1):
        while waiting and waiting[0][0] <= place:
            _, _, stratum, number = heapq.heappop(waiting)
            heapq.heappush(ready, (due_at(stratum, number), tie[stratum], stratum, number))
        _, _, stratum, number = heapq.heappop(ready)
        order.append(stratum)
        if number < sizes[stratum]:
            heapq.heappush(waiting, (opens_at(stratum, number + 1), tie[stratum], stratum, number + 1))
    return order


def _rank(seed: int, kind: str, name: str) -> str:
    """Return a sort key that is random in the seed and equal on every machine."""
    return hashlib.sha256(f"{seed}\0{kind}\0{name}".encode()).hexdigest()


def labels_digest(episode_ids: Sequence[str]) -> str:
    """Return the sha256 of a set of episode ids; the order in which they are given does not matter."""
    return hashlib.sha256("\n".join(sorted(episode_ids)).encode()).hexdigest()


@dataclass(frozen=True)
class Labels:
    """The content of `labels.json`: the labeled trajectories, the number of all, and the settings of the choice."""

    fraction: float
    seed: int
    total: int
    episode_ids: tuple[str, ...]
    strata: dict[str, tuple[int, int]]  # stratum -> (selected, available)

    @property
    def digest(self) -> str:
        """Digest of the choice, stored in checkpoints."""
        return labels_digest(self.episode_ids)


def choose_labels(strata: Sequence[str], episode_ids: Sequence[str], *, fraction: float, seed: int) -> Labels:
    """Select trajectories, and count the selected ones of each stratum.

    Args:
        strata: stratum of each episode, as from `label_stratum`.
        episode_ids: unique id of each episode, in the order of `strata`.
        fraction: share of the episodes to select, in [0, 1].
        seed: of the random order of episodes inside a stratum, and of strata that are tied.

    Returns:
        The selected ids in the order of `episode_ids`, the counts, and the settings of the choice.

    Raises:
        InputError: as from `select_labels`.
    """
    selected = select_labels(strata, episode_ids, fraction=fraction, seed=seed)
    chosen = Counter(strata[position] for position in selected)
    available = Counter(strata)
    return Labels(
        fraction=fraction,
        seed=seed,
        total=len(episode_ids),
        episode_ids=tuple(episode_ids[position] for position in selected),
        strata={stratum: (chosen[stratum], available[stratum]) for stratum in sorted(available)},
    )


def write_labels(path: Path, labels: Labels) -> None:
    """Write `labels.json` with a checksum of its content."""
    content = {"format_version": FORMAT_VERSION, "digest": labels.digest, **asdict(labels)}
    write_json(path, content, sealed=True)


def read_labels(path: Path) -> Labels:
    """Read `labels.json` and check its digest, and its checksum if it has one.

    Raises:
        InputError: the file is missing, damaged or was edited.
    """
    content = read_json(path, cure="it is written by vw2-finetune: copy it again from its run")
    try:
        if content["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path} has format version {content['format_version']}, expected {FORMAT_VERSION}")
        labels = Labels(
            fraction=float(content["fraction"]),
            seed=int(content["seed"]),
            total=int(content["total"]),
            episode_ids=tuple(str(name) for name in content["episode_ids"]),
            strata={name: (int(pair[0]), int(pair[1])) for name, pair in content["strata"].items()},
        )
        found = str(content["digest"])
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not a label file written by vw2-finetune ({error!r})") from error
    if found != labels.digest:
        raise InputError(f"{path} was edited: its digest is {found[:12]}, its episodes give {labels.digest[:12]}")
    return labels

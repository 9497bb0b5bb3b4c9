"""Mixtures of Open-X data sets: which sets, with which weight, and where each of them lies.

    members = open_mixture("octo", "/data/openx")          # or "openvla", "videoworld2", or a yaml file of your own
    sources = [(member.open(), member.weight) for member in members]      # what `ClipStream` takes

A weight multiplies the size of a set. `octo` and `openvla` carry the published weights; `videoworld2` holds every set
of the table that shows the robot from outside, each with weight 1. Your own file is one line for each set, `name:
weight`. Sets whose only camera is on the wrist are left out unless `wrist_only` is true or your own file names them.

Below `root` (a folder or `gs://...`) a set is looked for as `<name or alias>/<version>`, the way the public bucket is
laid out, so `root="gs://gresearch/robotics"` reads from there. Nothing is downloaded: what is missing is answered in
one error that holds the copy commands.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_yaml

from .openx import OpenXSource, all_sources, copy_command, find_source
from .rlds import RldsSource
from .rlds_builder import list_files

MIXTURES = ("octo", "openvla", "videoworld2")


@dataclass(frozen=True)
class Member:
    """One data set of a mixture: its row in the table, the folder of the version to read, and its weight."""

    source: OpenXSource
    path: str
    weight: float

    def open(self, *, splits: Sequence[str] = ("train",), max_skipped: int = 10) -> RldsSource:
        """Open the set as a source of episodes."""
        return RldsSource(self.path, splits=splits, source=self.source, max_skipped=max_skipped)


def open_mixture(mixture: str | Path, root: str | os.PathLike[str], *, wrist_only: bool = False) -> list[Member]:
    """Return the data sets of a mixture that lie below `root`.

    Args:
        mixture: one of `MIXTURES`, or a yaml file with `name: weight`.
        root: a folder or a bucket.
        wrist_only: also use sets whose only camera is on the wrist, where the mixture has them.

    Raises:
        InputError: no such mixture, a bad weight, or missing data sets (all of them, with copy commands).
    """
    where = os.fspath(root).rstrip("/")
    weights = mixture_weights(mixture, wrist_only=wrist_only)
    members: list[Member] = []
    missing: list[OpenXSource] = []
    for same in _recordings(list(weights)):
        found = [(source, path) for source in same if (path := find_set(source, where)) is not None]
        if found:
            members.append(Member(*found[0], weights[found[0][0]]))
        else:
            missing.append(same[-1])
    if missing:
        commands = "".join(f"\n  {copy_command(source, where)}" for source in missing)
        raise InputError(
            f"{where} lacks {len(missing)} of the {len(members) + len(missing)} data sets of {str(mixture)!r}: "
            f"{', '.join(source.name for source in missing)}; leave them out (with a yaml file of your own, "
            f"name: weight) or copy them:{commands}"
        )
    return members


def mixture_weights(mixture: str | Path, *, wrist_only: bool = False) -> dict[OpenXSource, float]:
    """Return the data sets of a mixture with their weights, wherever they lie."""
    if str(mixture) not in MIXTURES:
        return _read(Path(mixture))
    weights = {source: _published_weight(source, str(mixture)) for source in all_sources()}
    return {s: weight for s, weight in weights.items() if weight > 0 and (wrist_only or not s.wrist_only)}


def _published_weight(source: OpenXSource, mixture: str) -> float:
    if mixture == "videoworld2":
        return float(source.left_out is None)
    return source.octo_weight if mixture == "octo" else source.openvla_weight


def find_set(source: OpenXSource, root: str) -> str | None:
    """Return the folder of a data set below `root`: the version of the table if it is there, else the newest."""
    for name in (source.name, *source.aliases):
        found = [file.rpartition("/")[0] for file in list_files(root, f"{name}/*/dataset_info.json")]
        if found:
            usual = [folder for folder in found if folder.endswith(f"/{source.version}")]
            return usual[0] if usual else max(found, key=_version)
    return None


def _version(folder: str) -> tuple[int, ...]:
    numbers = folder.rpartition("/")[2].split(".")
    return tuple(int(number) for number in numbers) if all(map(str.isdecimal, numbers)) else ()


def _recordings(sources: Sequence[OpenXSource]) -> list[list[OpenXSource]]:
    """Group conversions of the same recordings; of each group one is used, the later conversion if it is there."""
    groups: dict[str, list[OpenXSource]] = {}
    for source in sources:
        groups.setdefault(source.same_as or source.name, []).insert(0, source)
    return list(groups.values())


def _read(path: Path) -> dict[OpenXSource, float]:
    if not path.is_file():
        raise InputError(f"{path} is neither a mixture ({', '.join(MIXTURES)}) nor a yaml file of name: weight")
    cure = "expected one line for each data set, such as bridge_dataset: 1.0"
    content = read_yaml(path, cure=cure)
    if not content:
        raise InputError(f"{path} holds no mixture; {cure}")
    weights: dict[OpenXSource, float] = {}
    for name, weight in content.items():
        source = find_source(str(name))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise InputError(f"{path}: the weight of {name} must be a positive number, found {weight!r}")
        if source in weights:
            raise InputError(f"{path} names {source.name} twice, the second time as {name}")
        weights[source] = float(weight)
    return weights

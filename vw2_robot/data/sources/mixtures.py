"""Mixtures of Open-X data sets: the data sets, their weights and their folders.

    members = open_mixture("octo", "/data/openx")          # or "openvla", "videoworld2", or a yaml file of your own
    sources = [(member.open(), member.weight) for member in members]      # for `ClipStream`

A weight multiplies the size of a data set. `octo` and `openvla` have the published weights; `videoworld2` holds every
data set of the table that shows the robot from outside, each with weight 1. A yaml file has one line for each data set,
`name: weight`. Data sets whose only camera is on the wrist are left out unless `wrist_only` is true or the yaml file
names them.

Below `root` (a folder or `gs://...`) a data set is expected at `<name or alias>/<version>`, as in the public bucket, so
`root="gs://gresearch/robotics"` reads from there. Nothing is downloaded: one error lists all missing data sets with the
commands that copy them.
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
    """One data set of a mixture: its row in the table, its folder, and its weight."""

    source: OpenXSource
    path: str
    weight: float

    def open(self, *, splits: Sequence[str] = ("train",), max_skipped: int = 10) -> RldsSource:
        """Open the data set as a source of episodes; arguments as for `RldsSource`."""
        return RldsSource(self.path, splits=splits, source=self.source, max_skipped=max_skipped)


def open_mixture(mixture: str | Path, root: str | os.PathLike[str], *, wrist_only: bool = False) -> list[Member]:
    """Return the data sets of a mixture that lie below `root`.

    Args:
        mixture: one of `MIXTURES`, or a yaml file with `name: weight`.
        root: a folder or a bucket.
        wrist_only: also use data sets of the mixture whose only camera is on the wrist.

    Raises:
        InputError: there is no such mixture, a weight is not positive, or data sets are missing (the message lists all
            of them with the commands that copy them).
    """
    where = os.fspath(root).rstrip("/")
    weights = mixture_weights(mixture, wrist_only=wrist_only)
    members: list[Member] = []
    missing: list[OpenXSource] = []
    # Conversions of the same recordings form one group. One of each group is used, the later conversion if it exists.
    groups: dict[str, list[OpenXSource]] = {}
    for source in weights:
        groups.setdefault(source.same_as or source.name, []).insert(0, source)
    for same in groups.values():
        # Later conversions come first in their group.
        found = [(source, path) for source in same if (path := find_set(source, where)) is not None]
        if found:
            members.append(Member(*found[0], weights[found[0][0]]))
        else:
            # If none of the group is here, the message names the conversion that comes first in the table.
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
    """Return the data sets of a mixture with their weights, without looking for their folders.

    Raises:
        InputError: there is no such mixture, or a weight is not positive.
    """
    if str(mixture) not in MIXTURES:
        return _read_mixture(Path(mixture))
    weights: dict[OpenXSource, float] = {}
    for source in all_sources():
        if str(mixture) == "videoworld2":
            weights[source] = float(source.left_out is None)
        else:
            weights[source] = source.octo_weight if str(mixture) == "octo" else source.openvla_weight
    return {s: weight for s, weight in weights.items() if weight > 0 and (wrist_only or not s.wrist_only)}


def find_set(source: OpenXSource, root: str) -> str | None:
    """Return the folder of a data set below `root`, or None: the version of the table if it exists, else the newest."""

    def version(folder: str) -> list[int]:
        # Compared as numbers: 0.10.0 is newer than 0.9.0.
        numbers = folder.rpartition("/")[2].split(".")
        return [int(number) for number in numbers] if all(map(str.isdecimal, numbers)) else []

    for name in (source.name, *source.aliases):
        found = [file.rpartition("/")[0] for file in list_files(root, f"{name}/*/dataset_info.json")]
        if found:
            usual = [folder for folder in found if folder.endswith(f"/{source.version}")]
            return usual[0] if usual else max(found, key=version)
    return None


def _read_mixture(path: Path) -> dict[OpenXSource, float]:
    """Return the mixture in a yaml file."""
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

"""The table of Open-X data sets: image, instruction, frame rate and origin of each.

The rows are data in `openx_sources.yaml`, not code. `image_key` and `wrist_key` are names inside a step's `observation`
(some contain slashes: they are names, not paths); `language_key` is the path from the step to the instruction. Rates
follow two public conversion tables. Weights are those of the two published mixtures and multiply the size of a data
set; 0 means not used there.

A row describes the usual version; `rlds.RldsSource` checks it against the features of the copy on disk. Only images,
instructions and rates matter here: actions of other robots never enter fine-tuning. Nothing is downloaded.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from vw2_robot.errors import InputError

from ..step_names import OBSERVATION

STEP_TEXT = ("language_instruction",)
OBSERVATION_TEXT = (OBSERVATION, "natural_language_instruction")
BUCKET = "gs://gresearch/robotics"
_EXTERNAL = "_converted_externally_to_rlds"
_TABLE = Path(__file__).with_name("openx_sources.yaml")


@dataclass(frozen=True)
class OpenXSource:
    """One data set of the table."""

    name: str
    image_key: str
    hz: float | None
    """frames per second; None if each episode stores its own rate"""
    language_key: tuple[str, ...] = STEP_TEXT
    wrist_key: str | None = None
    """equal to `image_key` if the wrist camera, or that of a mobile robot, is the only one"""
    octo_weight: float = 0.0
    openvla_weight: float = 0.0
    aliases: tuple[str, ...] = ()
    note: str = ""
    other_image_keys: tuple[str, ...] = ()
    """names of the same image in other versions of the set"""
    version: str = "0.1.0"
    url: str | None = None
    """origin if the data set is not in the Open-X bucket: an address, or the command that records it"""
    action: str = "unknown"
    """how the stored action becomes seven numbers: a key of `action_rules()`"""
    license: str = "unknown"
    same_as: str | None = None
    """another conversion of the same recordings"""
    left_out: str | None = None
    """why the mixture `videoworld2` does not hold the data set"""

    @property
    def wrist_only(self) -> bool:
        """Whether no camera shows the robot from outside."""
        return self.image_key == self.wrist_key

    @property
    def image_keys(self) -> tuple[str, ...]:
        """All names of the image, the usual one first."""
        return (self.image_key, *self.other_image_keys)


@functools.cache
def all_sources() -> tuple[OpenXSource, ...]:
    """Return all rows, in the order of the table."""
    return tuple(_source(name, row) for name, row in _table()["sources"].items())


@functools.cache
def action_rules() -> Mapping[str, str]:
    """Return name -> meaning of the action rules."""
    return dict(_table()["actions"])


@functools.cache
def _table() -> dict[str, Any]:
    with _TABLE.open(encoding="utf-8") as file:
        table: dict[str, Any] = yaml.safe_load(file)
    return table


def _source(name: str, row: Mapping[str, Any]) -> OpenXSource:
    """Return a row of the yaml table as an object."""
    # A data set with a wrist camera only uses that one. A list names the image of other versions, too.
    images = row.get("image", row.get("wrist"))
    image, *others = [images] if isinstance(images, str) else images
    text = row["text"]
    places = {"step": STEP_TEXT, OBSERVATION: OBSERVATION_TEXT}
    return OpenXSource(
        name=name,
        image_key=image,
        hz=row["hz"],
        language_key=places[text] if isinstance(text, str) else tuple(text),
        wrist_key=row.get("wrist"),
        octo_weight=row.get("octo", 0.0),
        openvla_weight=row.get("openvla", 0.0),
        aliases=(*([name.removesuffix(_EXTERNAL)] if name.endswith(_EXTERNAL) else []), *row.get("names", ())),
        note=row.get("note", ""),
        other_image_keys=tuple(others),
        version=row.get("version", "0.1.0"),
        url=row.get("url"),
        action=row["action"],
        license=row["license"],
        same_as=row.get("same_as"),
        left_out=row.get("left_out"),
    )


@functools.cache
def _by_name() -> dict[str, OpenXSource]:
    return {name: source for source in all_sources() for name in (source.name, *source.aliases)}


def find_source(name: str) -> OpenXSource:
    """Return the row of a data set, by name or alias.

    Raises:
        InputError: the name is unknown; lists the nearest ones.
    """
    known = _by_name()
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name.lower(), known, n=4, cutoff=0.5)
    suggestion = (
        f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(row.name for row in all_sources())}"
    )
    raise InputError(
        f"{name!r} is not in the table of Open-X sources ({suggestion}); give image_key and hz for a data set of your "
        "own"
    )


def known_source(name: str) -> OpenXSource | None:
    """Return the row of a data set, or None if the table does not have it."""
    return _by_name().get(name)


def copy_command(source: OpenXSource, root: str) -> str:
    """Return the shell command that copies a data set to the place below `root` where `open_mixture` finds it."""
    root = root.rstrip("/")
    if source.url is None:
        # gsutil copies into a folder only if it exists; buckets have no folders.
        make = "" if "://" in root else f"mkdir -p {root}/{source.name} && "
        return f"{make}gsutil -m cp -r {BUCKET}/{source.name}/{source.version} {root}/{source.name}/"
    if source.url.startswith("https://"):
        # wget repeats the path of the address below the folder: cut it off.
        above = urlsplit(source.url).path.strip("/").count("/")
        return f'wget -r -np -nH --cut-dirs={above} -R "index.html*" -P {root} {source.url}'
    return f"{source.url} out={root}/{source.name}"

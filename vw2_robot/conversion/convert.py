"""Program `vw2-convert`: convert a data set into another format, with its actions unchanged and their meaning stated.

    vw2-convert in=data/task_D_D out=data/task_D_D_lerobot format=lerobot
    vw2-convert in=data/mine out=data/mine_rlds/1.0.0 format=rlds latents=runs/first

Episodes are written file by file into `<out>.parts`, which becomes `out` when all is there. `shards/` in it notes what
is complete and where the source goes on, so a conversion that is killed at any moment and started again continues with
the next file.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tqdm import tqdm

from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.errors import InputError
from vw2_robot.storage.binding import bind_folder, check_same_config
from vw2_robot.storage.files import read_json, sync_files, write_json
from vw2_robot.storage.locks import lock_folder

from .action_meaning import ActionMeaning
from .calvin_shards import CalvinShards
from .config import ConvertConfig
from .latent_column import LatentColumn, open_latents, with_latents
from .lerobot_shards import LeRobotShards
from .open_records import CONVERSION_FILE, RecordSource, open_records
from .records import ACTION_COLUMN, Form, Record, without_actions
from .rlds_shards import RldsShards

SHARDS = ".shards"
PLAN = "plan.json"
_ADVICE = "Use another out, or delete that folder"


class Shards(Protocol):
    """The writer of a format."""

    def write(self, number: int, records: Sequence[Record]) -> dict[str, Any]:
        """Write a shard of episodes of one split, and return the facts that `add` takes."""

    def add(self, facts: dict[str, Any]) -> None:
        """Count a shard that is complete."""

    def finish(self, description: str) -> None:
        """Write the files that describe the whole data set."""


class Place(NamedTuple):
    """A place in a source: the part, and the number of the episode in it."""

    part: int
    start: int


def convert(config: ConvertConfig) -> dict[str, Any]:
    """Convert a data set, or finish doing so; return the content of `conversion.json`.

    Raises:
        InputError: the data set cannot be read or converted, or `out` holds something else.
    """
    out = Path(config.out)
    work = out.with_name(out.name + ".parts")
    source, meaning = open_records(config)
    _check_output(source.path, out, work)
    plan = _plan(config, source)
    with lock_folder(work, what="a conversion", beside=True):
        if out.exists():
            return _finished(out, plan)
        latents = open_latents(config)
        # The first episode of each split shows what cannot be converted, before anything is written.
        first, *others = _first_records(source, config, latents)
        form = Form.of(first)
        for record in others:
            form.check(record)
        shards = _open_shards(config, work, form, first, meaning, robot=source.name)
        (work / SHARDS).mkdir(parents=True, exist_ok=True)
        bind_folder(work, plan, file=work / SHARDS / PLAN, holds="another conversion", advice=_ADVICE)
        totals = _write_shards(config, source, latents, form, shards, work / SHARDS)
        about = {"source": source.name, "format": config.format, "hz": form.hz, **totals}
        if ACTION_COLUMN in form.numbers:
            about["action"] = meaning.facts()
        if latents is not None:
            about["latent_tokens"] = latents.facts
        shards.finish(_description(about))
        write_json(work / CONVERSION_FILE, {**about, "plan": plan}, sealed=True)
        sync_files((work,))
        work.rename(out)
        sync_files((out.parent,))
        return _finished(out, plan)


def _check_output(source: Path, out: Path, work: Path) -> None:
    """Refuse an output inside the data set or above it, and one where something else lies.

    Raises:
        InputError: one of the two folders contains the other, or the work would mix with other files.
    """
    inside, outside = out.resolve(), source.resolve()
    if inside == outside or inside in outside.parents or outside in inside.parents:
        raise InputError(f"out={out} and in={source} contain one another; give a folder of its own")
    for folder in (out, work):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give another out")
    if work.is_dir() and not (work / SHARDS / PLAN).is_file() and any(file.name != SHARDS for file in work.iterdir()):
        raise InputError(f"{work} holds something that is no begun conversion; give another out, or move it away")


def _plan(config: ConvertConfig, source: RecordSource) -> dict[str, Any]:
    """Return what decides the content of `out`: the configuration, and what the source holds."""
    parts = json.dumps([(split, part.name, part.episodes) for split, part in source.parts()])
    tree = {key.rstrip("_"): value for key, value in config_tree(config).items() if key != "out"}
    return {**tree, "parts": hashlib.sha256(parts.encode()).hexdigest()}


def _finished(out: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Return the description of a finished conversion, and remove the notes of its shards.

    Raises:
        InputError: the folder is none, or one of another data set or configuration.
    """
    file = out / CONVERSION_FILE
    if not file.is_file():
        raise InputError(f"{out} exists already and is no conversion; use another out")
    about = read_json(file, cure="delete the folder and convert again", sealed=True)
    check_same_config(out, about.pop("plan"), plan, holds="another conversion", advice=_ADVICE)
    shutil.rmtree(out / SHARDS, ignore_errors=True)
    return about


def _first_records(source: RecordSource, config: ConvertConfig, latents: LatentColumn | None) -> list[Record]:
    """Return the first episode of each split, one at least.

    Raises:
        InputError: there is none.
    """
    found: dict[str, Record] = {}
    for part, (split, _) in enumerate(source.parts()):
        if split not in found:
            for _, record in _records(source, config, latents, Place(part, 0)):
                found[record.split] = record
                break
    if not found:
        raise InputError(f"{source.path} holds no episode")
    return list(found.values())


def _open_shards(
    config: ConvertConfig, work: Path, form: Form, first: Record, meaning: ActionMeaning, *, robot: str
) -> Shards:
    """Return the writer of the wanted format, after it has checked that it can write such episodes.

    Args:
        config: of the conversion.
        work: folder to write to.
        form: of all episodes.
        first: the first of them.
        meaning: of their action.
        robot: name of the source.
    """
    if config.format == "lerobot":
        return LeRobotShards(work, form, meaning, storage=config.storage, robot=robot)
    if config.format == "rlds":
        return RldsShards(work, form, first, out=Path(config.out).resolve())
    if ACTION_COLUMN in first.numbers and "calvin.rel_actions" not in first.numbers:
        meaning.to_calvin(first.numbers[ACTION_COLUMN], first.where)
    return CalvinShards(work, form, meaning, robot=robot)


def _write_shards(
    config: ConvertConfig,
    source: RecordSource,
    latents: LatentColumn | None,
    form: Form,
    shards: Shards,
    notes: Path,
) -> dict[str, int]:
    """Write the shards that are missing, and return how many episodes and frames there are in all.

    Args:
        config: of the conversion.
        source: the data set.
        latents: their column, or None.
        form: of all episodes.
        shards: writer of the format.
        notes: folder of the notes about complete shards.
    """
    place = Place(0, 0)
    totals = {"episodes": 0, "frames": 0}
    number = 0

    def note(number: int) -> Path:
        return notes / f"shard-{number:06d}.json"

    def count(found: dict[str, Any]) -> Place:
        shards.add(found["shard"])
        for key in totals:
            totals[key] += found[key]
        return Place(*found["next"])

    while note(number).is_file():
        place = count(read_json(note(number), cure=f"delete {notes.parent} and convert again", sealed=True))
        number += 1
    counts = [part.episodes for _, part in source.parts()]
    total = sum(each for each in counts if each is not None) if None not in counts else None
    with tqdm(desc="convert", total=total, initial=totals["episodes"], unit="episode", disable=None) as bar:

        def checked() -> Iterator[tuple[Place, Record]]:
            for behind, record in _records(source, config, latents, place):
                form.check(record)
                bar.update()
                yield behind, record

        for records, behind in _batches(checked(), config.frames_per_file):
            facts = shards.write(number, records)
            found = {"shard": facts, "next": behind, "episodes": len(records), "frames": sum(map(len, records))}
            # With its note the shard is complete; a kill before it makes the shard again.
            write_json(note(number), found, sealed=True)
            count(found)
            number += 1
    return totals


def _batches(records: Iterator[tuple[Place, Record]], frames_per_file: int) -> Iterator[tuple[list[Record], Place]]:
    """Yield the episodes of each shard, and the place behind them.

    A shard ends where `frames_per_file` is reached and where a split ends: it does not matter where this began.
    """
    waiting: list[Record] = []
    after = Place(0, 0)
    for behind, record in records:
        if waiting and record.split != waiting[0].split:
            yield waiting, after
            waiting = []
        waiting.append(record)
        after = behind
        if sum(map(len, waiting)) >= frames_per_file:
            yield waiting, after
            waiting = []
    if waiting:
        yield waiting, after


def _records(
    source: RecordSource, config: ConvertConfig, latents: LatentColumn | None, place: Place
) -> Iterator[tuple[Place, Record]]:
    """Yield the episodes from a place on as they are written, each with the place behind it."""
    for part in range(place.part, len(source.parts())):
        start = place.start if part == place.part else 0
        for number, record in zip(itertools.count(start + 1), source.read(part, start=start), strict=False):
            kept = without_actions(record) if config.actions == "drop" else record
            yield Place(part, number), kept if latents is None else with_latents(kept, latents)


def _description(about: dict[str, Any]) -> str:
    """Return the text that goes with a converted data set."""
    action = about.get("action", {}).get("text", "there are no actions")
    codes = about.get("latent_tokens", {}).get("text")
    lines = [
        f"Converted by vw2-convert from {about['source']}: {about['episodes']} episodes, {about['frames']} frames, "
        f"{about['hz']:g} Hz.",
        f"{action[0].upper()}{action[1:]}.",
        *([f"{codes[0].upper()}{codes[1:]}."] if codes else []),
    ]
    return "\n\n".join(lines)


def main(config: ConvertConfig) -> None:
    """Console script `vw2-convert`."""
    about = convert(config)
    print(f"{config.out}: {_description(about)}")


if __name__ == "__main__":
    entry_points.convert.main()

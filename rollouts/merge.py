"""Merging of shards: the shards of one rollout become one rollout in their common run_dir.

    runs/eval/shard_0_of_8 ... shard_7_of_8 -> runs/eval

The shard that finishes last merges all of them; `vw2-rollout merge=true run_dir=runs/eval` does the same at any time.
Rows, videos and recordings of the result are the bytes of a rollout without shards, since a row does not depend on
where it was computed. Shards that differ in anything but their chains are refused, and so are missing and unfinished
ones. Merging again gives the same files.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.command_line.config_tree import differing_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.binding import bind_folder
from vw2_robot.storage.files import atomic_write, read_json, read_yaml, write_json, write_text, write_yaml
from vw2_robot.storage.locks import lock_folder

from . import results
from .evaluate import Row
from .recording import FOLDER
from .report.report import write_report
from .selection import parse_shard, shard_folder
from .video import drop_other_videos, select_chains, video_paths

SHARD_KEYS = ("shard", "num_sequences", "num_sequences_of_all_shards")
"""keys of provenance.json that differ between shards"""
CHANGEABLE_KEYS = ("shard", "run_dir", "workers", "retries", "merge")
"""keys of config.yaml that may differ between shards"""
CURE = "copy it again, or start that shard again"


@dataclass(frozen=True)
class RolloutShard:
    """One finished shard as it is on disk.

    Attributes:
        folder: Its folder.
        config: Content of config.yaml.
        provenance: Content of provenance.json.
        rows: Its chains.
        seconds: Chain -> seconds.
    """

    folder: Path
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[Row]
    seconds: dict[int, float]


def merge(run_dir: str | Path) -> dict[str, Any]:
    """Merge the shards below `run_dir` into it.

    Args:
        run_dir: What the shards were given as run_dir.

    Returns:
        The content of summary.json.

    Raises:
        InputError: There are no shards, one is missing or unfinished, they are of different rollouts, or the folder
            holds another rollout.
    """
    target = Path(run_dir)
    shards = [_read_shard(folder) for folder in find_shards(target)]
    # 1. All shards must be of one rollout: the same configuration, policy, benchmark and versions.
    first = shards[0]
    shared = _without(first.provenance, SHARD_KEYS)
    for other in shards[1:]:
        names = differing_keys(shared, _without(other.provenance, SHARD_KEYS))
        names += differing_keys(_without(first.config, CHANGEABLE_KEYS), _without(other.config, CHANGEABLE_KEYS))
        if names:
            raise InputError(f"{other.folder} is no shard of the rollout in {first.folder}: {', '.join(names)}")
    # 2. What describes the rollout, and its rows.
    rows = [row for shard in shards for row in shard.rows]
    seconds = {number: spent for shard in shards for number, spent in shard.seconds.items()}
    provenance = shared | {"num_sequences": first.provenance["num_sequences_of_all_shards"]}
    # Merged again: the same. Another rollout in this folder is not overwritten.
    bind_folder(
        target,
        provenance,
        file=target / "provenance.json",
        holds="another rollout beside the shards",
        advice="Move the shards to an empty folder, or delete the files beside them",
    )
    # As if it had run without shards: started again in the same folder it would find all chains done.
    write_yaml(target / "config.yaml", first.config | {"shard": None})
    results.write_sorted(target / "results.jsonl", rows)
    # Not among the bytes that are equal: times differ from run to run.
    timing = [results.sealed_line({"sequence": number, "seconds": spent}) for number, spent in seconds.items()]
    write_text(target / "timing.jsonl", "\n".join([*timing, ""]))
    # 3. The videos that one rollout would have kept. Each of them was kept by its shard, too (`select_chains`).
    kept = select_chains(rows, first.config["videos"])
    drop_other_videos(target / "videos", kept)
    for shard in shards:
        for number in kept & {row["sequence"] for row in shard.rows}:
            paths = video_paths(shard.folder / "videos", number)
            _copy([path for path in paths if path != paths.animation or path.is_file()], target / "videos")
        _copy(sorted((shard.folder / FOLDER).glob("chain_*.npz")), target / FOLDER)
    # 4. Summary and report, from all rows.
    summary = results.summarize(rows, provenance, seconds=sum(seconds.values()))
    write_json(target / "summary.json", summary, sealed=True)
    write_report([target], target)
    return summary


def merge_if_last(run_dir: str | Path, shard: str) -> str:
    """Merge the shards if all of them are finished. Each shard calls this after its last file is written.

    No lock is needed for the decision. A shard first writes its summary and then looks for those of the others, so the
    shard that finishes last sees all of them. If two shards see all of them at the same time, both are right, and one
    of them gets the lock of the folder.

    Args:
        run_dir: What the shards were given as run_dir.
        shard: The shard that has finished, "i/n".

    Returns:
        A message for the user: what was done, or what remains to be done.
    """
    target = Path(run_dir)
    _, count = parse_shard(shard)
    later = f"vw2-rollout merge=true run_dir={run_dir}"
    try:
        finished = sum(_is_finished(target / shard_folder(f"{number}/{count}")) for number in range(count))
        if finished < count:
            return f"{finished} of {count} shards are finished; the one that finishes last merges them"
        with lock_folder(target, what="a merge of shards"):
            merge(target)
    except InputError as error:  # this shard is finished and right, whatever is wrong with the others
        return f"the shards are not merged here: {error} (to merge them later: {later})"
    return f"all {count} shards are finished; merged in {target}"


def _is_finished(folder: Path) -> bool:
    """Return whether a shard has written its summary over all of its chains."""
    if not (folder / "provenance.json").is_file():
        return False
    provenance = read_json(folder / "provenance.json", cure=CURE)
    return results.counted_chains(folder) == provenance.get("num_sequences")


def find_shards(target: Path) -> list[Path]:
    """Return the folders of all shards, in order.

    Args:
        target: What the shards were given as run_dir.

    Raises:
        InputError: There are none, some are missing, or there are shards of different n.
    """
    found = {
        (int(match[1]), int(match[2])): folder
        for folder in sorted(target.glob("shard_*_of_*"))
        if (match := re.fullmatch(r"shard_(\d+)_of_(\d+)", folder.name))
    }
    counts = {count for _, count in found}
    if not found:
        raise InputError(f"{target} holds no shards (shard_0_of_N, ...); make them with vw2-rollout shard=0/N ...")
    # Leftovers of another division: which of them is meant only the user knows.
    if len(counts) > 1:
        raise InputError(f"{target} holds shards i/n of n = {sorted(counts)}; remove those that are not wanted")
    (count,) = counts
    if missing := [f"{number}/{count}" for number in range(count) if (number, count) not in found]:
        raise InputError(f"{target} lacks shard {', '.join(missing)}; run vw2-rollout shard={missing[0]} there first")
    return [found[number, count] for number in range(count)]


def _read_shard(folder: Path) -> RolloutShard:
    """Return a finished shard."""
    rows = results.read_rows(folder / "results.jsonl")
    provenance_file = folder / "provenance.json"
    config_file = folder / "config.yaml"
    # A shard that has not started has neither; the message below says so with "?".
    has_both = provenance_file.is_file() and config_file.is_file()
    provenance = read_json(provenance_file, cure=CURE) if has_both else {}
    num_sequences = provenance.get("num_sequences")
    if not isinstance(num_sequences, int) or len(rows) < num_sequences:
        raise InputError(
            f"{folder} has {len(rows)} of {num_sequences or '?'} chains; start that shard again to finish it"
        )
    config = read_yaml(config_file, cure=CURE)
    for file, values, key in (
        (provenance_file, provenance, "num_sequences_of_all_shards"),
        (config_file, config, "videos"),
    ):
        if not isinstance(values.get(key), int):
            raise InputError(f'{file} lacks "{key}"; {CURE}')
    return RolloutShard(folder, config, provenance, rows, results.read_seconds(folder / "timing.jsonl"))


def _without(values: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}


def _copy(files: Sequence[Path], folder: Path) -> None:
    """Copy files into a folder, each under a temporary name first."""
    for file in files:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)

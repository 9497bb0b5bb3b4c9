"""Program `vw2-merge`: the shards of one rollout become one rollout.

    vw2-merge run_dir=runs/eval          # runs/eval/shard_0_of_8 ... shard_7_of_8 -> runs/eval

Rows, videos and recordings of the result are the bytes of a rollout without shards, since a row does not know where it
was made. Shards that differ in anything but their chains are refused by name, as are shards that are missing or not
finished. Can be run again at any time.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.command_line.config_tree import differing_keys
from vw2_robot.command_line.program import program
from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_write, read_json, read_yaml, write_json, write_text, write_yaml
from vw2_robot.storage.locks import lock_folder

from . import results
from .evaluate import Row
from .recording import FOLDER
from .report.report import write_report
from .video import drop_other_videos, select_chains, video_paths

OF_A_SHARD = ("shard", "num_sequences", "num_sequences_of_all_shards")


@dataclass(frozen=True)
class MergeConfig:
    """The root of `vw2-merge`."""

    run_dir: str
    """what the shards were given as run_dir"""


@dataclass(frozen=True)
class RolloutShard:
    """One finished shard as it lies on disk."""

    folder: Path
    config: dict[str, Any]
    origin: dict[str, Any]
    rows: list[Row]
    seconds: dict[int, float]


def merge(run_dir: str | Path) -> dict[str, Any]:
    """Put the shards below `run_dir` together in it; returns the summary.

    Raises:
        InputError: no shards, a shard that is missing or unfinished, or shards of different rollouts.
    """
    target = Path(run_dir)
    shards = [_read(folder) for folder in find_shards(target)]
    first = shards[0]
    for other in shards[1:]:
        pairs = [(_shared(first.origin), _shared(other.origin))]
        pairs += [(_without(first.config, "shard"), _without(other.config, "shard"))]
        names = [name for pair in pairs for name in differing_keys(*pair)]
        if names:
            raise InputError(f"{other.folder} is no shard of the rollout in {first.folder}: {', '.join(names)}")
    rows = [row for shard in shards for row in shard.rows]
    origin = _shared(first.origin) | {"num_sequences": first.origin["num_sequences_of_all_shards"]}
    seconds = {number: spent for shard in shards for number, spent in shard.seconds.items()}
    write_yaml(target / "config.yaml", first.config | {"shard": None})
    write_json(target / "provenance.json", origin, sealed=True)
    results.write_sorted(target / "results.jsonl", rows)
    timing = [results.sealed_line({"sequence": number, "seconds": spent}) for number, spent in seconds.items()]
    write_text(target / "timing.jsonl", "\n".join([*timing, ""]))
    _gather_videos(target, shards, count=first.config["videos"])
    for shard in shards:
        for file in sorted((shard.folder / FOLDER).glob("chain_*.npz")):
            _copy(file, target / FOLDER / file.name)
    summary = results.summarize(rows, origin, seconds=sum(seconds.values()))
    write_json(target / "summary.json", summary, sealed=True)
    write_report([target], target)
    return summary


def find_shards(target: Path) -> list[Path]:
    """The folders of all shards, in order.

    Raises:
        InputError: there are none, some are missing, or there are those of several divisions.
    """
    found = {
        (int(match[1]), int(match[2])): folder
        for folder in sorted(target.glob("shard_*_of_*"))
        if (match := re.fullmatch(r"shard_(\d+)_of_(\d+)", folder.name))
    }
    counts = {count for _, count in found}
    if not found:
        raise InputError(f"{target} holds no shards (shard_0_of_N, ...); make them with vw2-rollout shard=0/N ...")
    if len(counts) > 1:
        raise InputError(f"{target} holds shards of {sorted(counts)} pieces; remove those that do not count")
    (count,) = counts
    if missing := [f"{number}/{count}" for number in range(count) if (number, count) not in found]:
        raise InputError(f"{target} lacks shard {', '.join(missing)}; run vw2-rollout shard={missing[0]} there first")
    return [found[number, count] for number in range(count)]


def _read(folder: Path) -> RolloutShard:
    again = "copy it again, or start that shard again"
    rows = results.read_rows(folder / "results.jsonl")
    files = [folder / name for name in ("provenance.json", "config.yaml")]
    origin = with_new_keys(read_json(files[0], cure=again)) if all(file.is_file() for file in files) else {}
    asked = origin.get("num_sequences")
    if not isinstance(asked, int) or len(rows) < asked:
        raise InputError(f"{folder} has {len(rows)} of {asked or '?'} chains; start that shard again to finish it")
    config = with_new_keys(read_yaml(files[1], cure=again))
    for file, values, key in ((files[0], origin, "num_sequences_of_all_shards"), (files[1], config, "videos")):
        if not isinstance(values.get(key), int):
            raise InputError(f'{file} lacks "{key}"; {again}')
    return RolloutShard(folder, config, origin, rows, results.read_seconds(folder / "timing.jsonl"))


def _shared(origin: dict[str, Any]) -> dict[str, Any]:
    return _without(origin, *OF_A_SHARD)


def _without(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in (*keys, "run_dir", "workers", "retries")}


def _gather_videos(target: Path, shards: Sequence[RolloutShard], *, count: int) -> None:
    """Copy the videos that one rollout would have kept: each of them was kept by its shard, too."""
    kept = select_chains({row["sequence"]: row["solved"] for shard in shards for row in shard.rows}, count)
    drop_other_videos(target / "videos", kept)
    for shard in shards:
        for number in kept & {row["sequence"] for row in shard.rows}:
            for path in video_paths(shard.folder / "videos", number):
                _copy(path, target / "videos" / path.name)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        shutil.copyfile(source, temporary)


@program(MergeConfig, config_name="merge", extra="report")
def main(config: MergeConfig) -> None:
    """Console script `vw2-merge`."""
    with lock_folder(Path(config.run_dir), what="a merge of shards"):
        summary = merge(config.run_dir)
    print("\n".join(f"{name:<15} {text}" for name, text in results.five_lines(summary)))
    print(f"report: {Path(config.run_dir) / 'report.html'}")


if __name__ == "__main__":
    main()

"""Join recordings of vw2-record into one data set: the same files under new numbers, and the labels of all.

    python -m benchmarks.results.join_recordings --out runs/results/data/ABCD runs/results/data/D runs/results/data/ABC

All must be on one disk: the files are hard links and take no space. A stopped run continues when started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.sources.calvin import CalvinSplit
from vw2_robot.envs.instructions import load_instructions
from vw2_robot.errors import InputError


def join(out: Path, parts: Sequence[Path]) -> int:
    """Write both splits of `out`, recordings in the order of `parts`; return their number.

    Raises:
        InputError: a part has no recordings of vw2-record, or the parts of a scene do not follow one another, as
            the format's table of scenes requires.
    """
    instructions = {task: lines[0] for task, lines in load_instructions("validation").items()}
    count = 0
    for split in get_args(CalvinSplit):
        writer = CalvinWriter(out, split)
        begin = 0
        seen = [""]
        for folder in (part / split for part in parts):
            if not (folder / ".record").is_dir():
                raise InputError(f"{folder} holds no recordings of vw2-record")
            entries = CalvinWriter(folder.parent, split).entries()
            if not entries:
                continue
            for entry in entries:
                # The format stores one range of frames per scene, so a scene cannot come back.
                if entry.scene != seen[-1] and entry.scene in seen:
                    raise InputError(f"{folder}: scene {entry.scene} again after {seen[-1]}; name the parts by scene")
                seen.append(entry.scene)
                # Recordings that an interrupted run has joined already are skipped.
                if not writer.is_complete(begin + entry.first):
                    writer.adopt(folder, entry, first_frame=begin + entry.first)
            # Frames of the next part are numbered after those of this one.
            begin += entries[-1].last + 1
            count += len(entries)
        writer.finish(instructions)
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Join the recordings of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    print(f"{join(args.out, args.parts)} recordings: {args.out}")


if __name__ == "__main__":
    main()

"""Program `vw2-rollout`: the only place where a policy and a simulator meet.

    vw2-rollout policy=random num_sequences=20 workers=2 run_dir=runs/random
    vw2-rollout policy=runs/first/finetune env=calvin num_sequences=1000 workers=8 run_dir=runs/first/rollout

Leaves in `run_dir`: config.yaml, provenance.json, results.jsonl, timing.jsonl, summary.json, videos/, report.html,
table.md, table.tex, log.txt. Killed and started again it continues; the results are those of an uninterrupted run.
"""

from __future__ import annotations

import functools
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from vw2_robot.checkpoint import write_text
from vw2_robot.cli import program
from vw2_robot.config_tree import config_tree, differing_keys
from vw2_robot.errors import InputError, require
from vw2_robot.runs import mark, read_mark

from . import results
from .config import RolloutConfig, open_crew, provenance
from .evaluate import Row, replan_interval, unfinished
from .report import write_report
from .video import drop_films, drop_other_films, select_chains
from .workers import Protocol, run_alone, run_in_workers

FREE = ("run_dir", "workers")  # keys that may change between two starts in one folder
SAY_EVERY_S = 30.0
LEGACY_NOTE = (
    "note: legacy resets carry solver state from one chain to the next, so results depend on how chains are split over "
    "workers and on interruptions; env.reset_mode=exact has no such memory"
)


class Log:
    """Everything a rollout leaves behind while it runs: rows, timing, films, progress."""

    def __init__(self, folder: Path, *, total: int, videos: int) -> None:
        self.folder, self.total, self.videos = folder, total, videos
        for name in ("results.jsonl", "timing.jsonl"):
            results.drop_torn_line(folder / name)
        self.rows: list[Row] = results.read_rows(folder / "results.jsonl")
        drop_other_films(folder / "videos", set(self.kept()))
        self._bar = tqdm(
            total=total,
            initial=len(self.rows),
            desc="rollout",
            unit="chain",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._said = time.monotonic()

    def kept(self) -> dict[int, int]:
        """Chains that have a film so far -> subtasks solved."""
        solved = {row["sequence"]: row["solved"] for row in self.rows}
        return {number: solved[number] for number in select_chains(solved, self.videos)}

    def add(self, row: Row, seconds: float) -> None:
        """Take a finished chain: its row is on disk when this returns."""
        results.append_line(self.folder / "timing.jsonl", {"sequence": row["sequence"], "seconds": round(seconds, 4)})
        results.append_line(self.folder / "results.jsonl", row)
        self.rows.append(row)
        # Only chains with a row: a film without one belongs to a worker that is about to report.
        drop_films(self.folder / "videos", {row["sequence"] for row in self.rows} - self.kept().keys())
        self._bar.set_postfix_str(f"chain {row['sequence']}, success 1..5: {self._running()}", refresh=False)
        self._bar.update()
        if self._bar.disable and (time.monotonic() - self._said > SAY_EVERY_S or len(self.rows) == self.total):
            self._said = time.monotonic()
            self.say(f"chain {len(self.rows)}/{self.total}, success 1..5: {self._running()}")

    def _running(self) -> str:
        counts = [sum(row["solved"] >= i for row in self.rows) for i in range(1, results.CHAIN_LENGTH + 1)]
        return " ".join(f"{100 * count / len(self.rows):.0f}" for count in counts) + " %"

    def say(self, message: str) -> None:
        """A line for people: terminal and log.txt."""
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def finish(self, origin: dict[str, Any]) -> dict[str, Any]:
        """Sort the rows, write summary.json and return it."""
        self._bar.close()
        results.write_sorted(self.folder / "results.jsonl", self.rows)
        seconds = sum(results.read_seconds(self.folder / "timing.jsonl").values())
        summary = results.summarize(self.rows, origin, seconds=seconds)
        mark(self.folder / "summary.json", summary)
        return summary


def check_config(folder: Path, config: RolloutConfig) -> None:
    """See that the folder is free or holds a rollout with this configuration.

    Raises:
        InputError: it holds another one; names the keys.
    """
    file = folder / "config.yaml"
    if file.is_file():
        old = yaml.safe_load(file.read_text(encoding="utf-8"))
        before, now = ({k: v for k, v in tree.items() if k not in FREE} for tree in (old, config_tree(config)))
        _refuse(folder, "another configuration", differing_keys(before, now))


def claim(folder: Path, config: RolloutConfig, origin: dict[str, Any]) -> None:
    """Make the folder this rollout's, once all its parts are known to work.

    What the configuration's names stand for counts too: a retrained policy in the same place is another policy.

    Raises:
        InputError: the folder's rows came from something else; names what differs.
    """
    file = folder / "provenance.json"
    if (old := read_mark(file)) is not None:
        _refuse(folder, "another policy, world or library version", differing_keys(old, origin))
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(config_tree(config), sort_keys=False))
    mark(file, origin)


def _refuse(folder: Path, what: str, names: list[str]) -> None:
    if names:
        raise InputError(
            f"{folder} holds a rollout with {what}; these keys differ: {', '.join(names)}. "
            "Use another run_dir, or delete this folder to start over"
        )


def rollout(config: RolloutConfig) -> dict[str, Any]:
    """Run or continue the evaluation; returns its summary."""
    if config.videos:
        require("imageio_ffmpeg", extra="report")
    folder = Path(config.run_dir)
    check_config(folder, config)
    policy, benchmark = open_crew(config)
    try:
        sequences = benchmark.sequences(config.num_sequences)
        every = replan_interval(policy, config.replan_every)
        origin = provenance(config, policy, benchmark, sequences, replan_every=every)
        claim(folder, config, origin)
        log = Log(folder, total=len(sequences), videos=config.videos)
        waiting = unfinished(sequences, log.rows)
        if len(waiting) < len(sequences):
            log.say(f"{len(sequences) - len(waiting)} of {len(sequences)} chains are done, going on with the rest")
        if benchmark.metadata.get("reset_mode") == "legacy" and (config.workers > 1 or len(waiting) < len(sequences)):
            log.say(LEGACY_NOTE)
        protocol = Protocol(replan_every=every, seed=config.seed, videos=config.videos, video_dir=folder / "videos")
        if min(config.workers, len(waiting)) <= 1:
            run_alone(policy, benchmark, waiting, protocol, kept=log.kept, on_row=log.add)
        else:
            build = functools.partial(open_crew, config)
            run_in_workers(build, waiting, protocol, workers=config.workers, kept=log.kept, on_row=log.add)
    finally:
        benchmark.close()
    summary = log.finish(origin)
    write_report([folder], folder)
    log.say("\n".join(f"{name:<15} {text}" for name, text in results.five_lines(summary)))
    return summary


@program(RolloutConfig, config_name="rollout")
def main(config: RolloutConfig) -> None:
    """Console script `vw2-rollout`."""
    rollout(config)
    print(f"report: {Path(config.run_dir) / 'report.html'}")


if __name__ == "__main__":
    main()

"""A rollout while it runs: rows on disk as they come, videos to keep, and what a person sees meanwhile.

On a terminal a bar, elsewhere a line twice a minute: running success 1 to 5, average length with its interval, time
left. After 50 chains the interval is said once in a line of its own: often it is enough to stop.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vw2_robot.storage.files import append_line, write_json

from . import results
from .evaluate import Row
from .statistics import mean_interval
from .video import drop_other_videos, drop_videos, select_chains

LOG_EVERY_SECONDS = 30.0
EARLY_CHAINS = 50


class Log:
    """Everything a rollout leaves behind while it runs: rows, timing, videos, progress."""

    def __init__(self, folder: Path, *, total: int, videos: int) -> None:
        self.folder, self.total, self.videos = folder, total, videos
        for name in ("results.jsonl", "timing.jsonl"):
            results.drop_torn_line(folder / name)
        self.rows: list[Row] = results.read_rows(folder / "results.jsonl")
        self._seconds = results.read_seconds(folder / "timing.jsonl")
        if len(self.rows) < results.counted_chains(folder):  # taken away; they are run again and summed up anew
            (folder / "summary.json").unlink()
        drop_other_videos(folder / "videos", set(self.kept()))
        self._bar = tqdm(
            total=total,
            initial=len(self.rows),
            desc="rollout",
            unit="chain",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._begun_with, self._begin = len(self.rows), time.monotonic()
        self._said = self._begin

    def kept(self) -> dict[int, int]:
        """Chains that have a video so far -> subtasks solved."""
        solved = {row["sequence"]: row["solved"] for row in self.rows}
        return {number: solved[number] for number in select_chains(solved, self.videos)}

    def add(self, row: Row, seconds: float) -> None:
        """Take a finished chain: its row is on disk when this returns."""
        self._seconds[row["sequence"]] = round(seconds, 4)
        results.append_seconds(self.folder / "timing.jsonl", row["sequence"], seconds)
        results.append_row(self.folder / "results.jsonl", row)
        self.rows.append(row)
        # Only chains with a row: a video without one belongs to a worker that is about to report.
        drop_videos(self.folder / "videos", {row["sequence"] for row in self.rows} - self.kept().keys())
        self._bar.set_postfix_str(self.standing(), refresh=False)
        self._bar.update()
        done, now = len(self.rows), time.monotonic()
        if done == EARLY_CHAINS and self.total > EARLY_CHAINS:
            self.say(f"after {done} chains: {self.standing()}")
        elif self._bar.disable and (now - self._said > LOG_EVERY_SECONDS or done == self.total):
            self._said = now
            self.say(f"chain {done}/{self.total}, {self.standing()}, {self._left()}")

    def standing(self) -> str:
        """Average length with its interval, and success at 1, 2, ... in percent, of the chains so far."""
        solved = [row["solved"] for row in self.rows]
        length = results.longest_chain(self.rows)
        low, high = mean_interval(solved, lowest=0, highest=length)
        rates = " ".join(f"{100 * sum(n >= i for n in solved) / len(solved):.0f}" for i in range(1, length + 1))
        span = f"1..{length}" if length > 1 else "1"
        return f"average length {sum(solved) / len(solved):.2f} [{low:.2f}, {high:.2f}], success {span}: {rates} %"

    def _left(self) -> str:
        done = len(self.rows) - self._begun_with
        seconds = (time.monotonic() - self._begin) / done * (self.total - len(self.rows))
        minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
        return f"{hours}:{minutes:02d}:{int(seconds) % 60:02d} left"

    def say(self, message: str) -> None:
        """A line for people: terminal and log.txt."""
        tqdm.write(message, file=sys.stdout)
        sys.stdout.flush()
        append_line(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}")

    def finish(self, origin: dict[str, Any], *, rows: list[Row] | None = None) -> dict[str, Any]:
        """Sort the rows (or take these alone), write summary.json and return it."""
        self._bar.close()
        self.rows = self.rows if rows is None else rows
        drop_other_videos(self.folder / "videos", set(self.kept()))
        results.write_sorted(self.folder / "results.jsonl", self.rows)
        spent = sum(self._seconds.get(row["sequence"], 0.0) for row in self.rows)
        summary = results.summarize(self.rows, origin, seconds=spent)
        write_json(self.folder / "summary.json", summary, sealed=True)
        return summary

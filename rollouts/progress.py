"""The log of a running rollout: rows, times and videos on disk, and messages to the user.

On a terminal it shows a progress bar, elsewhere it writes a line twice a minute: success at 1 to 5, average length with
its interval, time left. After 50 chains the interval is logged once: often it is narrow enough to stop.
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


class RolloutLog:
    """Rows, times, videos and progress of a rollout, kept up to date while it runs."""

    def __init__(self, folder: Path, *, total: int, videos: int) -> None:
        """Read what an earlier start left in the folder, and repair what a kill damaged.

        Args:
            folder: Folder of the rollout.
            total: Number of chains of the rollout.
            videos: Number of chains to keep a video of.
        """
        self.folder = folder
        self.total = total
        self.videos = videos
        # A kill can leave half a line at the end; a new line appended to it would damage both.
        for name in ("results.jsonl", "timing.jsonl"):
            results.drop_torn_line(folder / name)
        self.rows: list[Row] = results.read_rows(folder / "results.jsonl")
        self._seconds = results.read_seconds(folder / "timing.jsonl")
        # Fewer rows than the summary counted: rows were removed. Their chains run again, so the summary is out of date.
        if len(self.rows) < results.counted_chains(folder):
            (folder / "summary.json").unlink()
        drop_other_videos(folder / "videos", set(self.video_chains()))
        self._bar = tqdm(
            total=total,
            initial=len(self.rows),
            desc="rollout",
            unit="chain",
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )
        self._initial_rows = len(self.rows)
        self._start_time = time.monotonic()
        self._last_message_time = self._start_time

    def video_chains(self) -> dict[int, Row]:
        """Return the chains to keep a video of, among those finished so far: number -> row."""
        numbers = select_chains(self.rows, self.videos)
        return {row["sequence"]: row for row in self.rows if row["sequence"] in numbers}

    def add(self, row: Row, seconds: float) -> None:
        """Take a finished chain; its row is on disk when this returns.

        Args:
            row: The chain's row.
            seconds: Time that the chain took.
        """
        self._seconds[row["sequence"]] = round(seconds, 4)
        # The time first: a row without a time would be counted as 0 seconds, a time without a row is replaced.
        results.append_seconds(self.folder / "timing.jsonl", row["sequence"], seconds)
        results.append_row(self.folder / "results.jsonl", row)
        self.rows.append(row)
        # Only chains with a row: a video without a row belongs to a worker that is about to report.
        # `video_chains` changes as rows come: a better chain displaces a kept one.
        drop_videos(self.folder / "videos", {row["sequence"] for row in self.rows} - self.video_chains().keys())
        self._bar.set_postfix_str(self.success_text(), refresh=False)
        self._bar.update()
        done = len(self.rows)
        now = time.monotonic()
        if done == EARLY_CHAINS and self.total > EARLY_CHAINS:
            self.message(f"after {done} chains: {self.success_text()}")
        elif self._bar.disable and (now - self._last_message_time > LOG_EVERY_SECONDS or done == self.total):
            self._last_message_time = now
            seconds_left = (now - self._start_time) / (done - self._initial_rows) * (self.total - done)
            hours = int(seconds_left // 3600)
            minutes = int(seconds_left // 60) % 60
            left = f"{hours}:{minutes:02d}:{int(seconds_left) % 60:02d} left"
            self.message(f"chain {done}/{self.total}, {self.success_text()}, {left}")

    def success_text(self) -> str:
        """Return average length with its interval, and success at 1, 2, ... in percent, of the chains so far."""
        solved = [row["solved"] for row in self.rows]
        length = results.longest_chain(self.rows)
        low, high = mean_interval(solved, lowest=0, highest=length)
        rates = " ".join(f"{100 * sum(n >= i for n in solved) / len(solved):.0f}" for i in range(1, length + 1))
        span = f"1..{length}" if length > 1 else "1"
        return f"average length {sum(solved) / len(solved):.2f} [{low:.2f}, {high:.2f}], success {span}: {rates} %"

    def message(self, text: str) -> None:
        """Print a line and append it to log.txt."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
        append_line(self.folder / "log.txt", f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}")

    def finish(self, provenance: dict[str, Any], *, rows: list[Row] | None = None) -> dict[str, Any]:
        """Sort the rows, write summary.json and return its content.

        Args:
            provenance: Content of provenance.json.
            rows: Keep these rows alone; None: all.
        """
        self._bar.close()
        self.rows = self.rows if rows is None else rows
        drop_other_videos(self.folder / "videos", set(self.video_chains()))
        results.write_sorted(self.folder / "results.jsonl", self.rows)
        seconds = sum(self._seconds.get(row["sequence"], 0.0) for row in self.rows)
        summary = results.summarize(self.rows, provenance, seconds=seconds)
        write_json(self.folder / "summary.json", summary, sealed=True)
        return summary

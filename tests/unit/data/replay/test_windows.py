"""One suite for both replay engines, and what is special to each."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import make_windows
from vw2_robot.data.episodes import Episode, EpisodeSource, Part, encode_jpeg
from vw2_robot.data.replay import reverb_server
from vw2_robot.data.replay.ingest import IngestPlan, fingerprint, ingest
from vw2_robot.data.replay.memory_replay import MemoryReplay, fed_by
from vw2_robot.data.replay.open_replay import ReplayConfig, open_replay
from vw2_robot.data.replay.reverb_reader import ReverbReader
from vw2_robot.data.replay.reverb_server import ReplayServer
from vw2_robot.data.replay.reverb_tables import ServerOptions, load_reverb
from vw2_robot.data.replay.reverb_writer import ReverbWriter
from vw2_robot.data.replay.windows import (
    Delivered,
    Mode,
    Progress,
    Replay,
    ReplayTimeout,
    ReplayWindow,
    ReplayWriter,
    cut_episode,
    decode,
    share_of,
    window_of,
)
from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.replay_programs.fill import ReplayFillConfig, fill_server
from vw2_robot.storage.files import write_json

OPTIONS = WindowOptions(num_frames=5, temporal_stride=2, window_stride=2)
FRAME_BYTES = 1000


class Numbered:
    """A source whose images are bytes that name themselves; part p holds episodes of the given lengths."""

    def __init__(
        self, parts: list[list[int]], *, name: str = "numbered", damaged: tuple[int, int] | None = None
    ) -> None:
        self.name, self.lengths, self.damaged = name, parts, damaged

    def parts(self) -> list[Part]:
        return [Part(f"part-{number}", len(lengths)) for number, lengths in enumerate(self.lengths)]

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        for number in range(start, len(self.lengths[part])):
            if self.damaged == (part, number):
                raise InputError(f"{self.name}, part-{part} is cut off in episode {number}")
            name = f"{part}/{number}"
            images = tuple(
                f"{self.name} {name} {frame} ".encode().ljust(FRAME_BYTES, b"\0")
                for frame in range(self.lengths[part][number])
            )
            yield Episode(self.name, name, f"do {name}", 10.0, images)


SOURCE = Numbered([[9, 1, 12], [4, 7], [11, 0, 3, 8]])


def expected(source: Numbered, options: WindowOptions = OPTIONS) -> Counter[tuple[str, int]]:
    """(episode, start) of every window, once each."""
    found: Counter[tuple[str, int]] = Counter()
    for part, lengths in enumerate(source.lengths):
        for number, length in enumerate(lengths):
            windows = make_windows(
                length,
                num_frames=options.num_frames,
                cache_stride=options.window_stride,
                hz=10.0,
                temporal_stride=options.temporal_stride,
            )
            found.update((f"{part}/{number}", start) for start in windows.start.tolist())
    return found


def drawn(windows: list[ReplayWindow]) -> Counter[tuple[str, int]]:
    return Counter((window.episode_id, window.start) for window in windows)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Engine:
    """One replay of one rank in a test: open it, close it, open it again from its checkpoint."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.port = kind, folder, free_port()
        self.server: ReplayServer | None = None
        self.memory: MemoryReplay | None = None
        self.opened: list[ReverbWriter | ReverbReader] = []

    def open(
        self, mode: Mode = "queue", *, windows: int = 100, timeout_seconds: float = 5.0
    ) -> tuple[ReplayWriter, Replay]:
        """Of room for about `windows` windows that do not overlap."""
        if self.kind == "memory":
            size = windows * OPTIONS.num_frames * FRAME_BYTES
            self.memory = MemoryReplay(
                mode=mode, max_bytes=size, seed=0, path=self.folder, timeout_seconds=timeout_seconds
            )
            return self.memory, self.memory
        options = ServerOptions(mode=mode, num_frames=5, temporal_stride=2, max_windows=windows)
        self.server = ReplayServer(options, path=self.folder, port=self.port)
        address = f"127.0.0.1:{self.port}"
        writer, reader = ReverbWriter(address, timeout_seconds=timeout_seconds), ReverbReader(address)
        self.opened += [writer, reader]
        return writer, reader

    def close(self) -> None:
        for one in self.opened:
            one.close()
        self.opened.clear()
        if self.memory is not None:
            self.memory.close()
        if self.server is not None:
            self.server.stop()
        self.memory = self.server = None


@pytest.fixture(params=["memory", "reverb"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    if request.param == "reverb":
        pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    made = Engine(request.param, tmp_path / "replay")
    yield made
    made.close()


def fill(source: EpisodeSource, writer: ReplayWriter, **plan: Any) -> None:
    ingest([(source, 1.0)], IngestPlan(OPTIONS, **plan), writer)


# ------------------------------------------------------------------------------------------------------ both engines


def test_a_queue_delivers_every_window_once_and_then_says_so(engine: Engine) -> None:
    writer, replay = engine.open()
    fill(SOURCE, writer)
    assert not replay.finished
    windows = replay.sample(5, timeout_seconds=5)
    assert len(windows) == 5
    windows += replay.sample(1000, timeout_seconds=5)
    assert drawn(windows) == expected(SOURCE)
    assert replay.finished
    assert replay.sample(3, timeout_seconds=5) == []
    assert replay.size() == 0


def test_a_queue_delivers_every_epoch(engine: Engine) -> None:
    writer, replay = engine.open()
    fill(SOURCE, writer, epochs=3)
    windows = replay.sample(1000, timeout_seconds=5)
    for epoch in range(3):
        assert drawn([window for window in windows if window.epoch == epoch]) == expected(SOURCE)


def test_a_window_is_delivered_as_it_was_cut(engine: Engine) -> None:
    writer, replay = engine.open()
    fill(SOURCE, writer)
    for window in replay.sample(1000, timeout_seconds=5):
        part, number = map(int, window.episode_id.split("/"))
        length = SOURCE.lengths[part][number]
        wanted = [f"numbered {window.episode_id} {window.start + i} " for i in range(5) if window.start + i < length]
        assert [frame.rstrip(b"\0").decode() for frame in window.frames] == wanted + [""] * (5 - len(wanted))
        assert (window.source, window.instruction, window.hz) == ("numbered", f"do {window.episode_id}", 10.0)
        assert window.valid(2).tolist() == [window.start + 2 < length, window.start + 4 < length]


def test_a_pool_is_drawn_from_with_replacement_and_drops_the_oldest(engine: Engine) -> None:
    writer, replay = engine.open("uniform", windows=4)
    long = Numbered([[40]])
    fill(long, writer)
    assert 4 <= replay.size() < 20
    seen = drawn(replay.sample(200, timeout_seconds=20))
    assert len(seen) == replay.size()
    assert min(start for _, start in seen) == 2 * (len(expected(long)) - len(seen))  # those that came last
    assert not replay.finished


def test_drawing_from_an_empty_replay_ends_in_time(engine: Engine) -> None:
    _, replay = engine.open()
    begin = time.monotonic()
    with pytest.raises(ReplayTimeout, match="0 of 3 windows"):
        replay.sample(3, timeout_seconds=0.5)
    assert 0.4 < time.monotonic() - begin < 3


def test_windows_that_came_before_a_time_out_are_kept(engine: Engine) -> None:
    writer, replay = engine.open()
    cut = cut_episode(next(SOURCE.read(0)), OPTIONS, epoch=0, segment="0/0/0", number=0)
    writer.progress("plan")
    assert writer.add(cut, Progress(0, 0, 1, len(cut.windows)))
    with pytest.raises(ReplayTimeout):
        replay.sample(len(cut.windows) + 1, timeout_seconds=1.0)
    assert replay.size() == len(cut.windows)
    assert len(replay.sample(len(cut.windows), timeout_seconds=5)) == len(cut.windows)


def test_a_full_queue_makes_the_writer_wait_and_then_give_up(engine: Engine) -> None:
    writer, replay = engine.open(windows=2, timeout_seconds=1.5)
    begin = time.monotonic()
    with pytest.raises(ReplayTimeout):
        fill(SOURCE, writer)
    assert 1.0 < time.monotonic() - begin < 10
    assert len(replay.sample(2, timeout_seconds=5)) == 2


def test_a_writer_goes_on_when_there_is_room_again(engine: Engine) -> None:
    writer, replay = engine.open(windows=3, timeout_seconds=30)
    thread = threading.Thread(target=fill, args=(SOURCE, writer))
    thread.start()
    windows: list[ReplayWindow] = []
    while len(windows) < sum(expected(SOURCE).values()):
        windows += replay.sample(1, timeout_seconds=10)
    thread.join(10)
    assert drawn(windows) == expected(SOURCE)
    assert replay.sample(1, timeout_seconds=5) == []
    assert replay.finished


def test_a_replay_goes_on_from_its_checkpoint(engine: Engine) -> None:
    writer, replay = engine.open()
    fill(SOURCE, writer)
    before = replay.sample(7, timeout_seconds=5)
    replay.checkpoint(timeout_seconds=10)
    state = json.loads(json.dumps(replay.state()))
    replay.sample(4, timeout_seconds=5)  # drawn after the checkpoint: comes again
    engine.close()
    _, replay = engine.open()
    replay.restore(state)
    assert drawn(before + replay.sample(1000, timeout_seconds=5)) == expected(SOURCE)


def test_what_was_delivered_after_the_checkpoint_is_not_delivered_again(engine: Engine) -> None:
    writer, replay = engine.open()
    fill(SOURCE, writer)
    replay.checkpoint(timeout_seconds=10)
    before = replay.sample(7, timeout_seconds=5)
    state = replay.state()
    engine.close()
    _, replay = engine.open()
    replay.restore(state)
    assert drawn(before + replay.sample(1000, timeout_seconds=5)) == expected(SOURCE)


class StopsHalfway:
    """A writer whose process is killed after the windows of its n-th episode are stored, before its progress is."""

    def __init__(self, writer: Any, episodes: int) -> None:
        self.writer, self.left = writer, episodes

    def __getattr__(self, name: str) -> Any:
        return getattr(self.writer, name)

    def add(self, cut: Any, after: Progress) -> bool:
        self.left -= 1
        if self.left == 0:
            if isinstance(self.writer, ReverbWriter):
                self.writer._commit = killed  # type: ignore[method-assign]
            else:
                self.writer.finish = killed
        return bool(self.writer.add(cut, after))


def killed(_: Progress) -> bool:
    raise KeyboardInterrupt


@pytest.mark.parametrize("episodes", [1, 2, 4])
def test_an_ingest_that_was_killed_goes_on_without_doubling_or_losing(engine: Engine, episodes: int) -> None:
    writer, replay = engine.open()
    with pytest.raises(KeyboardInterrupt):
        fill(SOURCE, StopsHalfway(writer, episodes))
    windows = replay.sample(1, timeout_seconds=5)  # one before it is back, the rest after
    if isinstance(writer, MemoryReplay):
        del writer.finish  # type: ignore[method-assign]
        fill(SOURCE, writer)
    else:
        again = ReverbWriter(f"127.0.0.1:{engine.port}", timeout_seconds=5)
        engine.opened.append(again)
        fill(SOURCE, again)
    assert drawn(windows + replay.sample(1000, timeout_seconds=5)) == expected(SOURCE)


def test_a_finished_ingest_adds_nothing_when_it_is_started_again(engine: Engine) -> None:
    writer, replay = engine.open()
    fill(SOURCE, writer)
    size = replay.size()
    fill(SOURCE, writer)
    assert replay.size() == size


def test_another_plan_is_refused(engine: Engine) -> None:
    writer, _ = engine.open()
    fill(SOURCE, writer)
    with pytest.raises(InputError, match="another plan"):
        fill(SOURCE, writer, seed=1)


def test_a_damaged_part_is_left_where_it_breaks(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    writer, replay = engine.open()
    fill(Numbered(SOURCE.lengths, damaged=(2, 2)), writer)
    assert drawn(replay.sample(1000, timeout_seconds=5)) == expected(Numbered([[9, 1, 12], [4, 7], [11, 0]]))
    assert "part-2, left from episode 2 on: numbered, part-2 is cut off" in caplog.text
    with pytest.raises(InputError, match="too many"):
        fill(Numbered([[5, 5]], damaged=(0, 1)), MemoryReplay(mode="queue", max_bytes=10**6, seed=0), max_skipped=0)


# ---------------------------------------------------------------------------------------------------------- plan


def test_ingest_processes_share_the_windows_and_their_identities_do_not_depend_on_the_run() -> None:
    def collect(number: int, ingests: int) -> list[ReplayWindow]:
        replay = MemoryReplay(mode="queue", max_bytes=10**7, seed=0)
        fill(SOURCE, replay, ingest=number, ingests=ingests, seed=3)
        return replay.sample(1000, timeout_seconds=5)

    both = collect(0, 2) + collect(1, 2)
    assert drawn(both) == expected(SOURCE) == drawn(collect(0, 1))
    assert len({window.key for window in both}) == len(both)
    again = {window.key: drawn([window]) for window in collect(0, 2) + collect(1, 2)}
    assert again == {window.key: drawn([window]) for window in both}


def test_headers_and_progress_of_the_first_release_are_read() -> None:
    window = cut_episode(next(SOURCE.read(0)), OPTIONS, epoch=0, segment="0/1/7", number=3).windows[0]
    header = json.loads(window.header())
    for before, now in {"stretch": "segment", "gap_s": "gap_seconds", "stride_s": "temporal_stride"}.items():
        header[before] = header.pop(now)
    read = window_of(json.dumps(header).encode(), window.frames)
    assert dataclasses.asdict(read) == dataclasses.asdict(window)
    stored = {"epoch": 1, "turn": 4, "episode": 2, "windows": 9, "done": False}
    assert Progress.of(stored) == Progress(1, 4, 2, 9)


def test_the_hash_of_a_plan_is_that_of_the_first_release() -> None:
    plan = IngestPlan(WindowOptions(9, 4, None, 0.6, 2), seed=3, epochs=2)
    one = Mock(parts=lambda: [Part("x", 3)])
    one.name = "a"
    assert fingerprint([(one, 1.0)], plan) == "c99fe9b308380326"


def test_windows_are_shared_out_evenly_and_each_share_counts_without_gaps() -> None:
    window = cut_episode(next(SOURCE.read(0)), OPTIONS, epoch=0, segment="0/1/7", number=0).windows[0]
    shares = [share_of(dataclasses.replace(window, number=number), 3) for number in range(30)]
    assert Counter(shares) == {0: 10, 1: 10, 2: 10}
    delivered = Delivered(3)
    for number in (number for number in reversed(range(30)) if shares[number] == 1):
        assert ("0/1/7", number) not in delivered
        delivered.add(("0/1/7", number))
        assert ("0/1/7", number) in delivered
    assert delivered.state() == {"shares": 3, "marks": {"0/1/7": 10}, "above": {}}
    with pytest.raises(InputError, match="one of 3 ranks"):
        Delivered.of(delivered.state(), shares=2)


def test_decoded_windows_are_the_clips_of_the_stream(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, (7, 24, 32, 3), dtype=np.uint8)
    for images in (tuple(encode_jpeg(image) for image in arrays), tuple(arrays)):
        episode = Episode("made", "1", "words", 5.0, images)
        cut = cut_episode(episode, OPTIONS, epoch=2, segment="x", number=0)
        batch = decode(cut.windows, temporal_stride=2, height=24, width=32)
        windows = make_windows(7, num_frames=5, cache_stride=2, hz=5.0, temporal_stride=2)
        np.testing.assert_array_equal(batch.valid, windows.valid)
        shown = np.stack([[episode.decode(index) for index in row] for row in windows.frame_ids.tolist()])
        np.testing.assert_array_equal(batch.pixels, shown)
        assert batch.epoch.tolist() == [2] * len(windows.start)
        assert batch.start.tolist() == windows.start.tolist()
    broken = dataclasses.replace(cut.windows[0], frames=(b"no image",) * 5)
    with pytest.raises(InputError, match="made, episode 1 from frame 0"):
        decode([broken], temporal_stride=2, height=8, width=8)


# --------------------------------------------------------------------------------------------------------- memory


def test_a_frame_that_many_windows_show_is_counted_once() -> None:
    replay = MemoryReplay(mode="queue", max_bytes=10**6, seed=0)
    fill(Numbered([[21]]), replay)
    assert replay.bytes == 21 * FRAME_BYTES
    replay.sample(1000, timeout_seconds=1)
    assert replay.bytes == 0


def test_a_pool_stays_within_its_bytes() -> None:
    replay = MemoryReplay(mode="uniform", max_bytes=12 * FRAME_BYTES, seed=0)
    fill(Numbered([[50, 9, 70]]), replay)
    assert 5 * FRAME_BYTES < replay.bytes <= 12 * FRAME_BYTES
    with pytest.raises(InputError, match="max_bytes"):
        fill(SOURCE, MemoryReplay(mode="uniform", max_bytes=4 * FRAME_BYTES, seed=0))


def test_an_error_of_the_ingest_thread_reaches_whoever_draws() -> None:
    replay = MemoryReplay(mode="queue", max_bytes=10**6, seed=0)
    with (
        fed_by(replay, lambda: fill(Numbered([[5, 5]], damaged=(0, 1)), replay, max_skipped=0)),
        pytest.raises(InputError, match="too many"),
    ):
        replay.sample(100, timeout_seconds=5)


def stored_after_two_windows(folder: Path) -> dict[str, Any]:
    """The state of a replay that was checkpointed there and still holds windows."""
    replay = MemoryReplay(mode="queue", max_bytes=10**6, seed=0, path=folder)
    with fed_by(replay, lambda: fill(SOURCE, replay)):
        replay.sample(2, timeout_seconds=5)
        replay.checkpoint(timeout_seconds=5)
        return replay.state()


def test_nothing_of_another_plan_is_delivered_before_the_ingest_thread_has_seen_it(tmp_path: Path) -> None:
    state, start = stored_after_two_windows(tmp_path), threading.Event()
    replay = MemoryReplay(mode="queue", max_bytes=10**6, seed=0, path=tmp_path)
    replay.restore(state)
    timer = threading.Timer(0.3, start.set)
    timer.start()
    with (
        fed_by(replay, lambda: (start.wait(), fill(SOURCE, replay, seed=1))),
        pytest.raises(InputError, match="another plan"),
    ):
        replay.sample(2, timeout_seconds=10)


def test_a_replay_whose_ingest_thread_was_done_can_still_go_back(tmp_path: Path) -> None:
    state = stored_after_two_windows(tmp_path)
    replay = MemoryReplay(mode="queue", max_bytes=10**6, seed=0, path=tmp_path)
    with fed_by(replay, lambda: fill(SOURCE, replay)):
        everything = replay.sample(1000, timeout_seconds=5)
        assert drawn(everything) == expected(SOURCE)
        replay.restore(state)
        assert len(replay.sample(1000, timeout_seconds=5)) == len(everything) - 2


class Slow(Numbered):
    """The same episodes, each of them at another pace in each run."""

    def read(self, part: int, *, start: int = 0) -> Iterator[Episode]:
        for episode in super().read(part, start=start):
            time.sleep(np.random.default_rng().uniform(0, 0.02))
            yield episode


def in_order(
    source: Numbered, batches: int, *, state: dict[str, Any] | None = None, path: Path | None = None, **options: Any
) -> tuple[list[tuple[int, str, int]], dict[str, Any]]:
    """(epoch, episode, start) of every window of so many batches, and the position after them."""
    config = ReplayConfig(max_bytes=30 * FRAME_BYTES, path=None if path is None else str(path), **options)
    fill_forever = partial(fill, source, epochs=2**31)
    with open_replay(config, rank=0, ranks=1, seed=4, fill=fill_forever, state=state) as replay:
        windows = [window for _ in range(batches) for window in replay.sample(3, timeout_seconds=20)]
        if path is not None:
            replay.checkpoint(timeout_seconds=10)
        stored = json.loads(json.dumps(replay.state()))
    return [(window.epoch, window.episode_id, window.start) for window in windows], stored


def test_the_order_of_a_queue_does_not_depend_on_how_fast_it_is_filled() -> None:
    fast, _ = in_order(SOURCE, 30)
    assert fast == in_order(Slow(SOURCE.lengths), 30)[0]
    epoch = sum(expected(SOURCE).values())
    for number in range(90 // epoch):
        turn = fast[number * epoch : (number + 1) * epoch]
        assert {row[0] for row in turn} == {number}  # epochs do not mix
        assert Counter(row[1:] for row in turn) == expected(SOURCE)
    assert fast[:epoch] != sorted(fast[:epoch])


def test_a_pool_turns_over_by_one_window_with_each_draw() -> None:
    rows, _ = in_order(Slow([[60]]), 100, mode="uniform")
    assert rows == in_order(Numbered([[60]]), 100, mode="uniform")[0]
    epoch, room = expected(Numbered([[60]])).total(), 13  # windows of 5 frames, 2 apart, share 30 frames
    arrived = [number * epoch + start // 2 for number, _, start in rows]
    assert all(draw <= place < draw + room for draw, place in enumerate(arrived))
    assert arrived != sorted(arrived)


@pytest.mark.parametrize("mode", ["queue", "uniform"])
@pytest.mark.parametrize("before", [1, 4, 13])
def test_a_replay_that_is_fed_goes_on_in_the_same_order(tmp_path: Path, before: int, mode: Mode) -> None:
    whole, _ = in_order(SOURCE, 30, mode=mode)
    first, state = in_order(SOURCE, before, path=tmp_path, mode=mode)
    then, state = in_order(Slow(SOURCE.lengths), 10, path=tmp_path, state=state, mode=mode)
    last, _ = in_order(SOURCE, 20 - before, path=tmp_path, state=state, mode=mode)
    assert first + then + last == whole
    assert len(list((tmp_path / "rank-0").iterdir())) == 2  # the last and the one before it


def test_the_checkpoint_before_the_last_one_is_still_good(tmp_path: Path) -> None:
    whole, _ = in_order(SOURCE, 30)
    first, state = in_order(SOURCE, 5, path=tmp_path)
    in_order(SOURCE, 3, path=tmp_path, state=state)  # died before the trainer's own checkpoint was written
    assert first + in_order(SOURCE, 10, path=tmp_path, state=state)[0] == whole[:45]


def test_data_without_a_window_are_named_instead_of_read_for_ever() -> None:
    with pytest.raises(InputError, match="no window in numbered: no episode is long enough"):
        in_order(Numbered([[1, 1], [0]]), 1)


def test_a_lost_checkpoint_is_named(tmp_path: Path) -> None:
    _, state = in_order(SOURCE, 2, path=tmp_path)
    with pytest.raises(InputError, match=r"set replay\.path"):
        in_order(SOURCE, 2, state=state)
    (tmp_path / "rank-0" / state["stored"]["file"]).unlink()
    with pytest.raises(InputError, match=r"replay-6\.npz is gone"):
        in_order(SOURCE, 2, path=tmp_path, state=state)
    del state["stored"]
    with pytest.raises(InputError, match="older version"):
        in_order(SOURCE, 2, path=tmp_path, state=state)


def damaged(file: Path, *, tries: int) -> Iterator[None]:
    """Flip a random bit or cut the file at a random place, again and again; afterwards it is whole again."""
    whole, rng = file.read_bytes(), np.random.default_rng(len(file.name))
    for number in range(tries):
        place = int(rng.integers(len(whole)))
        if number % 3:
            flipped = whole[place] ^ 1 << int(rng.integers(8))
            file.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        else:
            file.write_bytes(whole[: place if number else 0])
        yield
    file.write_bytes(whole)


def test_damage_to_the_windows_of_a_memory_replay_is_noticed(tmp_path: Path) -> None:
    first, state = in_order(SOURCE, 2, path=tmp_path)
    file = tmp_path / "rank-0" / state["stored"]["file"]
    for _ in damaged(file, tries=30):
        with pytest.raises(InputError, match=rf"{file} is damaged.*start the run anew"):
            in_order(SOURCE, 2, path=tmp_path, state=state)
    assert first + in_order(SOURCE, 2, path=tmp_path, state=state)[0] == in_order(SOURCE, 4)[0]


def test_only_checkpoints_of_its_own_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "rank-0"
    folder.mkdir()
    for name in ("replay-of-mine.npz", "replay-7.npz.bak", "replay-99.npz", ".replay-98.npz.tmp"):
        (folder / name).write_text("x")
    in_order(SOURCE, 2, path=tmp_path)
    assert {path.name for path in folder.iterdir()} == {"replay-of-mine.npz", "replay-7.npz.bak", "replay-6.npz"}


@pytest.fixture
def owned(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """owned(folder): another process holds the lock of that folder until the test ends."""
    held: list[subprocess.Popen[bytes]] = []

    def hold(folder: Path) -> None:
        code = (
            "import pathlib, sys; from vw2_robot.storage.locks import lock_folder\n"
            "lock = lock_folder(pathlib.Path(sys.argv[1]), what='a holder')\n"
            "print('held', flush=True); sys.stdin.read()"
        )
        arguments = [sys.executable, "-c", code, str(folder)]
        held.append(subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert held[-1].stdout is not None
        assert held[-1].stdout.readline() == b"held\n"

    yield hold
    for process in held:
        process.communicate()


def test_a_folder_that_another_process_uses_is_refused_before_it_is_touched(
    tmp_path: Path, owned: Callable[[Path], None]
) -> None:
    owned(tmp_path / "memory" / "rank-0")
    with pytest.raises(InputError, match=r"memory/rank-0 is in use by another run: a holder, process \d+"):
        in_order(SOURCE, 2, path=tmp_path / "memory")
    assert [path.name for path in (tmp_path / "memory" / "rank-0").iterdir()] == [".lock"]
    pytest.importorskip("reverb", reason="Reverb is not installed (extra openx)")
    owned(tmp_path / "server")
    with pytest.raises(InputError, match=r"server is in use by another run: a holder, process \d+"):
        ReplayServer(ServerOptions(), path=tmp_path / "server", port=free_port())
    assert [path.name for path in (tmp_path / "server").iterdir()] == [".lock"]


# --------------------------------------------------------------------------------------------------------- reverb


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Reverb is made for this Python")
def test_where_reverb_is_not_made_for_python_the_message_says_so() -> None:
    with pytest.raises(MissingExtraError, match=r"Reverb is made for Python 3\.10 and 3\.11, .*replay=memory"):
        load_reverb()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """served(**options) -> address of a server."""
    pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    servers: list[ReplayServer] = []

    def serve(**options: Any) -> str:
        given = {"num_frames": 5, "temporal_stride": 2, **options}
        servers.append(ReplayServer(ServerOptions(**given), path=tmp_path / "server", port=free_port()))
        return f"127.0.0.1:{servers[-1].port}"

    yield serve
    for server in servers:
        server.stop()


@pytest.mark.parametrize("written_first", [False, True])
def test_a_server_that_goes_back_in_the_middle_of_an_episode_is_noticed(tmp_path: Path, written_first: bool) -> None:
    """Windows that it had confirmed are gone, while Reverb's writer reconnects and goes on as if nothing had been."""
    pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    options, port = ServerOptions(num_frames=5, temporal_stride=2), free_port()
    servers = [ReplayServer(options, path=tmp_path, port=port)]
    writer = ReverbWriter(f"127.0.0.1:{port}", timeout_seconds=30)
    reader = ReverbReader(f"127.0.0.1:{port}")
    step = writer._write if written_first else writer._unbroken
    calls = 0

    def restart_at_the_third(*record: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            servers[0].checkpoint(timeout_seconds=10)
        if calls == 3:
            servers[0].stop()
            servers.append(ReplayServer(options, path=tmp_path, port=port))
        return step(*record)

    setattr(writer, step.__name__, restart_at_the_third)
    fill(SOURCE, writer)
    assert len(servers) == 2
    assert drawn(reader.sample(1000, timeout_seconds=60)) == expected(SOURCE)
    assert reader.finished
    writer.close()
    reader.close()
    servers[1].stop()


def test_two_ranks_and_two_ingests_share_an_epoch(served: Callable[..., str]) -> None:
    address = served(ranks=2, ingests=2)
    for number in range(2):
        writer = ReverbWriter(address, ingest=number, timeout_seconds=5)
        fill(SOURCE, writer, ingest=number, ingests=2)
        writer.close()
    readers = [ReverbReader(address, rank=rank, ranks=2) for rank in range(2)]
    shares = [reader.sample(1000, timeout_seconds=5) for reader in readers]
    assert min(map(len, shares)) > 0
    assert drawn(shares[0] + shares[1]) == expected(SOURCE)
    assert all(reader.finished for reader in readers)
    for reader in readers:
        reader.close()


def test_a_server_refuses_clients_that_do_not_fit(served: Callable[..., str]) -> None:
    address = served(ranks=2, ingests=1)
    with pytest.raises(InputError, match="2 ranks, this is rank 0 of 3"):
        ReverbReader(address, rank=0, ranks=3)
    with pytest.raises(InputError, match="serves 1 ingest"):
        ReverbWriter(address, ingest=1, timeout_seconds=5)
    writer = ReverbWriter(address, timeout_seconds=5)
    with pytest.raises(InputError, match="9 frames"):
        ingest([(SOURCE, 1.0)], IngestPlan(WindowOptions(num_frames=9)), writer)
    writer.close()


def test_a_folder_of_another_server_is_refused(served: Callable[..., str]) -> None:
    served(max_windows=50)
    with pytest.raises(InputError, match="max_windows"):
        served(max_windows=60)


def test_the_options_of_restored_tables_are_compared(tmp_path: Path) -> None:
    """Reverb keeps the old size of a table, whatever the new server was asked for."""
    pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    port = free_port()
    server = ReplayServer(ServerOptions(max_windows=50), path=tmp_path, port=port)
    server.checkpoint(timeout_seconds=10)
    server.stop()
    asked = ServerOptions(max_windows=60)
    write_json(tmp_path / "replay.json", {"options": dataclasses.asdict(asked), "sessions": 1}, sealed=True)
    with pytest.raises(InputError, match=r"queue-0.*50.*queue-0.*60"):
        ReplayServer(asked, path=tmp_path, port=free_port())


def test_damage_to_what_a_server_stored_is_noticed_before_reverb_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("reverb", reason="Reverb is not installed (extra openx)")
    start = partial(ReplayServer, ServerOptions(num_frames=5, temporal_stride=2), path=tmp_path, port=free_port())
    server = start()
    writer = ReverbWriter(f"127.0.0.1:{server.port}", timeout_seconds=5)
    fill(SOURCE, writer)
    stored = Path(server.checkpoint(timeout_seconds=10))
    writer.close()
    server.stop()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "replay.json"]
    files = [tmp_path / "replay.json", *(path for path in stored.iterdir() if path.stat().st_size)]
    assert len(files) == 5
    for file in files:
        for _ in damaged(file, tries=12):
            with pytest.raises(InputError, match=rf"{tmp_path}.*use another folder, or delete this one"):
                start()
        file.rename(tmp_path / "away")
        with pytest.raises(InputError, match=rf"({file.name}|{stored.name}).*use another folder, or delete this one"):
            start()
        (tmp_path / "away").rename(file)
    server = start()
    assert server.sizes() == {"queue-0": expected(SOURCE).total() + 1}  # the end of the data
    server.stop()


def test_the_older_checkpoint_of_a_server_goes_when_the_newer_is_on_disk(
    served: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ReverbReader(served())
    first = Path(reader.checkpoint(timeout_seconds=10))
    with monkeypatch.context() as patch:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "manifest.json")
        patch.setattr(reverb_server, "write_manifest", Mock(side_effect=full))
        with pytest.raises(InputError, match=r"cannot be written .*No space left on device: 'manifest\.json'"):
            reader.checkpoint(timeout_seconds=10)
    assert [*first.parent.iterdir()] == [first]
    second = Path(reader.checkpoint(timeout_seconds=10))
    assert [*first.parent.iterdir()] == [second] != [first]
    assert not [*(tmp_path / "server" / ".reverb").iterdir()]
    reader.close()


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_checkpoint_waits_for_a_server_that_is_started_again(
    tmp_path: Path, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("reverb", reason="Reverb is not installed (extra openx)")
    start = partial(ReplayServer, ServerOptions(num_frames=5, temporal_stride=2), path=tmp_path, port=free_port())
    servers = [start()]
    reader = ReverbReader(f"127.0.0.1:{servers[0].port}")
    first = reader.checkpoint(timeout_seconds=10)
    real = reader._client

    class Restarted:
        """A client whose server ends before it has answered, and is back later."""

        server_info = staticmethod(real.server_info)

        def checkpoint(self) -> str:
            reader._client = real
            return str(restarted())

    def restarted() -> str | None:
        servers.pop().stop()
        timer = threading.Timer(0.7, lambda: servers.append(start()))
        timer.start()
        return real.checkpoint() if when == "meanwhile" else None

    if when == "meanwhile":
        reader._client = Restarted()
    else:
        restarted()
    second = reader.checkpoint(timeout_seconds=60)
    assert Path(second).is_dir()
    assert not Path(first).exists()
    assert "The checkpoint waits for it, at most 60 s" in caplog.text
    servers.pop().stop()
    begin = time.monotonic()
    with pytest.raises(ReplayTimeout, match=r"no checkpoint of the replay within 1 s: no replay server listens at"):
        reader.checkpoint(timeout_seconds=1)
    assert time.monotonic() - begin < 5
    reader.close()


def test_a_taken_port_is_named(served: Callable[..., str], tmp_path: Path) -> None:
    port = int(served().rpartition(":")[2])
    with pytest.raises(InputError, match=f"port {port}"):
        ReplayServer(ServerOptions(), path=tmp_path / "other", port=port)


def test_a_server_that_is_not_there_is_named_in_time() -> None:
    pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    address = f"127.0.0.1:{free_port()}"
    begin = time.monotonic()
    for opened in (ReverbReader, ReverbWriter):
        with pytest.raises(ReplayTimeout, match=f"no replay server listens at {address}"):
            opened(address, timeout_seconds=0.3)
    assert time.monotonic() - begin < 5
    with pytest.raises(InputError, match="host:port"):
        ReverbReader("localhost", timeout_seconds=0.3)


def test_ingest_processes_that_do_not_share_one_plan_are_refused(served: Callable[..., str]) -> None:
    """Each by itself would do well, but windows would come twice, or not at all."""
    address = served(ingests=2)
    first, second = (ReverbWriter(address, ingest=number, timeout_seconds=5) for number in range(2))
    fill(SOURCE, first, ingest=0, ingests=2)
    with pytest.raises(InputError, match=r"ingest 0 of the replay server at .* was filled by another plan"):
        fill(SOURCE, second, ingest=1, ingests=2, seed=1)
    with pytest.raises(InputError, match="was started for 2 ingest processes"):
        fill_server(ReplayFillConfig(address))
    fill(SOURCE, second, ingest=1, ingests=2)
    first.close()
    second.close()


def test_a_second_process_with_the_same_number_is_noticed(served: Callable[..., str]) -> None:
    address = served()
    first, second = (ReverbWriter(address, timeout_seconds=5) for _ in range(2))
    cut = cut_episode(next(SOURCE.read(0)), OPTIONS, epoch=0, segment="0/0/0", number=0)
    first.progress("plan")
    second.progress("plan")
    assert first.add(cut, Progress(0, 0, 1, len(cut.windows)))
    with pytest.raises(InputError, match="another process writes as ingest 0"):
        second.add(cut, Progress(0, 0, 1, len(cut.windows)))
    first.close()
    second.close()

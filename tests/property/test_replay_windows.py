"""One definition of a window: numpy, rlds' patterns and Reverb's structured writer cut the same windows."""

from __future__ import annotations

import dataclasses
import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import make_windows, padded_frames
from vw2_robot.data.episodes import Episode
from vw2_robot.data.replay import rlds_transformations
from vw2_robot.data.replay.reverb_reader import ReverbReader
from vw2_robot.data.replay.reverb_server import ReplayServer
from vw2_robot.data.replay.reverb_tables import ServerOptions
from vw2_robot.data.replay.reverb_writer import ReverbWriter
from vw2_robot.data.replay.windows import CutEpisode, Progress, ReplayWindow, cut_episode, window_frames

FRAMES, STRIDE = 7, 3
_numbers = itertools.count()


@st.composite
def episodes(draw: st.DrawFn) -> tuple[Episode, WindowOptions]:
    length, hz = draw(st.integers(0, 40)), draw(st.sampled_from([2.0, 3.75, 5.0, 10.0, 12.5, 30.0]))
    options = WindowOptions(FRAMES, STRIDE, window_stride=draw(st.integers(1, 9)))
    clock = draw(st.sampled_from(["frames", "target_hz", "gap_seconds"]))
    if clock != "frames":
        options = dataclasses.replace(options, **{clock: draw(st.sampled_from([0.3, 0.6, 2.0, 4.1]))})
    sizes = draw(st.lists(st.integers(1, 50), min_size=length, max_size=length))
    images = tuple(f"frame {i} ".encode() + b"\0" * size for i, size in enumerate(sizes))  # of any length, zeros kept
    return Episode("made", draw(st.text(max_size=9)), draw(st.text(max_size=9)), hz, images), options


def cut(episode: Episode, options: WindowOptions) -> CutEpisode:
    return cut_episode(episode, options, epoch=0, segment=f"0/0/{next(_numbers)}", number=0)


def contents(windows: list[ReplayWindow]) -> list[dict[str, Any]]:
    return sorted((dataclasses.asdict(window) for window in windows), key=lambda window: window["number"])


@given(episodes())
def test_numpy_windows_hold_the_frames_that_make_windows_names(made: tuple[Episode, WindowOptions]) -> None:
    episode, options = made
    reference = make_windows(
        len(episode),
        num_frames=FRAMES,
        cache_stride=options.window_stride,
        hz=episode.hz,
        temporal_stride=STRIDE,
        target_hz=options.target_hz,
        gap_seconds=options.gap_seconds,
    )
    windows = cut(episode, options).windows
    assert [window.start for window in windows] == reference.start.tolist()
    for window, shown, valid in zip(windows, reference.frame_ids.tolist(), reference.valid, strict=True):
        last = episode.images[-1]
        assert [frame or last for frame in window.frames] == [episode.images[index] for index in shown]
        assert window.valid(STRIDE).tolist() == valid.tolist()


@pytest.fixture(scope="module")
def replay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ReverbWriter, ReverbReader]]:
    pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder: Path = tmp_path_factory.mktemp("replay")
    server = ReplayServer(ServerOptions(num_frames=FRAMES, temporal_stride=STRIDE), path=folder, port=port)
    writer, reader = ReverbWriter(f"127.0.0.1:{port}", timeout_seconds=10), ReverbReader(f"127.0.0.1:{port}")
    writer.progress("plan")
    yield writer, reader
    writer.close()
    reader.close()
    server.stop()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=episodes())
def test_the_structured_writer_cuts_the_same_windows(
    replay: tuple[ReverbWriter, ReverbReader], made: tuple[Episode, WindowOptions]
) -> None:
    writer, reader = replay
    wanted = cut(*made)
    assert writer.add(wanted, Progress())
    found = reader.sample(len(wanted.windows), timeout_seconds=20)
    assert reader.size() == 0
    assert contents(found) == contents(list(wanted.windows))


@settings(max_examples=60, deadline=None)
@given(made=episodes())
def test_the_patterns_of_rlds_cut_the_same_windows(made: tuple[Episode, WindowOptions]) -> None:
    if not rlds_transformations.is_installed():
        pytest.skip("rlds and Reverb are not installed (extra replay)")
    episode, options = made
    both = [
        cut_episode(episode, options, epoch=0, segment="0/0/0", number=3, frames_of=frames_of)
        for frames_of in (window_frames, rlds_transformations.window_frames)
    ]
    assert [dataclasses.asdict(window) for window in both[0].windows] == contents(list(both[1].windows))


def test_the_frames_of_all_three_are_rounded_up_to_whole_steps() -> None:
    episode = Episode("made", "1", "", 5.0, tuple(b"x%d" % i for i in range(20)))
    assert len(cut(episode, WindowOptions(8, 3)).offsets) == padded_frames(8, 3) == 10

"""Training on clips drawn from a replay, in memory or on a server: no held-out episode, no clip twice, resumed."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.blocks import WindowOptions
from vw2_robot.data.clips import make_windows
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.replay.ingest import IngestPlan, ingest
from vw2_robot.data.replay.windows import ReplayTimeout, cut_episode, window_of
from vw2_robot.distributed import ranks
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError
from vw2_robot.pretrain import cache_frames, train_dldm, train_vdm
from vw2_robot.pretrain.cache_frames import open_frames, open_sources, training_split
from vw2_robot.pretrain.clips import training_clips
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx
from vw2_robot.pretrain.replayed_clips import ReplayedClips

torch.set_num_threads(1)


class Kill(BaseException):
    """Stands for the end of the process."""


class Training:
    """Runs of the miniature chain on one data set whose clips come from one engine; `feed` fills a server."""

    def __init__(self, engine: str, overrides: list[str], folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self.overrides, self.closing = overrides, []
        if engine == "reverb":
            pytest.importorskip("reverb", reason="Reverb is not installed (extra replay)")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self.port = int(probe.getsockname()[1])
            self.address = f"127.0.0.1:{self.port}"
            self.overrides = [*overrides, f"replay.address={self.address}"]

    def config(self, name: str, *more: str) -> PretrainConfig:
        words = [f"run_dir={self.folder / name}", *self.overrides, f"replay={self.engine}", *more]
        with initialize_config_module("vw2_robot.configs", version_base="1.3"):
            return config_from(PretrainConfig, OmegaConf.to_container(compose("pretrain", words), resolve=True))

    def feed(self, config: PretrainConfig, *, epochs: int, windows: WindowOptions | None = None) -> None:
        """Start what is needed so that the data of `config` arrive `epochs` times."""
        if self.engine == "memory":
            return  # filled by the trainer itself, for ever
        from vw2_robot.data.replay.reverb_server import ReplayServer
        from vw2_robot.data.replay.reverb_tables import ServerOptions
        from vw2_robot.data.replay.reverb_writer import ReverbWriter

        windows = windows or WindowOptions(num_frames=5)
        server = ReplayServer(ServerOptions(num_frames=5), path=self.folder / "server", port=self.port)
        writer = ReverbWriter(self.address, timeout_seconds=30)
        work = threading.Thread(
            target=ingest, args=(open_sources(config.data), IngestPlan(windows, epochs=epochs), writer)
        )
        work.start()
        self.closing += [server.stop, writer.close, work.join]

    def close(self) -> None:
        for close in reversed(self.closing):
            close()


@pytest.fixture(params=["memory", "reverb"])
def training(request, miniature, calvin_folder, tmp_path) -> Iterator[Training]:
    kept = [line for line in miniature(tmp_path) if not line.startswith(("run_dir", "data.frame_cache"))]
    made = Training(request.param, [*kept, f"data.path={calvin_folder}", "stages=[vdm,dldm]"], tmp_path)
    yield made
    made.close()


def opened(config: PretrainConfig) -> tuple[ReplayedClips, FrameCache, list[int], list[int]]:
    frames = open_frames(config)
    train, held_out = training_split(config, frames)
    clips = training_clips(config, frames, train, held_out, Path(config.run_dir) / "stage")
    assert isinstance(clips, ReplayedClips)
    return clips, frames, train, held_out


def names(batch) -> list[tuple[str, int]]:
    return list(zip(batch.episode_id, batch.start.tolist(), strict=True))


def everything(frames: FrameCache, episodes: list[int]) -> Counter[tuple[str, int]]:
    """(episode, start) of every window of some episodes."""
    found: Counter[tuple[str, int]] = Counter()
    for episode in (frames.episodes[index] for index in episodes):
        starts = make_windows(episode.length, num_frames=5, cache_stride=1, hz=episode.hz).start.tolist()
        found.update((episode.episode_id, start) for start in starts)
    return found


def test_every_training_window_comes_once_an_epoch_and_a_held_out_one_never(training: Training) -> None:
    config = training.config("run", "++data.augmentation={flip: 0.0, brightness: 0.0}")
    clips, frames, train, held_out = opened(config)
    training.feed(config, epochs=2)
    wanted = everything(frames, train)
    assert len(held_out)
    assert wanted.total() % 5 == 0
    seen: Counter[tuple[str, int]] = Counter()
    index = {episode.episode_id: number for number, episode in enumerate(frames.episodes)}
    for step in range(2 * wanted.total() // 5):
        batch = clips.batch(step, BatchShare.of(5))
        seen.update(names(batch))
        for name, start, pixels in zip(batch.episode_id, batch.start.tolist(), batch.pixels, strict=True):
            shown = [min(start + t, frames.episodes[index[name]].length - 1) for t in range(5)]
            np.testing.assert_array_equal(pixels, frames.read(index[name], shown))
    clips.close()
    assert seen == wanted + wanted


def test_a_resumed_run_goes_on_behind_the_clips_that_its_checkpoint_counts(training: Training) -> None:
    config = training.config("run")
    clips, frames, train, _ = opened(config)
    training.feed(config, epochs=1)
    wanted = everything(frames, train)
    before = [clips.batch(step, BatchShare.of(3)) for step in range(4)]
    state = json.loads(json.dumps(clips.state()))
    after = [clips.batch(step, BatchShare.of(3)) for step in range(4, 7)]
    if training.engine == "memory":
        clips.close()
        clips = opened(training.config("run", "data.decode_threads=0"))[0]
        clips.restore(state)
        again = [clips.batch(step, BatchShare.of(3)) for step in range(4, 7)]
        assert [names(batch) for batch in again] == [names(batch) for batch in after]
        np.testing.assert_array_equal([batch.pixels for batch in again], [batch.pixels for batch in after])
    else:
        clips.restore(state)  # the server lives on, so what was drawn after the checkpoint is gone
        after += [clips.batch(step, BatchShare.of(3)) for step in range(7, wanted.total() // 3)]
        assert Counter(name for batch in before + after for name in names(batch)) <= wanted
    clips.close()


def test_two_ranks_train_on_shares_of_a_memory_replay_and_only_two_continue(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    if training.engine != "memory":
        pytest.skip("a server has queues for its number of ranks, see test_windows.py")
    config = training.config("run")

    def rank_clips(rank: int) -> ReplayedClips:
        clips = opened(config)[0]
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: 2)
        monkeypatch.setattr(ranks, "gather", lambda value: [value, value])
        return clips

    seen, positions, after = [], [], []
    for rank in range(2):
        clips = rank_clips(rank)
        seen.append({name for step in range(4) for name in names(clips.batch(step, BatchShare.of(4)))})
        positions.append(clips.state()["ranks"][rank])
        after.append(names(clips.batch(4, BatchShare.of(4))))
        clips.close()
        monkeypatch.undo()
    assert not seen[0] & seen[1]
    state = json.loads(json.dumps({"replay": "memory", "ranks": positions}))
    for rank in range(2):
        clips = rank_clips(rank)
        clips.restore(state)
        assert names(clips.batch(4, BatchShare.of(4))) == after[rank]
        clips.close()
        monkeypatch.undo()
    clips = opened(config)[0]
    with pytest.raises(InputError, match=r"written by 2 ranks .* now WORLD_SIZE is 1"):
        clips.restore(state)
    clips.close()


def test_the_end_of_the_data_is_said(training: Training) -> None:
    if training.engine == "memory":
        pytest.skip("fills itself for ever")
    config = training.config("run")
    clips, frames, train, _ = opened(config)
    training.feed(config, epochs=1)
    total = everything(frames, train).total()
    for step in range(total // 4):
        clips.batch(step, BatchShare.of(4))
    with pytest.raises(InputError, match=r"delivered all of its windows.*data\.epochs"):
        clips.batch(0, BatchShare.of(total))
    clips.close()


def test_a_replay_that_nobody_fills_ends_in_time(training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    config = training.config("run", "replay.timeout_seconds=0.5")
    clips, *_ = opened(config)
    if training.engine == "memory":
        monkeypatch.setattr(cache_frames, "open_sources", lambda _: threading.Event().wait(3))
    with pytest.raises(ReplayTimeout, match=r"no replay server listens|gave 0 of 2 windows"):
        clips.batch(0, BatchShare.of(2))
    clips.close()


def test_windows_of_another_kind_are_refused(training: Training) -> None:
    config = training.config("run", "replay.timeout_seconds=20")
    clips, *_ = opened(config)
    if training.engine == "memory":
        with pytest.raises(InputError, match="another plan"):
            other_plan(training, clips)
    else:
        training.feed(config, epochs=1, windows=WindowOptions(num_frames=5, target_hz=15.0))
        with pytest.raises(InputError, match=r"\(5, 15\.0, None\), this run trains on \(5, None, None\)"):
            clips.batch(0, BatchShare.of(2))
    clips.close()


def test_windows_that_were_cut_for_another_stride_are_refused_where_the_stride_times_them(training: Training) -> None:
    clips, *_ = opened(training.config("run", "data.gap_seconds=0.8"))
    assert clips._cut == WindowOptions(num_frames=5, temporal_stride=4, gap_seconds=0.8)
    episode = Episode("squares", "0", "", 5.0, tuple(np.zeros((9, 4, 4, 3), np.uint8)))
    for stride, same in ((4, True), (2, False)):
        options = WindowOptions(num_frames=5, temporal_stride=stride, gap_seconds=0.8)
        window = cut_episode(episode, options, epoch=0, segment="0/0/0", number=0).windows[0]
        window = window_of(window.header(), window.frames)  # as it comes from a server
        if same:
            assert isinstance(clips._is_usable(window), bool)
        else:
            words = r"temporal_stride\) \(5, None, 0\.8, 2\), this run trains on \(5, None, 0\.8, 4\)"
            with pytest.raises(InputError, match=words):
                clips._is_usable(window)
    clips.close()


def other_plan(training: Training, clips: ReplayedClips) -> None:
    clips.batch(0, BatchShare.of(2))
    state = clips.state()
    clips.close()
    other, *_ = opened(training.config("run", "seed=1"))
    other.restore(state)
    other.batch(1, BatchShare.of(2))


def test_an_episode_that_the_cache_does_not_know_is_left_out(
    training: Training, frames_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can tell whether it is held out."""
    words = (f"data.frame_cache={frames_folder}", "data.max_skipped=1")
    clips, *_ = opened(config := training.config("run", *words))
    training.feed(config, epochs=2)
    with pytest.raises(InputError, match=r"too many.*is not in the frame cache .* set data\.cache_episodes"):
        clips.batch(0, BatchShare.of(2))
    clips.close()
    if training.engine == "memory":
        clips, *_ = opened(training.config("other", *words, "data.cache_episodes=10"))
        assert len(clips.batch(0, BatchShare.of(2)).start) == 2
        clips.close()


def test_a_broken_image_is_counted_and_its_windows_are_left_out(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = training.config("run", "data.max_skipped=3", "data.cache_episodes=2")
    clips, frames, train, _ = opened(config)
    (source, weight), *_ = open_sources(config.data)
    last = frames.episodes[train[-1]]

    class Broken:
        name, parts = source.name, source.parts

        def read(self, part, *, start=0):
            for episode in source.read(part, start=start):
                broken = b"no image" if episode.episode_id == last.episode_id else episode.images[0]
                yield dataclasses.replace(episode, images=(broken, *episode.images[1:]))

    for module in (cache_frames, __import__(__name__, fromlist=["open_sources"])):
        monkeypatch.setattr(module, "open_sources", lambda _: [(Broken(), weight)])
    training.feed(config, epochs=1)
    seen = [name for step in range(20) for name in names(clips.batch(step, BatchShare.of(1)))]
    assert (last.episode_id, 0) not in seen
    assert len(clips.skipped) <= 1
    clips.close()


def test_a_checkpoint_of_clips_from_elsewhere_is_refused(training: Training) -> None:
    config = training.config("run")
    clips, frames, train, held_out = opened(config)
    with pytest.raises(InputError, match="replay=null"):
        clips.restore(None)
    other = {"memory": "reverb", "reverb": "memory"}[training.engine]
    with pytest.raises(InputError, match=f"replay={other}"):
        clips.restore({"replay": other})
    clips.close()
    for stream in ("false", "true"):
        plain = dataclasses.replace(training.config("run"), replay=None)
        plain = dataclasses.replace(plain, data=dataclasses.replace(plain.data, stream=stream == "true"))
        cached = training_clips(plain, frames, train, held_out, Path(config.run_dir))
        with pytest.raises(InputError, match="clips came from a replay, now they come from"):
            cached.restore({"replay": training.engine})
        cached.close()


def die_after(patch: pytest.MonkeyPatch, module, *, steps: int) -> None:
    real, left = module.optimizer_step, [steps]

    def dying(*arguments, **options):
        result = real(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            raise Kill
        return result

    patch.setattr(module, "optimizer_step", dying)


@pytest.mark.slow
def test_a_killed_run_is_resumed(training: Training) -> None:
    """In memory it ends in the weights of an undisturbed run; from a server it ends."""
    config = training.config("killed")
    training.feed(config, epochs=8)
    for module, steps in ((train_vdm, 1), (train_vdm, 3), (train_dldm, 2), (train_dldm, 3), (train_dldm, 2)):
        with pytest.MonkeyPatch.context() as patch:
            die_after(patch, module, steps=steps)
            with pytest.raises(Kill):
                pretrain_on_openx(config)
    pretrain_on_openx(config)
    killed = weights(training.folder / "killed")
    assert {"vdm/checkpoints/step_5/model.safetensors", "dldm/checkpoints/step_8/model.safetensors"} <= killed.keys()
    if training.engine == "memory":
        pretrain_on_openx(training.config("whole", "data.decode_threads=0"))
        assert killed == weights(training.folder / "whole")


def weights(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("words", [["data.stream=true"], ["data.path=null", "data.frame_cache=somewhere"]])
def test_a_replay_in_memory_needs_a_data_set_and_is_no_stream(miniature, tmp_path: Path, words: list[str]) -> None:
    overrides = [*miniature(tmp_path), "data.path=somewhere", "replay=memory", *words]
    with (
        initialize_config_module("vw2_robot.configs", version_base="1.3"),
        pytest.raises(InputError, match="come from a replay or from a stream"),
    ):
        config_from(PretrainConfig, OmegaConf.to_container(compose("pretrain", overrides), resolve=True))

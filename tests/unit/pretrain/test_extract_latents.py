from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.data.latents import LatentWindows, missing_shards
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.pretrain.config import DataConfig, ExtractLatentsConfig, PretrainConfig
from vw2_robot.pretrain.extract_latents import (
    Encoder,
    describe_windows,
    encode_episodes,
    log_summary,
    slice_agreement,
    write_shards,
)

CONFIG = DLDMConfig(
    num_frames=9,
    height=8,
    width=8,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_channels=8,
    z_norm="layer",
)
DEEP = (LevelConfig(8, 1, downsample_time=True, downsample_space=True), LevelConfig(8, 1, attention=True))


def test_every_window_holds_the_codes_of_the_frames_it_begins_with(tmp_path):
    rng = np.random.default_rng(0)
    lengths = (4, 9, 14)  # the first is too short for a latent step
    cache_frames(
        (
            Episode("noise", str(n), "", 5.0, tuple(rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)))
            for n, length in enumerate(lengths)
        ),
        tmp_path / "frames",
        height=8,
        width=8,
        description={},
    )
    frames = FrameCache(tmp_path / "frames")
    torch.manual_seed(0)
    dldm = DLDM(CONFIG).eval()
    config = SimpleNamespace(
        dldm=CONFIG,
        extract_latents=ExtractLatentsConfig(cache_stride=3, batch_size=4),
        data=DataConfig(),
        hardware=Hardware("cpu"),
    )
    windows = encode_episodes(config, dldm, frames, range(3), torch.device("cpu"))
    assert windows.episode.tolist() == [1, 1, 2, 2, 2, 2]
    assert windows.start.tolist() == [0, 3, 0, 3, 6, 9]
    assert windows.valid.tolist() == [[True, True], [True, False]] + [[True, True]] * 2 + [[True, False]] * 2
    for row in range(6):
        episode, start = int(windows.episode[row]), int(windows.start[row])
        wanted = [min(start + t, lengths[episode] - 1) for t in range(9)]
        clip = to_model_range(torch.from_numpy(frames.read(episode, wanted)))[None]
        assert windows.codes[row].tolist() == dldm.indices(clip)[0].tolist()
    slow = SimpleNamespace(**{**vars(config), "data": DataConfig(gap_seconds=2 / 5 * 4)})  # every second frame
    windows = encode_episodes(slow, dldm, frames, range(3), torch.device("cpu"))
    assert windows.start.tolist() == [0, 0]  # the others leave no latent step
    assert windows.valid.tolist() == [[True, False]] * 2
    clip = to_model_range(torch.from_numpy(frames.read(2, np.minimum(2 * np.arange(9), 13))))[None]
    assert windows.codes[1].tolist() == dldm.indices(clip)[0].tolist()
    assert describe_windows(slow, frames, windows)["hz"] == [2.5]


@pytest.mark.parametrize("changes", [{"levels": DEEP}, {"gap": 2}])
def test_codes_of_overlapping_windows_are_those_of_each_window_alone_in_batches_of_any_size(changes, dldm_stage):
    deep = replace(CONFIG, num_frames=32, stem=StemConfig("haar", 2, 4, 3), **changes)
    rng = np.random.default_rng(1)
    cache_frames(
        (
            Episode("noise", str(n), "", 5.0, tuple(rng.integers(0, 256, (length, 8, 8, 3), dtype=np.uint8)))
            for n, length in enumerate((40, 27))
        ),
        dldm_stage / "long",
        height=8,
        width=8,
        description={},
    )
    frames = FrameCache(dldm_stage / "long")
    torch.manual_seed(0)
    dldm = DLDM(deep).eval()
    for batch_size in (5, 64):
        options = ExtractLatentsConfig(cache_stride=2, batch_size=batch_size)
        config = Settings(str(dldm_stage), 1, dldm=deep, extract_latents=options)
        windows = encode_episodes(config, dldm, frames, range(2), torch.device("cpu"))
        assert len(np.unique(windows.codes)) > 10  # or equality would mean little
        for episode, start, codes in zip(windows.episode, windows.start, windows.codes, strict=True):
            last = frames.episodes[int(episode)].length - 1
            clip = frames.read(int(episode), np.minimum(start + np.arange(33), last))
            assert codes.tolist() == dldm.indices(to_model_range(torch.from_numpy(clip))[None])[0].tolist()


def cached(codes, starts_per_episode):
    episode = np.repeat(np.arange(len(starts_per_episode)), starts_per_episode).astype(np.int32)
    codes = np.array(codes, np.uint16)[..., None]
    return LatentWindows(episode, episode, codes, np.ones(codes.shape[:2], bool))


def test_slicing_agrees_where_a_step_has_the_same_code_in_both_windows():
    # Two episodes of two windows, three steps each, one code a step. Window 2 starts one step after window 1.
    windows = cached([[1, 2, 3], [2, 3, 4], [5, 6, 7], [6, 0, 8]], [2, 2])
    assert slice_agreement(windows, stride=4, cache_stride=4) == 0.75
    windows.valid[3, 1] = False  # a step that is padding is not compared
    assert slice_agreement(windows, stride=4, cache_stride=4) == 1.0
    assert slice_agreement(windows, stride=2, cache_stride=4) == 0.0  # two steps apart: 3 and 2, 7 and 6


def test_slicing_is_not_judged_where_windows_never_coincide():
    windows = cached([[1, 2], [2, 3]], [2])
    assert slice_agreement(windows, stride=4, cache_stride=3) is None
    assert slice_agreement(cached([[1], [2]], [2]), stride=4, cache_stride=4) is None
    assert slice_agreement(cached([[1, 2], [2, 3]], [1, 1]), stride=4, cache_stride=4) is None


@pytest.fixture
def dldm_stage(tmp_path):
    """A trained dLDM and a frame cache of ten episodes: what the stage begins with."""
    rng = np.random.default_rng(0)
    cache_frames(
        (
            Episode("noise", str(n), "", 5.0, tuple(rng.integers(0, 256, (9 + n % 3, 8, 8, 3), dtype=np.uint8)))
            for n in range(10)
        ),
        tmp_path / "frames",
        height=8,
        width=8,
        description={},
    )
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "dldm", kind="dldm", config={}, modules={"dldm": DLDM(CONFIG)})
    return tmp_path


def encoder(folder, *, workers):
    config = Settings(str(folder), workers)
    dldm = DLDM(CONFIG)
    load_checkpoint(folder / "dldm", kind="dldm").load_into(dldm=dldm)
    (folder / "latents").mkdir(exist_ok=True)
    return Encoder(config, dldm, FrameCache(folder / "frames"))


@dataclass(frozen=True)
class Settings:
    """What of a `PretrainConfig` this stage reads when it writes shards."""

    run_dir: str
    workers: int
    dldm: DLDMConfig = CONFIG
    extract_latents: ExtractLatentsConfig = field(
        default_factory=lambda: ExtractLatentsConfig(cache_stride=3, batch_size=4)
    )
    data: DataConfig = field(default_factory=DataConfig)
    hardware: Hardware = field(default_factory=lambda: Hardware("cpu", threads=1))
    stage_dir = PretrainConfig.stage_dir


@pytest.mark.slow
def test_several_processes_write_the_shards_of_one_and_a_partial_cache_is_continued(dldm_stage):
    jobs = {number: range(3 * number, min(3 * number + 3, 10)) for number in range(4)}
    for _ in write_shards(encoder(dldm_stage, workers=1), dldm_stage / "dldm", jobs):
        pass
    folder = dldm_stage / "latents"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(whole) == [f"windows-0000{number}.npz" for number in range(4)]
    for number in (0, 2, 3):
        (folder / f"windows-0000{number}.npz").unlink()
    missing = {number: jobs[number] for number in missing_shards(folder, 4)}
    for _ in write_shards(encoder(dldm_stage, workers=2), dldm_stage / "dldm", missing):
        pass
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


@pytest.mark.slow
def test_trouble_in_a_process_is_named(dldm_stage):
    (dldm_stage / "frames" / "shard-00000.npy").unlink()
    jobs = {0: range(3), 1: range(3, 6)}
    with pytest.raises(InputError, match="is missing; delete"):
        list(write_shards(encoder(dldm_stage, workers=2), dldm_stage / "dldm", jobs))


def test_log_and_indexlog_summary_how_slicing_compares(tmp_path, capsys):
    facts = {"windows": 7, "codes_used": 3, "slice_agreement": 0.25}
    log_summary(tmp_path, facts)
    assert "25.0 % of the codes would be equal if sliced" in (tmp_path / "log.txt").read_text()
    assert capsys.readouterr().out == (tmp_path / "log.txt").read_text()
    log_summary(tmp_path, facts | {"slice_agreement": None})
    assert "no codes of overlapping windows to compare" in capsys.readouterr().out

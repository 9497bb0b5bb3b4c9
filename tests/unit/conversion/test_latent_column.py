"""The column of codes: those of the window that begins at each frame, computed or from a latent cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.conversion.config import ConvertConfig
from vw2_robot.conversion.open_records import open_records
from vw2_robot.conversion.records import Record
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.data.latents import LatentWindows, finish, write_shard
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range

CONFIG = DLDMConfig(
    num_frames=5,
    height=16,
    width=16,
    stem=StemConfig("pixel", 2, 8, 1),
    levels=(LevelConfig(8, 1),),
    queries=2,
    qformer=QFormerConfig(heads=2),
    z_channels=8,
)
STEPS = CONFIG.latent_steps
WIDTH = STEPS * CONFIG.queries


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DLDM]:
    """An untrained dLDM, and its checkpoint."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    dldm = DLDM(CONFIG).eval()
    folder = tmp_path_factory.mktemp("dldm") / "step_1"
    facts = {"encoder_hash": "0" * 64}
    save_checkpoint(folder, kind="dldm", config=config_tree(CONFIG), modules={"dldm": dldm}, facts=facts)
    return folder, dldm


def records_of(folder: Path) -> list[Record]:
    source, _ = open_records(ConvertConfig(in_=str(folder), out="x", format="calvin"))
    return [record for part in range(len(source.parts())) for record in source.read(part)]


def test_computed_codes_are_those_of_the_window_at_each_frame(
    calvin: Path, run: Callable[..., Path], encoder: tuple[Path, DLDM]
) -> None:
    folder, dldm = encoder
    stride = CONFIG.temporal_stride
    out = run(calvin, "out", "calvin", dldm=str(folder))
    for record in records_of(out):
        codes = record.numbers["latent_tokens"].reshape(len(record), STEPS, CONFIG.queries)
        assert codes.dtype == np.int32
        video = to_model_range(torch.from_numpy(np.stack([record.episode.decode(i) for i in range(len(record))])))
        for frame in range(len(record)):
            inside = min(STEPS, (len(record) - 1 - frame) // stride)
            window = video[frame : frame + 1 + inside * stride][None]
            wanted = dldm.indices(window)[0].numpy() if inside else np.zeros((0, CONFIG.queries))
            assert codes[frame, :inside].tolist() == wanted.tolist()
            assert (codes[frame, inside:] == -1).all()
    about = json.loads((out / "conversion.json").read_text())["latent_tokens"]
    assert (about["latent_steps"], about["codes_per_step"], about["stride"]) == (STEPS, CONFIG.queries, stride)


@pytest.fixture
def cached(calvin: Path, tmp_path: Path) -> Path:
    """A run folder with the codes of the training split, of every second frame."""
    folder = tmp_path / "run"
    cache_frames(CalvinDataset(calvin).episodes(), folder / "frames", height=16, width=16, description={})
    frame_cache = FrameCache(folder / "frames")
    starts = [np.arange(0, length - 2, 2, dtype=np.int32) for length in frame_cache.episodes.length]
    episode = np.repeat(np.arange(len(starts), dtype=np.int32), [len(start) for start in starts])
    start = np.concatenate(starts)
    codes = np.arange(len(start) * WIDTH, dtype=np.uint16).reshape(-1, STEPS, CONFIG.queries)
    valid = np.arange(STEPS) < 1 + (start[:, None] == 0)
    (folder / "latents").mkdir()
    write_shard(folder / "latents", 0, LatentWindows(episode, start, codes, valid))
    facts = {"encoder_hash": "0", "levels": [5, 5, 5, 8], "stride": 2, "cache_stride": 2, "hz": [30.0]}
    finish(folder / "latents", shards=1, facts={**facts, "frames_digest": frame_cache.digest})
    return folder


@pytest.mark.parametrize("form", ["lerobot", "rlds", "calvin"])
def test_cached_codes_are_found_by_the_name_of_the_episode(
    calvin: Path, run: Callable[..., Path], cached: Path, form: str
) -> None:
    pytest.importorskip({"lerobot": "pyarrow", "rlds": "tensorflow_datasets", "calvin": "numpy"}[form])
    found = [
        record.numbers["latent_tokens"]
        for record in records_of(run(calvin, "out", form, latents=str(cached), splits=["train"]))
    ]
    assert [rows.shape for rows in found] == [(6, WIDTH), (9, WIDTH), (3, WIDTH), (7, WIDTH)]
    assert found[0][0].tolist() == list(range(WIDTH))
    assert found[0][2].tolist() == [WIDTH, WIDTH + 1] + [-1] * (WIDTH - 2)
    assert (found[0][[1, 3, 5]] == -1).all()
    assert found[1][0, 0] == 2 * WIDTH


def test_episodes_without_cached_codes_are_refused_at_once(
    calvin: Path, run: Callable[..., Path], cached: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"holds 0 episodes of this name.*splits=\[train\]"):
        run(calvin, "out", "calvin", latents=str(cached))
    assert not (tmp_path / "out.parts").exists()

"""The switches of the dLDM's training program: when phase 2 begins, averaged weights, memory, broken numbers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file

from vw2_robot.checkpoint import load_checkpoint, resolve
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.data.latents import read_shards
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range
from vw2_robot.pretrain import train_dldm as module
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx
from vw2_robot.pretrain.train_dldm import train_dldm
from vw2_robot.pretrain.train_vdm import train_vdm

torch.set_num_threads(1)
REPO = Path(__file__).resolve().parents[2]
LOSSES = ("dldm/reconstruction_l2", "dldm/denoising_loss")


@pytest.fixture
def configure(miniature: Callable[..., list[str]], pretrained: Path, tmp_path: Path) -> Callable[..., PretrainConfig]:
    """A miniature run without augmentation, as changed by overrides; its video prior is trained."""

    def make(*more: str, name: str = "run") -> PretrainConfig:
        with initialize_config_module("vw2_robot.configs", version_base="1.3"):
            tree = compose("pretrain", [*miniature(tmp_path / name), "++train_dldm.usage_clips=4", *more])
        config = config_from(PretrainConfig, OmegaConf.to_container(tree, resolve=True))
        if any(override.startswith("hardware.") for override in more):  # its prior is trained in the same way
            train_vdm(config)
        else:
            shutil.copytree(pretrained / "vdm", config.stage_dir("vdm"))
        return config

    return make


def lines(config: PretrainConfig) -> list[dict[str, float]]:
    file = Path(config.run_dir) / "dldm" / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def log(config: PretrainConfig) -> str:
    return (Path(config.run_dir) / "dldm" / "log.txt").read_text()


def weights(config: PretrainConfig) -> dict[str, torch.Tensor]:
    return load_file(resolve(Path(config.run_dir) / "dldm") / "model.safetensors")


class Kill(BaseException):
    """Stands for the end of the process."""


def train_with_a_kill(config: PretrainConfig, monkeypatch: pytest.MonkeyPatch, *, call: int) -> None:
    """Train, die after the `call`-th step (from 0), and train to the end."""
    real, calls = module.optimizer_step, [0]

    def dying(*args: object, **options: object) -> object:
        result = real(*args, **options)
        calls[0] += 1
        if calls[0] == call + 1:
            raise Kill
        return result

    with monkeypatch.context() as patch:
        patch.setattr(module, "optimizer_step", dying)
        with pytest.raises(Kill):
            train_dldm(config)
    train_dldm(config)


def test_phase_two_begins_after_the_steps_of_phase_one_and_the_log_says_what_is_wrong(configure) -> None:
    alarms = ("++train_dldm.perplexity_alarm=1.0", "++train_dldm.shuffle_alarm=1000", "++train_dldm.alarm_after=2")
    config = configure("++train_dldm.advance_ratio=0.0001", *alarms)
    train_dldm(config)
    assert [line["dldm/phase"] for line in lines(config)] == [1] * 4 + [2] * 4
    assert "above 0.0001" in log(config)
    assert "phase 2 begins all the same" in log(config)
    assert log(config).count("ALARM codes collapse") == 1
    assert log(config).count("ALARM codes ignored") == 1


def test_by_ratio_phase_two_begins_as_soon_as_a_validation_is_good_enough(configure, monkeypatch) -> None:
    config = configure("++train_dldm.advance=ratio", "++train_dldm.advance_ratio=1000", name="calm")
    train_dldm(config)
    assert [(line["step"], line["dldm/phase"]) for line in lines(config)] == [(1, 1), *((s, 2) for s in (5, 6, 7, 8))]
    killed = configure("++train_dldm.advance=ratio", "++train_dldm.advance_ratio=1000", name="killed")
    train_with_a_kill(killed, monkeypatch, call=1)
    assert all(torch.equal(value, weights(config)[name]) for name, value in weights(killed).items())
    assert lines(killed) == lines(config)


def test_a_reader_whose_explained_change_does_not_rise_ends_early_and_a_killed_one_as_well(
    configure, monkeypatch
) -> None:
    """Nothing rises by 1000 after the first validation, so two more end it; killed before and after that."""
    loop = "{train_steps: 6, batch_size: 2, log_every: 1, save_every: 2, optim: {lr: 0.003, warmup_steps: 2}}"
    reader = ["aids.reader=true", f"++train_dldm.reader={{patience: 2, min_rise: 1000, loop: {loop}}}"]
    reader += ["train_dldm.phase1.train_steps=2", "train_dldm.phase2.train_steps=3"]
    config = configure(*reader, name="calm")
    train_dldm(config)
    steps = [(line["step"], line["dldm/phase"]) for line in lines(config)]
    assert steps == [
        *((s, 1) for s in (1, 2)),
        *((s, 1.5) for s in (3, 4, 5)),
        *((s, 2) for s in (9, 10, 11)),
    ]
    assert "reader ends after 3 steps" in log(config)
    assert log(config).count("ALARM codes not read") == 1  # in phase 2 alone
    encoder = {name for name in weights(config) if name.startswith("dldm.encoder.")}
    before = load_file(Path(config.run_dir) / "dldm" / "phase_1" / "model.safetensors")
    assert any(not torch.equal(weights(config)[name], before[name]) for name in encoder)  # phase 2 moves it
    for call in (3, 4):
        killed = configure(*reader, name=f"killed_{call}")
        train_with_a_kill(killed, monkeypatch, call=call)
        assert all(torch.equal(value, weights(config)[name]) for name, value in weights(killed).items())
        assert lines(killed) == lines(config)


def test_by_ratio_phase_two_never_begins_above_it_also_when_tried_again(configure) -> None:
    config = configure("++train_dldm.advance=ratio", "++train_dldm.advance_ratio=0.0001")
    for _ in range(2):
        with pytest.raises(InputError, match=r"Phase 2 does not begin.*train_dldm.advance=steps"):
            train_dldm(config)
        assert [line["dldm/phase"] for line in lines(config)] == [1] * 4


@pytest.mark.slow
def test_averaged_weights_are_handed_on_beside_the_learning_ones_and_resume_exactly(configure, monkeypatch) -> None:
    plain, config = configure(name="plain"), configure("++train_dldm.ema=0.9", name="averaged")
    train_dldm(plain)
    train_dldm(config)
    learned, saved = weights(plain), weights(config)
    trained = {key: value for key, value in learned.items() if key.startswith(("dldm.", "vdm."))}
    assert all(torch.equal(saved[f"learning_{key}"], value) for key, value in trained.items())
    moved = "dldm.qformer.queries"
    assert not torch.equal(saved[moved], learned[moved])
    killed = configure("++train_dldm.ema=0.9", name="killed")
    train_with_a_kill(killed, monkeypatch, call=4)
    assert all(torch.equal(value, saved[name]) for name, value in weights(killed).items())
    assert lines(killed) == lines(config)


@pytest.mark.slow
def test_recomputed_activations_give_the_same_weights(configure) -> None:
    plain, config = configure(name="plain"), configure("hardware.gradient_checkpointing=true", name="recomputed")
    for each in (plain, config):
        train_dldm(each)
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(config)[name], value, atol=1e-6, rtol=1e-5)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_last_checkpoint_as_it_was(
    configure, monkeypatch
) -> None:
    config = configure()
    phase_two_loss = module.phase_two_loss

    def broken(*args: object, **options: object) -> object:
        found = phase_two_loss(*args, **options)
        return found._replace(loss=found.loss * float("nan"))

    monkeypatch.setattr(module, "phase_two_loss", broken)
    with pytest.raises(InputError, match="at step 4"):
        train_dldm(config)
    assert resolve(Path(config.run_dir) / "dldm").name == "step_4"
    assert all(torch.isfinite(value).all() for value in weights(config).values())


def test_under_bfloat16_both_phases_train_and_keep_float32_weights(configure) -> None:
    config = configure("hardware.precision=bf16")
    train_dldm(config)
    assert {value.dtype for value in weights(config).values() if value.is_floating_point()} == {torch.float32}
    assert all(line["dldm/grad_norm"] > 0 for line in lines(config))


@pytest.mark.slow
def test_compiled_training_agrees_with_eager_training(miniature, tmp_path) -> None:
    """In processes of their own: the run-time shape checks of the tests and torch's compiler do not mix.

    Losses are compared, not weights: a bias before the standardization has no gradient, and Adam makes rounding of it.
    """
    found = {}
    for compiled in ("false", "true"):
        run = tmp_path / compiled
        overrides = [
            *miniature(run),
            "++train_dldm.usage_clips=4",
            "stages=[vdm,dldm]",
            f"++hardware.compile={compiled}",
        ]
        done = subprocess.run(
            [sys.executable, "-m", "vw2_robot.pretrain.pretrain_on_openx", *overrides],
            capture_output=True,
            text=True,
            cwd=REPO,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        metrics = (run / "dldm" / "metrics.jsonl").read_text().splitlines()
        found[compiled] = [
            {name: value for name, value in json.loads(line).items() if name in LOSSES} for line in metrics
        ]
    assert len(found["false"]) == 8
    for plain, fast in zip(found["false"], found["true"], strict=True):
        assert fast == pytest.approx(plain, rel=1e-3)


def test_a_vdm_of_a_larger_size_trains_beside_a_dldm_that_sees_the_clips_made_smaller(
    miniature: Callable[..., list[str]], tmp_path: Path
) -> None:
    larger = ["dldm.height=8", "dldm.width=8", "++vdm.frame_height=16", "++vdm.frame_width=16"]
    overrides = [*miniature(tmp_path), *larger, "++train_dldm.usage_clips=4", "stages=[vdm,dldm,latents]"]
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose("pretrain", overrides)
    config = config_from(PretrainConfig, OmegaConf.to_container(tree, resolve=True))
    assert config.clip_size == (16, 16)
    assert config.geometry[2:4] == (4, 4)
    pretrain_on_openx(config)
    assert lines(config)[-1]["dldm/denoising_loss"] > 0
    dldm = DLDM(config.dldm).eval()
    load_checkpoint(tmp_path / "dldm", kind="dldm").load_into(dldm=dldm)
    frames = FrameCache(Path(config.data.frame_cache or ""))
    windows = read_shards(tmp_path / "latents", 1)
    for episode, start, codes in zip(windows.episode[:8], windows.start, windows.codes, strict=False):
        clip = to_model_range(torch.from_numpy(frames.read(int(episode), start + np.arange(5))))[None]
        small = F.interpolate(clip[0], (8, 8), mode="bilinear", antialias=True)[None]
        assert dldm.indices(small)[0].tolist() == codes.tolist()
    with pytest.raises(ValueError, match="no smaller than the dLDM's, 8 x 8"):
        replace(config, vdm=replace(config.vdm, frame_height=4))

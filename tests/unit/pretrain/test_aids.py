"""Presets and experiments: which aids are on, and that an experiment means the same at every size."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.pretrain.aids import KEYS, OFF, Aids
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.schedule import learning_rate

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
# `paper` with another video model.
OPEN_MODELS = ("cosmos25", "wan21", "wan22")
PRESETS = sorted({path.stem for path in (CONFIGS / "model").glob("*.yaml")} - set(OPEN_MODELS))
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
PRETRAINED = ("paper", "release")
BASELINES = ("plain", "lapa", "videoworld", "3a_baseline", "a3_baseline")


@functools.cache
def preset_of(name: str) -> DictConfig:
    """The preset with its interpolations; folders stand for the weights that it wants, and nothing opens them."""
    given = ("vdm.weights=DIR", "codec.weights=DIR") if name in (*PRETRAINED, *OPEN_MODELS) else ()
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose("pretrain", [f"model={name}", "run_dir=r", *given])
    OmegaConf.set_struct(tree, False)  # experiments set keys that a preset leaves at their defaults
    return tree


@functools.cache
def configured(preset: str, *overrides: str, experiment: str | None = None) -> PretrainConfig:
    """The configuration at that size, with an experiment laid over it as Hydra does (`tests/test_configs.py`)."""
    layers = []
    if experiment is not None:
        tree = yaml.safe_load((CONFIGS / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8"))
        for below in tree.pop("defaults", ["_self_"]):
            layers.append(tree if below == "_self_" else OmegaConf.load(CONFIGS / f"{below.lstrip('/')}.yaml"))
    merged = OmegaConf.merge(preset_of(preset), *layers, OmegaConf.from_dotlist(list(overrides)))
    return config_from(PretrainConfig, OmegaConf.to_container(merged, resolve=True))


def test_the_paper_and_the_release_have_no_aid_and_small_presets_say_which() -> None:
    assert configured("paper").aids == configured("release").aids == OFF == Aids()
    for preset in ("tiny", "h200"):
        tree = yaml.safe_load((CONFIGS / "model" / f"{preset}.yaml").read_text(encoding="utf-8"))
        assert Aids(**tree["aids"]) == configured(preset).aids != OFF
    assert configured("demo").aids == configured("tiny").aids
    assert {"warp_output", "still_control", "reader", "high_noise=0.7"} <= set(configured("tiny").aids.names)
    assert not OFF.names


def test_the_release_trains_as_published() -> None:
    phases, dldm = configured("release").train_dldm, configured("release").dldm
    for loop in (phases.phase1, phases.phase2):
        rates = [learning_rate(step, loop.optim, total_steps=loop.train_steps) for step in (2000, 201_000)]
        assert rates == pytest.approx([0.6 * 2**-14.5, 0.45 * 2**-14.5], rel=0.01)
    assert (phases.phase1.train_steps, phases.phase2.train_steps) == (100_000, 30_000)
    assert (dldm.code_attention, dldm.post_quant, dldm.z_norm) == ("lowest", "conv", "none")
    paper = configured("paper")
    assert (paper.dldm.code_attention, paper.train_dldm.denoise_weight) == ("every", 1.0)
    with pytest.raises(InputError, match=r"perceptual_weight=0\.1 needs train_dldm\.perceptual_weights"):
        configured("release", "train_dldm.perceptual_weight=0.1")


def test_an_aid_is_set_in_one_place() -> None:
    config = configured("paper", "aids.high_noise=0.5", "aids.role_embedding=true")
    assert config.vdm.high_noise == 0.5
    assert config.dldm.qformer.role_embedding
    assert config.aids.names == ["role_embedding", "high_noise=0.5"]
    with pytest.raises(InputError, match=r"dldm\.output=warp: set aids\.decoder_output=warp"):
        configured("paper", "dldm.output=warp")
    with pytest.raises(InputError, match=r"aids\.reader=true needs train_dldm\.reader\.loop"):
        configured("paper", "aids.reader=true")


@pytest.mark.parametrize("preset", OPEN_MODELS)
def test_another_video_model_changes_nothing_else(preset: str) -> None:
    config, paper = configured(preset), configured("paper")
    assert replace(config, vdm=paper.vdm, codec=paper.codec) == paper
    assert config.vdm != paper.vdm
    assert (config.codec == paper.codec) == (preset != "wan22")


@pytest.mark.parametrize("preset", PRETRAINED)
def test_random_weights_are_refused_unless_they_are_asked_for_by_name(preset: str) -> None:
    config = configured(preset)
    for part, weights in (("vdm", "vdm.weights"), ("codec", "codec.weights")):
        without = replace(getattr(config, part), weights=None)
        with pytest.raises(ValueError, match=rf"{weights}.*{part}\.init=random"):
            replace(config, **{part: without})
        assert replace(config, **{part: replace(without, init="random")})
    assert replace(
        config, codec=replace(config.codec, weights=None), train_dldm=replace(config.train_dldm, with_vdm=False)
    )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_means_the_same_at_every_size(experiment: str, preset: str) -> None:
    plain = configured(preset)
    config = configured(preset, experiment=experiment)
    dldm, phases, vdm = config.dldm, config.train_dldm, config.vdm
    if experiment in BASELINES:
        assert config.aids == OFF
        assert {key for aid, key in KEYS.items() if getattr(config.aids, aid) != getattr(OFF, aid)} == set()
    elif not experiment.startswith(("ours", "3a")):
        assert config.aids == plain.aids
    with_vdm = not (experiment in BASELINES[1:] or experiment.startswith("ours"))
    assert phases.with_vdm == with_vdm
    if experiment.startswith("3a_"):
        assert phases.stop_gradient == (experiment != "3a_vdm")
        assert (vdm.control if with_vdm else "none") == (plain.vdm.control if experiment == "3a_control" else "none")
        assert experiment != "3a_control" or config == plain
    elif experiment.startswith("3b_n"):
        assert dldm.queries == config.policy.queries == int(experiment[4:])
    elif experiment.startswith("3c_v"):
        assert dldm.vocabulary == {8: 8, 1000: 1000, 4096: 4096, 64000: 64000}[int(experiment[4:])]
    elif experiment.startswith("3d_t"):
        frames = int(experiment[4:])
        assert dldm.num_frames == frames
        if frames == 2:
            assert (dldm.temporal_stride, dldm.latent_steps, config.codec.kind, vdm.init) == (1, 1, "dct", "prior")
        else:
            assert (dldm.temporal_stride, config.codec, vdm) == (4, plain.codec, plain.vdm)
    elif experiment.startswith("a2_"):
        assert (vdm.projection_layers > 0) == ("self" in experiment)
        assert vdm.code_visibility == ("causal" if "causal" in experiment else "none")
    elif experiment == "a3_random":
        assert (vdm.init, vdm.weights, vdm.train) == ("random", None, "full")
    elif experiment.startswith("a3_") and with_vdm:
        assert vdm == replace(plain.vdm, train=experiment[3:])
        assert vdm.init == ("weights" if preset in PRETRAINED else "prior")
    elif experiment == "lapa":
        assert (dldm.num_frames - 1) // dldm.gap == dldm.latent_steps == 1
        assert dldm.gap == dldm.temporal_stride == plain.dldm.temporal_stride == 4
        assert (dldm.quantizer, dldm.output, phases.anchor_grad_phase1) == ("vq", "pixels", False)
    elif experiment == "ours_augmented":
        assert config.aids == replace(plain.aids, encoder_augmentation=1.0)
    elif experiment == "ours_change":
        assert config.aids == replace(plain.aids, decoder_output="change")
    elif experiment == "ours_correlated":
        assert config.aids == replace(plain.aids, decorrelation=0.0)

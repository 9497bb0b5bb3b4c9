"""Several ranks and micro-batches train what one process trains: losses, codes, weights, and where they continue."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SHARDINGS = ("none", "ddp", "fsdp")
ALL = ("vdm", "dldm", "latents", "policy", "finetune")
RANK = Path(__file__).with_name("rank.py")
LOOP = "{train_steps: %d, batch_size: 8, log_every: 100, save_every: %d, optim: {lr: 0.001, warmup_steps: 2}}"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def start(world_size, jobs, folder, **environment):
    """Start the ranks of a list of jobs, or of one list for each rank; each rank writes to a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(world_size):
        ranks = {"RANK": str(rank), "WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        file = folder / f"jobs{rank}.json"
        file.write_text(json.dumps(jobs[rank] if isinstance(jobs[0], list) else jobs))
        with (folder / f"rank{rank}.out").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(RANK), str(file)],
                    env={**os.environ, "OMP_NUM_THREADS": "1", **(ranks if world_size > 1 else {}), **environment},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            )
    return processes


def finish(processes, folder, *, seconds=300):
    """Wait for all ranks; returns exit statuses and what they printed."""
    deadline = time.monotonic() + seconds
    try:
        statuses = [process.wait(max(1.0, deadline - time.monotonic())) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return statuses, [(folder / f"rank{rank}.out").read_text() for rank in range(len(processes))]


def run_ranks(world_size, jobs, folder, **environment):
    statuses, printed = finish(start(world_size, jobs, folder, **environment), folder, seconds=1500)
    assert statuses == [0] * world_size, "\n".join(text[-2000:] for text in printed)


@pytest.fixture(scope="module")
def jobs_of(miniature, calvin_folder):
    """The jobs of a run folder: pre-training stages, and fine-tuning."""

    def jobs(run, *, sharding="none", micro_batches=1, precision="float64", stages=ALL, save_every=100, train_steps=20):
        # A sample turns a rounding into another code, so in float32 none are sampled.
        codes = "hindsight" if precision == "float64" else "ground_truth"
        loop = LOOP % (train_steps, save_every)
        hardware = (
            f"++hardware={{device: cpu, threads: 1, sharding: {sharding}, micro_batches: {micro_batches}, "
            f"precision: {precision}}}"
        )
        names = ("train_vdm", "train_dldm.phase1", "train_dldm.phase2", "train_policy.loop")
        changed = ("++train_", "++hardware", "aids.reader")
        kept = [option for option in miniature(run) if not option.startswith(changed)]
        # What couples the clips of a batch is on, and the reader, which trains the video model alone.
        coupled = ["aids.standardize=batch", "aids.decorrelation=0.1", "++train_dldm.statistics_group=2"]
        coupled += ["aids.reader=true", f"++train_dldm.reader.loop={LOOP % (2, save_every)}"]
        first = f"stages=[{','.join(stage for stage in stages if stage != 'finetune')}]"
        found = [{"program": "pretrain", "overrides": [*kept, hardware, *coupled, first]}]
        found[0]["overrides"] += [f"++{name}={loop}" for name in names]
        if "finetune" in stages:
            overrides = [
                f"policy={run}",
                f"data.path={calvin_folder}",
                f"run_dir={run}/finetune",
                hardware,
                f"++loop={loop}",
                "label_fraction=0.5",
                "++head.hidden=8",
                "validation_windows=4",
                "n_action_steps=1",
                "image_color_jitter=0.2",
                "unlabeled.weight=0.5",
                "unlabeled.batch_size=8",
                f"code_source={codes}",
            ]
            found.append({"program": "finetune", "overrides": overrides})
        return [{**job, "losses": f"{run}.jsonl"} for job in found]

    return jobs


def losses(run):
    """Losses and gradient norms of each stage: {stage: [[loss, norm], ...]}."""
    found = {}
    for line in Path(f"{run}.jsonl").read_text().splitlines():
        stage, *values = json.loads(line)
        found.setdefault(stage, []).append(values)
    return {stage: np.array(values) for stage, values in found.items()}


def difference(run, expected, stage, steps=slice(None)):
    """The largest relative difference of the losses of a stage."""
    a = losses(run)[stage][steps, 0]
    b = losses(expected)[stage][steps, 0]
    assert len(a) == len(b) > 0
    return np.max(np.abs(a - b) / np.abs(b))


def codes(run):
    return np.concatenate([np.load(file)["codes"] for file in sorted((run / "latents").glob("windows-*.npz"))])


def weights(run, stage):
    folder = run / stage
    return load_file(folder / "checkpoints" / (folder / "latest").read_text().strip() / "model.safetensors")


COMBINATIONS = [(size, sharding, micro) for size in (1, 2) for sharding in SHARDINGS for micro in (1, 2, 4)]


@pytest.fixture(scope="module")
def trained(jobs_of, tmp_path_factory):
    """The folder with the runs of all combinations, named by `place`; processes of pytest share it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained_by_ranks"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "done").exists():
            train_all(jobs_of, root)
            (root / "done").touch()
    return root


def place(root, precision, size=1, sharding="none", micro_batches=1, *, of="many"):
    return root / f"{of}-{precision}-{size}-{sharding}-{micro_batches}"


def train_all(jobs_of, root):
    """Train in one process first, then in all combinations.

    In float64 each is a chain of its own. In float32 a code that rounds the other way would change everything after
    it, so there the policy and fine-tuning begin with the codes of one process.
    """
    first = {precision: place(root, precision, of="one") for precision in ("float64", "float32")}
    run_ranks(1, [job for precision, run in first.items() for job in jobs_of(run, precision=precision)], root / "first")
    jobs = {1: [], 2: []}
    for precision, one in first.items():
        for size, sharding, micro_batches in COMBINATIONS:
            key = (precision, size, sharding, micro_batches)
            options = {"sharding": sharding, "micro_batches": micro_batches, "precision": precision}
            if precision == "float64":
                jobs[size] += jobs_of(place(root, *key), **options)
                continue
            jobs[size] += jobs_of(place(root, *key), **options, stages=("vdm", "dldm"))
            same = place(root, *key, of="same")
            for stage in ("vdm", "dldm", "latents"):
                shutil.copytree(one / stage, same / stage)
            jobs[size] += jobs_of(same, **options, stages=("policy", "finetune"))
    running = {size: start(size, jobs[size], root / f"ranks{size}") for size in jobs}
    for size, processes in running.items():
        statuses, printed = finish(processes, root / f"ranks{size}", seconds=1500)
        assert statuses == [0] * size, "\n".join(text[-2000:] for text in printed)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sharding", "micro_batches"), COMBINATIONS)
def test_ranks_sharding_and_micro_batches_change_no_loss(trained, size, sharding, micro_batches):
    key = (size, sharding, micro_batches)
    exact = place(trained, "float64", *key)
    one = place(trained, "float64", of="one")
    for stage in ("vdm", "dldm", "policy", "head"):
        assert difference(exact, one, stage) < 1e-12
    assert np.array_equal(codes(exact), codes(one))
    for stage in ("policy", "finetune"):
        expected = weights(one, stage)
        for name, value in weights(exact, stage).items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-9)
    single = place(trained, "float32", *key)
    one = place(trained, "float32", of="one")
    assert difference(single, one, "vdm") < 5e-6
    assert difference(single, one, "dldm", slice(20)) < 2e-5  # phase 1: FSQ's rounding amplifies
    for stage in ("policy", "head"):
        assert difference(place(trained, "float32", *key, of="same"), one, stage) < 5e-6


@pytest.mark.slow
def test_two_ranks_give_the_codes_of_one_process_in_float32(jobs_of, tmp_path):
    """With statistics over whole batches. A larger learning rate or small groups make more codes round otherwise."""
    options = {"precision": "float32", "stages": ("vdm", "dldm", "latents")}
    jobs = {}
    for size in (1, 2):
        (jobs[size],) = jobs_of(tmp_path / f"of{size}", sharding="ddp", **options)
        whole = [o for o in jobs[size]["overrides"] if "statistics_group" not in o and "decorrelation" not in o]
        jobs[size]["overrides"] = [option.replace("lr: 0.001", "lr: 0.0001") for option in whole]
    processes = start(1, [jobs[1]], tmp_path / "one")
    run_ranks(2, [jobs[2]], tmp_path / "two")
    assert finish(processes, tmp_path / "one")[0] == [0]
    assert np.mean(codes(tmp_path / "of1") == codes(tmp_path / "of2")) >= 0.99


@pytest.mark.slow
def test_stopped_runs_continue_on_another_number_of_ranks(jobs_of, tmp_path):
    """2, 1, 2, 1, 2 ranks, each stopped by a SIGTERM to one of its ranks, against one process that nobody stopped."""
    options = {"micro_batches": 2, "save_every": 1000}
    run_ranks(1, jobs_of(tmp_path / "undisturbed", **options), tmp_path / "of1")
    jobs = jobs_of(tmp_path / "stopped", sharding="fsdp", **options)
    stops = [(2, ["vdm", 1, 4]), (1, ["dldm", 0, 30]), (2, ["policy", 0, 6]), (1, ["head", 0, 2])]
    for number, (size, place) in enumerate(stops):
        signals = [[*place, signal.SIGTERM]]
        folder = tmp_path / f"part{number}"
        statuses, printed = finish(start(size, [{**job, "signals": signals} for job in jobs], folder), folder)
        assert statuses == [128 + signal.SIGTERM] * size, printed
        assert "resumable" in printed[0]
    run_ranks(2, jobs, tmp_path / "last")
    assert np.array_equal(codes(tmp_path / "stopped"), codes(tmp_path / "undisturbed"))
    for stage in ("vdm", "dldm", "policy", "finetune"):
        expected = weights(tmp_path / "undisturbed", stage)
        for name, value in weights(tmp_path / "stopped", stage).items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_or_stopped_rank_ends_the_others_and_the_run_continues_to_the_same_bits(jobs_of, tmp_path, number):
    options = {"sharding": "fsdp", "stages": ("vdm", "dldm"), "save_every": 7, "precision": "float32"}
    run_ranks(2, jobs_of(tmp_path / "undisturbed", **options), tmp_path / "whole")
    jobs = jobs_of(tmp_path / "hit", **options)
    for stage, call in (("vdm", 9), ("dldm", 25)):
        folder = tmp_path / stage
        hit = [{**job, "signals": [[stage, 1, call, number]]} for job in jobs]
        processes = start(2, hit, folder, VW2_RANK_TIMEOUT="5")
        processes[1].wait(300)
        begin = time.monotonic()
        statuses, printed = finish(processes, folder)
        assert time.monotonic() - begin < 20
        if number == signal.SIGKILL:
            assert statuses == [1, -signal.SIGKILL], printed
            assert "rank 1: died" in printed[0]
        else:
            assert statuses == [143, 143], printed
    run_ranks(2, jobs, tmp_path / "last")
    for stage in ("vdm", "dldm"):
        expected = weights(tmp_path / "undisturbed", stage)
        found = weights(tmp_path / "hit", stage)
        assert [name for name in expected if not np.array_equal(found[name], expected[name])] == []


@pytest.mark.slow
def test_the_commands_of_the_page_run(jobs_of, miniature, frames_folder, calvin_folder, tmp_path):
    """The torchrun commands of docs/scaling.md, with a tiny model; those for two machines on one, with a rank each."""
    page = (RANK.parents[2] / "docs" / "scaling.md").read_text()
    commands = [line for line in page.splitlines() if line.startswith("torchrun --n")]
    assert len(commands) == 4
    port = free_port()
    for group, run in ((commands[:2], "one"), (commands[2:], "two")):
        tiny = [*jobs_of(tmp_path / run, train_steps=2, precision="float32")[0]["overrides"]]
        tune = jobs_of(tmp_path / run, train_steps=2, precision="float32")[1]["overrides"]
        started = []
        for number, command in enumerate(group):
            words = command.replace("--nproc_per_node=8", "--nproc_per_node=1").replace("10.0.0.1", "127.0.0.1")
            words = words.replace("29500", port).split()
            at = words.index("-m") + 2
            overrides = tune if "finetune" in command else tiny
            line = [sys.executable, "-m", "torch.distributed.run", *words[1:at], *overrides]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with (tmp_path / f"{run}{number}.out").open("w") as log:
                started.append(subprocess.Popen(line, env=environment, stdout=log, stderr=subprocess.STDOUT))
            if run == "one":  # one after the other; the two machines at the same time
                assert started[-1].wait(300) == 0, (tmp_path / f"{run}{number}.out").read_text()[-3000:]
        assert [process.wait(300) for process in started] == [0, 0], (tmp_path / f"{run}0.out").read_text()[-3000:]
    assert np.array_equal(codes(tmp_path / "one"), codes(tmp_path / "two"))
    assert (tmp_path / "one" / "finetune" / "latest").read_text() == "step_2\n"


@pytest.mark.slow
def test_what_ranks_cannot_agree_on_ends_in_one_message(jobs_of, tmp_path):
    jobs = jobs_of(tmp_path / "run", stages=("vdm",), train_steps=3)
    other = [{**job, "overrides": [*job["overrides"], "seed=1"]} for job in jobs]
    cases = {
        "configuration": (2, [jobs, other], "rank 0 and rank 1 have different configurations (seed (0 -> 1))"),
        "batch": (3, jobs, "WORLD_SIZE=3 and hardware.micro_batches=1 do not divide a batch of 8"),
    }
    for name, (size, some, message) in cases.items():
        folder = tmp_path / name
        statuses, printed = finish(start(size, some, folder), folder)
        assert statuses == [1] * size, printed
        assert sum(text.count(message) for text in printed) >= 1, printed
    # Two runs in one folder: the second is refused and names the first, which goes on.
    first = start(2, jobs_of(tmp_path / "run", stages=("vdm",), train_steps=200), tmp_path / "first")
    while not (tmp_path / "run" / "vdm" / ".lock").exists():
        time.sleep(0.1)
        assert [process.poll() for process in first] == [None, None]
    statuses, printed = finish(start(2, jobs, tmp_path / "second"), tmp_path / "second")
    assert statuses == [1, 1], printed
    assert "is in use by another run: pre-training, process" in printed[0]
    assert finish(first, tmp_path / "first")[0] == [0, 0]

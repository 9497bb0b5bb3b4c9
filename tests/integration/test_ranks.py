"""Several ranks and micro-batches train what one process trains: losses, codes, weights, and where they continue."""

from __future__ import annotations

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
        # An argmax over predicted codes turns a rounding into another code, so in float32 none are predicted.
        codes = "mixed" if precision == "float64" else "ground_truth"
        loop = LOOP % (train_steps, save_every)
        hardware = (
            f"++hardware={{device: cpu, threads: 1, sharding: {sharding}, micro_batches: {micro_batches}, "
            f"precision: {precision}}}"
        )
        names = ("train_vdm", "train_dldm.phase1", "train_dldm.phase2", "train_policy.loop")
        kept = [option for option in miniature(run) if not option.startswith(("++train_", "++hardware"))]
        # What couples the clips of a batch is on.
        coupled = ["++dldm.z_norm=batch", "++train_dldm.decorrelation=0.1", "++train_dldm.statistics_group=2"]
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
def one_process(jobs_of, tmp_path_factory):
    """The whole chain in one process with one micro-batch: {precision: run_dir}."""
    root = tmp_path_factory.mktemp("one")
    found = {precision: root / precision for precision in ("float64", "float32")}
    run_ranks(1, [job for precision, run in found.items() for job in jobs_of(run, precision=precision)], root)
    return found


@pytest.fixture(scope="module")
def trained(jobs_of, one_process, tmp_path_factory):
    """All combinations: {(precision, ranks, sharding, micro-batches): run_dir}.

    In float64 each is a chain of its own. In float32 a code that rounds the other way would change everything after
    it, so there the policy and fine-tuning begin with the codes of one process.
    """
    root = tmp_path_factory.mktemp("many")
    found = {}
    jobs = {1: [], 2: []}
    for precision in one_process:
        for size, sharding, micro_batches in COMBINATIONS:
            run = root / f"{precision}-{size}-{sharding}-{micro_batches}"
            found[precision, size, sharding, micro_batches] = run
            options = {"sharding": sharding, "micro_batches": micro_batches, "precision": precision}
            if precision == "float64":
                jobs[size] += jobs_of(run, **options)
                continue
            jobs[size] += jobs_of(run, **options, stages=("vdm", "dldm"))
            same = Path(f"{run}-codes")
            for stage in ("vdm", "dldm", "latents"):
                shutil.copytree(one_process[precision] / stage, same / stage)
            jobs[size] += jobs_of(same, **options, stages=("policy", "finetune"))
    running = {size: start(size, jobs[size], root / f"ranks{size}") for size in jobs}
    for size, processes in running.items():
        statuses, printed = finish(processes, root / f"ranks{size}", seconds=1500)
        assert statuses == [0] * size, "\n".join(text[-2000:] for text in printed)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sharding", "micro_batches"), COMBINATIONS)
def test_ranks_sharding_and_micro_batches_change_no_loss(trained, one_process, size, sharding, micro_batches):
    exact = trained["float64", size, sharding, micro_batches]
    for stage in ("vdm", "dldm", "policy", "head"):
        assert difference(exact, one_process["float64"], stage) < 1e-12
    assert np.array_equal(codes(exact), codes(one_process["float64"]))
    for stage in ("policy", "finetune"):
        expected = weights(one_process["float64"], stage)
        for name, value in weights(exact, stage).items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-9)
    single = trained["float32", size, sharding, micro_batches]
    base = one_process["float32"]
    assert difference(single, base, "vdm") < 5e-6
    assert difference(single, base, "dldm", slice(20)) < 2e-5  # phase 1: FSQ's rounding amplifies
    for stage in ("policy", "head"):
        assert difference(Path(f"{single}-codes"), base, stage) < 5e-6

"""The templates in cluster/ under a real Slurm: two nodes on this machine, in a temporary folder."""

from __future__ import annotations

import getpass
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
SEARCH = f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin"
MISSING = [name for name in PROGRAMS if shutil.which(name, path=SEARCH) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed (apt-get install slurm-wlm munge): {MISSING}"),
]
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthInfo=socket={home}/munge.socket
StateSaveLocation={home}/state
SlurmctldPidFile={home}/slurmctld.pid
SlurmdSpoolDir={home}/%n
SlurmdPidFile={home}/%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
GresTypes=gpu
KillWait=10
NodeName=first NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=4000 Gres=gpu:1
NodeName=second NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=4000 Gres=gpu:1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
"""
# Console scripts, and `python` for torchrun: of this checkout and this interpreter, whatever else is installed.
SCRIPTS = {
    "python": "",
    "vw2-train-vdm": "-m vw2_robot.pretrain.train_vdm",
    "vw2-rollout": "-m vw2_robot.rollouts",
}
# Ranks that meet, work until they are stopped, and are done when they are started again.
RANKS = """
import os, signal, sys, time
from pathlib import Path
import torch
import torch.distributed as dist

stops = []
signal.signal(signal.SIGTERM, lambda *_: stops.append(0))
dist.init_process_group("gloo")
one = torch.ones(1)
dist.all_reduce(one)
rank = dist.get_rank()
saved = Path(sys.argv[1]) / str(rank)
line = f"rank {rank} local {os.environ['LOCAL_RANK']} sum {int(one)} {'again' if saved.exists() else ''}\\n"
os.write(1, line.encode())  # in one piece: four ranks write to one file
if not saved.exists():
    (Path(sys.argv[1]) / f"up_{rank}").touch()
    while not stops:
        time.sleep(0.05)
    time.sleep(0.5)
    saved.touch()
    dist.barrier()
    os._exit(143)
dist.barrier()
"""


class Slurm:
    """A cluster of two nodes; `submit` and `control` are its commands."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.daemons: list[subprocess.Popen[bytes]] = []
        scripts = home / "bin"
        scripts.mkdir()
        for name, arguments in SCRIPTS.items():
            (scripts / name).write_text(f'#!/bin/sh\nexec {sys.executable} {arguments} "$@"\n')
            (scripts / name).chmod(0o755)
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SLURM")},
            "PATH": f"{scripts}:{SEARCH}",
            "PYTHONPATH": f"{REPO}:{os.environ.get('PYTHONPATH', '')}",
            "SLURM_CONF": str(home / "slurm.conf"),
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        home = self.home
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [server.getsockname()[1] for server in sockets]
        for server in sockets:
            server.close()
        text = CONFIGURATION.format(home=home, user=getpass.getuser(), host=socket.gethostname(), ports=ports)
        (home / "slurm.conf").write_text(text)
        (home / "gres.conf").write_text("Name=gpu File=/dev/null\n")
        (home / "munge.key").write_bytes(os.urandom(128))
        (home / "munge.key").chmod(0o600)
        for name in ("state", "first", "second"):
            (home / name).mkdir()
        files = (f"--{what}-file={home}/munge.{what}" for what in ("key", "pid", "log", "seed"))
        self.run_daemon("munged", "-F", f"--socket={home}/munge.socket", *files)
        self.wait_for(lambda: (home / "munge.socket").exists(), "munged")
        self.run_daemon("slurmctld", "-D", "-c")
        for name in ("first", "second"):
            self.run_daemon("slurmd", "-D", "-N", name)
        self.wait_for(lambda: self.call("sinfo", "-h", "-o", "%T %D").stdout.strip() == "idle 2", "two idle nodes")

    def run_daemon(self, name: str, *arguments: str) -> None:
        with (self.home / f"{name}_{len(self.daemons)}.out").open("wb") as out:
            command = [name, *arguments]
            self.daemons.append(subprocess.Popen(command, stdout=out, stderr=out, env=self.environment))

    def stop(self) -> None:
        with suppress(subprocess.SubprocessError, FileNotFoundError):  # no controller: then there are no jobs either
            self.call("scancel", "--user", getpass.getuser())
            deadline = time.monotonic() + 15
            while self.call("squeue", "--noheader").stdout and time.monotonic() < deadline:
                time.sleep(0.2)
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(timeout=10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def call(self, *command: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=check, cwd=self.home
        )

    def submit(self, template: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        """Submit a file of cluster/ and return the number of the job; its output is in `job_NUMBER.out`."""
        options = (f"--output={self.home}/job_%j.out", *options)
        script = str(REPO / "cluster" / template)
        submitted = self.call("sbatch", "--parsable", *options, script, *arguments)
        assert submitted.returncode == 0, submitted.stderr
        return submitted.stdout.strip()

    def output(self, job: str) -> str:
        file = self.home / f"job_{job}.out"
        return file.read_text() if file.exists() else ""

    def facts(self, job: str) -> dict[str, str]:
        text = self.call("scontrol", "show", "job", job, check=True).stdout
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def hurry(self, job: str, *, restarts: int) -> None:
        """Let a job that was queued again start now: Slurm waits until its credential has expired, two minutes."""

        def queued() -> bool:
            facts = self.facts(job)
            return (facts["JobState"], facts["Restarts"]) == ("PENDING", str(restarts))

        self.wait_for(queued, f"job {job} in the queue again", job)
        time.sleep(2)  # the nodes refuse a credential as old as the end of the job, in whole seconds
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now", check=True)
        self.wait_for(lambda: self.facts(job)["JobState"] != "PENDING", f"restart {restarts}", job)

    def wait_for(self, ready, what: str, job: str = "", seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{file}: {file.read_text()[-2000:]}" for file in self.home.glob("*.out"))
                pytest.fail(f"waited {seconds:g} s for {what}\n{self.facts(job) if job else ''}\n{logs}")
            time.sleep(0.05)

    def wait_for_end(self, job: str, state: str) -> None:
        ends = ("COMPLETED", "FAILED", "CANCEL", "TIMEOUT", "NODE_FAIL")
        self.wait_for(lambda: self.facts(job)["JobState"].startswith(ends), f"the end of job {job}", job)
        assert self.facts(job)["JobState"].startswith(state), self.output(job)


@pytest.fixture(scope="module")
def slurm():
    # Not below the folder of pytest, which others may not enter: munged asks for that.
    with tempfile.TemporaryDirectory(prefix="slurm_") as folder:
        Path(folder).chmod(0o755)
        cluster = Slurm(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


def lines(file):
    return file.read_text().count("\n") if file.is_file() else 0


def test_training_that_is_queued_again_ends_in_the_same_bytes(slurm, miniature, tmp_path):
    loop = "{train_steps: 400, batch_size: 2, log_every: 1, save_every: 20, optim: {lr: 0.003, warmup_steps: 2}}"
    calm, moved = tmp_path / "calm", tmp_path / "moved"

    def submit(run_dir):
        return slurm.submit("one_node.sbatch", "vw2-train-vdm", *miniature(run_dir), f"++train_vdm={loop}")

    undisturbed = submit(calm)
    slurm.wait_for_end(undisturbed, "COMPLETED")
    assert slurm.facts(undisturbed)["Restarts"] == "0"
    assert "queued again" not in slurm.output(undisturbed)
    job = submit(moved)
    metrics = moved / "vdm" / "metrics.jsonl"
    # 1. As an administrator or a preemption without grace time does it.
    slurm.wait_for(lambda: lines(metrics) >= 50, "50 steps", job)
    slurm.call("scontrol", "requeue", job, check=True)
    # 2. As Slurm does it two minutes before the time limit.
    slurm.hurry(job, restarts=1)
    slurm.wait_for(lambda: lines(metrics) >= 150, "150 steps", job)
    slurm.call("scancel", "--batch", "--signal=USR1", job, check=True)
    slurm.hurry(job, restarts=2)
    # 3. A preemption with a grace time, where the batch script gets no signal.
    slurm.wait_for(lambda: lines(metrics) >= 250, "250 steps", job)
    slurm.call("srun", "--partition=urgent", "--nodes=2", "--exclusive", "true", check=True)
    slurm.hurry(job, restarts=3)
    slurm.wait_for_end(job, "COMPLETED")
    assert slurm.facts(job)["Restarts"] == "3"
    assert slurm.output(job).count("stopped with status 143; queued again") == 2
    expected = {file.relative_to(calm): file.read_bytes() for file in calm.rglob("*.safetensors")}
    assert expected
    assert {file.relative_to(moved): file.read_bytes() for file in moved.rglob("*.safetensors")} == expected
    assert metrics.read_bytes() == (calm / "vdm" / "metrics.jsonl").read_bytes()


def test_bad_input_ends_the_job_and_a_canceled_job_stays_canceled(slurm, miniature, tmp_path):
    failing = slurm.submit("one_node.sbatch", "vw2-train-vdm", *miniature(tmp_path), "sed=1")
    slurm.wait_for_end(failing, "FAILED")
    assert slurm.facts(failing)["ExitCode"] == "1:0"
    assert slurm.facts(failing)["Restarts"] == "0"
    assert "there is no key sed" in slurm.output(failing)
    sleeping = slurm.submit("one_node.sbatch", "bash", "-c", "trap 'sleep 1; exit 143' TERM; touch up; sleep 60 & wait")
    slurm.wait_for(lambda: (slurm.home / "up").exists(), "the program", sleeping)
    slurm.call("scancel", sleeping, check=True)
    slurm.wait_for_end(sleeping, "CANCEL")
    time.sleep(3)  # a job that is queued again would be back
    assert slurm.facts(sleeping)["JobState"].startswith("CANCEL")


@pytest.mark.parametrize("launcher", ["", "torchrun"])
def test_ranks_on_two_nodes_meet_and_continue(slurm, tmp_path, launcher):
    program = tmp_path / "ranks.py"
    program.write_text(RANKS)
    # The names of these nodes are made up, so the address is given.
    options = ("--ntasks-per-node=2", "--gpus-per-node=1", "--cpus-per-task=2")
    exported = f"--export=ALL,LAUNCHER={launcher},MASTER_ADDR=127.0.0.1"
    arguments = ("python", str(program), str(tmp_path))
    job = slurm.submit("several_nodes.sbatch", *arguments, options=(*options, exported))
    slurm.wait_for(lambda: all((tmp_path / f"up_{rank}").exists() for rank in range(4)), "four ranks", job)
    slurm.call("scancel", "--batch", "--signal=USR1", job, check=True)
    slurm.hurry(job, restarts=1)
    slurm.wait_for_end(job, "COMPLETED")
    text = slurm.output(job)
    for rank in range(4):
        assert f"rank {rank} local {rank % 2} sum 4 \n" in text
        assert f"rank {rank} local {rank % 2} sum 4 again\n" in text
    failing = slurm.submit(
        "several_nodes.sbatch", "bash", "-c", "exit 1", options=(*options, exported)
    )  # as at bad input
    slurm.wait_for_end(failing, "FAILED")
    assert slurm.facts(failing)["Restarts"] == "0"


@pytest.mark.sim
def test_an_array_of_shards_is_merged_and_only_its_own_shard_is_queued_again(slurm, tmp_path):
    run_dir = tmp_path / "rollout"
    overrides = ("policy=random", "num_sequences=40", "videos=0", "env.max_steps=3", f"run_dir={run_dir}")
    job = slurm.submit("rollout_array.sbatch", *overrides, options=("--array=0-1",))
    tasks = [f"{job}_{task}" for task in range(2)]
    # Now its script has set its traps (the controller calls a task running earlier), and it has work left.
    slurm.wait_for(lambda: lines(run_dir / "shard_1_of_2" / "results.jsonl") >= 1, "a chain of shard 1", tasks[1])
    # The number of the last task is that of the array, so that `requeue` of this number concerns all of them.
    assert slurm.facts(tasks[1])["JobId"] == job
    slurm.call("scancel", "--batch", "--signal=USR1", tasks[1], check=True)
    slurm.hurry(tasks[1], restarts=1)
    for task in tasks:
        slurm.wait_for_end(task, "COMPLETED")
    assert [slurm.facts(task)["Restarts"] for task in tasks] == ["0", "1"]
    assert lines(run_dir / "results.jsonl") == 40
    assert (run_dir / "summary.json").is_file()


def test_the_launcher_of_hydra_sweeps_and_continues_after_a_preemption(slurm, miniature, calvin_folder, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install hydra-submitit-launcher")
    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=main", "hydra.launcher.cpus_per_task=2")

    def sweep(module, *overrides):
        command = [sys.executable, "-m", f"vw2_robot.{module}", "--multirun", *launcher, "hydra.launcher.mem_gb=1"]
        return subprocess.Popen(
            [*command, f"hydra.sweep.dir={tmp_path / 'jobs'}", *overrides],
            env=slurm.environment,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    loop = "{train_steps: 150, batch_size: 2, log_every: 1, save_every: 20, optim: {lr: 0.003, warmup_steps: 2}}"
    run = tmp_path / "run"
    chain = sweep("pretrain.pretrain_on_openx", *miniature(run), f"++train_vdm={loop}")
    slurm.wait_for(lambda: lines(run / "vdm" / "metrics.jsonl") >= 50, "50 steps")
    job = slurm.call("squeue", "--noheader", "--format=%i", check=True).stdout.strip()
    slurm.call("scancel", "--signal=USR2", job, check=True)  # submitit asks Slurm for this signal
    slurm.hurry(job, restarts=1)
    text, _ = chain.communicate(timeout=120)
    assert chain.returncode == 0, text
    assert slurm.facts(job)["Restarts"] == "1"
    assert lines(run / "vdm" / "metrics.jsonl") == 150
    # Fine-tuning with two seeds: a folder each, or no start. The second sweep has a job that fails.
    loop = "{train_steps: 4, batch_size: 4, log_every: 1, save_every: 2, optim: {lr: 0.003, warmup_steps: 2}}"
    overrides = (f"policy={run}", f"data.path={calvin_folder}", "data.validation_fraction=0.25", "head.hidden=8")
    overrides = (*overrides, f"++loop={loop}", "++hardware={device: cpu, threads: 1}")
    refused = sweep("finetune.train_head", *overrides, "seed=0,1", f"run_dir={tmp_path / 'tuned'}")
    assert "is the folder of all runs of this sweep over seed" in refused.communicate(timeout=60)[0]
    assert refused.returncode == 1
    tuned = sweep("finetune.train_head", *overrides, "seed=0,1", f"run_dir={tmp_path}/tuned_${{seed}}")
    text, _ = tuned.communicate(timeout=120)
    assert tuned.returncode == 0, text
    weights = [next((tmp_path / f"tuned_{seed}").rglob("*.safetensors")).read_bytes() for seed in range(2)]
    assert weights[0] != weights[1]
    failing = sweep(
        "finetune.train_head", *overrides, "label_fraction=0.5,2", f"run_dir={tmp_path}/f_${{label_fraction}}"
    )
    text, _ = failing.communicate(timeout=120)
    assert failing.returncode == 1
    assert "finetune: error: job #1 failed: " in text

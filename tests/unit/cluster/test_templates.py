"""The templates in cluster/ with stand-ins for Slurm's commands; tests/integration/test_slurm.py has the real ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[3] / "cluster"
NAMES = ("one_node", "several_nodes", "rollout_array")
# Of the manual of sbatch, those that a template of training or rollouts may need.
OPTIONS = {
    *("partition", "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output"),
    *("open-mode", "requeue", "signal", "array"),
}
# Each writes a line into the file `calls`. srun runs the program as rank 0, its number in the file `step`.
COMMANDS = {
    "srun": """
echo "srun $*" >> calls
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=0 SLURM_LOCALID=0
echo $BASHPID > step
exec "$@"
""",
    "scancel": """
echo "scancel $*" >> calls
[[ $1 == --signal=TERM ]] && kill -TERM $(cat step)
""",
    "scontrol": """
case "$*" in
"show hostnames "*) printf 'n1\\nn2\\n' ;;
"--oneliner show job "*) cat facts ;;
*) echo "scontrol $*" >> calls ;;
esac
""",
    "python": 'echo "python $*"',  # torchrun
    "vw2-rollout": 'echo "vw2-rollout $*"',
}
RUNNING = "JobId=7 JobState=RUNNING StartTime=2026-01-02T10:00:00 PreemptTime=None\n"
# What a training program does: after SIGTERM it saves and ends with 143.
TRAINING = "trap 'echo saved; exit 143' TERM; echo up; for i in {1..200}; do sleep 0.05; done"


def directives(name):
    """{option: value} of the #SBATCH lines."""
    lines = (FOLDER / f"{name}.sbatch").read_text().splitlines()
    words = [word for line in lines if line.startswith("#SBATCH ") for word in line.split()[1:]]
    return {key: value for key, _, value in (word.removeprefix("--").partition("=") for word in words)}


@pytest.fixture
def sbatch(tmp_path):
    """Start a template as sbatch does."""
    (tmp_path / "bin").mkdir()
    for name, body in COMMANDS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "facts").write_text(RUNNING)
    started = []

    def start(name, *arguments, **environment):
        options = directives(name)
        tasks = int(options["nodes"]) * int(options["ntasks-per-node"])
        facts = {
            "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_NNODES": options["nodes"],
            "SLURM_NTASKS": str(tasks),
            "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"],
            "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
        }
        if "array" in options:
            facts |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8"}
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        process = subprocess.Popen(
            ["bash", str(FOLDER / f"{name}.sbatch"), *arguments],
            cwd=tmp_path,
            env={"PATH": path, **facts, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def calls(tmp_path):
    file = tmp_path / "calls"
    return [line for line in file.read_text().splitlines() if not line.startswith("srun ")]


def ended(process):
    text, _ = process.communicate(timeout=20)
    return process.returncode, text


@pytest.mark.parametrize("name", NAMES)
def test_a_template_is_a_script_with_known_options(name):
    subprocess.run(["bash", "-n", str(FOLDER / f"{name}.sbatch")], check=True)
    options = directives(name)
    assert options.keys() <= OPTIONS
    assert (options["signal"], options["open-mode"], options["requeue"]) == ("B:USR1@120", "append", "")
    assert re.fullmatch(r"(\d+-)?\d+:\d\d:\d\d", options["time"])
    text = (FOLDER / f"{name}.sbatch").read_text()
    # sbatch reads no options after the first command.
    assert "#SBATCH" not in text[text.index("\n\n") :]


def test_all_files_are_templates_and_share_what_follows_the_start():
    assert {file.name for file in FOLDER.glob("*.sbatch")} == {f"{name}.sbatch" for name in NAMES}
    shared = {(FOLDER / f"{name}.sbatch").read_text().partition("# From here on")[2] for name in NAMES}
    assert len(shared) == 1
    assert "" not in shared


def test_ranks_get_the_environment_that_the_training_programs_read(sbatch, tmp_path):
    shown = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT $OMP_NUM_THREADS" "$@"'
    command = ("bash", "-c", shown, "x", "data.path=a (b)")
    assert ended(sbatch("one_node", *command)) == (0, "0 0 1 localhost 20007 8 data.path=a (b)\n")
    assert ended(sbatch("several_nodes", *command)) == (0, "0 0 16 n1 20007 8 data.path=a (b)\n")
    given = {"MASTER_ADDR": "10.0.0.1", "OMP_NUM_THREADS": "1"}
    assert ended(sbatch("several_nodes", *command, **given)) == (0, "0 0 16 10.0.0.1 20007 1 data.path=a (b)\n")
    assert calls(tmp_path) == []
    assert (tmp_path / "calls").read_text().count("srun --kill-on-bad-exit=1 --cpus-per-task=8 bash -c ") == 3


def test_torchrun_meets_on_the_first_node_anew_after_each_restart(sbatch, tmp_path):
    status, text = ended(
        sbatch("several_nodes", "vw2-train-vdm", "run_dir=x", LAUNCHER="torchrun", SLURM_RESTART_COUNT="2")
    )
    assert (status, text) == (
        0,
        "python -m torch.distributed.run --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=n1:20007 "
        "--rdzv-id=7-2 --max-restarts=0 --no-python vw2-train-vdm run_dir=x\n",
    )
    srun = (tmp_path / "calls").read_text()
    assert srun.startswith("srun --kill-on-bad-exit=1 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=64 python -m ")


def test_a_task_of_the_array_runs_its_shard(sbatch):
    assert ended(sbatch("rollout_array", "run_dir=x")) == (0, "vw2-rollout shard=3/8 run_dir=x\n")
    assert ended(sbatch("rollout_array", "run_dir=x", SLURM_ARRAY_TASK_COUNT="1", SHARDS="8"))[1].startswith(
        "vw2-rollout shard=3/8 "
    )


def stopped(sbatch, name, numbers, command=TRAINING):
    """Send signals to the batch script, as `--signal=B:USR1@120` does, when its program is up."""
    # The rollout's program has a fixed name; the script of this test takes its place.
    process = sbatch(name, "bash", "-c", command) if name != "rollout_array" else sbatch(name)
    assert process.stdout.readline() == "up\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)
    return ended(process)


@pytest.mark.parametrize("name", NAMES)
def test_before_the_time_limit_the_program_saves_and_the_job_is_queued_again_once(sbatch, tmp_path, name):
    (tmp_path / "bin" / "vw2-rollout").write_text(f"#!/bin/bash\n{TRAINING}")
    job = "7_3" if name == "rollout_array" else "7"  # 7 is the whole array
    # The second signal must not reach the program, which would end at once.
    status, text = stopped(sbatch, name, [signal.SIGUSR1, signal.SIGUSR1])
    assert (status, text) == (143, "saved\nstopped with status 143; queued again\n")
    assert calls(tmp_path) == [f"scancel --signal=TERM {job}", f"scontrol requeue {job}"]


def test_a_program_that_finishes_after_the_signal_is_not_started_again(sbatch, tmp_path):
    assert stopped(sbatch, "one_node", [signal.SIGUSR1], TRAINING.replace("143", "0")) == (0, "saved\n")
    assert calls(tmp_path) == ["scancel --signal=TERM 7"]


@pytest.mark.parametrize("status", [0, 1, 2, 137, 143])
def test_what_ended_by_itself_is_not_queued_again(sbatch, tmp_path, status):
    """143 too: it is the status when Slurm stops the other processes after one has failed."""
    assert ended(sbatch("one_node", "bash", "-c", f"exit {status}")) == (status, "")
    assert calls(tmp_path) == []


def test_after_scancel_nothing_is_sent_and_the_job_stays_canceled(sbatch, tmp_path):
    (tmp_path / "facts").write_text(RUNNING.replace("RUNNING", "COMPLETING"))
    short = "trap : TERM; echo up; sleep 0.5; exit 143"
    assert stopped(sbatch, "one_node", [signal.SIGTERM], short) == (143, "")
    assert calls(tmp_path) == []


@pytest.mark.parametrize(("when", "times"), [("2026-01-02T10:30:00", 1), ("2026-01-02T09:30:00", 0)])
def test_a_preempted_program_is_queued_again_if_it_is_this_start_that_was_preempted(sbatch, tmp_path, when, times):
    (tmp_path / "facts").write_text(RUNNING.replace("None", when))
    assert ended(sbatch("one_node", "bash", "-c", "exit 143"))[0] == 143
    assert calls(tmp_path) == ["scontrol requeue 7"] * times

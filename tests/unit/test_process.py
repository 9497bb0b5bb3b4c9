"""A program ends in order when it is stopped, in time when it does not listen, and goes on when nobody reads it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vw2_robot import process

STOPS = [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")]


def start(body: str, *arguments: str, program: str = "with orderly('test'):") -> subprocess.Popen[str]:
    """A Python process that runs `body` inside `program`, once it has printed a line."""
    code = f"import os, sys, time\nfrom vw2_robot.process import *\nfrom vw2_robot import process\n{program}\n"
    code += "".join(f"    {line}\n" for line in body.splitlines())
    started = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    return started


def stop(started: subprocess.Popen[str], number: int) -> tuple[int, str]:
    started.send_signal(number)
    _, errors = started.communicate(timeout=30)
    return started.returncode, errors


@pytest.mark.parametrize(("number", "name"), STOPS)
def test_a_stop_cleans_up_and_leaves_one_message(tmp_path: Path, number: int, name: str) -> None:
    body = """
from pathlib import Path
from vw2_robot.storage.files import atomic_folder
with atomic_folder(Path(sys.argv[1]) / "step_1") as folder:
    (folder / "model").write_text("half")
    print("ready", flush=True)
    time.sleep(60)"""
    code, errors = stop(start(body, str(tmp_path)), number)
    assert (code, errors) == (128 + number, f"\ntest: stopped by {name}; start the same command again\n")
    assert not list(tmp_path.iterdir())


def test_a_stop_that_arrives_in_a_finalizer_is_not_lost() -> None:
    body = """
class Closing:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(0.5)
Closing()
time.sleep(60)"""
    begin = time.monotonic()
    assert stop(start(body), signal.SIGTERM) == (143, "\ntest: stopped by SIGTERM; start the same command again\n")
    assert time.monotonic() - begin < process.GRACE_SECONDS


def test_a_stop_waits_for_no_thread_and_removes_what_goes_at_exit(tmp_path: Path) -> None:
    body = """
import tempfile, threading
folder = tempfile.TemporaryDirectory(dir=sys.argv[1])
threading.Thread(target=time.sleep, args=(60,)).start()
print("ready", flush=True)
time.sleep(60)"""
    begin = time.monotonic()
    assert stop(start(body, str(tmp_path)), signal.SIGTERM)[0] == 128 + signal.SIGTERM
    assert time.monotonic() - begin < process.GRACE_SECONDS
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "name"), STOPS)
def test_a_second_ctrl_c_ends_the_clean_up_at_once_and_a_second_sigterm_does_not(number: int, name: str) -> None:
    waiting = "print('{}', flush=True)\n    time.sleep({})"
    started = start(f"try:\n    {waiting.format('ready', 60)}\nfinally:\n    {waiting.format('cleaning', 0.5)}")
    started.send_signal(number)
    assert started.stdout is not None
    assert started.stdout.readline() == "cleaning\n"
    started.send_signal(signal.SIGTERM)
    assert stop(started, signal.SIGTERM)[0] == 128 + number  # cleaned up to the end
    started = start(f"try:\n    {waiting.format('ready', 60)}\nfinally:\n    {waiting.format('cleaning', 60)}")
    started.send_signal(number)
    assert started.stdout is not None
    assert started.stdout.readline() == "cleaning\n"
    assert stop(started, signal.SIGINT)[0] == -signal.SIGINT


def test_a_program_that_does_not_listen_is_cut_off_and_its_workers_with_it() -> None:
    body = """
import multiprocessing
process.GRACE_SECONDS = 0.3
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
worker.start()
print("ready", flush=True)
while True:
    try:
        print(worker.pid, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        pass"""
    started = start(body)
    assert started.stdout is not None
    worker = int(started.stdout.readline())
    code, errors = stop(started, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert errors == "\ntest: stopped by SIGTERM; killed, since it did not end within 0.3 s\n"
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


def test_a_program_with_a_handler_of_its_own_is_left_in_peace() -> None:
    body = """
import signal, threading
process.GRACE_SECONDS = 0.2
asked = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: asked.set())
print("ready", flush=True)
asked.wait()
time.sleep(1)"""
    assert stop(start(body), signal.SIGTERM) == (0, "")


def test_a_program_started_with_nohup_hears_only_sigterm() -> None:
    body = "print('ready', flush=True)\ntime.sleep(0.5)"
    ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwith orderly('test'):"
    assert stop(start(body, program=ignoring), signal.SIGINT) == (0, "")


def test_a_stop_waits_until_a_worker_has_been_started() -> None:
    body = """
with stops_held_back():
    print("ready", flush=True)
    for _ in range(10):
        time.sleep(0.05)
    print("started", file=sys.stderr, flush=True)"""
    code, told = stop(start(body), signal.SIGTERM)
    assert (code, told.splitlines()[0]) == (143, "started")


@pytest.mark.parametrize(("number", "name"), STOPS)
def test_a_stop_during_the_import_of_a_program_is_no_traceback(tmp_path: Path, number: int, name: str) -> None:
    (tmp_path / "slow_module.py").write_text("import time\nprint('ready', flush=True)\ntime.sleep(60)\n")
    names = {"run": "slow_module:run", "config": "vw2_robot.rollouts.config:RolloutConfig", "config_name": "rollout"}
    body = f"""
from vw2_robot.command_line.entry_points import Program
sys.path.insert(0, {str(tmp_path)!r})
sys.argv = ["/bin/vw2-slow", "policy=random", "run_dir=x"]
Program(**{names!r})()"""
    assert stop(start(body, program="if True:"), number) == (128 + number, f"\nrollout: stopped by {name}\n")


def run(command: str, body: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys\nfrom vw2_robot.process import orderly\nwith orderly('test'):\n{body}"
    return subprocess.run(["bash", "-c", command, sys.executable, code], capture_output=True, text=True, timeout=60)


WRITE = """
    for i in range(9999): print(i, flush=True)
    print("done", file=sys.stderr)
"""


@pytest.mark.parametrize("redirection", ["| head -1", "| true", ">&-"])
def test_nobody_has_to_read_what_is_printed(redirection: str) -> None:
    done = run(f'"$0" -c "$1" {redirection}; echo ${{PIPESTATUS[0]}}', WRITE)
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == "done\n"


def test_a_file_opened_later_does_not_get_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    body = f"    file = open({str(tmp_path / 'data')!r}, 'w')\n    assert file.fileno() > 2\n    print('lost')\n"
    assert run('"$0" -c "$1" >&- 2>&- <&-', body).returncode == 0
    assert (tmp_path / "data").read_text() == ""


def test_a_full_disk_under_standard_output_is_named() -> None:
    done = run('"$0" -c "$1" > /dev/full', "    print('x', flush=True)\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "OSError: [Errno 28] No space left on device: 'standard output'"


def test_streams_and_handlers_are_as_before_afterwards() -> None:
    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with process.orderly("test"):
        assert signal.getsignal(signal.SIGTERM) is not before[2]
    assert before == (sys.stdout, sys.stderr, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))

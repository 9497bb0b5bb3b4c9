"""The queue: order, failures, pauses and stops of its jobs, hours left; and the pinned work tree that it runs from."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.results import job_queue, pinned
from benchmarks.results.job_queue import Job, Queue, core_minutes_by_kind, hours_left, pause, read_note, resume
from vw2_robot.errors import InputError

REPO = Path(__file__).resolve().parents[3]
WORKER = """
import os, signal, sys, time
from pathlib import Path
log, name, *rest = sys.argv[1:]
def write(what):
    with open(log, "a") as file:
        file.write(f"{what} {name}\\n")
def stop(*_):
    write("stop")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
write("begin")
if "nice" in rest:
    write(f"nice {os.nice(0)}")
while "busy" in rest and time.process_time() < 0.2:
    pass
if "long" in rest and not Path(log + name).exists():
    Path(log + name).touch()
    time.sleep(60)
time.sleep(0.1)
if "fail" in rest and not Path(rest[-1]).exists():
    print("no such seed")
    sys.exit(3)
write("end")
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    (tmp_path / "queue_worker.py").write_text(WORKER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(job_queue, "POLL_SECONDS", 0.01)

    def make(name, *arguments, **options):
        return Job(name, "queue_worker", (str(tmp_path / "log"), name, *arguments), **options)

    return make


def events(tmp_path):
    return (tmp_path / "log").read_text().splitlines()


def wait_for(tmp_path, event):
    for _ in range(1000):
        if (tmp_path / "log").exists() and event in events(tmp_path):
            return
        time.sleep(0.01)
    raise AssertionError(f"no {event!r}")


def test_a_job_waits_for_what_it_needs_and_one_that_wants_all_cores_for_all(job, tmp_path):
    jobs = [
        job("last", needs=("a/first", "b")),
        job("a/first", "busy"),
        job("b"),
        job("big", exclusive=True, needs=("b",)),
    ]
    Queue(tmp_path, parallel=2).run(jobs)
    seen = events(tmp_path)
    assert {*seen[:2]} == {"begin a/first", "begin b"}
    assert max(seen.index("end a/first"), seen.index("end b")) < seen.index("begin last")
    at = seen.index("begin big")
    assert seen[at + 1] == "end big"
    note = read_note(tmp_path, "a/first")
    assert note["done"]
    assert note["seconds"] >= 0.1
    assert note["cpu_seconds"] >= 0.2
    assert re.fullmatch(r"[0-9a-f]{7,}(-dirty)?|unknown", note["commit"])


def test_nothing_passes_a_job_that_waits_for_all_cores_and_jobs_have_a_low_priority(job, tmp_path):
    Queue(tmp_path, parallel=2).run([job("first", "nice"), job("big", exclusive=True), job("small")])
    seen = events(tmp_path)
    lowered = min(19, os.nice(0) + job_queue.NICE)
    assert seen.pop(1) == f"nice {lowered} first"
    assert seen == [f"{what} {name}" for name in ("first", "big", "small") for what in ("begin", "end")]


def test_what_is_done_is_not_run_again_and_refused_with_other_arguments(job, tmp_path):
    Queue(tmp_path, parallel=1).run([job("one")])
    Queue(tmp_path, parallel=1).run([job("one"), job("two", needs=("one",))])
    assert events(tmp_path) == ["begin one", "end one", "begin two", "end two"]
    with pytest.raises(SystemExit, match=r"one was done with other arguments \(steps=2\)"):
        Queue(tmp_path, parallel=1).run([job("one", "steps=2")])


def test_after_a_failure_the_other_jobs_go_on_and_those_that_need_it_are_named(job, tmp_path, monkeypatch):
    monkeypatch.setattr(job_queue, "commit_of", lambda repo: "aaaaaaa")
    jobs = [
        job("failing", "fail", str(tmp_path / "mended")),
        job("after", needs=("failing",)),
        job("last", needs=("after",)),
        job("other"),
    ]
    with pytest.raises(SystemExit) as stopped:
        Queue(tmp_path, parallel=1).run(jobs)
    assert "3 jobs are not done" in str(stopped.value)
    assert re.search(r"failing: FAILED, see .*failing\.log", str(stopped.value))
    assert "after: skipped, since it needs failing\n    last: skipped, since it needs after" in str(stopped.value)
    assert events(tmp_path) == ["begin failing", "begin other", "end other"]
    note = read_note(tmp_path, "failing")
    assert (note["done"], note["status"], note["reason"]) == (False, 3, "no such seed")
    (tmp_path / "mended").touch()
    monkeypatch.setattr(job_queue, "commit_of", lambda repo: "bbbbbbb")
    Queue(tmp_path, parallel=1).run(jobs)
    assert events(tmp_path)[-1] == "end last"
    note = read_note(tmp_path, "failing")
    assert note["seconds"] >= 0.2  # both attempts
    assert (note["commit"], note["earlier_commits"]) == ("bbbbbbb", ["aaaaaaa"])
    assert "reason" not in note


def test_a_missing_need_is_named(job, tmp_path):
    with pytest.raises(SystemExit, match="one needs zero, which is not done; run the stage before"):
        Queue(tmp_path, parallel=1).run([job("one", needs=("zero",))])


def test_a_pause_stops_the_jobs_and_after_it_they_continue(job, tmp_path):
    """A timing run in the middle: it is alone, and a queue that was paused before it stays paused."""
    found = {}

    def person():
        wait_for(tmp_path, "begin one")
        command = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read().split()[-2:])", tmp_path / "log"]
        found["status"] = job_queue.run_alone(tmp_path, [*command, "x"])
        wait_for(tmp_path, "end one")

    thread = threading.Thread(target=person)
    thread.start()
    Queue(tmp_path, parallel=1).run([job("one", "long")])
    thread.join()
    assert found["status"] == 0
    assert events(tmp_path) == ["begin one", "stop one", "begin one", "end one"]
    assert not job_queue.is_paused(tmp_path)
    assert not pause(tmp_path)
    assert job_queue.run_alone(tmp_path, ["false"]) == 1
    assert job_queue.is_paused(tmp_path)
    resume(tmp_path)
    assert not job_queue.is_paused(tmp_path)
    with pytest.raises(SystemExit, match="no folder of a queue"):
        pause(tmp_path / "other")


PROGRAM = """
import sys
from pathlib import Path
from benchmarks.results.job_queue import Job, Queue
out = Path(sys.argv[1])
Queue(out, parallel=1).run([Job("one", "queue_worker", (str(out / "log"), "one", "long"))])
"""


def test_a_stopped_queue_stops_its_jobs_and_one_that_is_killed_keeps_the_next_one_waiting(job, tmp_path, monkeypatch):
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{REPO}"}

    def start():
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], env=environment, stderr=subprocess.PIPE)

    queue = start()
    wait_for(tmp_path, "begin one")
    with pytest.raises(InputError, match="in use by another run: a queue"):
        Queue(tmp_path, parallel=1).run([job("one", "long")])
    queue.send_signal(signal.SIGTERM)
    assert "the queue was stopped; start it again" in queue.communicate()[1].decode()
    assert events(tmp_path) == ["begin one", "stop one"]
    note = read_note(tmp_path, "one")
    assert (note["done"], "reason" in note) == (False, False)  # stopped, not failed
    (tmp_path / "logone").unlink()
    queue = start()
    wait_for(tmp_path, "begin one")
    for _ in range(1000):
        if (tmp_path / "logone").exists():
            break
        time.sleep(0.01)
    queue.kill()
    queue.communicate()
    with pytest.raises(SystemExit, match=r"jobs of an earlier queue in .* still run"):
        Queue(tmp_path, parallel=1).run([job("one", "long")])
    (worker,) = [path.name for path in Path("/proc").glob("[0-9]*") if str(tmp_path).encode() in command_of(path)]
    os.kill(int(worker), signal.SIGTERM)
    pause(tmp_path)  # returns when it has ended
    assert events(tmp_path)[-1] == "stop one"


def command_of(process):
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""


def noted(out, name, *, seconds, done=True):
    (out / "jobs").mkdir(exist_ok=True)
    note = {
        "program": "p",
        "arguments": [],
        "commit": "c",
        "seconds": seconds,
        "cpu_seconds": seconds / 2,
        "done": done,
    }
    (out / "jobs" / f"{name.replace('/', '__')}.json").write_text(json.dumps(note))


def test_hours_left_are_those_of_finished_jobs_of_the_kind(tmp_path):
    tuned = [Job(f"finetune/a/seed_{seed}", "p", ()) for seed in range(4)]
    jobs = [
        *tuned,
        Job("finetune/b/seed_0", "p", ()),
        Job("data/D", "p", (), exclusive=True),
        Job("probe/seed_0", "p", ()),
    ]
    noted(tmp_path, "finetune/a/seed_0", seconds=3600)
    noted(tmp_path, "finetune/a/seed_1", seconds=7200)
    noted(tmp_path, "finetune/a/seed_2", seconds=1800, done=False)
    noted(tmp_path, "data/C", seconds=1e6)  # of another plan
    left = hours_left(tmp_path, jobs, parallel=2)
    # 1.5 h each, half an hour of which one job has behind it; `b` is like `a`; nothing is known of the others.
    assert left.hours == pytest.approx((1.0 + 1.5 + 1.5) / 2)
    assert str(left) == "5 jobs and 2.0 hours left, without 2 kinds that were never run (data/D, probe)"
    noted(tmp_path, "data/D", seconds=3600)
    assert hours_left(tmp_path, [*jobs, Job("data/E", "p", (), exclusive=True)], parallel=2).hours == pytest.approx(3.0)
    assert core_minutes_by_kind(tmp_path, jobs) == {"finetune/a": 45, "data/D": 30}


@pytest.fixture
def repository(tmp_path):
    repo = tmp_path / "repo"
    (repo / "vw2_robot").mkdir(parents=True)
    (repo / "vw2_robot" / "__init__.py").write_text("NAME = 'pinned'\n")
    git = ["git", "-C", str(repo), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    packages = tmp_path / "packages"
    (packages / "other-1.2.dist-info").mkdir(parents=True)
    (packages / "other-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.2\n")
    (packages / "other.py").write_text("VALUE = 1\n")
    (packages / "__editable___vw2_robot_0_finder.py").write_text("")
    return repo, packages


def test_a_pinned_tree_keeps_its_commit_and_packages_whatever_happens_elsewhere(repository, tmp_path, monkeypatch):
    repo, packages = repository
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = pinned.pin("HEAD", tmp_path / "pin", repo=repo, packages=packages)
    (repo / "vw2_robot" / "__init__.py").write_text("NAME = 'edited'\n")
    (packages / "other.py").unlink()
    show = [python, "-I", "-c", "import vw2_robot, other; print(vw2_robot.NAME, other.VALUE)"]
    assert subprocess.run(show, capture_output=True, text=True, check=True).stdout == "pinned 1\n"
    assert not list((tmp_path / "pin").rglob("__editable__*"))
    assert pinned.pin("HEAD", tmp_path / "pin", repo=repo, packages=packages) == python  # complete: kept
    with pytest.raises(SystemExit, match="git rev-parse"):
        pinned.pin("no-such-branch", tmp_path / "pin", repo=repo)
    commit = ["git", "-C", str(repo), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qam", "two"]
    subprocess.run(commit, check=True)
    with pytest.raises(SystemExit, match=r"holds commit [0-9a-f]{7}, not [0-9a-f]{7}"):
        pinned.pin("HEAD", tmp_path / "pin", repo=repo)
    (packages / "elsewhere.pth").write_text(f"{tmp_path}\n")
    with pytest.raises(SystemExit, match="packages of this environment lie elsewhere"):
        pinned.pin("HEAD", tmp_path / "second", repo=repo, packages=packages)


def test_what_is_not_pinned_any_more_is_refused(repository, tmp_path, monkeypatch):
    repo, packages = repository
    pinned.pin("HEAD", tmp_path / "pin", repo=repo, packages=packages)
    tree = tmp_path / "pin" / "tree"
    monkeypatch.setattr(pinned, "REPO", tree)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "pin" / "venv"))
    site = next((tmp_path / "pin" / "venv").glob("lib/*/site-packages"))
    monkeypatch.setattr(pinned.sysconfig, "get_path", lambda name: str(site))
    spec = pinned.importlib.util.spec_from_file_location("vw2_robot", tree / "vw2_robot" / "__init__.py")
    monkeypatch.setattr(pinned.importlib.util, "find_spec", lambda name: spec)
    assert re.fullmatch("[0-9a-f]{40}", pinned.check_pinned())
    (tree / "vw2_robot" / "__init__.py").write_text("NAME = 'edited'\n")
    (site / "other-1.2.dist-info" / "METADATA").unlink()
    (site / "other-1.2.dist-info").rmdir()
    monkeypatch.setenv("PYTHONPATH", "x")
    with pytest.raises(SystemExit) as refused:
        pinned.check_pinned()
    assert "files were changed:" in str(refused.value)
    assert "packages were installed or removed; " not in str(refused.value)
    assert "packages were installed or removed" in str(refused.value)
    assert "PYTHONPATH is set (x)" in str(refused.value)
    monkeypatch.setattr(pinned, "REPO", repo)
    with pytest.raises(SystemExit, match="repo is not pinned"):
        pinned.check_pinned()

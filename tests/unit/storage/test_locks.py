"""A folder has one owner: a second process is refused by name, a dead owner is no owner."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from vw2_robot.errors import InputError
from vw2_robot.storage.locks import clear_dead_lock, lock_folder

HOLD = "import sys, pathlib; from vw2_robot.storage.locks import lock_folder; l = lock_folder(pathlib.Path(sys.argv[1]), what='training'); print('held', flush=True); sys.stdin.read()"  # noqa: E501


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_folder_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with hold(folder) as process:
        with pytest.raises(
            InputError, match=rf"run is in use by another run: training, process {process.pid} on .* since 20"
        ):
            lock_folder(folder, what="training")
        process.send_signal(signal.SIGKILL)
        process.wait()
    with lock_folder(folder, what="training"):
        assert (folder / ".lock").is_file()
    assert not list(folder.iterdir())


def test_a_dead_lock_is_cleared_and_a_held_one_stays(tmp_path: Path) -> None:
    with hold(tmp_path) as process:
        clear_dead_lock(tmp_path)
        assert (tmp_path / ".lock").is_file()
        process.kill()
        process.wait()
    clear_dead_lock(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_same_process_gets_the_same_lock_and_losing_it_gives_it_back(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path, what="training")
    assert lock_folder(tmp_path, what="training") is lock
    del lock
    gc.collect()
    with hold(tmp_path) as process, pytest.raises(InputError, match=f"process {process.pid}"):
        lock_folder(tmp_path, what="training")


def test_a_lock_beside_a_folder_does_not_make_the_folder(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "out", what="a recording", beside=True):
        assert [p.name for p in tmp_path.iterdir()] == [".out.lock"]
    assert not list(tmp_path.iterdir())


def test_a_forked_child_that_ends_leaves_the_lock_to_its_parent(tmp_path: Path) -> None:
    with lock_folder(tmp_path, what="training") as lock:
        code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {HOLD!r}, {str(tmp_path)!r}], stdin=subprocess.DEVNULL))"  # noqa: E501
        if (child := os.fork()) == 0:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode != 0
        assert "in use by another run" in done.stderr


@pytest.mark.parametrize(
    ("name", "number"),
    [("file", errno.EEXIST), ("file/x", errno.ENOTDIR), ("loop/x", errno.ELOOP), ("x" * 300, errno.ENAMETOOLONG)],
)
def test_a_path_that_the_system_refuses_is_an_error_with_its_name(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    with pytest.raises(OSError, match=r"\[Errno") as raised:
        lock_folder(tmp_path / name, what="training")
    assert raised.value.errno == number
    assert str(raised.value.filename).startswith(str(tmp_path))


def test_folders_made_for_a_lock_go_if_they_stay_empty(tmp_path: Path) -> None:
    with lock_folder(tmp_path / "a" / "b", what="training"):
        assert (tmp_path / "a" / "b" / ".lock").is_file()
    assert not list(tmp_path.iterdir())
    with lock_folder(tmp_path / "a" / "b", what="training"):
        (tmp_path / "a" / "result").write_text("kept")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_waiting_ends_when_the_holder_gives_the_lock_back_or_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom vw2_robot.storage.locks import lock_folder\n"
        "with lock_folder(Path(sys.argv[1]), what='making a cache', beside=True, wait=True):\n"
        "    print('mine', flush=True)\n    time.sleep(float(sys.argv[2]))\n"
    )

    def start(seconds: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(tmp_path / "cache"), seconds]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    first = start("60")
    assert first.stdout.readline() == "mine\n"
    second = start("0")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(timeout=1.5)
    first.kill()
    first.communicate()
    assert second.communicate()[0] == "mine\n"
    assert list(tmp_path.iterdir()) == []

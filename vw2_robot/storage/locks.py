"""Locks of folders: a run, data or replay folder is written by one process at a time.

The lock is the kernel's (`flock`), so it ends with its process, however that ends. The lock file names the process and
the time; a second start is refused before it changes anything. The file is removed when the lock is released.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from weakref import WeakValueDictionary

from vw2_robot.errors import InputError

_LOG = logging.getLogger(__name__)
_HELD: WeakValueDictionary[tuple[int, str], FolderLock] = WeakValueDictionary()


class FolderLock:
    """A lock of a folder. It is released by `release`, or when the last reference or the process ends."""

    def __init__(self, descriptor: int, path: Path, folder: Path, made: Sequence[Path]) -> None:
        self._descriptor = descriptor
        self._path = path
        self._folder = folder
        self._made = made
        self._owner = os.getpid()

    @property
    def held(self) -> bool:
        """Return whether the lock is held: until `release`."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Release the lock, and remove its file and the folders made for it that stayed empty.

        A second call does nothing.
        """
        if not self.held:
            return
        try:
            # The file is removed while the lock is still held: another process that has opened it meanwhile sees that
            # by `_is_at`. A forked child that releases its copy leaves file and lock to the parent.
            if self._owner == os.getpid() and _is_at(self._descriptor, self._path):
                self._path.unlink()
                for folder in self._made:
                    folder.rmdir()
        except OSError:  # not empty, or the disk is gone: no problem for the next start
            pass
        finally:
            self._close()

    def _close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1

    def take(self, what: str, *, wait: bool = False) -> bool:
        """Take the lock and write the holder into its file; return False if the file was removed since it was opened.

        Args:
            what: what is done in the folder, for the message of a second start.
            wait: until the holder releases it.

        Raises:
            InputError: another process holds the lock.
            OSError: with the name of the lock file.
        """
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            text = os.pread(self._descriptor, 4096, 0).decode("utf-8", "replace")
            try:
                facts = json.loads(text)
                holder = f"{facts['what']}, process {facts['pid']} on {facts['host']}, since {facts['since']}"
            except (ValueError, KeyError, TypeError):  # it has the lock, but has not written its name yet
                holder = "it has just started"
            self._close()
            raise InputError(
                f"{self._folder} is in use by another run: {holder}. Wait for it or stop it, or use another folder"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                self._close()
                raise OSError(error.errno, error.strerror, str(self._path)) from error
            _LOG.warning(
                "%s: this file system has no locks (%s); see to it that one run writes here", self._path, error
            )
        if not _is_at(self._descriptor, self._path):
            self._close()
            return False
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        facts = {"what": what, "pid": os.getpid(), "host": socket.gethostname(), "since": now}
        try:
            os.truncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{json.dumps(facts)}\n".encode(), 0)
        except OSError as error:
            self.release()
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        return True

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()


def lock_folder(folder: Path, *, what: str, beside: bool = False, wait: bool = False) -> FolderLock:
    """Lock a folder for this process; a second call of the same process returns the same lock.

    Args:
        folder: made if missing (its parent, if `beside`).
        what: what is done there, for the message of a second start: "training", "a recording".
        beside: keep the lock file next to the folder, for folders that appear only when they are complete.
        wait: until the holder gives it back, instead of refusing: for what several runs share and one of them makes.

    Raises:
        InputError: another process holds it; the message says which and since when.
        OSError: with the name of the lock file.
    """
    # One name for all spellings; `resolve` has no OSError for links in a circle.
    folder = Path(os.path.realpath(folder))
    path = folder.with_name(f".{folder.name}.lock") if beside else folder / ".lock"
    key = (os.getpid(), str(path))
    if (other := _HELD.get(key)) is not None and other.held:
        return other
    made = [parent for parent in path.parents if not parent.exists()]
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # CLOEXEC: programs started from here would hold the lock as long as they run. NOFOLLOW: a link could lead
            # to any file, and this one is truncated.
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # another process released its lock and removed the empty folder
            continue
        lock = FolderLock(descriptor, path, folder, made)
        if lock.take(what, wait=wait):
            _HELD[key] = lock
            return lock


def clear_dead_lock(folder: Path) -> None:
    """Remove the lock file that a killed process left in a folder; one that is held stays."""
    if (folder / ".lock").is_file():
        with suppress(InputError, OSError):  # held by another process, or a folder that may only be read
            lock_folder(folder, what="clearing a lock").release()


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether `path` is still the name of this open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False

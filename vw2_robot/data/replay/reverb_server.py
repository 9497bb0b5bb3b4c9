"""The server side of a Reverb replay: one process that holds the windows and writes the checkpoints.

See `vw2_robot.data.replay.reverb_tables` for what it holds and docs/scaling.md for how it is started.
"""

from __future__ import annotations

import re
import shutil
import socket
import threading
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.binding import check_same_config
from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_folder, read_json, sync_files, verify, write_json, write_manifest
from vw2_robot.storage.locks import lock_folder

from .reverb_tables import (
    CALL_S,
    ReplayLayout,
    ServerOptions,
    layout_of,
    load_reverb,
    make_tables,
    store_windows,
    write_record,
)

_REVERB_FILES = ("DONE", "tables.tfrecord", "items.tfrecord", "chunks.tfrecord")
_CURE = "use another folder, or delete this one, and fill it anew"


class ReplayServer:
    """A Reverb server in this process, restored from the last checkpoint in `path` if there is one.

    It listens on all interfaces of the machine, without a password: Reverb has no other way. See docs/scaling.md.

    Reverb removes its older checkpoint before the newer one is sure to be on disk. So it writes into `path/.reverb`,
    which nobody relies on, and a thread makes `path/checkpoints/<number>` of each finished one, on disk and with the
    SHA-256 of its files. Only then the one before it goes, and whoever asked is told (`reverb_tables.store_windows`).

    Args:
        options: what it offers.
        path: folder for checkpoints; the last one is kept.
        port: to listen on.

    Raises:
        InputError: the folder is in use or damaged or holds a replay with other options, or the port is taken.
    """

    def __init__(self, options: ServerOptions, *, path: Path, port: int) -> None:
        reverb, _ = load_reverb()
        path = path.resolve()
        self.options, self.port = options, port
        self._scratch, self._folder = path / ".reverb", path / "checkpoints"
        with ExitStack() as closing:
            self._lock = closing.enter_context(lock_folder(path, what="a replay server"))
            _refuse_taken(port)
            sessions = 1 + _sessions(path, options)
            stored = self._last_checkpoint()
            write_json(path / "replay.json", {"options": asdict(options), "sessions": sessions}, sealed=True)
            shutil.rmtree(self._scratch, ignore_errors=True)
            closing.callback(shutil.rmtree, self._scratch, ignore_errors=True)
            checkpointer = reverb.checkpointers.DefaultCheckpointer(
                str(self._scratch), fallback_checkpoint_path=None if stored is None else str(stored)
            )
            try:
                server = reverb.Server(make_tables(options, session=sessions), port=port, checkpointer=checkpointer)
            except ValueError as error:
                raise InputError(
                    f"Reverb could not start on port {port} with the checkpoint {stored}: {error}; choose another "
                    "port if this one is taken, or another folder"
                ) from error
            closing.callback(server.stop)  # without it Reverb complains when the interpreter ends
            self._client: Any = reverb.Client(f"127.0.0.1:{port}")
            self._compare()
            self._ending = threading.Event()
            thread = threading.Thread(target=self._keep_checkpoints, name="checkpoints", daemon=True)
            thread.start()
            closing.callback(thread.join)
            closing.callback(self._ending.set)
            self._closing = closing.pop_all()

    def _compare(self) -> None:
        """After a restore the options of the old tables count, whatever was asked for: see that they are the same."""
        found = layout_of(self._client, f"127.0.0.1:{self.port}", CALL_S)
        wanted = ReplayLayout.of_options(self.options)
        if found != wanted:
            raise InputError(f"the restored tables are {found}, asked for {wanted}; use another folder")

    def sizes(self) -> dict[str, int]:
        """Return how many windows each table holds."""
        tables = self._client.server_info(int(CALL_S))
        return {name: tables[name].current_size for name in self.options.tables}

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """Store all tables on disk; return where.

        Raises:
            ReplayTimeout: it took longer.
            InputError: it cannot be written.
        """
        return store_windows(self._client, f"127.0.0.1:{self.port}", timeout_seconds)

    def stop(self, *, timeout_seconds: float | None = None) -> bool:
        """End the server, and return whether it ended in time.

        Reverb does not end while it writes a checkpoint, and holds up the end of the interpreter, too: a process that
        has no more time must leave by `os._exit`.
        """
        thread = threading.Thread(target=self._closing.close, daemon=True)
        thread.start()
        thread.join(timeout_seconds)
        if thread.is_alive():
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._lock.release()
        return not thread.is_alive()

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _last_checkpoint(self) -> Path | None:
        """Return the last checkpoint, each byte of which was compared; remove what a kill left behind."""
        self._folder.mkdir(exist_ok=True)
        sync_files([self._folder.parent])
        for path in self._folder.iterdir():
            if re.fullmatch(r"\.\d{8}\.tmp", path.name):
                shutil.rmtree(path)
        stored = self._only_last()
        if stored is not None and not verify(stored, cure=_CURE):
            raise InputError(f"{stored} is damaged: it has no manifest.json; {_CURE}")
        return stored

    def _only_last(self) -> Path | None:
        found = sorted(path for path in self._folder.iterdir() if re.fullmatch(r"\d{8}", path.name))
        for older in found[:-1]:
            shutil.rmtree(older)
        return found[-1] if found else None

    def _keep_checkpoints(self) -> None:
        notes = self._client.trajectory_writer(1)
        while not self._ending.wait(0.02):
            done = sorted(path.parent for path in self._scratch.glob("*/DONE"))
            if done and (record := self._keep(done[-1])) is not None:
                write_record(notes, "checkpoint", record)
                notes.flush()
        notes.close()

    def _keep(self, made: Path) -> dict[str, str] | None:
        """Put a finished checkpoint of Reverb safely on disk; return what its readers are told.

        None: Reverb was about to remove it, since there is a newer one.
        """
        last = self._only_last()
        kept, error = self._folder / f"{1 + int(last.name if last is not None else 0):08}", ""
        try:
            with atomic_folder(kept) as folder:
                made.rename(folder)
                for name in _REVERB_FILES:
                    (folder / name).stat()
                write_manifest(folder)
            self._only_last()
        except FileNotFoundError:
            return None
        except OSError as problem:
            error = str(problem)
        for other in self._scratch.iterdir():  # parts of checkpoints that it could not write
            if other.name < made.name:
                shutil.rmtree(other, ignore_errors=True)
        return {"name": made.name, "path": str(kept), "error": error}


def _sessions(path: Path, options: ServerOptions) -> int:
    """Return how often a server was started in this folder.

    Raises:
        InputError: it had other options, or its file is damaged.
    """
    file = path / "replay.json"
    if not file.exists() and not any(path.glob("checkpoints/*")):
        return 0
    old = read_json(file, cure=_CURE, sealed=True)
    check_same_config(
        path,
        with_new_keys(old["options"]),
        asdict(options),
        holds="a replay with other options",
        advice="Use the old ones, or another folder",
    )
    return int(old["sessions"])


def _refuse_taken(port: int) -> None:
    """Reverb would share a port with another server in silence, and each would get some of the clients."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an ended server do not count
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"the replay server cannot listen on port {port} ({error}); choose another port"
            ) from error

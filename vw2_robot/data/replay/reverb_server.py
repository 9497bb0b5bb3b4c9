"""The server of a Reverb replay: one process that holds the windows and writes the checkpoints.

Its tables are described in `vw2_robot.data.replay.reverb_tables`, how to start it in docs/scaling.md.
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
from vw2_robot.errors import InputError
from vw2_robot.storage.binding import check_same_config
from vw2_robot.storage.files import atomic_folder, read_json, sync_files, verify, write_json, write_manifest
from vw2_robot.storage.locks import lock_folder

from .reverb_tables import (
    CALL_SECONDS,
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

    Reverb removes its older checkpoint before the newer one is surely on disk. So it writes into the scratch folder
    `path/.reverb`, and a thread moves each finished checkpoint to `path/checkpoints/<number>`, synchronized to disk and
    with the SHA-256 of its files. Only then the previous one is removed and the client that requested the checkpoint
    gets its answer (`reverb_tables.store_windows`).

    Args:
        options: tables and windows of the server.
        path: folder for checkpoints; the last one is kept.
        port: to listen on.

    Raises:
        InputError: the folder is in use or damaged or holds a replay with other options, or the port is in use.
    """

    def __init__(self, options: ServerOptions, *, path: Path, port: int) -> None:
        reverb, _ = load_reverb()
        path = path.resolve()
        self.options = options
        self.port = port
        self._scratch = path / ".reverb"
        self._folder = path / "checkpoints"
        # Everything that was opened is closed in reverse order, also if a later step fails.
        with ExitStack() as closing:
            self._lock = closing.enter_context(lock_folder(path, what="a replay server"))
            _check_port(port)
            # Each start gets a number of its own, stored before clients can connect.
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
            # After a restore the options of the stored tables hold, whatever was requested.
            found = layout_of(self._client, f"127.0.0.1:{port}", CALL_SECONDS)
            wanted = ReplayLayout.of_options(options)
            if found != wanted:
                raise InputError(f"the restored tables are {found}, requested {wanted}; use another folder")
            # At the end callbacks run in reverse: set the event, join the thread, stop the server, remove the scratch.
            self._ending = threading.Event()
            thread = threading.Thread(target=self._keep_checkpoints, name="checkpoints", daemon=True)
            thread.start()
            closing.callback(thread.join)
            closing.callback(self._ending.set)
            self._closing = closing.pop_all()

    def sizes(self) -> dict[str, int]:
        """Return how many windows each table holds."""
        tables = self._client.server_info(int(CALL_SECONDS))
        return {name: tables[name].current_size for name in self.options.tables}

    def checkpoint(self, *, timeout_seconds: float) -> str:
        """Store all tables on disk; return the folder.

        Raises:
            ReplayTimeout: it took longer.
            InputError: the checkpoint cannot be written.
        """
        return store_windows(self._client, f"127.0.0.1:{self.port}", timeout_seconds)

    def stop(self, *, timeout_seconds: float | None = None) -> bool:
        """Stop the server; return whether it stopped in time.

        Reverb does not stop while it writes a checkpoint, and then the interpreter cannot exit either: a process that
        has no more time must exit by `os._exit`.
        """
        # In a thread, since the call may block without a time limit.
        thread = threading.Thread(target=self._closing.close, daemon=True)
        thread.start()
        thread.join(timeout_seconds)
        if thread.is_alive():
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._lock.release()
        return not thread.is_alive()

    # --------------------------------------------------------------------------------------------------- checkpoints

    def _last_checkpoint(self) -> Path | None:
        """Return the last checkpoint, after comparing all its bytes with the manifest; remove incomplete ones.

        Raises:
            InputError: it is damaged.
        """
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
        """Remove all checkpoints but the last; return that one."""
        found = sorted(path for path in self._folder.iterdir() if re.fullmatch(r"\d{8}", path.name))
        for older in found[:-1]:
            shutil.rmtree(older)
        return found[-1] if found else None

    def _keep_checkpoints(self) -> None:
        """Move each finished checkpoint of Reverb to its folder, and report it in the table `checkpoint`; a thread."""
        notes = self._client.trajectory_writer(1)
        while not self._ending.wait(0.02):
            # Reverb writes the file DONE last. Only the newest checkpoint matters.
            done = sorted(path.parent for path in self._scratch.glob("*/DONE"))
            if done and (record := self._keep(done[-1])) is not None:
                write_record(notes, "checkpoint", record)
                notes.flush()
        notes.close()

    def _keep(self, made: Path) -> dict[str, str] | None:
        """Move a finished checkpoint of Reverb to `path/checkpoints`; return the record for the clients.

        None: Reverb was about to remove it, since there is a newer one.
        """
        last = self._only_last()
        kept = self._folder / f"{1 + int(last.name if last is not None else 0):08}"
        error = ""
        try:
            # Renamed into place with all its files on disk: a kill leaves the old checkpoint or the new one.
            with atomic_folder(kept) as folder:
                # The folder is empty, and a rename replaces an empty folder.
                made.rename(folder)
                for name in _REVERB_FILES:
                    (folder / name).stat()
                write_manifest(folder)
            self._only_last()
        except FileNotFoundError:
            return None
        except OSError as problem:  # such as a full disk; reported to the client
            error = str(problem)
        for other in self._scratch.iterdir():  # incomplete checkpoints
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


def _check_port(port: int) -> None:
    """Refuse a port that is in use.

    Reverb would share it with the other server without an error, and each would get some of the clients.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore closing connections of a server that ended
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise InputError(
                f"the replay server cannot listen on port {port} ({error}); choose another port"
            ) from error

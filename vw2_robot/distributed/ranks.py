"""The processes that train together (ranks): who they are, what they agree on, and their common end.

    with joined_ranks():              # around a whole program; does nothing in a single process
        with main_first():            # rank 0 makes a file, then the others read it
        total = global_sum(local)     # with its gradient
        if any_rank(stop): ...

torchrun, Slurm's srun or anything else that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT starts the ranks. CPU
tensors travel through gloo, those of a GPU through NCCL. A thread of each rank reports every second that the rank is
alive. When a rank fails or dies, the others end too, with its message or its name: no collective waits for the dead.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vw2_robot.errors import InputError
from vw2_robot.storage.locks import lock_folder

Value = TypeVar("Value")

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 60.0
"""a rank that reports nothing for so long counts as dead; VW2_RANK_TIMEOUT changes it"""
# Collectives wait for slow ranks as long as these are alive: rank 0 may decode for hours while the others wait.
_LONGEST_WAIT = timedelta(days=7)
_FAILED = "vw2/failed"


class OtherRankError(InputError):
    """Another rank failed or died; `silent` where that rank, or rank 0, prints the message itself."""

    def __init__(self, message: str, *, silent: bool) -> None:
        super().__init__(message)
        self.silent = silent


def rank() -> int:
    """Return the number of this process among the ranks; 0 in a single process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of ranks; 1 in a single process."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this rank writes files and prints: rank 0."""
    return rank() == 0


def local_rank() -> int:
    """Return the number of this rank on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))) if world_size() > 1 else 0


# ---------------------------------------------------------------------------------------------------------- agreement


def global_sum(values: Tensor) -> Tensor:
    """Return the sum of a tensor over all ranks, which all of them get; gradients of all ranks flow back to each."""
    if world_size() == 1:
        return values
    if values.requires_grad:
        summed: Tensor = _GlobalSum.apply(values)  # type: ignore[no-untyped-call]
        return summed
    values = values.clone()
    dist.all_reduce(values)
    return values


class _GlobalSum(torch.autograd.Function):
    """A sum over ranks: the gradient of a term is the sum of the gradients that all ranks have for the result."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(summed)
        return summed


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is true on some rank; all of them must call it."""
    return bool(global_sum(torch.tensor(int(flag))) > 0)


def gather(value: Value) -> list[Value]:
    """Return the plain values of all ranks, in order of the ranks."""
    if world_size() == 1:
        return [value]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, value)
    return found


def from_main(value: Value) -> Value:
    """Return rank 0's plain value on every rank."""
    if world_size() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def on_main(make: Callable[[], Value]) -> Value:
    """Call `make` on rank 0 alone and return its plain value on every rank; an error there is an error everywhere."""
    value: Any = None
    with main_first():
        if is_main():
            value = make()
    return from_main(value)


@contextmanager
def main_first() -> Iterator[None]:
    """Run the body on rank 0, then on the others: the first makes files that the others find.

    Raises:
        OtherRankError: the body failed on rank 0.
    """
    if world_size() == 1:
        yield
        return
    if is_main():
        try:
            yield
        except Exception as error:
            from_main(str(error) or type(error).__name__)
            raise
        from_main(None)
    else:
        failed = from_main(None)
        if failed is not None:
            raise OtherRankError(f"rank 0: {failed}", silent=True)
        yield


@contextmanager
def locked_on_main(folder: Path, *, what: str) -> Iterator[None]:
    """Lock a folder for all ranks, by rank 0, for the time of the `with`; see `lock_folder`."""
    lock = None
    with main_first():
        if is_main():
            lock = lock_folder(folder, what=what)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def check_same(what: str, values: Mapping[str, Any], *, advice: str) -> None:
    """Compare plain values over all ranks.

    Args:
        what: the values, for the message: "the configuration".
        values: by name.
        advice: what a person can do, without a full stop.

    Raises:
        InputError: on every rank, names the first rank that differs from rank 0 and the keys.
    """
    others = gather(dict(values))
    for number, other in enumerate(others):
        keys = sorted(key for key in {*others[0], *other} if others[0].get(key) != other.get(key))
        if keys:
            pairs = ", ".join(f"{key}: {others[0].get(key)!r} and {other.get(key)!r}" for key in keys[:5])
            raise InputError(f"rank 0 and rank {number} differ in {what} ({pairs}); {advice}")


# ------------------------------------------------------------------------------------------------- beginning and end


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the ranks that the environment names for the time of the `with`; a single process joins nothing.

    Ranks after 0 print nothing to the standard output, and their progress bars are off.

    Raises:
        InputError: variables are missing or wrong, or the ranks do not find each other.
    """
    size = _number("WORLD_SIZE", default=1)
    if size <= 1 or dist.is_initialized():
        yield
        return
    number = _number("RANK", default=None)
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or not 0 <= number < size:
        raise InputError(
            f"WORLD_SIZE={size} and RANK={number}" + (f", without {' and '.join(missing)}" if missing else "") + ": "
            "start all ranks with torchrun, or set RANK (0 to WORLD_SIZE - 1), MASTER_ADDR and MASTER_PORT for each"
        )
    try:
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=_silence()), init_method="env://")
        # The time limit of the beginning is short, that of later collectives is the life of the ranks.
        dist.distributed_c10d._set_pg_timeout(_LONGEST_WAIT, None)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"rank {number} of {size} found no common start at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({reason}); start all ranks with the same address, which they can reach"
        ) from error
    watch = _Watch(number, size)
    try:
        with _quiet(number > 0):
            yield
        dist.barrier()
    except Exception as error:
        explained = watch.explained(error)
        if explained is error:
            raise
        raise explained from error
    except KeyboardInterrupt:  # or SIGTERM; where all ranks stop together nobody reads this
        watch.post(number, "stopped by a signal")
        raise
    finally:
        watch.stop()
        with suppress(RuntimeError):  # a peer may be gone
            dist.destroy_process_group()


def _number(name: str, *, default: int | None) -> int:
    text = os.environ.get(name, "")
    if text == "" and default is not None:
        return default
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name}={text!r} in the environment is no number; start the ranks with torchrun") from None


def _silence() -> float:
    text = os.environ.get("VW2_RANK_TIMEOUT", "")
    try:
        seconds = float(text) if text else SILENCE_SECONDS
    except ValueError:
        seconds = 0.0
    if not seconds > 3 * BEAT_SECONDS:
        raise InputError(f"VW2_RANK_TIMEOUT={text!r}: expected seconds above {3 * BEAT_SECONDS:g}")
    return seconds


class _Watch:
    """The thread of one rank that reports its life to the common store, and looks for failures of the others."""

    def __init__(self, number: int, size: int) -> None:
        self._number = number
        self._size = size
        # Connections of their own: a store serves one call at a time, and some of them wait.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store = store.clone()
        self._posted = store.clone()
        self._silence = _silence()
        self._over = threading.Event()
        self.failure: tuple[int, str] | None = None
        """the rank that failed first, and its message"""
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it: one that is still in a call of the store aborts an ending interpreter."""
        self._over.set()
        self._thread.join(timeout=self._silence)

    def explained(self, error: Exception) -> Exception:
        """Return the error to raise: this rank's own, which the others are told, or that of the rank that failed."""
        lost = _lost_peer(error)
        if not lost and not isinstance(error, OtherRankError):
            self.post(self._number, str(error) or type(error).__name__)
        # Also the rank that failed waits a little: the store may end with it, and the others have to read it.
        deadline = time.monotonic() + (self._silence + 5 * BEAT_SECONDS if lost else 2 * BEAT_SECONDS)
        while time.monotonic() < deadline and not (lost and self.failure is not None):
            time.sleep(0.1)
        if self.failure is None or self.failure[0] == self._number or isinstance(error, OtherRankError):
            return error
        failed, message = self.failure
        if not lost and message != str(error):
            return error
        # Who failed prints. Of the dead rank 0 speaks, or everybody where it is dead itself.
        speaks = message.startswith("died") and (self._number == 0 or failed == 0)
        return OtherRankError(f"rank {failed}: {message}", silent=not speaks)

    def post(self, failed: int, message: str) -> None:
        """Tell all ranks that one has failed; the first message counts."""
        with suppress(RuntimeError):  # the store may be gone with its rank
            self._posted.compare_set(_FAILED, "", f"{failed}\n{message}")

    def _run(self) -> None:
        seen: dict[int, tuple[int, float]] = {}
        beat = 0
        while not self._over.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._store.set(f"vw2/beat/{self._number}", str(beat))
                if self._store.check([_FAILED]):
                    failed, _, message = self._store.get(_FAILED).decode().partition("\n")
                    self.failure = (int(failed), message)
                now = time.monotonic()
                for other in range(self._size):
                    key = f"vw2/beat/{other}"
                    count = int(self._store.get(key)) if self._store.check([key]) else 0
                    if other not in seen or seen[other][0] != count:
                        seen[other] = (count, now)
                    elif now - seen[other][1] > self._silence:
                        self.post(
                            other, f"died, or has not answered for {self._silence:g} s; the last checkpoint counts"
                        )
            except (RuntimeError, ValueError) as error:
                if self._over.is_set():
                    return
                self.failure = (0, f"died with the store of all ranks ({' '.join(str(error).split())[:100]})")
            if self.failure is not None:
                break
        if self.failure is None or self._over.wait(3 * BEAT_SECONDS):
            return
        # The main thread waits in a collective that will never end.
        failed, message = self.failure
        if failed != self._number:
            with suppress(OSError):
                os.write(2, f"\nrank {self._number} ends: rank {failed}: {message}\n".encode())
        os._exit(1)


def _lost_peer(error: Exception) -> bool:
    """Return whether an error says that a collective lost its partner."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Socket closed", "gloo")
    return isinstance(error, RuntimeError) and not isinstance(error, InputError) and any(s in text for s in signs)


@contextmanager
def _quiet(on: bool) -> Iterator[None]:
    """Discard the standard output, and let the standard error look like a file: no progress bars."""
    if not on:
        yield
        return
    before = (sys.stdout, sys.stderr)
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere:
        sys.stdout = nowhere
        sys.stderr = _NoTerminal(sys.stderr)
        try:
            yield
        finally:
            sys.stdout = before[0]
            sys.stderr = before[1]


@dataclass(frozen=True)
class _NoTerminal:
    stream: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def isatty(self) -> bool:
        return False

"""One process holds the policy and answers the simulators of all workers, several requests in one forward pass.

An action must not depend on who else asked at that moment, and matrix products of different heights differ in their
last bits (benchmarks/evaluation.py counts them). So a forward pass has one shape, whatever was asked:

- `rows=1`: each request by itself, in the order of arrival. The same on every device, by construction. Each worker has
  a twin of the policy, with the same weights and a memory of its own.
- `rows=N`: always N + 2 rows. A chain has a fixed row (its number mod N), so the row does not depend on the company;
  two chains with one row wait for each other. The two further rows hold a very long and a very short sentence, so that
  padding of the text is always the same; rows that nobody asked for repeat the short one. Dense kernels of a fixed
  shape do not look at other rows' numbers; tests/unit/rollouts/test_policy_process.py holds the agent to it. Only for
  policies without memory: no temporal ensembling, greedy decoding.

The parent starts the process (`PolicyProcess`) and hands each worker one end of a socket pair, the process the other
(`connect`): no socket has a name, so TMPDIR may be long, full or read-only. A worker sees a policy (`RemotePolicy`).
Policies bound to a world live in the workers instead (`workers.open_worker`). If this process ends, all ends.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Literal

import numpy as np

from vw2_robot.contracts import Observation, Policy, PolicyOutput
from vw2_robot.errors import InputError
from vw2_robot.worker_pool import described, end, how_it_ended, live_with_parent, start

LONGEST_INSTRUCTION = 100
"""bytes; only where several requests share a pass"""
LONG = "x " * LONGEST_INSTRUCTION  # at least as many tokens as a sentence of that many bytes, in every tokenizer
SHORT = "x"

Request = tuple[int, Observation]
"""The number of a chain, and what the policy is to look at."""
Episode = tuple[str | None, int | None]
"""What `Policy.reset` is given."""
Asked = tuple[Connection, Request | Episode | None]
"""Who, and what; None: gone."""
Kind = Literal["ready", "output", "error", "memory", "bug"]


class FixedBatch:
    """Answers requests by forward passes of one shape; see the head of this file."""

    def __init__(self, policy: Policy, rows: int) -> None:
        """Raises InputError where the policy remembers something that a batch would mix up."""
        if policy.metadata.get("temporal_ensemble") is not None or policy.metadata.get("temperature"):
            raise InputError(
                f"batch={rows}, but the policy remembers something of an episode (temporal_ensemble="
                f"{policy.metadata.get('temporal_ensemble')}, temperature={policy.metadata.get('temperature')}); "
                "use batch=1"
            )
        self._policy, self._rows = policy, rows

    def answer(self, requests: Sequence[Request]) -> list[PolicyOutput]:
        """One output for each request, whoever else is asking."""
        outputs: dict[int, PolicyOutput] = {}
        waiting = list(range(len(requests)))
        while waiting:
            rows = {requests[i][0] % self._rows: i for i in reversed(waiting)}  # the first in the queue gets the row
            answers = self._pass({row: requests[i][1] for row, i in rows.items()})
            outputs |= {i: answers[row] for row, i in rows.items()}
            waiting = [i for i in waiting if i not in outputs]
        return [outputs[i] for i in range(len(requests))]

    def _pass(self, asked: dict[int, Observation]) -> list[PolicyOutput]:
        for observation in asked.values():
            if len(observation["prompt"].encode()) > LONGEST_INSTRUCTION:
                raise InputError(
                    f"batch={self._rows} takes sentences of up to {LONGEST_INSTRUCTION} bytes, found "
                    f"{observation['prompt']!r}; use batch=1"
                )
        like = next(iter(asked.values()))["images"]
        blank = {camera: np.zeros_like(image) for camera, image in like.items()}
        filler: Observation = {"images": blank, "prompt": SHORT}
        rows = [asked.get(row, filler) for row in range(self._rows)]
        return self._policy.infer_batch([*rows, {"images": blank, "prompt": LONG}, filler])[: self._rows]


class LocalPolicy:
    """A policy in this process behind the same fixed shapes, so that one worker gives the bits of many."""

    def __init__(self, policy: Policy, rows: int) -> None:
        self.metadata, self.chain = policy.metadata, 0
        self._policy = policy
        self._batch = FixedBatch(policy, rows) if rows > 1 else None

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode."""
        self._policy.reset(prompt, seed=seed)

    def infer(self, obs: Observation) -> PolicyOutput:
        """The answer of the policy, in the row of `chain`."""
        return self._policy.infer(obs) if self._batch is None else self._batch.answer([(self.chain, obs)])[0]

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """One after the other."""
        return [self.infer(one) for one in obs]


class PolicyLostError(InputError):
    """The policy's process is gone: only the parent can say why."""


class RemotePolicy:
    """What a worker holds instead of the policy. `chain`: the number of the chain that is under way."""

    def __init__(self, connection: Connection, metadata: dict[str, Any]) -> None:
        """`connection` is what `PolicyProcess.connect` gave."""
        self.metadata, self.chain = metadata, 0
        self._connection = connection

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode; nobody waits for an answer."""
        try:
            self._connection.send((prompt, seed))
        except OSError as error:
            raise PolicyLostError from error

    def infer(self, obs: Observation) -> PolicyOutput:
        """Ask and wait.

        Raises:
            InputError: the policy refused the observation, or had no memory left for it.
            RuntimeError: the policy failed; carries its traceback.
            PolicyLostError: there is nobody there.
        """
        try:
            self._connection.send((self.chain, obs))
            kind, content = self._connection.recv()
        except (EOFError, OSError) as error:
            raise PolicyLostError from error
        return _content(kind, content)

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """One after the other: batches are made on the other side."""
        return [self.infer(one) for one in obs]


def _content(kind: Kind, content: Any) -> Any:
    if kind == "error":
        raise content
    if kind == "memory":
        raise InputError(f"no memory left in the policy process ({content}); lower batch, or use another device")
    if kind == "bug":
        raise RuntimeError(f"the policy process failed:\n{content}")
    return content


class PolicyProcess:
    """The parent's handle. `connect` and `metadata` give what `RemotePolicy` needs."""

    def __init__(self, build: Callable[[], Policy], *, rows: int) -> None:
        """Start the process and wait until its policy is loaded. `build` must be picklable.

        Raises:
            InputError, MissingExtraError, OSError: the policy cannot be built.
            RuntimeError: it failed otherwise; carries its traceback.
        """
        self._control, self.process = start(_serve, build, rows, name="policy process")
        try:
            self.metadata: dict[str, Any] = _content(*self._control.recv())
        except EOFError:
            raise self.death() from None
        except BaseException:
            self.close()
            raise

    def connect(self) -> Connection:
        """A new connection, to be given to a worker process as an argument and closed here.

        Raises:
            InputError: the process is gone.
        """
        theirs, ours = multiprocessing.Pipe()
        try:
            send_handle(self._control, theirs.fileno(), self.process.pid)
        except (BrokenPipeError, ConnectionResetError):
            raise self.death() from None
        finally:
            theirs.close()
        return ours

    def death(self) -> InputError:
        """What to tell a person once the process is gone, or nobody reaches it."""
        self.process.join(timeout=10)
        kept = "finished chains are kept, start again with the same run_dir to go on"
        if self.process.exitcode is None:
            return InputError(f"a worker lost its connection to the policy process, which still runs; {kept}")
        advice = ", where memory is short with a lower batch or on another device"
        return InputError(
            f"the policy process died with {how_it_ended(self.process)}; {kept}"
            f"{advice if self.process.exitcode == -signal.SIGKILL else ''}"
        )

    def close(self) -> None:
        """End the process. A second call does nothing."""
        self._control.close()
        self.process.terminate()
        end([self.process])


def _serve(control: Connection, build: Callable[[], Policy], rows: int) -> None:
    live_with_parent(functools.partial(_load_and_answer, control, build, rows))


def _load_and_answer(control: Connection, build: Callable[[], Policy], rows: int) -> None:
    """The life of the process: load, let workers in, answer them until the parent closes `control`."""
    try:
        policy = build()
        answer = _in_batches(policy, rows) if rows > 1 else _one_by_one(policy)
    except Exception as error:  # whatever it is, the parent shows it
        control.send(described(error))
        return
    asked: queue.SimpleQueue[Asked | None] = queue.SimpleQueue()
    threading.Thread(target=_let_in, args=(control, asked), daemon=True).start()
    control.send(("ready", policy.metadata))
    while True:
        waiting = [asked.get()]
        while not asked.empty():
            waiting.append(asked.get())
        if None in waiting:
            return
        answer([one for one in waiting if one is not None])


def _let_in(control: Connection, asked: queue.SimpleQueue[Asked | None]) -> None:
    """Give every worker that the parent announces a thread that reads what it asks."""
    while True:
        try:
            connection = Connection(recv_handle(control))
        except (EOFError, OSError):  # the parent needs no more
            asked.put(None)
            return
        threading.Thread(target=_read, args=(connection, asked), daemon=True).start()


def _read(connection: Connection, asked: queue.SimpleQueue[Asked | None]) -> None:
    try:
        while True:
            asked.put((connection, connection.recv()))
    except (EOFError, OSError):  # the worker has ended
        asked.put((connection, None))


def _one_by_one(policy: Any) -> Callable[[Sequence[Asked]], None]:
    """Each worker's requests by its own twin of the policy, in the order of arrival."""
    twins: dict[Connection, Policy] = {}

    def answer(waiting: Sequence[Asked]) -> None:
        for connection, what in waiting:
            if what is None:
                twins.pop(connection, None)
                connection.close()
                continue
            if connection not in twins:
                twins[connection] = policy.clone()
            if isinstance(what[0], int):
                _tell(connection, *_outcome(functools.partial(twins[connection].infer, what[1])))
            else:
                prompt, seed = what
                twins[connection].reset(prompt, seed=seed)

    return answer


def _in_batches(policy: Policy, rows: int) -> Callable[[Sequence[Asked]], None]:
    """All requests that wait, together; there is no memory to reset."""
    batch = FixedBatch(policy, rows)

    def answer(waiting: Sequence[Asked]) -> None:
        looks = [(connection, what) for connection, what in waiting if what and isinstance(what[0], int)]
        for connection, what in waiting:
            if what is None:
                connection.close()
        if not looks:
            return
        kind, contents = _outcome(lambda: batch.answer([request for _, request in looks]))
        for i, (connection, _) in enumerate(looks):
            _tell(connection, kind, contents[i] if kind == "output" else contents)

    return answer


def _outcome(work: Callable[[], Any]) -> tuple[Kind, Any]:
    """What the work gave, or what went wrong: the worker raises it again, and the parent shows it."""
    try:
        return "output", work()
    except Exception as error:
        return described(error)


def _tell(connection: Connection, kind: Kind, content: Any) -> None:
    with contextlib.suppress(OSError):  # the worker was killed meanwhile; another one runs its chain again
        connection.send((kind, content))

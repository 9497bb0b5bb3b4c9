"""The policy process: one process loads the policy for all workers, and answers their simulators or forks them.

On a CPU with one thread, workers are forked from it (`_fork_workers`): each has the policy in its own memory, which it
shares with the others, without a second start of torch, and no image crosses a pipe. A forked process has the thread
that forked it alone, so the contexts of GPUs and pools of threads do not work in it, and neither would much of what a
program has opened; this process has nothing but the policy. Otherwise the process answers the workers.

An action must not depend on which other workers call at that moment. Matrix products of different heights differ in
their last bits (benchmarks/evaluation.py counts them). A forward pass therefore always has the same shape:

- `rows=1`: each request by itself, in the order of arrival. This gives the same bits on every device. Each worker has a
  clone of the policy, with the same weights and a state of its own.
- `rows=N`: always N + 2 rows. A chain has a fixed row (its number mod N), so its row does not depend on the other
  chains; of two chains with one row, the second waits for the next pass. The two extra rows hold a very long and a very
  short instruction, so that the text is always padded to the same length; unused rows repeat the short one. Dense
  kernels of a fixed shape do not mix rows; tests/unit/rollouts/test_policy_process.py checks this for the agent. Only
  for policies without state between calls: no temporal ensembling, no sampled codes.

The parent starts the process (`PolicyProcess`). It gives the process one end of a socket pair for each worker
(`connect`, `fork_worker`); a worker that is not forked gets the other, and holds a `RemotePolicy`. No socket has a
name, so TMPDIR may be long, full or read-only. Policies that need the simulator are built in the workers instead
(`workers.open_worker`). If the parent ends, this process ends.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Literal

import numpy as np

from vw2_robot.contracts import Observation, Policy, PolicyOutput
from vw2_robot.errors import InputError
from vw2_robot.process import stops_held_back
from vw2_robot.worker_pool import described, end, how_it_ended, live_with_parent, start, work

LONGEST_INSTRUCTION = 100
"""bytes; only where several requests share a pass"""
LONG = "x " * LONGEST_INSTRUCTION  # at least as many tokens as an instruction of that many bytes, in every tokenizer
SHORT = "x"

Request = tuple[int, Observation]
"""Number of the chain, and the observation."""
Reset = tuple[str | None, int | None]
"""Arguments of `Policy.reset`: prompt and seed."""
Message = tuple[Connection, Request | Reset | None]
"""Connection of a worker and what it sent; None: the worker has ended."""
Kind = Literal["ready", "forked", "output", "error", "memory", "bug"]


class FixedBatch:
    """Forward passes of one fixed shape for any number of requests; see the module docstring."""

    def __init__(self, policy: Policy, rows: int) -> None:
        """Wrap a policy.

        Args:
            policy: A policy without state between calls.
            rows: Rows of a pass that requests can use; two more are added.

        Raises:
            InputError: The policy keeps state between calls, which a batch would mix up.
        """
        ensemble = policy.metadata.get("temporal_ensemble")
        acting = policy.metadata.get("acting")
        if ensemble is not None or acting == "sampled":
            raise InputError(
                f"batch_size={rows}, but the policy keeps state between calls (temporal_ensemble={ensemble}, "
                f"acting={acting}); use batch_size=1"
            )
        self._policy = policy
        self._rows = rows

    def infer(self, requests: Sequence[Request]) -> list[PolicyOutput]:
        """Return one output per request, with the same bits whatever the other requests are.

        Raises:
            InputError: An instruction is longer than `LONGEST_INSTRUCTION` bytes, or the policy refuses an observation.
        """
        for _, observation in requests:
            if len(observation["prompt"].encode()) > LONGEST_INSTRUCTION:
                raise InputError(
                    f"batch_size={self._rows} takes instructions of up to {LONGEST_INSTRUCTION} bytes, found "
                    f"{observation['prompt']!r}; use batch_size=1"
                )
        outputs: dict[int, PolicyOutput] = {}
        waiting = list(range(len(requests)))
        while waiting:
            # Row -> request. Later assignments win, so going backwards gives a row to the first request in the queue.
            in_row = {requests[i][0] % self._rows: i for i in reversed(waiting)}
            # Unused rows hold black images of the same size as the used ones.
            images = requests[next(iter(in_row.values()))][1]["images"]
            black = {camera: np.zeros_like(image) for camera, image in images.items()}
            filler: Observation = {"images": black, "prompt": SHORT}
            longest: Observation = {"images": black, "prompt": LONG}
            rows = [requests[in_row[row]][1] if row in in_row else filler for row in range(self._rows)]
            # The long instruction fixes the padded length. The short one makes sure that there is padding at all:
            # transformers drops a mask without padding and then takes another attention kernel.
            answers = self._policy.infer_batch([*rows, longest, filler])
            outputs |= {i: answers[row] for row, i in in_row.items()}
            waiting = [i for i in waiting if i not in outputs]
        return [outputs[i] for i in range(len(requests))]


class LocalPolicy:
    """A policy in this process, called in the same fixed shapes: one worker gives the bits of many.

    `chain`: number of the current chain; set it before each chain.
    """

    def __init__(self, policy: Policy, rows: int) -> None:
        self.metadata = policy.metadata
        self.chain = 0
        self._policy = policy
        self._batch = FixedBatch(policy, rows) if rows > 1 else None

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode."""
        self._policy.reset(prompt, seed=seed)

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return the policy's output, computed in the row of `chain`."""
        return self._policy.infer(obs) if self._batch is None else self._batch.infer([(self.chain, obs)])[0]

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return one output per observation, computed one after the other."""
        return [self.infer(one) for one in obs]


class PolicyLostError(InputError):
    """The connection to the policy process is lost; only the parent can find out why."""


class RemotePolicy:
    """A policy in the policy process, as a worker sees it.

    `chain`: number of the current chain; set it before each chain.
    """

    def __init__(self, connection: Connection, metadata: dict[str, Any]) -> None:
        """Wrap a connection.

        Args:
            connection: What `PolicyProcess.connect` returned.
            metadata: The policy's metadata.
        """
        self.metadata = metadata
        self.chain = 0
        self._connection = connection

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode; returns without waiting for the policy process."""
        try:
            self._connection.send((prompt, seed))
        except OSError as error:
            raise PolicyLostError from error

    def infer(self, obs: Observation) -> PolicyOutput:
        """Send the observation and wait for the output.

        Raises:
            InputError: The policy refused the observation, or had no memory left for it.
            RuntimeError: The policy failed; carries its traceback.
            PolicyLostError: The policy process is gone.
        """
        try:
            self._connection.send((self.chain, obs))
            kind, content = self._connection.recv()
        except (EOFError, OSError) as error:
            raise PolicyLostError from error
        return _content(kind, content)

    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return one output per observation, one after the other: batches are formed in the policy process."""
        return [self.infer(one) for one in obs]


def _content(kind: Kind, content: Any) -> Any:
    """Return what the policy process sent, or raise the error that it met."""
    if kind == "error":
        raise content
    if kind == "memory":
        raise InputError(f"no memory left in the policy process ({content}); lower batch_size, or use another device")
    if kind == "bug":
        raise RuntimeError(f"the policy process failed:\n{content}")
    return content


class PolicyProcess:
    """The parent's handle of the policy process. `connect` and `metadata` give what a `RemotePolicy` needs."""

    def __init__(self, build: Callable[[], Policy], *, rows: int, may_fork: bool = False) -> None:
        """Start the process; it loads the policy while this one goes on.

        Args:
            build: Makes the policy, in the process; must be picklable.
            rows: Requests per forward pass; 1: one at a time.
            may_fork: Workers may be forked from the process, if the policy is on a CPU: it has one thread.
        """
        self._control, self.process = start(_run, build, rows, may_fork, name="policy process")

    @functools.cached_property
    def _loaded(self) -> tuple[dict[str, Any], bool]:
        """The policy's metadata, and whether workers are forked; waits until the policy is loaded."""
        try:
            loaded: tuple[dict[str, Any], bool] = _content(*self._control.recv())
        except EOFError:
            raise self.death() from None
        return loaded

    @property
    def metadata(self) -> dict[str, Any]:
        """Metadata of the policy.

        Raises:
            InputError, MissingExtraError, OSError: The policy cannot be built.
            RuntimeError: It failed otherwise; carries its traceback.
        """
        return self._loaded[0]

    @property
    def forks_workers(self) -> bool:
        """Whether workers are started by `fork_worker`, and not given a connection."""
        return self._loaded[1]

    def fork_worker(self, build: bytes, arguments: tuple[Any, ...], name: str) -> tuple[Connection, ForkedWorker]:
        """Fork a worker that has the policy: a `start_worker` of `WorkerPool`.

        Args:
            build: Makes the worker's function from `arguments` and the policy; pickled.
            arguments: Those before the policy.
            name: Of the worker.

        Raises:
            PolicyLostError: The process is gone.
            OSError: No processes or memory are left.
        """
        assert self.forks_workers  # also: the first message, which says so, has been read
        theirs, ours = multiprocessing.Pipe()
        try:
            self._control.send((build, arguments, name))
            send_handle(self._control, theirs.fileno(), self.process.pid)
            pid = _content(*self._control.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise PolicyLostError from error
        finally:
            theirs.close()
        return ours, ForkedWorker(self._control, pid, name)

    def connect(self) -> Connection:
        """Return a new connection: give it to a worker process as an argument, then close it here.

        Raises:
            InputError: The process is gone.
        """
        # A new socket pair; the end for the policy process travels over the control connection.
        theirs, ours = multiprocessing.Pipe()
        try:
            send_handle(self._control, theirs.fileno(), self.process.pid)
        except (BrokenPipeError, ConnectionResetError):
            raise self.death() from None
        finally:
            theirs.close()
        return ours

    def death(self) -> InputError:
        """Return the error to raise when the process is gone or cannot be reached."""
        # The connection breaks a moment before the exit code is known.
        self.process.join(timeout=10)
        kept = "finished chains are kept, start again with the same run_dir to continue"
        if self.process.exitcode is None:
            return InputError(f"a worker lost its connection to the policy process, which still runs; {kept}")
        advice = ", where memory is short with a lower batch_size or on another device"
        return InputError(
            f"the policy process died with {how_it_ended(self.process)}; {kept}"
            f"{advice if self.process.exitcode == -signal.SIGKILL else ''}"
        )

    def close(self) -> None:
        """End the process. A second call does nothing."""
        self._control.close()
        self.process.terminate()
        end([self.process])


class ForkedWorker:
    """A worker that the policy process has forked, as the pool sees it; only its parent can learn its exit code."""

    def __init__(self, control: Connection, pid: int, name: str) -> None:
        self.name = name
        self.pid = pid
        self.exitcode: int | None = None
        self._control = control

    def is_alive(self) -> bool:
        """Return whether it runs."""
        self.join(0.0)
        return self.exitcode is None

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end.

        Raises:
            PolicyLostError: The policy process is gone.
        """
        if self.exitcode is not None:
            return
        try:
            self._control.send((self.pid, timeout))
            self.exitcode = self._control.recv()
        except (EOFError, OSError) as error:
            raise PolicyLostError from error

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it ended with the policy process
            os.kill(self.pid, number)


def _run(control: Connection, build: Callable[[], Policy], rows: int, may_fork: bool) -> None:
    """Run the policy process: load the policy, then fork or answer workers until the parent closes `control`."""

    def life() -> None:
        # Nothing that is loaded becomes garbage: collections would take a tenth of the time of the imports, and later
        # walk through all of it in each worker and thereby copy the shared memory.
        gc.disable()
        try:
            policy: Any = build()
            batch = FixedBatch(policy, rows) if rows > 1 else None
        except Exception as error:  # the parent shows it, whatever it is
            control.send(described(error))
            return
        gc.freeze()
        gc.enable()
        forks = may_fork and batch is None and policy.device == "cpu"
        control.send(("ready", (policy.metadata, forks)))
        if forks:
            _fork_workers(control, policy)
        else:
            _serve(control, policy, batch)

    live_with_parent(life)


def _fork_workers(control: Connection, policy: Policy) -> None:
    """Fork a worker for each request of the parent, and tell it the exit codes, until it closes `control`."""
    context = multiprocessing.get_context("fork")
    # A daemon may have no children. This one ends its workers when it ends: they are daemons.
    multiprocessing.current_process().daemon = False
    workers: dict[int, BaseProcess] = {}
    while True:
        try:
            request = control.recv()
            if len(request) == 2:  # a pid, and how long to wait for the exit code
                process = workers[request[0]]
                process.join(request[1])
                control.send(process.exitcode)
                continue
            build, arguments, name = request
            connection = Connection(recv_handle(control))
            work_here = (control, connection, build, (*arguments, policy))
            try:
                process = context.Process(target=_work, args=work_here, name=name, daemon=True)
                with stops_held_back():
                    process.start()
            except OSError as error:
                control.send(described(error))
                continue
            finally:
                connection.close()
            assert process.pid is not None
            workers[process.pid] = process
            control.send(("forked", process.pid))
        except (EOFError, ConnectionResetError, BrokenPipeError):  # the parent is gone, or has closed it
            return


def _work(control: Connection, connection: Connection, build: bytes, arguments: tuple[Any, ...]) -> None:
    """Run a forked worker."""
    control.close()  # so that the end of the policy process is the end of the pipe
    work(connection, build, arguments)


def _serve(control: Connection, policy: Policy, batch: FixedBatch | None) -> None:
    """Accept workers and answer them until the parent closes `control`."""
    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=_accept_workers, args=(control, inbox), daemon=True).start()
    clones: dict[Connection, Policy] = {}
    while True:
        # Take all that has arrived, so that requests which came during the last pass share the next one.
        messages = [inbox.get()]
        while not inbox.empty():
            messages.append(inbox.get())
        if None in messages:
            return
        arrived = [message for message in messages if message is not None]
        if batch is None:
            _answer_in_order(policy, clones, arrived)
        else:
            _answer_in_batch(batch, arrived)


def _accept_workers(control: Connection, inbox: queue.SimpleQueue[Message | None]) -> None:
    """Start one reading thread per worker that the parent announces; put None into `inbox` when the parent is done."""

    def read(connection: Connection) -> None:
        try:
            while True:
                inbox.put((connection, connection.recv()))
        except (EOFError, OSError):  # the worker has ended
            inbox.put((connection, None))

    while True:
        try:
            connection = Connection(recv_handle(control))
        except (EOFError, OSError):  # the parent has closed `control`
            inbox.put(None)
            return
        threading.Thread(target=read, args=(connection,), daemon=True).start()


def _answer_in_order(policy: Any, clones: dict[Connection, Policy], messages: Sequence[Message]) -> None:
    """Handle each message by the worker's own clone of the policy, in the order of arrival."""
    for connection, message in messages:
        if message is None:
            clones.pop(connection, None)
            connection.close()
            continue
        if connection not in clones:
            clones[connection] = policy.clone()
        clone = clones[connection]
        if isinstance(message[0], int):  # a request
            _, observation = message
            outcome = _outcome(functools.partial(clone.infer, observation))
            with contextlib.suppress(OSError):  # the worker was killed meanwhile; another one runs its chain again
                connection.send(outcome)
        else:
            prompt, seed = message
            clone.reset(prompt, seed=seed)


def _answer_in_batch(batch: FixedBatch, messages: Sequence[Message]) -> None:
    """Answer all requests together. Resets are ignored: there is no state to reset."""
    requests = [(connection, message) for connection, message in messages if message and isinstance(message[0], int)]
    for connection, message in messages:
        if message is None:
            connection.close()
    if not requests:
        return
    kind, contents = _outcome(lambda: batch.infer([request for _, request in requests]))
    for i, (connection, _) in enumerate(requests):
        with contextlib.suppress(OSError):  # the worker was killed meanwhile; another one runs its chain again
            connection.send((kind, contents[i] if kind == "output" else contents))


def _outcome(work: Callable[[], Any]) -> tuple[Kind, Any]:
    """Return the result of `work`, or its exception in a form that the worker can raise again."""
    try:
        return "output", work()
    except Exception as error:
        return described(error)

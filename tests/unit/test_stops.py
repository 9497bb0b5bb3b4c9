"""Signals in training: the step in progress ends, a checkpoint is written where there is time, and the run says so."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.devices import Hardware
from vw2_robot.errors import Terminated
from vw2_robot.process import DeferredStop
from vw2_robot.runs import Run

GIGABYTE = 10**9


class ArrivedError(Exception):
    """Raised by the handler from before."""


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Handlers as `orderly` has them: both signals become exceptions."""

    def stop(number: int, _: Any) -> None:
        raise ArrivedError(signal.Signals(number).name)

    before = {n: signal.signal(n, stop) for n in (signal.SIGTERM, signal.SIGINT)}
    alarm = signal.getsignal(signal.SIGALRM)
    yield
    assert all(signal.getsignal(number) is stop for number in before)
    assert signal.getsignal(signal.SIGALRM) is alarm
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def held_back(seconds: float, body: Callable[[DeferredStop], None]) -> None:
    with DeferredStop(seconds) as stopping:
        body(stopping)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_waits_and_the_end_is_that_of_its_kind(number: signal.Signals) -> None:
    def body(stopping: DeferredStop) -> None:
        assert stopping.signal is None
        send(number)
        assert stopping.signal == number
        stopping.stop("resumable")

    with pytest.raises(KeyboardInterrupt, match="resumable") as caught:
        held_back(60, body)
    assert isinstance(caught.value, Terminated) == (number == signal.SIGTERM)


def test_without_a_signal_nothing_happens_and_a_stop_of_another_rank_ends_as_sigterm() -> None:
    with DeferredStop(60):
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    with pytest.raises(Terminated, match="resumable"):
        held_back(60, lambda stopping: stopping.stop("resumable"))


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_ctrl_c_is_handled_at_once_as_the_first_signal_and_a_second_sigterm_is_not(
    first: signal.Signals,
) -> None:
    passed = []

    def body(_: DeferredStop) -> None:
        for number in (first, signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            send(number)
            passed.append(number)

    with pytest.raises(ArrivedError, match=first.name):
        held_back(60, body)
    assert passed == [first, signal.SIGTERM]


def test_a_signal_of_which_nobody_takes_notice_is_handled_after_its_time() -> None:
    def body(_: DeferredStop) -> None:
        send(signal.SIGINT)
        time.sleep(30)

    begin = time.monotonic()
    with pytest.raises(ArrivedError, match="SIGINT"):
        held_back(0.1, body)
    assert 0.1 <= time.monotonic() - begin < 5


def test_a_signal_after_the_last_step_is_handled_at_the_end() -> None:
    with pytest.raises(ArrivedError, match="SIGTERM"):
        held_back(60, lambda stopping: send(signal.SIGTERM))


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DeferredStop(60) as stopping:
        send(signal.SIGINT)
        assert stopping.signal is None
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    signal.signal(signal.SIGINT, before)


# -------------------------------------------------------------------------------------------------------------- a run


def train(
    path: Path,
    *,
    in_step: Callable[[int], None],
    after_step: Callable[[int], None] = lambda step: None,
    state_bytes: int = 0,
    grace_seconds: float = 10.0,
    taken: list[int] | None = None,
) -> None:
    """Ten steps with a checkpoint every four, as the programs do."""
    hardware = Hardware(grace_seconds=grace_seconds)
    with Run(path, {"seed": 0}, stage="test", total_steps=10, save_every=4, log_every=4, hardware=hardware) as run:
        run.begin(state_bytes=state_bytes)
        for step in run.steps():
            in_step(step)
            if taken is not None:
                taken.append(step)
            if run.checkpoint_due(step, run.save_every):
                run.save(step, write)
            after_step(step)


def write(folder: Path) -> None:
    save_checkpoint(folder, kind="vdm", config={}, modules={"net": torch.nn.Linear(1, 1)})


def stop_in(wanted: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    return lambda step: send(number) if step == wanted else None


def saved(path: Path) -> list[str]:
    folder = path / "checkpoints"
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_step_ends_a_checkpoint_is_written_and_the_run_goes_on_from_it(tmp_path: Path, number: int) -> None:
    taken: list[int] = []
    message = "^resumable: the same command continues from step 6 of test$"
    with pytest.raises(KeyboardInterrupt, match=message) as caught:
        train(tmp_path / "r", in_step=stop_in(5, number), taken=taken)
    assert isinstance(caught.value, Terminated) == (number == signal.SIGTERM)
    assert taken == list(range(6))
    assert saved(tmp_path / "r") == ["step_6"]
    train(tmp_path / "r", in_step=lambda step: None, taken=taken)
    assert taken == list(range(10))


@pytest.fixture
def roomy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the gigabytes that a test speaks of and does not write, and no waiting for a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**12))


@pytest.mark.usefixtures("roomy_disk")
@pytest.mark.parametrize(
    ("state_bytes", "grace_seconds", "fits"),
    [(GIGABYTE, 10, True), (GIGABYTE + 1, 10, False), (GIGABYTE + 1, 10.5, True), (GIGABYTE, 2, True)],
)
def test_a_large_checkpoint_is_written_only_where_a_stop_may_take_long(
    tmp_path: Path, state_bytes: int, grace_seconds: float, fits: bool
) -> None:
    with pytest.raises(Terminated) as caught:
        train(tmp_path / "r", in_step=stop_in(5), state_bytes=state_bytes, grace_seconds=grace_seconds)
    step = 6 if fits else 4
    assert saved(tmp_path / "r") == [f"step_{step}"]
    message = str(caught.value)
    assert message.startswith(f"resumable: the same command continues from step {step} of test")
    explained = "a checkpoint of 1.0 GB is not written within 10 s; hardware.grace_seconds says"
    assert (explained in message) == (not fits)


@pytest.mark.usefixtures("roomy_disk")
@pytest.mark.parametrize(("step", "kept"), [(3, ["step_4"]), (1, [])])
def test_a_large_checkpoint_is_written_where_it_is_due_anyway(tmp_path: Path, step: int, kept: list[str]) -> None:
    with pytest.raises(Terminated, match=f"from step {4 if kept else 0} of test"):
        train(tmp_path / "r", in_step=stop_in(step), state_bytes=2 * GIGABYTE)
    assert saved(tmp_path / "r") == kept


def test_a_second_ctrl_c_ends_the_step_too_and_a_second_sigterm_does_not(tmp_path: Path) -> None:
    def twice(number: int) -> Callable[[int], None]:
        return lambda step: [send(number), send(number)] if step == 5 else None

    taken: list[int] = []
    with pytest.raises(ArrivedError):
        train(tmp_path / "r", in_step=twice(signal.SIGINT), taken=taken)
    assert taken == list(range(5))
    assert saved(tmp_path / "r") == ["step_4"]
    with pytest.raises(Terminated, match="from step 6 of test"):
        train(tmp_path / "r", in_step=twice(signal.SIGTERM), taken=taken)
    assert saved(tmp_path / "r") == ["step_6"]


def test_a_step_that_takes_longer_than_a_stop_may_is_cut_off(tmp_path: Path) -> None:
    def slowly(step: int) -> None:
        if step == 5:
            send(signal.SIGTERM)
            time.sleep(30)

    with pytest.raises(ArrivedError):
        train(tmp_path / "r", in_step=slowly, grace_seconds=0.2)
    assert saved(tmp_path / "r") == ["step_4"]


def test_a_stop_in_the_last_step_leaves_a_complete_run(tmp_path: Path) -> None:
    with pytest.raises(Terminated, match="from step 10 of test"):
        train(tmp_path / "r", in_step=stop_in(9))
    assert saved(tmp_path / "r") == ["step_10"]


@pytest.mark.parametrize(("step", "kept"), [(5, "step_7"), (9, "step_10")])
def test_a_stop_between_two_steps_is_not_lost_neither_after_the_last_one(tmp_path: Path, step: int, kept: str) -> None:
    expected: type[BaseException] = ArrivedError if step == 9 else Terminated
    with pytest.raises(expected):
        train(tmp_path / "r", in_step=lambda step: None, after_step=stop_in(step))
    assert saved(tmp_path / "r") == [kept]


def test_steps_that_are_skipped_are_not_run_and_a_stop_before_them_counts(tmp_path: Path) -> None:
    taken = []

    def phase(run: Run, *, stop: int, signals: bool) -> None:
        for step in run.steps(stop):
            taken.append(step)
            if step == 2:
                if signals:
                    send(signal.SIGTERM)
                run.save(stop - 1, write)
                run.skip_to(stop)

    with Run(tmp_path / "r", {}, stage="test", total_steps=10, save_every=4, log_every=4) as run:
        run.begin()
        phase(run, stop=6, signals=False)
        assert run.start == 6
        phase(run, stop=8, signals=False)
    assert taken == [0, 1, 2, 6, 7]
    with Run(tmp_path / "other", {}, stage="test", total_steps=10, save_every=4, log_every=4) as run:
        run.begin()
        with pytest.raises(ArrivedError):
            phase(run, stop=6, signals=True)

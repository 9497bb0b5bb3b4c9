"""The GPU table: how rows end, what fits into memory, and the whole program at toy size on a CPU."""

import json
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import main, run_rows
from benchmarks.gpu.lora import build_on
from benchmarks.gpu.machine import Machine
from benchmarks.gpu.measured import Measured, NotMeasuredError, Outcome, Settings
from benchmarks.gpu.memory import PlannedMemory, micro_batches_that_fit
from benchmarks.gpu.presets import lora_tree, pretrain_config
from benchmarks.gpu.rendering import rendering_row
from benchmarks.gpu.row_process import RowFailedError
from benchmarks.gpu.rows import GROUPS, ROWS, Row, chosen_rows
from benchmarks.gpu.table import table_line
from benchmarks.gpu.timed_run import FEWEST, MOST, WARM_UP, TimedRun
from benchmarks.gpu.training import Training, measured_step
from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.storage.files import read_json

REPO = Path(__file__).parents[3]
CPU = torch.device("cpu")
MACHINE = Machine(
    device="a card",
    torch="2",
    cuda=None,
    driver=None,
    memory_bytes=100 * 10**9,
    cpu_cores=1,
    python="3",
    date="today",
    commit="unknown",
    peak_flops=1e12,
    peak_source="a test",
    matmul_flops=1e12,
    copy_bytes_per_second=1e9,
)


# ------------------------------------------------------------------------------------------------ how rows end


class Answers:
    """A process of rows that answers at once: numbers, or an error to raise."""

    def __init__(self, answers, machine=MACHINE):
        self.answers = answers
        self._machine = machine
        self.closed = False

    def machine(self, *, seconds):
        if isinstance(self._machine, Exception):
            raise self._machine
        return self._machine

    def run(self, name, *, seconds):
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self):
        self.closed = True


def rows_with(monkeypatch, tmp_path, answers, *, seconds=100.0, machine=MACHINE):
    process = Answers(answers, machine)
    monkeypatch.setattr("benchmarks.gpu.__main__.RowProcess", lambda settings, rows: process)
    rows = [Row(name, "training", 60.0, operator.attrgetter("x")) for name in answers]
    settings = Settings("cpu", True, tmp_path / "data")
    outcomes = run_rows(rows, settings, out=tmp_path / "out" / "gpu.json", seconds=seconds)
    assert process.closed
    return outcomes, read_json(tmp_path / "out" / "gpu.json", cure="")


def test_a_row_that_fails_or_has_nothing_to_measure_leaves_its_reason_and_the_others_go_on(
    monkeypatch, tmp_path, capsys
) -> None:
    answers = {
        "first": RowFailedError("out of memory: 200 GB"),
        "second": NotMeasuredError("no g++ here"),
        "third": Measured(milliseconds=2.0, per_second=500.0, unit="clips/s", bound_share=0.25, note="8 clips"),
    }
    outcomes, stored = rows_with(monkeypatch, tmp_path, answers)
    assert [outcome.status for outcome in outcomes] == ["failed", "not run", "measured"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].split(maxsplit=1) == ["first", "failed: out of memory: 200 GB"]
    assert lines[-2].split(maxsplit=1) == ["second", "not run: no g++ here"]
    assert lines[-1].split() == ["third", "2.00", "500", "clips/s", "25", "8", "clips"]
    assert [row["name"] for row in stored["rows"]] == ["first", "second", "third"]
    assert stored["rows"][2]["measured"]["bound_share"] == 0.25
    assert stored["machine"]["peak_flops"] == 1e12


def test_a_row_that_may_not_fit_into_the_time_is_named_as_not_run(monkeypatch, tmp_path) -> None:
    outcomes, _ = rows_with(monkeypatch, tmp_path, {"long": Measured()}, seconds=25.0)
    assert outcomes[0].status == "not run"
    assert "s are left, it takes up to 60 s" in outcomes[0].reason


def test_without_a_machine_no_row_runs_and_the_file_says_why(monkeypatch, tmp_path) -> None:
    outcomes, stored = rows_with(monkeypatch, tmp_path, {"row": Measured()}, machine=RowFailedError("no such device"))
    assert [outcome.name for outcome in outcomes] == ["machine"]
    assert stored["machine"] is None
    assert stored["rows"][0]["reason"] == "no such device"


@pytest.mark.parametrize(("status", "code"), [("failed", 1), ("not run", 0), ("measured", 0)])
def test_the_exit_status_tells_whether_a_row_failed(monkeypatch, tmp_path, status, code) -> None:
    monkeypatch.setattr("benchmarks.gpu.__main__.run_rows", lambda *_, **__: [Outcome("row", "training", status)])
    assert main(["--device", "cpu", "--out", str(tmp_path / "gpu.json")]) == code


def test_rows_are_chosen_by_group_or_name() -> None:
    assert chosen_rows([]) == list(ROWS)
    assert [row.name for row in chosen_rows(["phase 1", "lora"])] == ["phase 1", "LoRA"]
    with pytest.raises(ValueError, match="no rows called rest; known: equality"):
        chosen_rows(["rest"])


def test_a_row_without_numbers_of_a_kind_leaves_the_cell_empty() -> None:
    line = table_line(Outcome("equality", "equality", "measured", measured=Measured(note="equal")))
    assert line.split() == ["equality", "equal"]


def renderers(monkeypatch, tmp_path, **rates):
    def rate(renderer, *, seconds):
        if isinstance(rates[renderer], Exception):
            raise rates[renderer]
        return rates[renderer]

    monkeypatch.setattr("benchmarks.gpu.rendering.steps_per_second", rate)
    return rendering_row(Training(Settings("cpu", True, tmp_path), MACHINE))


def test_egl_is_measured_where_it_works_and_else_the_reason_is_in_the_row(monkeypatch, tmp_path) -> None:
    found = renderers(monkeypatch, tmp_path, layered=50.0, egl=200.0)
    assert found.per_second == 200
    assert found.values["renderer"] == "egl"
    found = renderers(monkeypatch, tmp_path, layered=50.0, egl=InputError("no driver"))
    assert found.per_second == 50
    assert found.values["renderer"] == "layered"
    assert found.note.endswith("EGL: not available here (no driver)")
    with pytest.raises(NotMeasuredError, match="not available here: pybullet is not installed"):
        renderers(monkeypatch, tmp_path, layered=MissingExtraError("pybullet is not installed"))


# --------------------------------------------------------------------------------------- memory and measured steps


def test_a_further_sample_takes_less_than_the_first() -> None:
    assert PlannedMemory(states=100, first=10, further=3).of(4) == 100 + 10 + 3 * 3


def test_the_fewest_micro_batches_that_fit_come_first_and_one_is_left_in_any_case() -> None:
    planned = PlannedMemory(states=10 * 10**9, first=10**9, further=10**9)
    assert micro_batches_that_fit(planned, 64, 100 * 10**9) == [1, 2, 4, 8, 16]
    assert micro_batches_that_fit(planned, 96, 100 * 10**9) == [2, 4, 8, 16]
    assert micro_batches_that_fit(planned, 96, 10**9) == [16]
    assert micro_batches_that_fit(planned, 9, 10**9) == [1]
    assert micro_batches_that_fit(planned, 96, None) == [1]


def test_where_the_plan_was_too_low_more_micro_batches_are_tried(monkeypatch, tmp_path) -> None:
    training = Training(Settings("cpu", True, tmp_path), MACHINE)
    tried = []

    def run_stage(stage, *, compiled, micro_batches):
        tried.append(micro_batches)
        if micro_batches < 4:
            raise torch.cuda.OutOfMemoryError("too much")
        return "run"

    monkeypatch.setattr(training, "plan", lambda stage: PlannedMemory(0, 1, 1))
    monkeypatch.setattr(training, "batch", lambda stage: 4)
    monkeypatch.setattr(training, "run_stage", run_stage)
    assert training.measured("phase 1") == ("run", 4)
    assert tried == [1, 2, 4]
    training.measured("phase 1")
    assert tried == [1, 2, 4]  # measured once


def test_with_micro_batches_their_clips_share_their_statistics(tmp_path) -> None:
    config = Training(Settings("cpu", True, tmp_path), MACHINE).config(compiled=True, micro_batches=2)
    assert config.hardware.micro_batches == 2
    assert config.hardware.compile
    assert config.train_dldm.statistics_group == config.train_dldm.phase1.batch_size // 2


def test_a_timed_run_counts_its_first_step_and_leaves_when_it_has_enough(tmp_path) -> None:
    layer = torch.nn.Linear(8, 16)
    with TimedRun(tmp_path / "run", CPU, total_steps=1000) as run:
        run.begin()
        for number, step in enumerate(run.steps()):
            assert step == number
            layer(torch.zeros(4, 8))
    assert len(run.seconds) == WARM_UP + MOST
    assert run.flops == 2 * 4 * 8 * 16
    run.seconds = [9.0] * WARM_UP + [0.1, 0.3, 0.2]
    found = measured_step(run, MACHINE, samples=4, unit="clips", planned=None, note="")
    assert found.milliseconds == pytest.approx(200)
    assert found.per_second == pytest.approx(20)
    assert found.bound_share == pytest.approx(run.flops / 0.2 / 1e12)  # MFU


def test_slow_steps_are_measured_a_few_times_only(tmp_path) -> None:
    with TimedRun(tmp_path / "run", CPU, total_steps=1000, seconds=0.0) as run:
        for _ in run.steps():
            time.sleep(0.001)
    assert len(run.seconds) == WARM_UP + FEWEST


def test_an_error_in_the_counted_step_ends_the_counting(tmp_path) -> None:
    def train() -> None:
        with TimedRun(tmp_path / "run", CPU, total_steps=9) as run:
            for _ in run.steps():
                raise RuntimeError("a loss")

    with pytest.raises(RuntimeError, match="a loss"):
        train()
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack()


# ------------------------------------------------------------------------------------------------ whole programs


def crash(training):
    print("a driver's last message", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_crash_an_error_and_a_row_that_hangs_end_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [
        Row("crash", "training", 120.0, crash),
        Row("error", "training", 120.0, operator.attrgetter("no_such_thing")),
        Row("hangs", "training", 0.01, ROWS[0].run),
        Row("equality", "equality", 120.0, ROWS[0].run),
    ]
    outcomes = run_rows(rows, Settings("cpu", True, tmp_path / "data"), out=tmp_path / "gpu.json", seconds=500)
    assert [outcome.status for outcome in outcomes] == ["failed", "failed", "failed", "measured"]
    assert outcomes[0].reason == "its process ended with exit status -9; its last message: a driver's last message"
    assert outcomes[1].reason.startswith("AttributeError: 'Training' object has no attribute 'no_such_thing'")
    assert outcomes[2].reason == "took too long and was ended"


def test_the_transformer_of_the_lora_step_has_values_and_frozen_bfloat16_weights(tmp_path) -> None:
    settings = Settings("cpu", True, tmp_path)
    config = pretrain_config(lora_tree(settings, num_frames=9), settings, frame_cache=tmp_path)
    vdm = build_on(CPU, config).vdm
    frozen = {name: value for name, value in vdm.transformer.named_parameters() if "lora_" not in name}
    assert {value.dtype for value in frozen.values()} == {torch.bfloat16}
    assert all(torch.isfinite(value).all() and value.abs().max() > 0 for value in frozen.values())
    vdm.trainable_parameters()
    assert not any(value.requires_grad for value in frozen.values())


@pytest.mark.slow
def test_the_whole_table_is_made_on_a_cpu(tmp_path) -> None:
    out = tmp_path / "runs" / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    stored = json.loads(out.read_text(encoding="utf-8"))
    assert stored["machine"]["torch"] == torch.__version__
    assert stored["machine"].keys() >= {"device", "cuda", "driver", "date", "commit", "peak_flops"}
    assert stored["run"]["toy"]
    found = {row["name"]: row for row in stored["rows"]}
    assert list(found) == [row.name for row in ROWS]
    assert {row["group"] for row in stored["rows"]} == set(GROUPS)
    for name, row in found.items():
        assert any(line.startswith(name) for line in done.stdout.splitlines())
        if row["status"] == "not run":
            assert row["group"] == "compile"
            assert "on a CPU" in row["reason"]
            continue
        measured = row["measured"]
        assert measured["note"]
        if row["group"] in ("training", "lora", "decoding"):
            assert measured["milliseconds"] > 0
            assert measured["per_second"] > 0
            assert 0 < measured["bound_share"] < 1
        if row["group"] in ("training", "lora"):
            assert measured["planned_bytes"] > 0
            assert measured["values"]["flops_per_step"] > 0
    assert found["equality"]["measured"]["values"]["float32_difference"] <= 1e-4
    assert 0 < found["equality"]["measured"]["values"]["bf16_difference"] < 0.2
    assert found["decoding x1"]["measured"]["values"]["generate_milliseconds"] > 0
    assert found["rendering"]["measured"]["per_second"] > 0

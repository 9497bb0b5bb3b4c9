"""Where metrics go; the rest of TensorBoard is in test_runs.py."""

import sys
from types import SimpleNamespace

import pytest

from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.runs import Run
from vw2_robot.storage.tracking import open_tracker

CONFIG = {"seed": 0, "optim": {"lr": 1e-3}}


def open_run(path, track):
    return Run(path, CONFIG, stage="test", total_steps=4, save_every=4, log_every=1, track=track)


def log_two(path, track):
    with open_run(path, track) as run:
        run.begin()
        run.log(0, {"test/loss": 0.5})
        run.log(1, {"test/loss": 0.25})


class FakeWandb(SimpleNamespace):
    """The calls of the real library that we make, with its names of arguments."""

    def __init__(self, *, refuses=False):
        super().__init__(calls=[], refuses=refuses, errors=SimpleNamespace(Error=type("Error", (Exception,), {})))

    def init(self, *, project, id, name, config, dir, resume):
        if self.refuses:
            raise self.errors.Error("no login")
        self.calls.append(("init", project, id, name, config, resume))
        return self

    def log(self, values, *, step):
        self.calls.append(("log", values, step))

    def finish(self):
        self.calls.append(("finish",))


def test_a_run_and_its_resumption_are_one_run_of_wandb(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for _ in range(2):
        log_two(tmp_path / "first" / "vdm", "wandb")
    name = (tmp_path / "first" / "vdm" / "wandb_id").read_text().strip()
    once = [
        ("init", "vw2_robot", name, "first/test", CONFIG, "allow"),
        ("log", {"test/loss": 0.5}, 1),
        ("log", {"test/loss": 0.25}, 2),
        ("finish",),
    ]
    assert fake.calls == once * 2
    assert not (tmp_path / "first" / "vdm" / "tensorboard").exists()


def test_a_login_that_is_missing_is_an_error_for_the_user(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(refuses=True))
    with pytest.raises(InputError, match="track=wandb: no login; run `wandb login`, or set WANDB_MODE=offline"):
        log_two(tmp_path / "r", "wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match='the extra "wandb"'):
        log_two(tmp_path / "other", "wandb")


def test_none_writes_metrics_alone_and_tensorboard_may_be_missing(tmp_path, monkeypatch):
    log_two(tmp_path / "r", "none")
    assert {"metrics.jsonl", "log.txt", "config.yaml"} >= {file.name for file in (tmp_path / "r").iterdir()} - {".lock"}
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert open_tracker("tensorboard", tmp_path, stage="test", config={}, start=0) is None


def test_wandb_itself_writes_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    log_two(tmp_path / "r", "wandb")
    (written,) = (tmp_path / "r" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"test/loss" in written.read_bytes()
    assert (tmp_path / "r" / "wandb_id").read_text().strip() in written.name

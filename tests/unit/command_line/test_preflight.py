import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from vw2_robot.command_line.preflight import check_before_work, named_paths
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.limits import ExistingPath
from vw2_robot.rollouts.config import RolloutConfig


@dataclass(frozen=True)
class Model:
    weights: ExistingPath | None = None
    name: str = "x"


@dataclass(frozen=True)
class Root:
    out: str
    model: Model = field(default_factory=Model)
    hardware: Hardware | None = None


def test_what_is_named_must_be_there(tmp_path: Path) -> None:
    root = Root(str(tmp_path / "new" / "run"), Model(str(tmp_path)))
    assert list(named_paths(root)) == [("model.weights", str(tmp_path))]
    check_before_work(root)
    assert not (tmp_path / "new").exists()
    check_before_work(Root(str(tmp_path), Model("gs://bucket/weights")))
    with pytest.raises(InputError, match=r"model\.weights=.*gone: there is no such file or folder"):
        check_before_work(Root(str(tmp_path), Model(str(tmp_path / "gone"))))
    with pytest.raises(InputError, match=r"hardware\.device=cuda:99"):
        check_before_work(Root(str(tmp_path), hardware=Hardware("cuda:99")))
    with pytest.raises(InputError, match=r"device=cuda:99, but torch .* sees"):
        check_before_work(RolloutConfig("random", {"_target_": "x"}, str(tmp_path), device="cuda:99"))


def test_an_output_folder_needs_permission_and_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7_000_000))
    with pytest.raises(InputError, match=rf"out={tmp_path}/a/b: only 7 MB are free there"):
        check_before_work(Root(f"{tmp_path}/a/b"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InputError, match=rf"out={tmp_path}/a/b: {tmp_path} cannot be written"):
        check_before_work(Root(f"{tmp_path}/a/b"))

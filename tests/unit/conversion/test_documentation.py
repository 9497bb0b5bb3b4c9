"""Every snippet of docs/integrations/convert.md runs, in its order."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.episodes import Demonstration, Episode
from vw2_robot.data.rlds_writer import write_rlds
from vw2_robot.models.dldm.dldm import DLDM

from .test_latent_column import CONFIG

PAGE = Path(__file__).resolve().parents[3] / "docs/integrations/convert.md"


def write_bridge(folder: Path) -> None:
    """An RLDS data set of unknown units, in the place where the page has Bridge V2."""
    rng = np.random.default_rng(0)
    images = tuple(rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    episode = Episode("bridge", "0", "push the pot", 5.0, images)
    actions = rng.normal(size=(4, 7)) / 100
    write_rlds(folder, name="bridge", version="1.0.0", episodes={"train": [Demonstration(episode, actions)]})


def test_every_snippet_of_the_page_runs(
    calvin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("pyarrow", "tensorflow_datasets"):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/task_D_D").symlink_to(calvin)
    write_bridge(tmp_path / "data/bridge_dataset/1.0.0")
    facts = {"encoder_hash": "0" * 64}
    save_checkpoint(
        Path("runs/first/dldm"), kind="dldm", config=config_tree(CONFIG), modules={"dldm": DLDM(CONFIG)}, facts=facts
    )
    torch.set_num_threads(1)
    snippets = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(snippets) == 6
    for language, text in snippets:
        if language == "python":
            # LeRobot has an environment of its own: test_real_lerobot.py.
            if "from lerobot" not in text:
                exec(compile(text, str(PAGE), "exec"), {})
            continue
        for line in text.splitlines():
            # The stand-in of Bridge V2 has one camera, of another name.
            monkeypatch.setattr(sys, "argv", shlex.split(line.replace("image_key=image_0", "image_key=image")))
            entry_points.convert.main()
    assert "[ 0.01  0.    0.    0.    0.   -0.05  1.  ]" in capsys.readouterr().out

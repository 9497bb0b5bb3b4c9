"""What docs/integrations/hub.md shows works as printed, on the fake hub."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from vw2_robot.agent import CHECKPOINTS
from vw2_robot.command_line import entry_points
from vw2_robot.hub import lerobot_files
from vw2_robot.storage.files import write_json

PAGE = Path(__file__).resolve().parents[3] / "docs" / "integrations" / "hub.md"
SUMMARY = {
    "policy_hash": "841a0015c0339b3a422d8c52cccaee00b58626f7267d24d2f925e6188bd5d481",  # of builtin:calvin-tiny
    "num_sequences": 10,
    "chain_length": 1,
    "success_rates": [0.5],
    "success_intervals95": [[0.2, 0.8]],
    "env": {},
}


def test_commands_and_snippets_of_the_page_run_in_their_order(hub, monkeypatch, capsys):
    pytest.importorskip("hydra", reason="needs the extra train")
    shutil.copytree(CHECKPOINTS / "calvin-tiny", "runs/first/finetune/checkpoints/step_1")
    Path("runs/first/finetune/latest").write_text("step_1\n")
    Path("runs/first/rollout").mkdir()
    write_json(Path("runs/first/rollout/summary.json"), SUMMARY, sealed=True)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    names = {"image": np.zeros((200, 200, 3), np.uint8)}
    ran = 0
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(block, names)
            ran += 1
            continue
        for line in block.splitlines():
            monkeypatch.setattr("sys.argv", shlex.split(line))
            assert shlex.split(line)[0] == "vw2-export"
            entry_points.export.main()
            ran += 1
    assert ran == 5
    assert f"{hub.endpoint}/owner/name/commit/" in capsys.readouterr().out
    assert set(hub.branches) == hub.private == {"owner/name", "owner/other"}
    assert names["agent"].metadata["policy_hash"] == SUMMARY["policy_hash"]
    assert "50.0 %" in Path("runs/first/again/README.md").read_text()


def test_the_page_names_every_key_and_step_of_lerobot():
    text = PAGE.read_text()
    folder = json.loads((CHECKPOINTS / "calvin-tiny" / "config.json").read_text())
    for name in (*folder, lerobot_files.ACTION_STEP, lerobot_files.PREPROCESSOR, lerobot_files.POSTPROCESSOR):
        assert f"`{name}`" in text

"""The commands of docs/integrations/metaworld.md: all are understood, and the small ones run, from a recording on."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.configuration_page import all_programs
from vw2_robot.data.sources.recorded_robot import RecordedRobot
from vw2_robot.envs.meta_world import recorded_robot

PAGE = Path(__file__).resolve().parents[4] / "docs" / "integrations" / "metaworld.md"


def snippets(language: str) -> list[str]:
    """The code blocks of the page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_every_command_of_the_page_is_understood() -> None:
    programs = all_programs()
    lines = "".join(snippets("bash")).splitlines()
    assert len(lines) == 15
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        for line in lines:
            program, *overrides = shlex.split(line)
            config_cls, name = programs[program]
            tree = OmegaConf.to_container(compose(name, overrides=overrides), resolve=True, throw_on_missing=True)
            assert isinstance(tree, dict)
            config_from(config_cls, {str(key): value for key, value in tree.items()})


def test_page_shows_what_is_recorded() -> None:
    (text,) = snippets("json")
    shown = json.loads(text.replace("; ...", "; effort 1 closes the fingers, -1 opens them"))
    assert config_from(RecordedRobot, shown) == recorded_robot("corner2")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("metaworld") is None, reason="metaworld is not installed")
def test_small_commands_and_the_snippet_of_the_page_run(tmp_path: Path) -> None:
    programs = {
        "vw2-record": "envs.recording.record",
        "pretrain-on-openx": "pretrain.pretrain_on_openx",
        "vw2-finetune": "finetune.train_head",
        "vw2-rollout": "rollouts",
    }
    for line in snippets("bash")[-1].splitlines():
        program, *overrides = shlex.split(line)
        command = [sys.executable, "-m", f"vw2_robot.{programs[program]}", *overrides]
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=False)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
    (snippet,) = snippets("python")
    subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, timeout=600, check=True)
    report = (tmp_path / "runs/metaworld/few_rollout/report.html").read_text(encoding="utf-8")
    assert "gripper_effort" in report

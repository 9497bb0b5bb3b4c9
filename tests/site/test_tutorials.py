"""The commands and snippets of the start page and the tutorials: all are understood, and all run, at small sizes.

Blocks of `bash` and `python` are run in their order, in one folder. A block that begins with `# NAME.py` is that file.
Plain blocks are not run: installation, queues, what takes minutes.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.configuration_page import all_programs

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = [DOCS / "getting_started.md", *sorted((DOCS / "tutorials").glob("your_*.md")), DOCS / "tutorials/cluster.md"]
# Answer until they are stopped; their own tests start them.
SERVERS = ("vw2-live", "vw2-serve")
MODULES = {"vw2_robot.pretrain.pretrain_on_openx": "pretrain-on-openx", "vw2_robot.finetune.train_head": "vw2-finetune"}
LOOP = "{train_steps: 2, batch_size: 2, log_every: 1, save_every: 2, optim: {warmup_steps: 1}}"
SMALL = {
    "vw2-record": ["episodes=6", "validation_episodes=0", "workers=1"],
    "pretrain-on-openx": [
        "model=tiny",
        "data.validation_fraction=0.3",
        "++hardware={device: cpu, threads: 1}",
        f"++train_vdm={LOOP}",
        f"++train_dldm.phase1={LOOP}",
        f"++train_dldm.phase2={LOOP}",
        "train_dldm.validation_clips=4",
        f"++train_policy.loop={LOOP}",
    ],
    "vw2-finetune": [
        "label_fraction=0.5",
        "head.hidden=8",
        f"++loop={LOOP}",
        "data.validation_fraction=0.3",
        "validation_windows=8",
    ],
    "vw2-rollout": ["env.max_steps=4", "videos=1"],
    "vw2-imagine": ["segments=1"],
}


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the blocks that are run."""
    return re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Program and overrides of each line of the page's `bash` blocks that starts one of ours."""
    for text in (text for language, text in blocks(page) if language == "bash"):
        for line in text.splitlines():
            words = shlex.split(line.removeprefix("PYTHONPATH=. "))
            if words[0] == "torchrun":
                words = [MODULES[words[words.index("-m") + 1]], *words[words.index("-m") + 2 :]]
            if words[0] != "python":
                sections = [f"sections=[{word}]" for word in words[1:2] if words[0] == "vw2-doctor" and word.isalpha()]
                yield words[0], [*sections, *(word for word in words[1:] if "=" in word)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_the_page_is_understood(page: Path) -> None:
    found = list(commands(page))
    assert len(found) >= 3
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        for program, overrides in found:
            config_cls, name = all_programs()[program]
            tree = OmegaConf.to_container(compose(name, overrides=overrides), resolve=True, throw_on_missing=True)
            assert isinstance(tree, dict)
            config_from(config_cls, {str(key): value for key, value in tree.items()})


def write_videos(folder: Path) -> None:
    """Four videos of noise, one with an instruction."""
    av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "abcd":
        with av.open(str(folder / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for _ in range(80):
                image = rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    (folder / "captions.jsonl").write_text(json.dumps({"file": "a.mp4", "instruction": "fold the paper"}) + "\n")


def run_line(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, small_models: list[str]) -> None:
    """Run a line of a `bash` block at its small size: a program in this process, anything else in a shell."""
    smaller = {**SMALL, "pretrain-on-openx": [*SMALL["pretrain-on-openx"], *small_models]}
    program, *overrides = shlex.split(line.removeprefix("PYTHONPATH=. "))
    if program in SERVERS:
        return
    if program in ("python", "torchrun"):
        launcher = ["-m", "torch.distributed.run"] if program == "torchrun" else []
        small = [key for word in overrides if word in MODULES for key in smaller[MODULES[word]]]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *launcher, *overrides, *small]
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert ran.returncode == 0, f"{line}\n{ran.stdout}\n{ran.stderr}"
        return
    small = list(smaller.get(program, []))
    if program == "vw2-rollout":
        few = "rollouts_per_task=1" if "protocol=single" in overrides else "num_sequences=2"
        # A choice of chains is by number, so the protocol stays as long; the choice becomes one chain of it.
        chosen = next((word for word in overrides if word.startswith("sequences=")), None)
        small.append(few if chosen is None else f"sequences={chosen.split('[')[1].split(':')[0]}")
    if program == "vw2-record" and "env=other_robots" not in overrides:
        small.append("tasks=[open_drawer,close_drawer]")
    monkeypatch.setattr(sys, "argv", [program, *overrides, *small])
    scripts = {"pretrain-on-openx": entry_points.pretrain_on_openx}
    (scripts.get(program) or getattr(entry_points, program.removeprefix("vw2-"))).main()


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_runs_from_its_first_block_to_its_last(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_models: list[str]
) -> None:
    if page.stem == "getting_started":
        pytest.importorskip("tensorflow_datasets", reason="the openx extra is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{DOCS.parent}")
    if page.stem == "your_video":
        write_videos(tmp_path / "my_videos")
    if page.stem == "cluster":
        run_line("vw2-record tasks=basic out=runs/cluster/data", tmp_path, monkeypatch, small_models)
    printed: list[str] = []
    for language, text in blocks(page):
        if named := re.match(r"# (\w+\.py)\n", text):
            (tmp_path / named[1]).write_text(text)
            importlib.invalidate_caches()
        elif language == "python":
            # In a process of its own, as a reader runs it: rollouts fork theirs from this one.
            ran = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=600)
            assert ran.returncode == 0, ran.stderr
            printed.append(ran.stdout)
        else:
            for line in text.splitlines():
                run_line(line, tmp_path, monkeypatch, small_models)
    if page.stem == "getting_started":
        assert "solved=True" in printed[0]

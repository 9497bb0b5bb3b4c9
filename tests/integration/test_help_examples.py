"""The training programs train on the examples of their --help, word for word but for sizes, and places that exist.

The examples of the other programs become their configuration in `tests/test_configs.py`.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.entry_points import Program, finetune, pretrain_on_openx

pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (extra openx)")
torch.set_num_threads(1)
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STAGES = ("train_vdm", "train_dldm", "extract_latents", "train_policy")
LOOP = "{train_steps: 2, batch_size: 2, log_every: 1, save_every: 2, optim: {lr: 0.003, warmup_steps: 1}}"
SMALL_HEAD = ["head.hidden=8", f"++loop={LOOP}", "data.validation_fraction=0.25"]


def examples(config_name: str) -> list[list[str]]:
    """The overrides after the name of the program, of every example in its --help."""
    about = yaml.safe_load((CONFIGS / f"{config_name}.yaml").read_text(encoding="utf-8"))["hydra"]["help"]
    lines = re.findall(rf"^\s*{re.escape(about['app_name'])} (\S.*)$", about["footer"], re.MULTILINE)
    return [shlex.split(line) for line in lines]


def write_bridge(folder: Path) -> None:
    """A set with the name and the entries of Bridge V2, in the two splits of the public sample."""
    import tensorflow_datasets as tfds

    feature = tfds.features
    step = {"observation": {"image_0": feature.Image(shape=(16, 16, 3))}, "language_instruction": feature.Text()}
    folder.mkdir(parents=True)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name="bridge_dataset", version=tfds.core.Version("1.0.0"), data_dir=str(folder), module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity, features=feature.FeaturesDict({"steps": feature.Dataset(step)}), description=""
    )
    info.set_file_format("tfrecord")
    writer = tfds.core.SequentialWriter(info, 10, overwrite=True)
    writer.initialize_splits(["train", "val"], fail_if_exists=False)
    for number in range(8):
        rng = np.random.default_rng(number)
        frames = rng.integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
        steps = [{"observation": {"image_0": frame}, "language_instruction": "push the block"} for frame in frames]
        writer.add_examples({"train" if number < 6 else "val": [{"steps": steps}]})
    writer.close_all()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a program in this process, as a shell would."""

    def run(program: Program, *overrides: str) -> None:
        monkeypatch.setattr(sys, "argv", [program.config_name, *overrides])
        program.main()

    return run


@pytest.mark.slow
def test_training_works_as_the_help_shows_it(
    tmp_path: Path,
    calvin_folder: Path,
    miniature: Callable[[Path], list[str]],
    start: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bridge(tmp_path / "DIR/bridge_dataset/1.0.0")
    (tmp_path / "runs").mkdir()
    for name in ("DIR/task_D_D", "runs/calvin"):
        (tmp_path / name).symlink_to(calvin_folder)
    sizes = [word for word in miniature(tmp_path) if not re.match(r"(\+\+)?(run_dir|data\.(frame_cache|augm))", word)]

    from_openx, from_replay = examples("pretrain")
    for stage in STAGES:  # one by one "with the same overrides", then the chain finds them complete
        start(getattr(entry_points, stage), *from_openx, *sizes)
    capsys.readouterr()
    start(pretrain_on_openx, *from_openx, *sizes)
    assert "frames: 8 episodes, 80 images of 16 x 16" in capsys.readouterr().out
    assert load_checkpoint("runs/first/policy", kind="policy").facts["latent_hz"] == [5.0]

    for overrides in examples("finetune"):
        start(finetune, *overrides, *SMALL_HEAD, "++hardware={device: cpu, threads: 1}")
        run = next(word.partition("=")[2] for word in overrides if word.startswith("run_dir="))
        assert json.loads(Path(run, "validation.json").read_text())["windows"] > 0
        assert VW2Agent.from_pretrained(run).metadata["chunk_size"] == 4

    assert "replay=reverb" in from_replay
    _train_from_a_replay(tmp_path, from_replay, sizes, start)


def _train_from_a_replay(folder: Path, overrides: list[str], sizes: list[str], start: Callable[..., None]) -> None:
    """`vw2-replay fill` and training as their --help shows them agree on what a window is: here one of 0.6 s a step."""
    pytest.importorskip("reverb", reason="Reverb is not installed (extra openx)")
    from vw2_robot.command_line.config_tree import config_from
    from vw2_robot.data.replay.reverb_server import ReplayServer
    from vw2_robot.data.replay.reverb_tables import ServerOptions
    from vw2_robot.replay_programs.fill import ReplayFillConfig, fill_server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    server = ReplayServer(ServerOptions(num_frames=5), path=folder / "server", port=int(address.rpartition(":")[2]))
    two, mixed = examples("replay_fill")
    assert (
        "data.windows.gap_seconds=0.6" in mixed
    )  # `octo` is a terabyte; its other overrides fill the server from what is here
    ingest = [word for word in (*two, *mixed) if not re.match(r"ingests?=|data\.(mixture|root)=|address=", word)]
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = compose(
            "replay_fill", [f"address={address}", *ingest, "data.windows.num_frames=5", "timeout_seconds=30"]
        )
    config = config_from(ReplayFillConfig, OmegaConf.to_container(tree, resolve=True))
    filling = threading.Thread(target=fill_server, args=(config,))
    filling.start()
    try:
        (folder / "DIR/frames").symlink_to(folder / "runs/first/frames")
        here = [word.replace("HOST:8765", address).replace("runs/first", "runs/replay") for word in overrides]
        start(
            entry_points.train_dldm,
            *here,
            *sizes,
            "data.gap_seconds=0.6",
            "train_dldm.with_vdm=false",
            "data.max_skipped=3",
        )
    finally:
        server.stop()
        filling.join()
    facts = load_checkpoint("runs/replay/dldm", kind="dldm").facts
    assert facts["time_base"] == {"target_hz": None, "gap_seconds": 0.6}

"""One training step of each stage at the paper's width, by the programs themselves: losses, weights, memory."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from benchmarks.paper_step.steps import GIB, measure
from vw2_robot.checkpoint import resolve

# Widths of the paper, fewer blocks: three have copies in the control branch, so four at least.
LAYERS = 4
pytestmark = pytest.mark.slow


def available_memory() -> int:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture(scope="module")
def took(tmp_path_factory):
    """The folder, and what each program took."""
    folder = tmp_path_factory.mktemp("paper")
    if (memory := available_memory()) < 12 * GIB:
        pytest.skip(f"12 GiB of memory are needed, {memory / GIB:.0f} are available")
    if (disk := shutil.disk_usage(folder).free) < 10 * 10**9:
        pytest.skip(f"10 GB of disk are needed, {disk / 1e9:.0f} are free")
    yield folder, dict(measure(folder, layers=LAYERS))
    shutil.rmtree(folder)  # gigabytes, which pytest would keep for three runs


def last_metrics(folder, stage):
    return [json.loads(line) for line in (folder / "run" / stage / "metrics.jsonl").read_text().splitlines()]


def test_losses_of_every_step_are_finite(took):
    folder, _ = took
    first, second = last_metrics(folder, "dldm")
    (policy,) = last_metrics(folder, "policy")
    wanted = ["dldm/reconstruction_l2", "dldm/grad_norm"]
    numbers = [first[name] for name in wanted] + [second[name] for name in [*wanted, "dldm/denoising_loss"]]
    numbers += [policy[name] for name in ("policy/code_loss", "policy/grad_norm", "policy/validation_loss")]
    assert all(math.isfinite(number) and number > 0 for number in numbers)


def test_adapters_have_moved_and_the_frozen_weights_are_those_of_the_folder_in_bfloat16(took):
    folder, _ = took
    files = {"base": folder / "weights/transformer/diffusion_pytorch_model.safetensors"}
    files["trained"] = resolve(folder / "run" / "dldm") / "model.safetensors"
    with safe_open(files["base"], framework="pt") as base, safe_open(files["trained"], framework="pt") as trained:
        prefix = "vdm.transformer."
        names = [name for name in trained.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
        frozen = {name: name.removeprefix(prefix).replace(".base_layer.", ".") for name in names if "lora_" not in name}
        assert sorted(frozen.values()) == sorted(base.keys())
        for mine, theirs in frozen.items():
            assert torch.equal(trained.get_tensor(mine).view(torch.int16), base.get_tensor(theirs).view(torch.int16))
        # The second matrix of every adapter begins at zero.
        seconds = [name for name in names if "lora_B" in name]
        assert len(seconds) == LAYERS * 10
        assert all(trained.get_tensor(name).dtype == torch.float32 for name in seconds)
        assert sum(bool(trained.get_tensor(name).any()) for name in seconds) == len(seconds)


def test_no_program_needs_more_memory_than_its_weights_explain(took):
    """A second copy of a model, or bfloat16 weights in float32, would be half a GiB or more."""
    _, figures = took
    peaks = {name: took.peak_bytes / GIB for name, took in figures.items()}
    assert peaks["dLDM, phases 1 and 2"] < 8.2
    assert peaks["latents"] < 4.0
    assert peaks["policy"] < 4.0

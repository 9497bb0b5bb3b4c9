"""The benchmarks that need a GPU or a large model, at tiny size on a CPU, compared with counts done manually."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def benchmark(name):
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", REPO / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def speed():
    return benchmark("dldm")


@pytest.fixture(scope="module")
def memory():
    return benchmark("memory_plan")


def test_both_phases_of_a_preset_give_a_row_each(speed, capsys):
    speed.phase_rows("tiny", CPU, batch=2)
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [row[:3] for row in rows] == [["phase", "1,", "tiny"], ["phase", "2,", "tiny"]]
    for row in rows:
        clips, milliseconds, rate, teraflop = map(float, row[3:7])
        assert clips == 2
        assert rate == pytest.approx(2000 / milliseconds, rel=0.05)
        assert teraflop > 0
    assert float(rows[1][6]) > float(rows[0][6])  # phase 2 runs the diffusion model too


@pytest.mark.slow
def test_the_lora_step_has_the_2b_models_switches_and_runs_when_narrow(speed, capsys):
    narrow = {"heads": 2, "head_dim": 12, "adaln_lora_dim": 8, "context_width": 16, "projection_layers": 1}
    assert speed.build_parts("paper", torch.device("meta"), layers=1, control="none").vdm.config.padding_channel
    speed.lora_row(CPU, layers=1, **narrow)
    assert capsys.readouterr().out.startswith("LoRA step, 2B shape")


def test_the_vectorized_qformer_agrees_with_the_loop_and_is_faster(speed, capsys):
    speed.qformer_rows(CPU, repeats=1)
    first = capsys.readouterr().out.splitlines()[2].split()
    assert float(first[-1]) > 5


def test_token_extraction_is_measured_without_the_rival(speed, capsys):
    speed.extraction_rows(None, (speed.Size("tiny", 64, 9, 1),), CPU, repeats=1)
    work, rate = capsys.readouterr().out.splitlines()[1].split()[-2:]
    assert float(work) > 0
    assert float(rate) > 0


def test_bytes_that_autograd_keeps_of_a_small_network_are_counted(memory):
    first, second = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)
    model = torch.nn.Sequential(first, torch.nn.ReLU(), second)
    x, kept = torch.randn(2, 8), memory.Kept(model)
    with kept.counting([first, second]):
        model(x).sum().backward()
    assert kept.bytes == 4 * (2 * 8 + 2 * 16)  # input of the first layer; the ReLU's output, input of the second, once
    assert kept.largest == 4 * 2 * 8


def test_kept_bytes_are_attributed_to_the_innermost_module(memory):
    inner, outer = torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Sigmoid())
    outer.append(inner)
    x, kept = torch.randn(2, 4, requires_grad=True), memory.Kept(outer)
    with kept.counting(list(outer.modules())):
        outer(x).exp()
    # Sigmoid and exp keep their outputs, and the layer its input, which is the sigmoid's output.
    assert kept.inside == {outer[0]: 32, None: 32}


def test_rows_of_phase_one_add_up_and_recomputation_keeps_less(memory, capsys):
    memory.phase_one_rows(memory.load_preset("h200")[0])
    *rows, everything, further, recomputed = [row.split() for row in capsys.readouterr().out.splitlines()[1:]]
    total = sum(float(row[-1]) for row in rows)
    assert total == pytest.approx(float(everything[-1]), abs=0.5 * len(rows))
    assert float(recomputed[-1]) < total / 2
    assert total / 2 < float(further[-1]) < total  # the copies of the weights are not kept again
    # Two blocks at 9 steps x 128 x 32 x 32. Each keeps the inputs of two norms and of four convolutions in bfloat16,
    # and copies of the weights: two pairs of 3 x 3 in space and 3 in time.
    first = next(row for row in rows if row[:3] == ["encoder,", "ResidualBlock,", "128"])
    inputs = 9 * 128 * 32 * 32 * 2
    weights = 2 * (9 + 3) * 128 * 128 * 2
    assert [float(cell) for cell in first[-5:-1]] == [
        2,
        round(4 * inputs / 1e6),
        round((8 * inputs + 2 * weights) / 1e6),
        0,
    ]


def test_norms_keep_float32_as_under_cuda_autocast(memory):
    norm, x = torch.nn.LayerNorm(8), torch.randn(2, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16), memory.NormsInFloat32():
        assert norm(x.bfloat16()).dtype == torch.float32


def test_recomputing_activations_needs_less_and_states_are_four_numbers_per_weight(memory):
    dldm, vdm, codec = memory.load_preset("tiny")
    geometry = memory.geometry_of(dldm, codec)
    plain, recomputed = (memory.activations(dldm, vdm, geometry, codec, recompute=r) for r in (False, True))
    assert 0 < recomputed < plain
    weights, learning = memory.states(dldm, vdm, geometry, codec)
    assert learning == 3 * weights  # gradient and two moments beside each float32 weight; the DCT codec has none

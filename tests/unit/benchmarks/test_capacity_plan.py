"""The capacity plan: counts against formulas done manually, and its arithmetic on a stage with round numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.capacity_plan.__main__ import make_plan
from benchmarks.capacity_plan.decoding import measure_decoding
from benchmarks.capacity_plan.flops import ATTENTION_ON_CPU, PartsCounter, Work
from benchmarks.capacity_plan.schedule import Cluster, best_row, bytes_sent, clips_that_fit, rows_of, states_per_gpu
from benchmarks.capacity_plan.stages import Stage, latent_stage, open_preset, policy_stages, training_stage
from benchmarks.capacity_plan.tables import insert, markers, tables
from benchmarks.memory_plan import PHASE_TWO, activations, geometry_of, states
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import build_codec
from vw2_robot.pretrain.config import TrainDLDMConfig
from vw2_robot.pretrain.dldm_losses import phase_two_loss
from vw2_robot.random_numbers import SampleNoise

REPO = Path(__file__).parents[3]

# 8 GB of weights and 24 GB of gradients and moments, so 2 G parameters that all learn; 10 GB of activations a clip.
ROUND = Stage(
    "phase 2",
    (64, 64),
    num_frames=50,
    batch=64,
    samples=6400,
    work={"all": Work(100 * 10**12, 200 * 10**12)},
    recomputed={"all": 100 * 10**12},
    sharded=8 * 10**9,
    replicated=10**9,
    learning=24 * 10**9,
    block=10**8,
    kept=10 * 10**9,
    kept_recomputing=10**9,
)
CLUSTER = Cluster(mfu=0.5, peak=600e12, memory=100e9, headroom=0.9, node_link=100e9, network_link=10e9, cores_per_gpu=4)


# ------------------------------------------------------------------------------------------------------- counts


def test_a_linear_layer_takes_two_operations_a_weight_and_token_and_twice_that_backward() -> None:
    layer = nn.Linear(8, 16)
    x = torch.randn(5, 8, requires_grad=True)
    with PartsCounter({"layer": [layer]}) as counter:
        counter.backward(layer(x).sum())
    forward = 2 * 5 * 8 * 16
    assert counter.work["layer"] == Work(forward, 2 * forward)


def test_a_frozen_layer_has_no_gradient_of_its_weights_and_a_first_layer_none_of_its_input() -> None:
    first, frozen = nn.Linear(8, 16), nn.Linear(16, 4).requires_grad_(False)
    with PartsCounter({"first": [first], "frozen": [frozen]}) as counter:
        counter.backward(frozen(first(torch.randn(5, 8))).sum())
    assert counter.work["first"] == Work(2 * 5 * 8 * 16, 2 * 5 * 8 * 16)
    assert counter.work["frozen"] == Work(2 * 5 * 16 * 4, 2 * 5 * 16 * 4)


def test_attention_takes_two_products_forward_and_five_backward() -> None:
    query = torch.randn(1, 3, 10, 8, requires_grad=True)  # heads, queries, width
    key = torch.randn(1, 3, 20, 8, requires_grad=True)
    with PartsCounter({}, rest="attention") as counter:
        counter.backward(scaled_dot_product_attention(query, key, key).sum())
    product = 2 * 3 * 10 * 20 * 8
    assert counter.work["attention"] == Work(2 * product, 5 * product)


def test_work_outside_of_parts_is_kept_apart_in_both_directions_also_below_a_part() -> None:
    before, part, after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    with PartsCounter({"part": [part]}, rest="rest") as counter:
        counter.backward(after(part(before(torch.randn(3, 4, requires_grad=True)))).sum())
    product = 2 * 3 * 4 * 4
    assert counter.work == {"part": Work(product, 2 * product), "rest": Work(2 * product, 4 * product)}
    assert counter.total == 9 * product


def test_recomputation_counts_as_backward_work_of_the_part_that_is_recomputed() -> None:
    class Recomputed(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, x, use_reentrant=False)

    part = Recomputed(nn.Linear(4, 4), nn.ReLU())
    with PartsCounter({"part": [part]}) as counter:
        counter.backward(part(torch.randn(3, 4, requires_grad=True)).sum())
    product = 2 * 3 * 4 * 4
    assert counter.work["part"] == Work(product, 3 * product)


# --------------------------------------------------------------------------------------------- schedule: memory


def test_ddp_keeps_all_states_on_each_gpu_and_fsdp_its_share_of_what_learns() -> None:
    ddp = states_per_gpu(ROUND, "ddp", 8)
    assert ddp == states_per_gpu(ROUND, "none", 1) == 33e9
    saved = (ROUND.sharded + ROUND.learning) * 7 / 8
    assert states_per_gpu(ROUND, "fsdp", 8) == ddp - saved + 2 * ROUND.block


def test_clips_that_fit_share_what_the_states_leave() -> None:
    assert clips_that_fit(ROUND, CLUSTER, "none", 1, recompute=False) == 5  # (90 - 33) / 10
    assert clips_that_fit(ROUND, CLUSTER, "none", 1, recompute=True) == 57
    assert clips_that_fit(ROUND, CLUSTER, "fsdp", 8, recompute=False) == 8  # (90 - 1 - 32 / 8 - 0.2) / 10
    assert clips_that_fit(ROUND, replace(CLUSTER, memory=30e9), "none", 1, recompute=True) == 0


# ------------------------------------------------------------------------------------------- schedule: the rest


def test_ddp_sends_gradients_twice_and_fsdp_weights_twice_a_micro_batch() -> None:
    assert ROUND.gradients == 8e9
    assert bytes_sent(ROUND, "ddp", 8, micro_steps=3) == 2 * 7 / 8 * 8e9
    assert bytes_sent(ROUND, "fsdp", 8, micro_steps=3) == 3 * 7 / 8 * (2 * 8e9 + 8e9)
    assert bytes_sent(ROUND, "none", 1, micro_steps=3) == 0


def test_a_step_takes_as_long_as_the_slowest_of_compute_decoding_and_network() -> None:
    row = best_row(ROUND, 8, CLUSTER, decode_ms=10)
    assert row is not None
    assert (row.sharding, row.recompute, row.micro_batch) == ("ddp", False, 5)
    assert row.compute_seconds == 8 * 300 / 300  # clips a GPU, TFLOP, TFLOP/s
    assert row.decode_seconds == 8 * 50 * 0.010 / 4
    assert row.network_seconds == pytest.approx(14e9 / 100e9)
    assert row.clips_per_second == 8
    assert row.bottleneck == "compute"
    assert row.hours == pytest.approx(100 * 8 / 3600)


@pytest.mark.parametrize(
    ("change", "decode_ms", "limit"),
    [
        ({}, 1000, "decoding"),
        ({"node_link": 1e9}, 10, "network"),
        ({"memory": 5e9}, 10, "memory"),
    ],
)
def test_the_limit_is_named(change: dict[str, float], decode_ms: float, limit: str) -> None:
    row = best_row(ROUND, 8, replace(CLUSTER, **change), decode_ms=decode_ms)
    assert row is not None
    assert row.bottleneck == limit


def test_recomputation_is_chosen_only_where_activations_do_not_fit() -> None:
    small = replace(CLUSTER, memory=40e9)  # 3 GB beside the states of ddp, 30.8 GB with fsdp
    by_way = {(row.sharding, row.recompute): row for row in rows_of(ROUND, 8, small, decode_ms=10)}
    assert {way: row.micro_batch for way, row in by_way.items()} == {
        ("ddp", False): 0,
        ("ddp", True): 3,
        ("fsdp", False): 3,
        ("fsdp", True): 8,
    }
    best = best_row(ROUND, 8, small, decode_ms=10)
    assert best == by_way["fsdp", False]
    assert by_way["ddp", True].compute_seconds == best.compute_seconds * 4 / 3


def test_a_batch_is_not_divided_among_more_gpus_than_it_has_samples() -> None:
    assert best_row(ROUND, 128, CLUSTER, decode_ms=10) is None
    alone = best_row(replace(ROUND, batch_is_per_gpu=True), 128, CLUSTER, decode_ms=10)
    assert alone is not None
    assert alone.clips == 128 * 64


# ------------------------------------------------------------------------------------------- stages of a preset


@pytest.fixture(scope="module")
def small():
    preset = open_preset("tiny")
    return replace(preset, vdm=replace(preset.vdm, layers=1))


@pytest.fixture(scope="module")
def phase_two(small) -> Stage:
    loop = config_from(TrainDLDMConfig, small.tree["train_dldm"]).phase2
    return training_stage(small, "phase 2, full", small.vdm, PHASE_TWO, loop)


def test_phase_two_has_the_memory_of_the_memory_plan(small, phase_two: Stage) -> None:
    geometry = geometry_of(small.dldm, small.codec)
    sizes = (
        activations(small.dldm, small.vdm, geometry, small.codec, recompute=recompute) for recompute in (False, True)
    )
    assert (phase_two.kept, phase_two.kept_recomputing) == tuple(sizes)
    weights, learning = states(small.dldm, small.vdm, geometry, small.codec)
    assert (phase_two.sharded + phase_two.replicated, phase_two.learning) == (weights, learning)


def test_phase_two_has_the_work_of_the_loss_that_is_trained(small, phase_two: Stage) -> None:
    dldm, vdm = DLDM(small.dldm), VDM(small.vdm, geometry_of(small.dldm, small.codec), small.codec)
    phases = config_from(TrainDLDMConfig, small.tree["train_dldm"])
    valid = torch.ones(1, small.dldm.latent_steps, dtype=torch.bool)
    noise = SampleNoise(0, 0, stream=0, samples=[0])
    x = fake_clip(small.dldm, 1)
    # The penalty on correlated codes is no part of the plan.
    phases = replace(phases, decorrelation=0.0)
    with FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU) as counter:
        phase_two_loss(dldm, vdm, build_codec(small.codec), x, valid, phases=phases, noise=noise).loss.backward()
    assert phase_two.flops(recompute=False) == pytest.approx(counter.get_total_flops(), rel=1e-3)
    assert phase_two.flops(recompute=True) > phase_two.flops(recompute=False)


def test_the_policy_and_the_latents_are_counted_too(small) -> None:
    latents = latent_stage(small)
    assert latents.work["dLDM encoder"].backward == latents.learning == 0
    policy, tuned = policy_stages(small)
    forward, backward = policy.work["policy"].forward, policy.work["policy"].backward
    assert forward < backward <= 2 * forward
    assert tuned.work["action head"].backward > 0
    assert tuned.work["sampling of codes"].forward > 0


# ------------------------------------------------------------------------------------------------------- tables


def test_tables_replace_what_is_between_their_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    begin, end = markers("work")
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n", encoding="utf-8")
    for _ in range(2):
        insert(page, {"work": "| a |\n| --- |"})
        assert page.read_text(encoding="utf-8") == f"before\n{begin}\n\n| a |\n| --- |\n\n{end}\nafter\n"
    with pytest.raises(InputError, match="capacity_plan: memory"):
        insert(page, {"memory": "| a |"})


@pytest.mark.slow
def test_real_frames_are_timed(shared_dir: Path) -> None:
    folder = shared_dir / "openx" / "bridge_dataset" / "1.0.0"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    stored, enlarged = measure_decoding(folder, height=64, width=64, seconds=0.05).items()
    assert (stored[0], enlarged[0]) == (64, 256)
    assert 0 < stored[1] < enlarged[1] < 100


@pytest.mark.slow
def test_all_stages_of_the_tiny_model_are_planned() -> None:
    plan = make_plan(("tiny",), (1, 8), Cluster(), decode_ms=1.0)
    made = tables(plan)
    assert list(made) == ["inputs", "parameters", "work", "memory", "schedule"]
    assert made["schedule"].count("| tiny |") == 2 * 7  # each stage on one and on eight GPUs
    with pytest.raises(InputError, match="--measure"):
        tables(replace(plan, decode_ms={}))


@pytest.mark.slow
def test_the_page_has_the_tables_that_the_program_prints() -> None:
    pages = [REPO / "docs" / "scaling.md"]
    texts = [page.read_text(encoding="utf-8") for page in pages if page.is_file()]
    page = next(text for text in texts if markers("work")[0] in text)
    for name, table in tables(make_plan(("h200", "paper"), (1, 8, 64), Cluster())).items():
        begin, end = markers(name)
        assert page.split(begin)[1].split(end)[0].strip() == table, f"run --write: table {name} has changed"

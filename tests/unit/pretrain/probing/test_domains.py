"""Domains, quantized components and the clips of the video model, on planted data."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.devices import Hardware
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.dldm.fsq import FSQ
from vw2_robot.pixels import to_model_range
from vw2_robot.pretrain.probing import video_model
from vw2_robot.pretrain.probing.action_probe import split_sets
from vw2_robot.pretrain.probing.domains import probe_domains
from vw2_robot.pretrain.probing.features import StepRows, code_values, quantize_components
from vw2_robot.pretrain.probing.probes import Split

FSQ_SMALL = FSQ((4, 3))


def rows(name, *, count, seed, codes=(0, 12), offset=0.0):
    """Steps whose codes are chance in a range, and whose pixel difference has an offset."""
    rng = np.random.default_rng(seed)
    return StepRows(
        name=name,
        clip=np.arange(count),
        step=np.zeros(count, np.int64),
        episode=np.arange(count) // 10,
        group=np.arange(count) // 10,
        indices=rng.integers(*codes, size=(count, 2)),
        difference=(rng.normal(size=(count, 6)) + offset).astype(np.float32),
        commanded=rng.normal(size=(count, 7)),
        moved=None,
        units="calvin",
        action_names=ACTION_NAMES,
    )


def probed(*sets):
    return probe_domains(sets, split_sets(sets, shares=(0.2, 0.3), seed=0), FSQ_SMALL, seed=0)


def test_codes_without_a_domain_are_at_chance_and_overlap_as_a_data_set_with_itself():
    # One data set is three times as large: without balance a guess would reach three quarters.
    found = probed(rows("a", count=900, seed=0, offset=3.0), rows("b", count=300, seed=1))
    assert found["chance"] == 0.5
    assert found["rows"] == 2 * 90
    assert found["accuracy"]["codes_one_hot"]["ratio"] == pytest.approx(0.5, abs=0.12)
    assert found["accuracy"]["pixels_equal"]["ratio"] > 0.95  # pixels tell it
    assert found["accuracy"]["pixels_quantized"]["ratio"] > 0.9
    overlap = found["overlap"]["codes_one_hot"]
    assert overlap["a"]["b"] == pytest.approx(overlap["b"]["b"], abs=0.06)
    assert found["overlap"]["pixels_quantized"]["a"]["b"] < 0.6


def test_codes_of_separate_domains_are_told_apart_and_do_not_overlap():
    found = probed(rows("a", count=200, seed=0, codes=(0, 6)), rows("b", count=200, seed=1, codes=(6, 12)))
    assert found["accuracy"]["codes_one_hot"]["ci95"][0] > 0.95
    assert found["overlap"]["codes_one_hot"]["a"]["b"] == 0
    assert found["overlap"]["codes_one_hot"]["a"]["a"] > 0.8


def test_a_single_data_set_has_no_domains():
    assert probed(rows("a", count=100, seed=0)) is None


def test_components_are_quantized_to_equally_frequent_levels_leading_ones_first():
    x = np.random.default_rng(0).normal(size=(1200, 4))
    codes = quantize_components(x, x, FSQ_SMALL, 2)
    assert codes.shape == (1200, 2)
    # Component 0 and 1 are dimension 0 of the two codes (4 levels), 2 and 3 dimension 1 (3 levels).
    for number, (code, place, level) in enumerate([(0, 0, 4), (1, 0, 4), (0, 1, 3), (1, 1, 3)]):
        values = code_values(codes, FSQ_SMALL).reshape(1200, 2, 2)[:, code, place]
        assert np.unique(values, return_counts=True)[1].tolist() == [1200 // level] * level
        order = np.argsort(x[:, number])
        assert (np.diff(values[order]) >= 0).all()
    # Where the data vary in fewer directions than the codes have dimensions, the rest is constant.
    assert len(np.unique(quantize_components(x[:, :1], x[:, :1], FSQ_SMALL, 2))) == 4


def test_the_video_model_gets_the_codes_of_each_clip_at_its_position(monkeypatch):
    shape = DLDMConfig(
        num_frames=9,
        height=8,
        width=8,
        stem=StemConfig("pixel", 4, 4, 1),
        levels=(LevelConfig(8, 1),),
        qformer=QFormerConfig(heads=2),
        z_channels=8,
    )
    torch.manual_seed(0)
    dldm = DLDM(shape).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 8, 3)).astype(np.uint8)
    valid = np.ones((6, 2), bool)
    valid[4, 1] = False
    labeled = SimpleNamespace(
        rows=SimpleNamespace(clip=np.arange(6)),
        steps=SimpleNamespace(episode=np.arange(6), frame_ids=np.arange(6), valid=valid),
        video=SimpleNamespace(
            group=np.arange(6), frame_cache=SimpleNamespace(read_batch=lambda episode, frame_ids: pixels[episode])
        ),
    )
    seen = []

    def explained(vdm, codec, clips, codes, *, seed, dldm):
        for positions, x, known in clips():
            assert len(positions) <= 4
            for position, one, steps in zip(positions, x, known, strict=True):
                torch.testing.assert_close(codes[int(position)], dldm.encode(one[None]).codes_BMNL[0])
                (number,) = [
                    i for i in range(6) if torch.equal(one, to_model_range(torch.from_numpy(pixels[i : i + 1]))[0])
                ]
                assert steps.tolist() == valid[number].tolist()
                seen.append(number)
        return {"explained_change_decoder": 0.123456789}

    monkeypatch.setattr(video_model, "explained_change", explained)
    monkeypatch.setattr(video_model, "shuffle_ratios", lambda *_, **__: {"dldm/shuffle_ratio_no_control": 2.0})
    side = np.ones(6, bool)
    found = video_model.judge_video_model(
        dldm,
        None,
        None,
        labeled,
        Split(~side, ~side, side),
        clips=10,
        seed=0,
        hardware=Hardware(device="cpu", validation_batch=4),
    )
    assert sorted(seen) == list(range(6))
    assert found == {"clips": 6, "shuffle_ratio_no_control": 2.0, "explained_change_decoder": 0.12346}


def test_test_clips_alternate_between_demonstrations():
    episode = np.repeat(np.arange(4), [5, 5, 2, 5])  # of each clip
    test = np.isin(episode, [0, 2, 3])
    labeled = SimpleNamespace(
        rows=SimpleNamespace(clip=np.arange(17)),
        steps=SimpleNamespace(episode=episode),
        video=SimpleNamespace(group=np.array([7, 8, 9, 5])),
    )
    chosen = video_model.interleaved_clips(labeled, Split(~test, ~test, test), clips=9, seed=0)
    demonstration = episode[chosen]
    assert len(set(chosen.tolist())) == 9
    assert sorted(demonstration[:3]) == sorted(demonstration[3:6]) == [0, 2, 3]
    assert (demonstration != np.roll(demonstration, 1))[1:].all()

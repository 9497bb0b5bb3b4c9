from __future__ import annotations

import numpy as np
import pytest

from vw2_robot.contracts import ACTION_NAMES
from vw2_robot.models.dldm.fsq import FSQ
from vw2_robot.models.dldm.vq import VQ
from vw2_robot.pretrain.probing.action_probe import (
    Probed,
    probe_actions,
    score_probes,
    sign_accuracy,
    split_sets,
    transfer,
)
from vw2_robot.pretrain.probing.before import r2_differences
from vw2_robot.pretrain.probing.features import StepRows, code_values, one_hot_fsq
from vw2_robot.pretrain.probing.latent_map import (
    DIRECTIONS,
    code_use,
    directions,
    latent_map,
    moving_rows,
    nearest_steps,
    silhouette,
    usage,
)

FSQ_LEVELS = (8, 5, 5, 5)


def rows(name, *, seed=0, count=400, informed=True, gain=1.0, units="calvin"):
    """Steps whose codes are the quantized translation (or, if not informed, chance)."""
    rng = np.random.default_rng(seed)
    motion = np.concatenate([rng.uniform(-1, 1, (count, 3)), np.zeros((count, 4))], axis=1)
    shown = motion if informed else rng.uniform(-1, 1, (count, 3))
    value = np.stack([np.floor((shown[:, i] + 1) / 2 * level) for i, level in enumerate(FSQ_LEVELS[:3])], axis=1)
    index = (value @ np.cumprod([1, *FSQ_LEVELS[:2]])).astype(np.int64)
    return StepRows(
        name=name,
        clip=np.arange(count),
        step=np.zeros(count, np.int64),
        episode=np.arange(count) // 10,
        group=np.arange(count) // 10,
        indices=np.stack([index, rng.integers(1000, size=count)], axis=1),
        difference=rng.normal(size=(count, 12)).astype(np.float32),
        commanded=gain * motion,
        moved=None,
        units=units,
        action_names=ACTION_NAMES,
    )


def split(sets):
    return split_sets(sets, shares=(0.2, 0.3), seed=0)


def test_codes_that_are_actions_are_found_in_a_scene_and_across_and_the_controls_know_nothing():
    sets, untrained = [rows("a"), rows("b", seed=1, gain=3.0)], [rows("a", informed=False), rows("b", informed=False)]
    found = probe_actions(sets, untrained, split(sets), FSQ(FSQ_LEVELS), seed=0)
    table = found["in_scene"]["a"]["commanded"]
    assert table["codes_one_hot"]["linear"]["translation"]["r2"] > 0.9
    assert table["code_values"]["linear"]["translation"]["r2"] > 0.9
    for control in ("random_codes", "shuffled_codes", "untrained_codes", "pixels_equal", "pixels_quantized"):
        assert table[control]["linear"]["translation"]["r2"] < 0.1
    assert table["codes_one_hot"]["linear"]["droll"]["r2"] is None
    assert found["widths"]["codes_one_hot"] == found["widths"]["random_codes"] == 46
    assert sum(found["rows"]["a"].values()) == 400
    across = found["transfer"]["commanded"]["codes_one_hot"]["a"]["b"]["dx"]
    assert across["rank_correlation"] > 0.9
    assert across["sign_accuracy"] > 0.9
    assert across["r2"] < 0.7  # another unit
    assert "others" not in found["transfer"]["commanded"]["codes_one_hot"]


def test_codes_that_have_become_actions_gain_r2_over_those_before():
    now, before = rows("a"), rows("a", informed=False)
    (side,) = split([now])
    found = r2_differences(now, before, side, (FSQ(FSQ_LEVELS), FSQ(FSQ_LEVELS)), seed=0)["commanded"]
    r2 = [
        score_probes(one_hot_fsq(one.indices, FSQ(FSQ_LEVELS)), now, side, "commanded", seed=0, mlp=False)["linear"]
        for one in (now, before)
    ]
    for column in ("dx", "translation"):
        assert found[column]["difference"] == pytest.approx(r2[0][column]["r2"] - r2[1][column]["r2"], abs=2e-5)
        assert found[column]["ci95"][0] > 0.8
    assert found["dyaw"]["difference"] is None  # nothing rotates


def test_translations_of_another_robot_are_compared_in_units_of_their_spread():
    sets = [rows(name, seed=i, count=200) for i, name in enumerate("abc")]
    sets.append(rows("far", seed=3, count=200, gain=50.0, units="another robot"))
    probed = [Probed(one, one, side) for one, side in zip(sets, split(sets), strict=True)]
    table = transfer(probed, FSQ(FSQ_LEVELS), "commanded", seed=0)["codes_one_hot"]
    assert table["a"]["far"]["translation"]["r2"] > 0.8
    assert table["far"]["a"]["translation"]["r2"] > 0.8
    assert set(table["a"]["far"]) == {"dx", "dy", "dz", "translation"}
    assert "dyaw" in table["a"]["b"]
    assert set(table["others"]) == {"a", "b", "c"}  # each of them has two others in its units


def test_with_three_data_sets_a_probe_is_also_fitted_on_all_others():
    sets = [rows(name, seed=i, count=200) for i, name in enumerate("abc")]
    found = probe_actions(sets, sets, split(sets), FSQ(FSQ_LEVELS), seed=0)["transfer"]["commanded"]
    assert set(found["codes_one_hot"]["others"]) == {"a", "b", "c"}
    assert found["codes_one_hot"]["others"]["a"]["translation"]["r2"] > 0.8


def test_sign_accuracy_leaves_out_what_hardly_moves():
    true = np.array([0.0, 0.0, 1.0, -1.0, 2.0, -2.0, 3.0, 4.0])
    assert sign_accuracy(true, np.sign(true)) == 1.0
    assert sign_accuracy(true, -np.sign(true)) == 0.0
    assert np.isnan(sign_accuracy(np.zeros(8), true))


def test_directions_are_the_axis_with_the_largest_share():
    motion = np.array([[5.0, 0, 0], [-5, 0.1, 0], [0, 1, 0], [1, -1, 0.0], [0, 0, 0.1], [0, 0, -0.1]])
    assert [DIRECTIONS[i] for i in directions(motion)] == ["+x", "-x", "+y", "-y", "+z", "-z"]
    assert moving_rows(np.array([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])).tolist() == [False, False, True, True]


def test_the_map_of_informed_codes_groups_by_direction_and_not_by_source():
    sets = [rows("a"), rows("b", seed=1)]
    found = latent_map(sets, split(sets), FSQ(FSQ_LEVELS), seed=0)
    assert found["silhouette"]["direction"] > found["silhouette"]["source"] + 0.02
    assert abs(found["silhouette"]["source"]) < 0.02
    across = found["neighbors"]["code"]["a"]["b"]
    assert across["accuracy"]["ci95"][0] > across["commonest"]["ci95"][1]
    by_pixels = found["neighbors"]["pixels"]["a"]["b"]
    assert by_pixels["accuracy"]["ratio"] < 0.35
    points = found["points"]
    assert len(points["pca"]) == len(points["direction"]) == len(points["source"])
    assert len(points["pca"][0]) == 2


def test_silhouettes_agree_with_the_definition():
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(30, 3)), np.repeat([4, 7, 9], [1, 12, 17])
    x[label == 9] += 2
    distance = np.linalg.norm(x[:, None] - x, axis=-1)
    scores = []
    for i in range(30):
        mine = (label == label[i]) & (np.arange(30) != i)
        if not mine.any():
            scores.append(0.0)
            continue
        a = distance[i, mine].mean()
        b = min(distance[i, label == other].mean() for other in {4, 7, 9} - {label[i]})
        scores.append((b - a) / max(a, b))
    assert silhouette(x, label) == pytest.approx(np.mean(scores))
    assert np.isnan(silhouette(x, np.zeros(30, int)))


def test_neighbors_come_from_other_demonstrations_each():
    sets = [rows("a"), rows("b", seed=1)]
    splits = split(sets)
    strips = nearest_steps(sets, splits, FSQ(FSQ_LEVELS), queries=4, neighbors=3, seed=0)
    assert [strip[0][0] for strip in strips] == [0, 1, 0, 1]
    for strip in strips:
        assert len(strip) == 4
        assert len({(i, sets[i].group[r]) for i, r in strip}) == 4
        number, row = strip[0]
        assert splits[number].test[row]


def test_code_use_counts_by_slot_and_by_set():
    sets = [rows("a", count=200), rows("b", seed=1, count=100)]
    found = code_use(sets, FSQ(FSQ_LEVELS))
    assert sum(found["histogram"]) == 600
    assert [sum(slot) for slot in found["by_slot"]] == [300, 300]
    assert found["used"] + found["dead"] == 1000
    assert set(found["sets"]) == {"a", "b"}
    assert usage(np.array([5, 5, 0])) == {"used": 2, "dead": 1, "perplexity": 2.0}


def test_one_hot_dimensions_are_those_of_the_quantizer():
    indices = np.array([[0, 999], [123, 456]])
    fsq = FSQ(FSQ_LEVELS)
    hot = one_hot_fsq(indices, fsq)
    assert hot.shape == (2, 46)
    assert (hot.sum(1) == 8).all()
    assert code_values(indices, fsq).shape == (2, 8)
    vq = VQ(8, 4)
    assert one_hot_fsq(np.array([[3, 7]]), vq).nonzero()[1].tolist() == [3, 15]
    assert code_values(np.array([[3, 7]]), vq).shape == (1, 8)

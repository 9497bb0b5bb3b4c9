import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vw2_robot.data.statistics import ActionStatistics, NormalizationMode
from vw2_robot.errors import InputError

MODES: tuple[NormalizationMode, ...] = ("q01_q99", "mean_std", "none")
VALUES = st.floats(-5, 5, width=32)


def actions_like_calvin(count: int = 500, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    actions = np.clip(rng.normal(0, 0.3, (count, 7)), -1, 1)
    actions[:, 4] = 0.25  # a dimension that never moves
    actions[:, 6] = rng.choice((-1.0, 1.0), count)
    return actions


def test_the_quantiles_become_minus_one_and_one() -> None:
    statistics = ActionStatistics.from_actions(actions_like_calvin())
    for vector, wanted in ((statistics.q01, -1.0), (statistics.q99, 1.0)):
        np.testing.assert_allclose(statistics.normalize(vector)[[0, 1, 2, 3, 5]], wanted, atol=1e-6)
    assert statistics.count == 500


def test_the_numbers_are_those_of_a_hand_made_example() -> None:
    actions = np.stack([np.arange(101.0), np.ones(101)], axis=1)
    statistics = ActionStatistics.from_actions(actions, gripper_index=1)
    found = [float(getattr(statistics, name)[0]) for name in ("min", "q01", "mean", "q99", "max")]
    assert found == [0.0, 1.0, 50.0, 99.0, 100.0]
    assert statistics.std[0] == pytest.approx(np.sqrt(850.0))
    assert statistics.normalize(np.array([[74.5, 1.0]])).tolist() == [[0.5, 1.0]]


def test_what_lies_outside_the_quantiles_is_clipped() -> None:
    statistics = ActionStatistics.from_actions(actions_like_calvin())
    normalized = statistics.normalize(actions_like_calvin())
    assert np.abs(normalized[:, :4]).max() == 1.0
    assert normalized.dtype == np.float32


def test_mean_and_spread_of_the_normalized_labels() -> None:
    statistics = ActionStatistics.from_actions(actions_like_calvin(), mode="mean_std")
    normalized = statistics.normalize(actions_like_calvin())
    np.testing.assert_allclose(normalized[:, :4].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(normalized[:, :4].std(axis=0), 1, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_gripper_and_resting_dimensions_pass_through(mode: NormalizationMode) -> None:
    actions = actions_like_calvin()
    statistics = ActionStatistics.from_actions(actions, mode=mode)
    np.testing.assert_array_equal(statistics.normalize(actions)[:, [4, 6]], actions[:, [4, 6]].astype(np.float32))
    np.testing.assert_array_equal(statistics.unnormalize(actions)[:, [4, 6]], actions[:, [4, 6]].astype(np.float32))
    assert not statistics.mask[[4, 6]].any()
    assert statistics.mask[:4].all() == (mode != "none")


def test_a_predicted_gripper_becomes_its_sign_and_zero_closes() -> None:
    statistics = ActionStatistics.from_actions(actions_like_calvin())
    predictions = np.zeros((3, 7))
    predictions[:, 6] = (-0.2, 0.0, 0.7)
    assert statistics.unnormalize(predictions)[:, 6].tolist() == [-1.0, -1.0, 1.0]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(MODES), arrays(np.float64, st.tuples(st.integers(1, 30), st.just(6)), elements=VALUES))
def test_unnormalize_is_the_inverse(mode: NormalizationMode, motion: np.ndarray) -> None:
    """Within the quantiles where they clip, everywhere in the other modes."""
    actions = np.concatenate([motion, np.ones((len(motion), 1))], axis=1)
    statistics = ActionStatistics.from_actions(actions, mode=mode)
    wanted = actions
    if mode == "q01_q99":
        wanted = np.where(statistics.mask, np.clip(actions, statistics.q01, statistics.q99), actions)
    np.testing.assert_allclose(statistics.unnormalize(statistics.normalize(actions)), wanted, atol=2e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(MODES), arrays(np.float64, st.tuples(st.integers(1, 20), st.just(6)), elements=VALUES))
def test_json_keeps_every_bit(mode: NormalizationMode, motion: np.ndarray) -> None:
    statistics = ActionStatistics.from_actions(np.concatenate([motion, np.ones((len(motion), 1))], axis=1), mode=mode)
    content = json.loads(json.dumps(statistics.to_json()))
    assert ActionStatistics.from_json(content).to_json() == content
    assert ActionStatistics.from_json(content).q01.tobytes() == statistics.q01.tobytes()


def test_without_a_gripper_all_dimensions_are_scaled() -> None:
    actions = np.random.default_rng(0).normal(size=(50, 2))
    statistics = ActionStatistics.from_actions(actions, gripper_index=None)
    assert statistics.mask.tolist() == [True, True]
    assert ActionStatistics.from_json(statistics.to_json()).gripper_index is None


@pytest.mark.parametrize("row", [0, 499])
def test_actions_that_are_not_finite_are_refused(row: int) -> None:
    actions = actions_like_calvin()
    actions[row, 2] = np.nan
    with pytest.raises(InputError, match=f"action {row} of 500 is not finite"):
        ActionStatistics.from_actions(actions)


def test_bad_input_is_refused_with_what_was_found() -> None:
    actions = actions_like_calvin()
    with pytest.raises(InputError, match=r"found shape \(0, 7\)"):
        ActionStatistics.from_actions(actions[:0])
    with pytest.raises(InputError, match=r"must be -1 \(close\) or \+1 \(open\), found \[0\.0"):
        ActionStatistics.from_actions(np.zeros((3, 7)))
    statistics = ActionStatistics.from_actions(actions)
    with pytest.raises(InputError, match=r"shape \(3, 6\), the statistics are of 7"):
        statistics.normalize(np.zeros((3, 6)))
    with pytest.raises(InputError, match="must be one of"):
        ActionStatistics.from_actions(actions, mode="minmax")  # type: ignore[arg-type]


def test_json_that_is_damaged_is_refused() -> None:
    content = ActionStatistics.from_actions(actions_like_calvin()).to_json()
    with pytest.raises(InputError, match=r"lack \['q01'\]"):
        ActionStatistics.from_json({name: value for name, value in content.items() if name != "q01"})
    with pytest.raises(InputError, match="vectors of one length"):
        ActionStatistics.from_json({**content, "q01": content["q01"][:3]})
    with pytest.raises(InputError, match="cannot be read"):
        ActionStatistics.from_json({**content, "mean": ["a"] * 7})
    with pytest.raises(InputError, match="not finite"):
        ActionStatistics.from_json({**content, "std": [float("nan")] * 7})

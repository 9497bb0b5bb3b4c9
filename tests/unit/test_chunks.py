import math

import numpy as np
import pytest

from vw2_robot.chunks import ChunkQueue, Ensemble
from vw2_robot.errors import InputError


def chunk(*values):
    """[1, H, 1]"""
    return np.array(values, np.float32)[None, :, None]


def test_overlapping_chunks_are_averaged_with_the_oldest_heaviest():
    """Chunk k speaks of steps 2k .. 2k+3; at decay m the weights are 1, exp(-m), ... from the oldest."""
    ensemble, w = Ensemble(2, decay=math.log(4)), [1, 1 / 4, 1 / 16]
    np.testing.assert_allclose(ensemble.blend(chunk(0, 1, 2, 3))[0, :, 0], [0, 1, 2, 3])
    second = ensemble.blend(chunk(10, 11, 12, 13))[0, :, 0]
    expected = [(2 * w[0] + 10 * w[1]) / (w[0] + w[1]), (3 * w[0] + 11 * w[1]) / (w[0] + w[1]), 12, 13]
    np.testing.assert_allclose(second, expected, rtol=1e-6)
    third = ensemble.blend(chunk(20, 21, 22, 23))[0, :, 0]  # the first chunk ended before now
    np.testing.assert_allclose(third[:2], [(12 + 20 * w[1]) / 1.25, (13 + 21 * w[1]) / 1.25], rtol=1e-6)
    np.testing.assert_allclose(third[2:], [22, 23])


@pytest.mark.parametrize("every", [1, 2, 3])
def test_ensembling_equals_the_sum_written_out(every):
    chunk_size, decay, rng = 5, 0.3, np.random.default_rng(every)
    chunks = [rng.normal(size=(2, chunk_size, 3)).astype(np.float32) for _ in range(7)]
    ensemble = Ensemble(every, decay=decay)
    for now, new in enumerate(chunks):
        blended = ensemble.blend(new)
        for i in range(chunk_size):
            step = now * every + i
            covering = [k for k in range(now + 1) if k * every <= step < k * every + chunk_size]
            weights = np.exp(-decay * np.arange(len(covering)))
            values = [chunks[k][:, step - k * every] for k in covering]
            expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / weights.sum()
            np.testing.assert_allclose(blended[:, i], expected, rtol=1e-5, atol=1e-6)


def test_no_decay_is_the_plain_mean_and_clear_forgets():
    ensemble = Ensemble(1, decay=0.0)
    ensemble.blend(chunk(0, 4))
    np.testing.assert_allclose(ensemble.blend(chunk(2, 2))[0, :, 0], [3, 2])
    ensemble.clear()
    np.testing.assert_allclose(ensemble.blend(chunk(2, 2))[0, :, 0], [2, 2])


def test_another_number_of_episodes_is_refused_until_cleared():
    ensemble = Ensemble(1, decay=0.0)
    ensemble.blend(np.zeros((2, 4, 7), np.float32))
    with pytest.raises(InputError, match="follows 2 episodes, found 3 observations"):
        ensemble.blend(np.zeros((3, 4, 7), np.float32))
    ensemble.clear()
    ensemble.blend(np.zeros((3, 4, 7), np.float32))


@pytest.mark.parametrize(("every", "decay"), [(0, 0.1), (1, -0.1), (1, float("nan"))])
def test_impossible_ensembles_are_refused(every, decay):
    with pytest.raises(InputError, match="ensembling needs"):
        Ensemble(every, decay=decay)


class Counting:
    """A policy whose action says which look it comes from and at which place of the chunk."""

    def __init__(self):
        self.metadata = {"n_action_steps": 3, "chunk_size": 4}
        self.looks = 0
        self.resets = []

    def reset(self, prompt=None, seed=None):
        self.resets.append((prompt, seed))

    def infer(self, obs):
        self.looks += 1
        return {"actions": np.array([[self.looks, i] for i in range(4)], np.float32)}

    def infer_batch(self, obs):
        return [self.infer(o) for o in obs]


def test_a_queue_hands_out_each_chunk_in_order_and_looks_exactly_when_due():
    policy = Counting()
    queue = ChunkQueue(policy)
    queue.reset("push", 3)
    taken = [(queue.needs_observation, queue.action({}).tolist()) for _ in range(7)]
    assert [must for must, _ in taken] == [True, False, False, True, False, False, True]
    assert [action for _, action in taken] == [[1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2], [3, 0]]
    queue.reset()
    assert policy.resets == [("push", 3), (None, None)]
    assert queue.needs_observation
    assert queue.action({}).tolist() == [4, 0]


@pytest.mark.parametrize("every", [0, 5])
def test_a_queue_refuses_what_the_chunk_does_not_hold(every):
    with pytest.raises(InputError, match="predicts 4 actions"):
        ChunkQueue(Counting(), n_action_steps=every)

"""One process for the policy: the same bits whoever else asks, and a clear end when it dies."""

from __future__ import annotations

import functools
import os
import re
import signal

import numpy as np
import pytest

from vw2_robot.errors import InputError
from vw2_robot.rollouts.evaluate import evaluate
from vw2_robot.rollouts.policy_process import FixedBatch, LocalPolicy, PolicyLostError, PolicyProcess, RemotePolicy
from vw2_robot.rollouts.workers import ChainJob, Protocol, open_worker
from vw2_robot.worker_pool import WorkerPool

INSTRUCTIONS = ("open the drawer", "push the sliding door to the left side", "lift it", "press the button")


def load(folder, **options):
    import torch

    from vw2_robot.agent import VW2Agent

    torch.set_num_threads(1)
    return VW2Agent.from_pretrained(folder, **options)


def observations(count):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)
    return [{"images": {"static": image}, "prompt": INSTRUCTIONS[i % 4]} for i, image in enumerate(images)]


def test_an_action_has_the_same_bits_whatever_else_is_in_the_batch(checkpoint):
    batch, seen = FixedBatch(load(checkpoint), 4), observations(24)
    rng = np.random.default_rng(1)
    alone = [batch.infer([(chain, observation)])[0]["actions"] for chain, observation in enumerate(seen)]
    for _ in range(30):
        company = rng.permutation(24)[: rng.integers(1, 9)]
        answers = batch.infer([(int(i), seen[i]) for i in company])
        for i, answer in zip(company, answers, strict=True):
            np.testing.assert_array_equal(answer["actions"], alone[i])


def test_a_batch_of_long_instructions_has_the_bits_of_a_mixed_one(checkpoint):
    """transformers drops a mask without padding and then takes another kernel: there must always be padding."""
    batch, seen = FixedBatch(load(checkpoint), 2), observations(2)
    full = [{**observation, "prompt": "z" * 80} for observation in seen]
    both = batch.infer([(0, full[0]), (1, full[1])])
    np.testing.assert_array_equal(both[0]["actions"], batch.infer([(0, full[0])])[0]["actions"])


def test_every_pass_has_one_shape_and_chains_of_one_row_wait_for_each_other():
    class Counting:
        metadata = {}  # noqa: RUF012

        def infer_batch(self, obs):
            passes.append([observation["prompt"] for observation in obs])
            return [{"actions": np.full((1, 7), i)} for i, _ in enumerate(obs)]

    passes = []
    images = {"static": np.zeros((4, 4, 3), np.uint8)}
    requests = [(number, {"images": images, "prompt": f"chain {number}"}) for number in (5, 1, 9, 2)]
    answers = FixedBatch(Counting(), 4).infer(requests)
    assert [len(prompts) for prompts in passes] == [6, 6, 6]
    assert [sorted(p for p in prompts if p.startswith("chain")) for prompts in passes] == [
        ["chain 2", "chain 5"],
        ["chain 1"],
        ["chain 9"],
    ]
    assert [int(answer["actions"][0, 0]) for answer in answers] == [1, 1, 1, 2]  # the row of each


def test_what_a_batch_cannot_hold_is_refused(checkpoint):
    with pytest.raises(InputError, match=r"batch_size=4, but the policy keeps state .*temporal_ensemble=0\.5"):
        FixedBatch(load(checkpoint, temporal_ensemble=0.5), 4)
    with pytest.raises(InputError, match="instructions of up to 100 bytes"):
        FixedBatch(load(checkpoint), 2).infer([(0, {**observations(1)[0], "prompt": "please " * 20})])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 3])
def test_the_process_answers_as_the_policy_does_here(checkpoint, rows, tmp_path, monkeypatch):
    long = tmp_path / ("scratch_of_a_batch_system_" * 5)  # longer than the name of a socket may be
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    served = PolicyProcess(functools.partial(load, checkpoint), rows=rows)
    local = LocalPolicy(load(checkpoint), rows)
    remote = [RemotePolicy(served.connect(), served.metadata) for _ in range(2)]
    try:
        assert remote[0].metadata == local.metadata
        for number, observation in enumerate(observations(6)):
            one = remote[number % 2]
            one.chain = local.chain = number
            for policy in (one, local):
                policy.reset(observation["prompt"], seed=number)
            np.testing.assert_array_equal(one.infer(observation)["actions"], local.infer(observation)["actions"])
        with pytest.raises(InputError, match=r'observation\["images"\]'):
            remote[0].infer({"images": {}, "prompt": "open"})
    finally:
        served.close()
    assert not list(long.iterdir())


def test_forked_workers_have_the_policy_and_their_ends_are_known(config, counting_world, tmp_path):
    settings = config(env={"trouble": str(tmp_path / "died")})  # the worker of chain 3 dies once
    served = PolicyProcess(counting_world.ScriptedPolicy, rows=1, may_fork=True)
    protocol = Protocol(n_action_steps=4, seed=0, videos=0, run_dir=tmp_path)
    build, lost = functools.partial(open_worker, settings, protocol, served.metadata), []
    pool = WorkerPool(build, name="worker", retries=1, on_loss=lost.append, start_worker=served.fork_worker)
    chains = counting_world.CountingBenchmark().sequences(6)
    jobs = [ChainJob(chain, ()) for chain in chains]
    try:
        assert served.forks_workers
        rows = sorted((row for row, _ in pool.run(jobs, workers=2)), key=lambda row: row["sequence"])
        assert rows == evaluate(counting_world.ScriptedPolicy(), counting_world.CountingBenchmark(), chains)
        assert re.fullmatch(r"worker \d died with exit code -9 \(SIGKILL: .*\) while it had chain 3; .*", *lost)
        os.kill(served.process.pid, signal.SIGKILL)
        with pytest.raises(PolicyLostError):
            list(pool.run(jobs, workers=1))
    finally:
        served.close()


def test_a_batch_or_more_threads_keep_the_policy_in_its_process(counting_world):
    for changes in ({"may_fork": False, "rows": 1}, {"may_fork": True, "rows": 2}):
        served = PolicyProcess(counting_world.ScriptedPolicy, **changes)
        try:
            assert not served.forks_workers
        finally:
            served.close()


@pytest.mark.slow
def test_each_worker_has_its_own_state(checkpoint):
    build = functools.partial(load, checkpoint, temporal_ensemble=0.5, acting="sampled")
    served = PolicyProcess(build, rows=1)
    try:
        one, other = (RemotePolicy(served.connect(), served.metadata) for _ in range(2))
        alone = build()
        for policy, seed in ((one, 1), (other, 2), (alone, 1)):
            policy.reset("open", seed=seed)
        for observation in observations(5):
            other.infer(observation)
            np.testing.assert_array_equal(one.infer(observation)["actions"], alone.infer(observation)["actions"])
    finally:
        served.close()


@pytest.mark.slow
def test_a_dead_process_is_noticed_and_explained(checkpoint):
    served = PolicyProcess(functools.partial(load, checkpoint), rows=1)
    remote = RemotePolicy(served.connect(), served.metadata)
    os.kill(served.process.pid, signal.SIGKILL)
    served.process.join()
    with pytest.raises(PolicyLostError):
        remote.infer(observations(1)[0])
    assert re.search("died with exit code -9 .*; finished chains are kept", str(served.death()))
    with pytest.raises(InputError, match="died with exit code -9"):
        served.connect()
    served.close()


@pytest.mark.slow
def test_a_policy_that_cannot_be_loaded_says_why_in_the_parent(tmp_path):
    with pytest.raises(InputError, match="nothing_here"):
        _ = PolicyProcess(functools.partial(load, tmp_path / "nothing_here"), rows=1).metadata

"""Counters of codes and their alarms: what is counted, when an alarm is due, and that it survives a resume."""

import math
from dataclasses import replace

import pytest
import torch

from vw2_robot.optim import LoopConfig, OptimConfig
from vw2_robot.pretrain.config import TrainDLDMConfig
from vw2_robot.pretrain.dldm_diagnostics import CodeWatch

LOOP = LoopConfig(steps=1, batch=1, optim=OptimConfig())
PHASES = TrainDLDMConfig(phase1=LOOP, phase2=LOOP, alarm_after=3, perplexity_alarm=0.1, shuffle_alarm=1.02)


def codes(*values):
    return torch.tensor(values).view(1, -1, 1), torch.ones(1, len(values), dtype=torch.bool)


def test_codes_of_real_steps_are_counted_until_the_next_look():
    watch = CodeWatch(10)
    watch.count(*codes(0, 0, 7, 7))
    indices, _ = codes(1, 2)
    watch.count(indices, torch.tensor([[False, False]]))
    assert watch.read() == {
        "dldm/train_codes_used": 2,
        "dldm/dead_codes": 8,
        "dldm/train_perplexity": pytest.approx(2.0),
        "dldm/entropy_bits": pytest.approx(1.0),
    }
    watch.look({}, PHASES)
    assert watch.read()["dldm/train_codes_used"] == 0


def looks(watch, *, batch, health, count, phases=PHASES):
    alarms = []
    for _ in range(count):
        watch.count(*codes(*batch))
        alarms.append(watch.look(health, phases))
    return alarms


def test_a_collapse_is_reported_once_when_it_lasts_and_again_after_a_recovery():
    watch, same, all_ten = CodeWatch(10), [3] * 40, list(range(10)) * 4
    alarms = looks(watch, batch=same, health={}, count=4)
    assert [len(found) for found in alarms] == [0, 0, 1, 0]
    assert "perplexity 1.00" in alarms[2][0]
    assert looks(watch, batch=all_ten, health={}, count=1) == [[]]
    assert [len(found) for found in looks(watch, batch=same, health={}, count=3)] == [0, 0, 1]


def test_few_samples_of_a_large_codebook_are_no_collapse():
    watch = CodeWatch(64000)
    assert looks(watch, batch=list(range(50)), health={}, count=3) == [[], [], []]


def test_a_shuffle_ratio_near_one_is_reported_in_phase_two_only():
    watch, spread = CodeWatch(10), list(range(10))
    assert looks(watch, batch=spread, health={}, count=3) == [[], [], []]
    alarms = looks(watch, batch=spread, health={"dldm/shuffle_ratio": 1.01}, count=3)
    assert [len(found) for found in alarms] == [0, 0, 1]
    assert "1.010" in alarms[2][0]
    assert looks(watch, batch=spread, health={"dldm/shuffle_ratio": 1.03}, count=3) == [[], [], []]
    broken = looks(watch, batch=spread, health={"dldm/shuffle_ratio": math.nan}, count=3)
    assert [len(found) for found in broken] == [0, 0, 1]


def test_counts_and_streaks_go_into_a_checkpoint():
    watch, again = CodeWatch(10), CodeWatch(10)
    looks(watch, batch=[3] * 40, health={}, count=2)
    watch.count(*codes(3, 3))
    again.load_state_dict(watch.state_dict())
    assert again.read() == watch.read()
    assert len(again.look({}, replace(PHASES, alarm_after=3))) == 1

"""Counters of codes and their alarms: what is counted, when an alarm is due, and that a resumed run continues them."""

import math
from dataclasses import replace

import pytest
import torch

from vw2_robot.pretrain.config import TrainDLDMConfig
from vw2_robot.pretrain.diagnostics.code_usage import CodeUsageMonitor
from vw2_robot.schedule import LoopConfig, OptimConfig

LOOP = LoopConfig(train_steps=1, batch_size=1, optim=OptimConfig())
PHASES = TrainDLDMConfig(phase1=LOOP, phase2=LOOP, alarm_after=3, perplexity_alarm=0.1, shuffle_alarm=1.02)


def histogram(*values, vocabulary=10):
    return torch.bincount(torch.tensor(values), minlength=vocabulary)


def test_codes_are_counted_until_the_next_validation():
    monitor = CodeUsageMonitor(10)
    monitor.count(histogram(0, 7))
    monitor.count(histogram(7, 0))
    assert monitor.metrics() == {
        "dldm/train_codes_used": 2,
        "dldm/dead_codes": 8,
        "dldm/train_perplexity": pytest.approx(2.0),
        "dldm/entropy_bits": pytest.approx(1.0),
    }
    monitor.alarms({}, PHASES)
    assert monitor.metrics()["dldm/train_codes_used"] == 0


def alarms_of(monitor, *, batch, validation, count, phases=PHASES):
    alarms = []
    for _ in range(count):
        monitor.count(histogram(*batch, vocabulary=len(monitor.counts)))
        alarms.append(monitor.alarms(validation, phases))
    return alarms


def test_a_collapse_is_reported_once_when_it_lasts_and_again_after_a_recovery():
    monitor = CodeUsageMonitor(10)
    same = [3] * 40
    all_ten = list(range(10)) * 4
    alarms = alarms_of(monitor, batch=same, validation={}, count=4)
    assert [len(found) for found in alarms] == [0, 0, 1, 0]
    assert "perplexity 1.00" in alarms[2][0]
    assert alarms_of(monitor, batch=all_ten, validation={}, count=1) == [[]]
    assert [len(found) for found in alarms_of(monitor, batch=same, validation={}, count=3)] == [0, 0, 1]


def test_few_samples_of_a_large_codebook_are_no_collapse():
    monitor = CodeUsageMonitor(64000)
    assert alarms_of(monitor, batch=list(range(50)), validation={}, count=3) == [[], [], []]


def test_a_shuffle_ratio_near_one_is_reported_in_phase_two_only():
    monitor = CodeUsageMonitor(10)
    spread = list(range(10))
    assert alarms_of(monitor, batch=spread, validation={}, count=3) == [[], [], []]
    alarms = alarms_of(monitor, batch=spread, validation={"dldm/shuffle_ratio": 1.01}, count=3)
    assert [len(found) for found in alarms] == [0, 0, 1]
    assert "1.010" in alarms[2][0]
    assert alarms_of(monitor, batch=spread, validation={"dldm/shuffle_ratio": 1.03}, count=3) == [[], [], []]
    broken = alarms_of(monitor, batch=spread, validation={"dldm/shuffle_ratio": math.nan}, count=3)
    assert [len(found) for found in broken] == [0, 0, 1]


def test_counts_and_streaks_go_into_a_checkpoint():
    monitor = CodeUsageMonitor(10)
    again = CodeUsageMonitor(10)
    alarms_of(monitor, batch=[3] * 40, validation={}, count=2)
    monitor.count(histogram(3, 3))
    again.load_state_dict(monitor.state_dict())
    assert again.metrics() == monitor.metrics()
    assert len(again.alarms({}, replace(PHASES, alarm_after=3))) == 1

"""Two processes: what ranks agree on, and gradients of all ranks and micro-batches in every way of sharding."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).with_name("two_ranks.py")


@pytest.fixture(scope="module")
def found():
    """What one process found, and each of two ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environments = [common, *({**common, "WORLD_SIZE": "2", "RANK": str(number)} for number in range(2))]
    processes = [
        subprocess.Popen([sys.executable, str(SCRIPT)], env=environment, stderr=subprocess.PIPE, text=True)
        for environment in environments
    ]
    printed = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    return [json.loads(text.rpartition("found ")[2]) for text in printed]


def test_ranks_agree(found):
    alone, *ranks = (one["agreed"] for one in found)
    assert [one["threads"] for one in found] == [[], [], []]
    assert alone["sum"] == 1
    assert alone["gradient"] == [1]
    assert alone["differ"] == ""
    for one in ranks:
        assert one["sum"] == 3
        assert one["gradient"] == [3]  # of the sum that rank 0 uses once and rank 1 twice
        assert one["gather"] == [0, 1]
        assert one["any"] == [True, False]
        assert one["main"] == [0, "made by 0"]
        assert one["differ"] == "rank 0 and rank 1 differ in the data (digest: 0 and 1); give one frame cache"


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("sharding", ["none", "ddp", "fsdp"])
def test_different_data_on_two_ranks_train_the_weights_of_one_process(found, sharding, micro_batches):
    expected = found[0]["trained"]["none-1"]
    for one in found:
        trained = one["trained"][f"{sharding}-{micro_batches}"]
        for values, wanted in zip(trained, expected, strict=True):
            np.testing.assert_allclose(values, wanted, rtol=1e-12, atol=1e-14)

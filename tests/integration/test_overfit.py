"""Ten demonstrations that were memorized work again in the simulator, through the agent: the chain can fit at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.sim]
ROOT = Path(__file__).resolve().parents[2]


def test_ten_demonstrations_are_reproduced_and_replayed_through_infer(tmp_path):
    pytest.importorskip("pybullet", reason="the calvin extra is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.overfit_ten", f"out={tmp_path}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    found = json.loads((tmp_path / "overfit.json").read_text())
    assert found["reproduction"]["mean_error"] < 0.02
    assert found["closed_loop"]["4"]["success"] >= 0.9

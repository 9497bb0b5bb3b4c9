"""One checkpoint, several interpreters: the same actions from each, without TensorFlow.

Interpreters beside the one that runs the tests are named in VW2_OTHER_PYTHONS, separated like the paths of PATH.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_policy_acts_alike_in_every_interpreter():
    others = [sys.executable, *filter(None, os.environ.get("VW2_OTHER_PYTHONS", "").split(os.pathsep))]
    command = [sys.executable, "-m", "benchmarks.same_actions", *others]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == 1 + len(others)
    assert "bit-equal" in rows[1]  # the same interpreter twice, in two processes

"""One checkpoint, several interpreters: the same actions from each, without TensorFlow.

Interpreters beside the one that runs the tests are that of .venv-3.12, where `make test-3.12` has made it, and those in
VW2_OTHER_PYTHONS, separated like the paths of PATH.
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
    newer = ROOT / ".venv-3.12" / "bin" / "python"
    named = os.environ.get("VW2_OTHER_PYTHONS", "").split(os.pathsep)
    others = [sys.executable, *filter(None, named), *([str(newer)] if newer.exists() else [])]
    command = [sys.executable, "-m", "benchmarks.same_actions", *others]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = done.stdout.splitlines()[1:]
    assert len(rows) == 1 + len(others)
    assert "bit-equal" in rows[1]  # the same interpreter twice, in two processes

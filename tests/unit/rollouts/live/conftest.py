"""The world on a line, importable by these tests alone."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def line():
    """The module `line_world`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("line_world")
        sys.modules.pop("line_world", None)


@pytest.fixture(scope="module")
def save_tiny_policy():
    """The function of the module `tiny_policy`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1]))
        yield importlib.import_module("tiny_policy").save_tiny_policy
        sys.modules.pop("tiny_policy", None)

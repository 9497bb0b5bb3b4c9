"""Where the recordings of the reference simulator and its assets lie."""

from __future__ import annotations

from pathlib import Path

import pytest


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no {folder.parent.name}/{folder.name} in the shared data")
    return folder


@pytest.fixture(scope="session")
def calvin_dir(shared_dir: Path) -> Path:
    return _existing(shared_dir / "calvin")


@pytest.fixture(scope="session")
def golden_dir(calvin_dir: Path) -> Path:
    return _existing(calvin_dir / "golden")


@pytest.fixture(scope="session")
def reference_assets(calvin_dir: Path) -> Path:
    return _existing(calvin_dir / "data")

"""The documentation site: its navigation, the pages that are written from the code, and the build."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
DOCS = REPO / "docs"
sys.path.insert(0, str(REPO))  # the generator is not part of the package

from website import environments  # noqa: E402

MOST_BYTES = 1_000_000


def pages_of(nav: Any) -> list[str]:
    """The files that a navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for entry in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(entry)]


def test_the_navigation_names_every_page_once() -> None:
    nav = yaml.safe_load((REPO / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages_of(nav)) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_the_pages_of_the_environments_are_what_the_code_says() -> None:
    for name, text in environments.pages().items():
        assert (DOCS / "environments" / name).read_text(encoding="utf-8") == text, f"{name}: run make environments"


def test_the_images_move_and_are_small() -> None:
    images = sorted((DOCS / "environments").glob("*.webp"))
    shown = {name for path in DOCS.rglob("*.md") for name in re.findall(r"([\w]+\.webp)\)", path.read_text())}
    assert shown == {image.name for image in images}
    assert sum(image.stat().st_size for image in images) < MOST_BYTES
    for image in images:
        with Image.open(image) as opened:
            assert opened.n_frames > 5, image.name


@pytest.mark.sim
def test_the_image_of_scene_d_is_what_its_camera_sees() -> None:
    world = environments.CalvinBenchmark(scene="D")
    starts = {sequence.subtasks[0]: sequence for sequence in world.single_tasks(1)}
    world.reset(starts[environments.SHOWN["D"]])
    world.begin(environments.SHOWN["D"])
    seen = world.observe()["images"]["static"].astype(int)
    world.close()
    with Image.open(DOCS / "environments" / "calvin_d.webp") as opened:
        shown = np.asarray(opened.convert("RGB")).astype(int)
    assert np.abs(seen - shown).mean() < 6  # gray levels: webp loses some


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed (extra docs)")
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.rmtree(REPO / "build" / "site_package", ignore_errors=True)  # as in a fresh clone
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    ran = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    loaded = re.compile(
        r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//[^\s\">]+|<link\b[^>]*stylesheet[^>]*//"
    )
    for page in tmp_path.rglob("*.html"):
        assert not loaded.search(page.read_text(encoding="utf-8")), page
    for sheet in tmp_path.rglob("*.css"):
        assert "url(http" not in sheet.read_text(encoding="utf-8"), sheet

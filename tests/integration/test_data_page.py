"""What docs/data.md shows works as printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"


def code_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def somebodys_folder(tmp_path: Path) -> Path:
    """Two videos, one with words, and three recordings as arrays."""
    av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    (tmp_path / "my_videos").mkdir()
    (tmp_path / "my_robot").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(tmp_path / "my_videos" / name), "w") as container:
            stream = container.add_stream("libx264", rate=20)
            stream.width, stream.height, stream.pix_fmt = 96, 72, "yuv420p"
            for _ in range(40):
                image = rng.integers(0, 256, (9, 12, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode(None))
    caption = {"file": "a.mp4", "instruction": "fold the paper"}
    (tmp_path / "my_videos" / "captions.jsonl").write_text(json.dumps(caption) + "\n")
    for number in range(3):
        np.save(tmp_path / "my_robot" / f"{number}.npy", rng.integers(0, 256, (20, 60, 80, 3), np.uint8))
    return tmp_path


def test_the_first_example_is_ten_lines_long() -> None:
    lines = [line for line in code_blocks()[0].splitlines() if line.strip()]
    assert len(lines) <= 10


def test_the_examples_run_one_after_the_other(
    somebodys_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(somebodys_folder)
    videos, own = code_blocks()
    names: dict[str, object] = {"__name__": "example"}
    exec(videos, names)
    batch = names["batch"]
    assert batch.pixels.shape == (4, 9, 64, 64, 3)  # type: ignore[attr-defined]
    assert batch.pixels.std() > 20  # type: ignore[attr-defined]
    assert set(batch.instruction) <= {"fold the paper", ""}  # type: ignore[attr-defined]
    assert "(4, 9, 64, 64, 3)" in capsys.readouterr().out
    exec(own, names)
    assert {"my_robot", "my_videos"} >= set(names["batch"].source)  # type: ignore[attr-defined]
    assert "wipe the table" in names["batch"].instruction  # type: ignore[attr-defined]


def test_the_page_has_a_line_for_every_format() -> None:
    from vw2_robot.data.sources.formats import FORMATS

    table = re.search(r"^\| format \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert table is not None
    assert len(table[1].splitlines()) == len(FORMATS)

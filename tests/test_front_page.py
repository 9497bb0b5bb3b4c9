"""README and the pages one click away: what they show runs, what they name exists, and an index can show it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from vw2_robot.command_line.entry_points import all_programs
from vw2_robot.command_line.keys import keys_of

REPO = Path(__file__).resolve().parents[1]
README = (REPO / "README.md").read_text(encoding="utf-8")
QUESTIONS = (REPO / "docs/questions.md").read_text(encoding="utf-8")


def script(path: str) -> ModuleType:
    """A file that belongs to no package."""
    spec = importlib.util.spec_from_file_location("script", REPO / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def index_page(repository: str | None, revision: str | None) -> str:
    page: str = script(".ci/index_page.py").index_page(README, repository, revision)
    return page


def test_the_front_page_is_one_that_people_read() -> None:
    assert len(README.splitlines()) < 200
    before_any_section = README.partition("\n## ")[0]
    (image,) = re.findall(r'<img src="([^"]+)"', before_any_section)
    assert (REPO / image).is_file()
    assert 'task="open_drawer"' in before_any_section


def test_the_python_of_the_front_page_solves_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pybullet")
    (example,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    names["env"].close()
    assert (names["out"]["actions"].shape, names["out"]["actions"].dtype) == ((4, 7), "float32")
    printed = capsys.readouterr().out.splitlines()[-1]
    assert f"`{printed}`" in README
    assert printed.endswith(": solved")


def test_the_notebook_runs_as_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pybullet")
    notebook = json.loads((REPO / "docs/first_policy.ipynb").read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in notebook["cells"] if cell["cell_type"] == "code")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for cell in code:
        if not cell.startswith("%pip"):
            exec(compile(cell, "first_policy.ipynb", "exec"), names)
    names["env"].close()
    assert "pull the handle to open the drawer: solved" in capsys.readouterr().out
    with Image.open(tmp_path / "episode.gif") as animation:
        assert animation.n_frames > 5


def commands(page: str) -> list[list[str]]:
    """Our commands in a page's blocks and between its back quotes, without comments."""
    lines = re.findall(r"^((?:vw2|pretrain-on)-[^\n]+)$|`((?:vw2|pretrain-on)-[^`\n]+=[^`\n]+)`", page, re.MULTILINE)
    return [shlex.split("".join(line), comments=True) for line in lines]


@pytest.mark.parametrize("page", [README, QUESTIONS], ids=["README", "questions"])
def test_commands_set_keys_that_exist(page: str) -> None:
    programs = all_programs()
    found = commands(page)
    assert len(found) > 3
    for name, *overrides in found:
        keys = {key.name for key in keys_of(programs[name][0], {})} | {"env", "data", "model", "method"}
        for override in overrides:
            key = override.partition("=")[0]
            if "=" in override:
                assert key in keys or key.startswith("env."), f"{name} {override}"


def test_the_animated_image_is_small_and_shows_a_whole_chain() -> None:
    path = REPO / "docs/rollout.webp"
    assert path.stat().st_size < 2_000_000
    with Image.open(path) as animation:
        assert animation.n_frames > 60


def test_the_figure_is_what_its_script_prints() -> None:
    assert (REPO / "docs/method.svg").read_text(encoding="utf-8") == script("docs/method_figure.py").figure() + "\n"


def test_on_an_index_every_link_is_absolute() -> None:
    page = index_page("https://example.org/owner/name/", "v1")
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert len(targets) == len(re.findall(r"\]\(([^)\s]+)\)", README)) > 30
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert '<img src="https://example.org/owner/name/raw/v1/docs/rollout.webp" ' in page
    assert "](https://example.org/owner/name/raw/v1/docs/method.svg)" in page
    # A badge: a link whose text is an image.
    assert re.search(r"\[!\[License[^\]]*\]\(https://[^)]*\)\]\(https://example.org/owner/name/blob/v1/LICENSE\)", page)
    assert "](https://example.org/owner/name/blob/v1/docs/concepts.md#stop-gradients)" in page


def test_without_an_address_no_link_leads_nowhere_and_no_text_is_lost() -> None:
    page = index_page(None, None)
    assert [target for target in re.findall(r"\]\(([^)\s]+)\)", page) if not target.startswith(("https://", "#"))] == []
    assert "rollout.webp" not in page
    assert "method.svg" not in page
    assert "docs/results.md has every seed" in page


def test_ten_questions_are_answered_shortly_and_two_clicks_away() -> None:
    assert "](docs/questions.md)" in README
    answers = re.split(r"^## .*\?$", QUESTIONS, flags=re.MULTILINE)[1:]
    assert len(answers) == 10
    for answer in answers:
        text, _, link = answer.partition("→")
        assert "](" in link, answer
        # Ends of sentences: a dot before a space, a line or the end, not that of a file's name.
        assert 2 <= len(re.findall(r"[.?](?=\s|$)", text)) <= 5, answer

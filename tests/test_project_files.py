"""What surrounds the code: citation, templates, workflows, images, metadata. Read as text; no image is built here."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import vw2_robot
from vw2_robot.command_line.entry_points import COMMANDS, all_programs
from vw2_robot.command_line.keys import keys_of

REPO = Path(__file__).resolve().parents[1]
PINS = ("constraints.txt", "constraints-3.12.txt")


def read(name: str) -> Any:
    return yaml.safe_load((REPO / name).read_text(encoding="utf-8"))


def setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPO / "setup.cfg", encoding="utf-8")
    return parser


def test_the_citation_is_of_this_version_and_names_the_paper() -> None:
    citation = read("CITATION.cff")
    assert citation["version"] == vw2_robot.__version__
    assert citation["license"] == setup()["metadata"]["license"]
    (paper,) = citation["references"]
    assert paper["url"] in setup()["metadata"]["project_urls"]
    names = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert ", ".join(names) in (REPO / "ATTRIBUTIONS.md").read_text(encoding="utf-8")


def test_the_wheel_says_who_made_it_and_where_more_is() -> None:
    metadata = setup()["metadata"]
    assert metadata["author"] == read("CITATION.cff")["authors"][0]["name"]
    assert len(metadata["keywords"].split(",")) > 3
    assert "Paper =" in metadata["project_urls"]


@pytest.mark.parametrize(
    "path", sorted((REPO / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_an_issue_template_asks_for_something(path: Path) -> None:
    template = read(str(path.relative_to(REPO)))
    assert {"name", "description", "body"} <= template.keys()
    identifiers = [field["id"] for field in template["body"]]
    assert len(set(identifiers)) == len(identifiers) > 0


def test_workflows_run_the_scripts_that_are_here() -> None:
    scripts = set()
    for path in (REPO / ".github/workflows").glob("*.yml"):
        for job in read(str(path.relative_to(REPO)))["jobs"].values():
            scripts |= {line.split()[0] for step in job["steps"] for line in step.get("run", "").splitlines()}
    found = {script for script in scripts if script.startswith(".ci/")}
    assert found == {".ci/run", ".ci/release"}
    for script in found:
        assert (REPO / script).stat().st_mode & 0o100


def test_the_images_are_built_from_files_that_are_here() -> None:
    recipe = (REPO / "cluster/vw2_robot.def").read_text(encoding="utf-8")
    copied = re.findall(r"^    ([\w./-]+) /vw2/([\w./-]+)$", recipe, re.MULTILINE)
    assert copied
    assert all(source == target and (REPO / source).exists() for source, target in copied)
    # All that an installation needs is among them.
    needed = {"Makefile", "setup.cfg", "pyproject.toml", *PINS, "README.md", "LICENSE", "ATTRIBUTIONS.md"}
    needed |= {
        "vw2_robot",
        *(folder.strip() for folder in setup()["options"]["package_dir"].split() if "." not in folder),
    }
    assert needed - {"="} <= {source for source, _ in copied}
    docker = (REPO / "Dockerfile").read_text(encoding="utf-8")
    assert re.search(r"^FROM (\S+)", docker, re.MULTILINE)[1] == re.search(r"^From: (\S+)", recipe, re.MULTILINE)[1]


@pytest.mark.parametrize("name", PINS)
def test_constraints_are_exact_and_sorted(name: str) -> None:
    lines = [line for line in (REPO / name).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert [
        line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+( ; python_version [<>=]+ \"3\.\d+\")?", line)
    ] == []
    assert "wandb" in {line.split("==")[0] for line in lines}


def test_help_explains_keys_that_exist_and_no_more_than_a_screenful() -> None:
    for command, (config_cls, _) in all_programs().items():
        main_keys = COMMANDS[command].main_keys
        keys = {key.name: key.meaning for key in keys_of(config_cls, {})}
        assert set(main_keys) <= keys.keys(), command
        assert len(main_keys or keys) <= 15, command
        assert "experiment" not in keys, command  # the name of a group

"""docs/troubleshooting.md quotes messages that the code has."""

from __future__ import annotations

import ast
import re
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
PAGE = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = re.findall(r"^\| `([^`]*…[^`]*)` \|", PAGE, re.MULTILINE)
THREAD = re.compile(r"\(https://github\.com/[\w.-]+/[\w.-]+/(?:issues|pull)/\d+\)")


def messages() -> list[str]:
    """The string literals of the package, with … for what is filled in."""
    found = []
    for top in ("vw2_robot", "envs", "pretrain", "finetune", "rollouts"):
        for path in (REPO / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                    found.append("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return found


def holds(message: str, pieces: list[str]) -> bool:
    """Whether the pieces are in the message, in their order."""
    for piece in pieces:
        _, found, message = message.partition(piece)
        if not found:
            return False
    return True


def test_the_quoted_messages_are_those_of_the_code() -> None:
    assert len(QUOTED) > 25
    known = messages()
    pieces = {quoted: [piece.strip() for piece in quoted.split("…") if piece.strip()] for quoted in QUOTED}
    assert [quoted for quoted in QUOTED if not any(holds(message, pieces[quoted]) for message in known)] == []


def test_each_pain_of_other_systems_names_a_thread() -> None:
    pains = PAGE.split("## What users of other systems report")[1]
    paragraphs = re.findall(r"^(?:\*\*|####).*?(?=^\*\*|^#|\Z)", pains, re.MULTILINE | re.DOTALL)
    assert len(paragraphs) >= 25
    assert [text for text in paragraphs if not THREAD.search(text)] == []

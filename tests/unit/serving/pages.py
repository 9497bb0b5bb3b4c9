"""The examples of a page of docs/integrations."""

from __future__ import annotations

import re
from pathlib import Path

PAGES = Path(__file__).resolve().parents[3] / "docs" / "integrations"


def examples(page: str, language: str = "python") -> list[str]:
    """Return the code blocks of a page in a language."""
    text = (PAGES / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)

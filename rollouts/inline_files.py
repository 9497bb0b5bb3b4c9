"""Files inside a page: what makes the report self-contained."""

from __future__ import annotations

import base64
from pathlib import Path


def data_uri(path: Path, kind: str) -> str:
    """A file as a data URI of that media type."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"

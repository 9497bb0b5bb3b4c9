"""README as the page of a package index, where links relative to the repository lead nowhere.

    python .ci/index_page.py README.md [URL REVISION]

Prints the page. With the address of the repository and a revision, links and images become absolute; without, images
are left out and of a link its text stays.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

# An image, or a link whose text may be an image, to a target inside the repository or the page.
IMAGE = re.compile(r"!\[([^\]]*)\]\((?!https?:)([^)\s]+)\)")
TAG = re.compile(r'(<img src=")(?!https?:)([^"]+)("[^>]*>)')
LINK = re.compile(r"(?<!!)\[((?:!\[[^\]]*\]\([^)]*\)|[^\[\]])*)\]\((?!https?:|#)([^)\s]+)\)")


def index_page(text: str, repository: str | None, revision: str | None) -> str:
    """Return the page with absolute links, or without the links that lead nowhere.

    Args:
        text: README.
        repository: Its address, as https://HOST/OWNER/NAME; None: not known.
        revision: Tag or commit.
    """
    if repository is None:
        return LINK.sub(r"\1", TAG.sub("", IMAGE.sub("", text)))
    base = repository.rstrip("/")
    absolute = TAG.sub(rf"\1{base}/raw/{revision}/\2\3", IMAGE.sub(rf"![\1]({base}/raw/{revision}/\2)", text))
    return LINK.sub(rf"[\1]({base}/blob/{revision}/\2)", absolute)


if __name__ == "__main__":
    page, *where = sys.argv[1:]
    repository, revision = where or (None, None)
    print(index_page(Path(page).read_text(encoding="utf-8"), repository, revision), end="")

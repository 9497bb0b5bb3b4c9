"""What the documentation site needs beyond its pages: files of the repository that pages link to, and one package.

MkDocs calls these functions (`hooks` in mkdocs.yml). Pages in docs/ link to source files by relative paths, which
work in a checkout; on the site each such file is a page of its own, so that no link leaves it.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File
from pymdownx.slugs import slugify

REPO = Path(__file__).resolve().parents[1]
# The package as it is imported: in a checkout, folders of it lie beside `vw2_robot/` (setup.cfg).
PACKAGE = REPO / "build" / "site_package" / "vw2_robot"
BESIDE = ("envs", "finetune", "pretrain", "rollouts")
SHELVED = "source/"
LANGUAGES = {".py": "python", ".md": "markdown", ".json": "json", ".yaml": "yaml", ".sbatch": "bash"}
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(#[^)\s]*)?(?=\))")
MOST_CHARACTERS = 60_000


def on_startup(**_: Any) -> None:
    """Lay out the package for mkdocstrings, which reads but does not import it, and looks for it before `on_config`."""
    shutil.rmtree(PACKAGE, ignore_errors=True)
    PACKAGE.mkdir(parents=True)
    for entry in (*(REPO / "vw2_robot").iterdir(), *(REPO / name for name in BESIDE)):
        (PACKAGE / entry.name).symlink_to(entry)


def on_config(config: Any) -> None:
    """Name anchors as GitHub does."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")


def on_files(files: Any, config: Any) -> None:
    """Add a page for every file and folder outside docs/ that a page links to."""
    for file in list(files.documentation_pages()):
        for link, _ in LINK.findall(file.content_string):
            name = target_of(link, file.src_uri)
            if name and files.get_file_from_path(source_page(name)) is None:
                files.append(File.generated(config, source_page(name), content=shown(REPO / name)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Lead links that leave docs/ to the pages of `on_files`."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        name = target_of(found[1], page.file.src_uri)
        return posixpath.relpath(source_page(name), folder or ".") if name else found[0]

    return LINK.sub(inside, markdown)


def target_of(link: str, page: str) -> str | None:
    """Return the path from the repository's root of what a page links to, if it exists and is not in docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return path if not path.startswith(("docs/", "../")) and (REPO / path).exists() else None


def source_page(name: str) -> str:
    """Return where the page of a file of the repository lies, from docs/."""
    return f"{SHELVED}{name}.md"


def shown(path: Path) -> str:
    """Return the page of a file or a folder of the repository, which the search leaves out."""
    head = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path.relative_to(REPO).as_posix()}\n\n"
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir() if entry.name != "__pycache__")
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    text = path.read_text(encoding="utf-8")
    cut = "" if len(text) <= MOST_CHARACTERS else f"\nThe first {MOST_CHARACTERS:,} characters.\n"
    return f"{head}````{LANGUAGES.get(path.suffix, 'text')}\n{text[:MOST_CHARACTERS]}\n````\n{cut}"

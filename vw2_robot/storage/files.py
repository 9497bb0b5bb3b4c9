"""Writing of files, whole or not at all and safe against a power cut, and checks when they are read back.

    atomic_write, atomic_folder   temporary name, flush, fsync of file and folder, rename
    write_json, read_json         small JSON objects; with `sealed` they carry a SHA-256 of their own content
    write_yaml, read_yaml         configurations, with a SHA-256 in their first line
    write_manifest, verify        SHA-256 of every file of a folder, in its `manifest.json`

All code of the package that keeps something for a later start uses these functions. A file that cannot be written ends
in an `OSError` with its name (libraries often leave the name out), one that cannot be read back in an `InputError` with
its name. `vw2_robot.storage.locks` makes sure that only one process writes in a folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from vw2_robot.errors import InputError

MANIFEST = "manifest.json"
_SEAL = "sha256_of_the_rest"
_YAML_SEAL = "# sha256 of the lines below: "
# Far more than any file of this package has; a downloaded one must not fill the memory. YAML takes a hundred times as
# long to read.
MAX_JSON_BYTES = 256 * 2**20
MAX_YAML_BYTES = 2**20

# --------------------------------------------------------------------------------------------------------- writing


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write to; afterwards `path` is that file, whole, even after a power cut.

    A failure inside leaves `path` as it was and removes the temporary file.

    Args:
        path: the file to make or to replace.
        sync: False where thousands of small files are written: call `sync_files` before the file that lists them is
            written.

    Raises:
        OSError: with the name of the file, whatever library wrote it.
    """
    temporary = temporary_name(path)
    try:
        temporary.unlink(missing_ok=True)  # left by a kill, or a link
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync:
            _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        if translated := os_error(error, path):
            raise translated from error
        if isinstance(error, OSError) and error.filename == str(temporary):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; afterwards `path` is that folder, whole, even after a power cut.

    An existing folder is replaced after the new one is on disk. A failure inside keeps it and removes the temporary
    one.
    """
    temporary = temporary_name(path)
    old = old_name(path)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        sync_files(temporary.rglob("*"))
        _sync(temporary)
        # A folder cannot be replaced in one operation: the old one is moved away first.
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except BaseException as error:
        if old.is_dir() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        if translated := os_error(error, path):
            raise translated from error
        raise
    shutil.rmtree(old, ignore_errors=True)


def temporary_name(path: Path) -> Path:
    """Return the name under which `path` is written first; always the same, so that the next start overwrites it."""
    return path.with_name(f".{path.name}.tmp")


def old_name(path: Path) -> Path:
    """Return the name that a folder has while it is deleted, so that a kill leaves nothing half-deleted at `path`."""
    return path.with_name(f".{path.name}.old")


def sync_files(paths: Iterable[Path]) -> None:
    """Put the content of these files, and the names in these folders, on disk."""
    for path in paths:
        if not path.is_symlink():
            _sync(path)


def _sync(path: Path) -> None:
    """Put a file's content, or a folder's names, on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot sync a folder
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str, *, sync: bool = True) -> None:
    """Write a small text file in UTF-8, whole or not at all.

    Args:
        path: the file to make or to replace.
        text: the whole content.
        sync: see `atomic_write`.
    """
    with atomic_write(path, sync=sync) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any], *, sealed: bool = False, sync: bool = True) -> None:
    """Write a JSON object.

    Args:
        path: the file.
        content: of the object.
        sealed: with a SHA-256 of the rest, which `read_json` checks.
        sync: see `atomic_write`.
    """
    if sealed:
        content = json.loads(json.dumps(content))  # as it will be read: all keys are strings then
        content = {**content, _SEAL: _digest_of(content)}
    write_text(path, json.dumps(content, indent=1, sort_keys=True) + "\n", sync=sync)


def write_yaml(path: Path, content: Mapping[str, Any], *, note: str = "") -> None:
    """Write a configuration, with a SHA-256 in the first line that `read_yaml` checks.

    Args:
        path: the file.
        content: nested plain values.
        note: a comment at the end.
    """
    text = yaml.safe_dump(dict(content), sort_keys=False) + (f"# {note}\n" if note else "")
    write_text(path, f"{_YAML_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append a line to a log or a table of rows.

    Args:
        path: the file; made if missing.
        line: without its line break.
        sync: the line is on disk when this returns.

    Raises:
        OSError: with the name of the file.
    """
    is_new = sync and not path.exists()
    with named(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(line + "\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())
    if is_new:
        _sync(path.parent)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add the name of this file to errors of the operating system inside the `with`."""
    try:
        yield
    except Exception as error:
        if translated := os_error(error, path):
            raise translated from error
        raise


def os_error(error: BaseException, path: Path) -> OSError | None:
    """Return the operating system's error behind an exception, with the file's name.

    safetensors reports a full disk as "... (os error 28)" in an exception of its own, TensorFlow as text, NumPy's
    `tofile` as an OSError without a number (of two kinds: noticed before and while writing), and Python's file objects
    without the name of the file.

    Returns:
        None if the error has a file name already, or is of another kind.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return None if error.filename is not None else OSError(error.errno, error.strerror, str(path))
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
        return OSError(number, os.strerror(number), str(path))
    if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written|Not enough free space", str(error)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return None if isinstance(error, InputError) else full_disk_error(str(error), path)


def full_disk_error(text: str, path: Path) -> OSError | None:
    """Return the error of a full disk that the message of a library or program reports; None if it reports none."""
    found = [number for number in (errno.ENOSPC, errno.EDQUOT) if os.strerror(number) in text]
    return OSError(found[0], os.strerror(found[0]), str(path)) if found else None


# --------------------------------------------------------------------------------------------------------- reading


def read_json(path: Path, *, cure: str, sealed: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        path: the file.
        cure: what a user should do if it is missing or damaged, as the end of the message.
        sealed: it must have a seal. A seal that is there is checked in any case.

    Raises:
        InputError: missing, unreadable, no JSON object, or not what was written.
    """
    text = read_text(path, cure=cure, most=MAX_JSON_BYTES)
    try:
        content = json.loads(text)
        whole = not isinstance(content, dict) or _is_whole(content, sealed=sealed)
    except (ValueError, RecursionError) as error:
        what = "nested too deep" if isinstance(error, RecursionError) else f"no valid JSON ({error})"
        raise InputError(f"{path} is damaged: {what}; {cure}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object; {cure}")
    if not whole:
        raise InputError(f"{path} is damaged: its content is not what was written (SHA-256 differs); {cure}")
    return content


def read_yaml(path: Path, *, cure: str) -> dict[str, Any]:
    """Return the mapping in a YAML file; a seal is checked if it is there (a hand-written file has none).

    Args:
        path: the file.
        cure: as in `read_json`.

    Raises:
        InputError: missing, unreadable, no mapping, or not what was written.
    """
    text = read_text(path, cure=cure, most=MAX_YAML_BYTES)
    if text.startswith(_YAML_SEAL):  # first, so that a file that was cut off anywhere is noticed
        digest, _, body = text.removeprefix(_YAML_SEAL).partition("\n")
        if digest != hashlib.sha256(body.encode()).hexdigest():
            raise InputError(f"{path} is damaged: its content is not what was written (SHA-256 differs); {cure}")
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except _NO_YAML as error:
        what = "nested too deep" if isinstance(error, RecursionError) else f"no valid YAML ({error})"
        raise InputError(f"{path} is damaged: {' '.join(what.split())}; {cure}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no keys and values; {cure}")
    return content


class _PlainLoader(yaml.SafeLoader):
    """A YAML loader without aliases: a few lines of them can expand to more than any memory holds."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


# The others come from values: the 30th of February, an explicit tag with nothing behind it.
_NO_YAML = (yaml.YAMLError, RecursionError, ValueError, LookupError, TypeError, AttributeError, OverflowError)


def read_text(path: Path, *, cure: str, most: int = MAX_YAML_BYTES) -> str:
    """Return the text in a file.

    Args:
        path: the file.
        cure: as in `read_json`.
        most: largest size in bytes.

    Raises:
        InputError: missing, unreadable, too long, or not UTF-8.
    """
    try:
        if not path.is_file() and path.exists():
            raise InputError(f"{path} is no file; {cure}")  # opening a pipe would block
        size = path.stat().st_size
        if size > most:
            raise InputError(f"{path} has {size} bytes, expected at most {most}; {cure}")
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise InputError(f"{path} is missing; {cure}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {cure}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is not UTF-8; {cure}") from error


def _is_whole(content: dict[str, Any], *, sealed: bool) -> bool:
    """Remove the seal and compare it; a file without a seal is whole unless one is demanded."""
    if _SEAL in content:
        return bool(content.pop(_SEAL) == _digest_of(content))
    # Damage may hit the seal's name itself: then another key of 64 characters has the digest of the rest.
    long = [key for key, value in content.items() if isinstance(value, str) and len(value) == 64]
    return not sealed and not any(
        content[key] == _digest_of({k: v for k, v in content.items() if k != key}) for key in long
    )


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


# -------------------------------------------------------------------------------------------------------- manifest


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read block by block."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))  # a pipe or /dev/zero would have no end
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_manifest(folder: Path, *, sync: bool = True) -> None:
    """Write `manifest.json`: the SHA-256 of every file in a folder and its sub-folders, with their manifests."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)
    digests = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    write_json(folder / MANIFEST, {"sha256": digests}, sync=sync)


def verify(folder: Path, *, cure: str, names: Iterable[str] | None = None) -> bool:
    """Compare files with the folder's manifest; return False where the folder has none.

    Args:
        folder: of the files.
        cure: as in `read_json`.
        names: files that must be listed and unchanged; None: all that are listed.

    Raises:
        InputError: a file is missing, unlisted or not what was written, or the manifest itself is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return False
    listed = read_json(path, cure=cure).get("sha256")
    if not isinstance(listed, dict):
        raise InputError(f'{path} is damaged: it lacks "sha256"; {cure}')
    for name in sorted(listed) if names is None else names:
        if name not in listed:
            raise InputError(f"{path} does not list {name}; {cure}")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise InputError(f"{path} lists {name!r}, which lies outside the folder; {cure}")
        file = folder / name
        try:
            found = sha256_of(file)
        except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
            raise InputError(f"{file} cannot be read ({getattr(error, 'strerror', error)}); {cure}") from error
        if found != listed[name]:
            raise InputError(
                f"{file} is damaged: its SHA-256 begins with {found[:8]}, {path.name} says {str(listed[name])[:8]}; "
                f"{cure}"
            )
    return True

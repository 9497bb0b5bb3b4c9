"""Dependencies of this package by extra, and which of them are installed."""

from __future__ import annotations

import importlib.metadata
import re
from dataclasses import dataclass

from packaging.requirements import Requirement

from vw2_robot.errors import InputError, install_command

DISTRIBUTION = "vw2-robot"
CORE = "core"
NOT_FOR_USE = ("dev", "all")
"""extras that are for developers, or a union of others"""


@dataclass(frozen=True)
class Package:
    """A package that an extra requires: `wanted` is a range, `found` a version or None."""

    name: str
    extra: str
    wanted: str
    found: str | None
    fits: bool


def list_packages() -> list[Package]:
    """Return every package that the core and each extra need on this machine, in the order of `setup.cfg`.

    Raises:
        InputError: this is a checkout that is not installed, so its requirements are not known.
    """
    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"{DISTRIBUTION} runs from a checkout and is not installed: {install_command()}") from None
    requirements = [Requirement(line) for line in lines]
    # The order of the extras in setup.cfg; names in markers are the only place that lists them.
    named = [extra for line in lines for extra in re.findall(r"extra == [\"']([^\"']+)", line)]
    extras = [extra for extra in dict.fromkeys(named) if extra not in NOT_FOR_USE]
    packages = []
    for extra in (CORE, *extras):
        for requirement in requirements:
            if not _applies(requirement, "" if extra == CORE else extra):
                continue
            try:
                found = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                found = None
            # Nightly builds, of torch for instance, are pre-releases and count.
            fits = found is not None and requirement.specifier.contains(found, prereleases=True)
            packages.append(Package(requirement.name, extra, str(requirement.specifier) or "any", found, fits))
    return packages


def missing_extras(packages: list[Package]) -> list[str]:
    """Return the extras with a package that is missing or has a wrong version."""
    return list(dict.fromkeys(package.extra for package in packages if not package.fits))


def _applies(requirement: Requirement, extra: str) -> bool:
    """Return whether an extra ("" for the core) adds a requirement on this machine."""
    if requirement.marker is None:
        return not extra
    # A marker such as python_version holds for the core; then it does not belong to an extra.
    core = requirement.marker.evaluate({"extra": ""})
    return core if not extra else not core and requirement.marker.evaluate({"extra": extra})

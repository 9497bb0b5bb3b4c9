"""Which of our dependencies are installed, by extra, and the pip command for the others."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from packaging.requirements import Requirement

DISTRIBUTION = "vw2-robot"
CORE = "core"
NOT_FOR_USE = ("dev", "all")
"""extras that are no part of the product, or a union of others"""


@dataclass(frozen=True)
class Package:
    """A package that an extra asks for: `wanted` is a range, `found` a version or None."""

    name: str
    extra: str
    wanted: str
    found: str | None
    fits: bool


def list_packages() -> list[Package]:
    """Return every package that the core and each extra need on this machine, in the order of `setup.cfg`."""
    requirements = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    extras = [extra for extra in metadata.get_all("Provides-Extra") or [] if extra not in NOT_FOR_USE]
    packages = []
    for extra in (CORE, *extras):
        for requirement in requirements:
            if _applies(requirement, "" if extra == CORE else extra):
                packages.append(_package(requirement, extra))
    return packages


def missing_extras(packages: list[Package]) -> list[str]:
    """Return the extras of which something is missing or of another version."""
    return list(dict.fromkeys(package.extra for package in packages if not package.fits))


def _applies(requirement: Requirement, extra: str) -> bool:
    if requirement.marker is None:
        return not extra
    core = requirement.marker.evaluate({"extra": ""})
    return core if not extra else not core and requirement.marker.evaluate({"extra": extra})


def _package(requirement: Requirement, extra: str) -> Package:
    try:
        found = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        found = None
    fits = found is not None and requirement.specifier.contains(found, prereleases=True)
    return Package(requirement.name, extra, str(requirement.specifier) or "any", found, fits)

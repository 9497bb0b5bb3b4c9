"""Program `vw2-doctor`: list installed packages and data sets, and how to get the missing ones.

    vw2-doctor data data.path=/data                        the data sets below a folder
    vw2-doctor data data.path=/data report=data.html       a page with clips of each
    vw2-doctor data data.path=/data data.mixture=octo      missing data sets of a mixture, with the commands to copy

Arguments in front choose sections (`packages`, `data`); without any, all are shown. The exit status is 0 if everything
requested exists and is readable, and 1 otherwise; extras that are not installed are listed, but only the core is
required.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vw2_robot.command_line import entry_points
from vw2_robot.data.sources.mixtures import find_set, mixture_weights
from vw2_robot.data.sources.openx import OpenXSource, copy_command
from vw2_robot.errors import install_command

from .data_report import ClipOptions, format_bytes, write_data_report
from .data_sets import DataSet, find_data_sets
from .packages import CORE, list_packages, missing_extras

SECTIONS = ("packages", "data")


@dataclass(frozen=True)
class DataOptions:
    """Where data sets are searched."""

    path: str | list[str] = "."
    """a folder or several; data sets are found in and below them"""
    depth: int = 4
    """how many levels of folders below `path`"""
    mixture: str | None = None
    """octo, openvla, videoworld2 or a yaml file, of which every data set must exist"""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.depth < 0:
            raise ValueError(f"data.depth={self.depth}, expected at least 0")

    @property
    def roots(self) -> list[Path]:
        """The folders to search."""
        return [Path(self.path)] if isinstance(self.path, str) else [Path(path) for path in self.path]


@dataclass(frozen=True)
class DoctorConfig:
    """Configuration of `vw2-doctor`."""

    sections: list[str] = field(default_factory=lambda: list(SECTIONS))
    """parts of the output: packages, data"""
    data: DataOptions = field(default_factory=DataOptions)
    report: str | None = None
    """file of the page with sample clips"""
    clips: ClipOptions = field(default_factory=ClipOptions)

    def __post_init__(self) -> None:
        """Check the values."""
        unknown = [section for section in self.sections if section not in SECTIONS]
        if unknown or not self.sections:
            raise ValueError(f"sections={self.sections}, expected some of {', '.join(SECTIONS)}")
        if self.report is not None and "data" not in self.sections:
            raise ValueError("report shows data sets: add the section data")


def run(config: DoctorConfig) -> None:
    """Print the requested sections; exit with status 1 if something is missing or damaged."""
    sound = True
    if "packages" in config.sections:
        packages = list_packages()
        missing = missing_extras(packages)
        print("packages")
        _print_table(
            [("extra", "package", "installed", "wanted", "")]
            + [(p.extra, p.name, p.found or "-", p.wanted, "" if p.fits else "!") for p in packages]
        )
        for extra in missing:
            print(f"  to get what {extra} needs: {install_command('' if extra == CORE else extra)}")
        print()
        sound = CORE not in missing
    if "data" in config.sections:
        sound = _show_data(config) and sound
    if not sound:
        raise SystemExit(1)


def _show_data(config: DoctorConfig) -> bool:
    """Print the data sets, and write the report if requested; return whether all are readable."""
    roots = config.data.roots
    data_sets = find_data_sets(roots, depth=config.data.depth)
    print(f"data sets in {', '.join(map(str, roots))}")
    if data_sets:
        rows = [("name", "format", "version", "episodes", "Hz", "size", "where")]
        for found in data_sets:
            splits = ", ".join(f"{name} {'?' if count is None else count}" for name, count in found.splits.items())
            rate = "-" if found.hz is None else f"{found.hz:g}"
            size = format_bytes(found.num_bytes)
            rows.append((found.name, found.format, found.version, splits or "-", rate, size, str(found.path)))
        _print_table(rows)
    else:
        print(f"  none, {config.data.depth} levels deep; give data.path=... the folder that holds them, or make one:")
        print("    vw2-record episodes=20 out=runs/calvin")
    # Problems and notes below the table, where there is room for whole messages.
    for data_set in data_sets:
        for problem in data_set.problems:
            _print_problem(data_set, problem)
        if data_set.note:
            print(f"  - {data_set.path}: {data_set.note}")
    sound = bool(data_sets) and not any(data_set.problems for data_set in data_sets)
    if config.data.mixture is not None:
        sound = _show_missing(config.data.mixture, str(roots[0])) and sound
    if config.report is not None:
        samples = write_data_report(data_sets, Path(config.report), config.clips)
        shown = sum(len(sample.clips) for sample in samples)
        print(f"\n{config.report}: {shown} clips of {sum(bool(sample.clips) for sample in samples)} data sets")
        # Problems that are already printed above are not repeated.
        for sample in samples:
            if sample.problem and sample.problem not in sample.data_set.problems:
                _print_problem(sample.data_set, sample.problem)
        sound = sound and not any(sample.problem for sample in samples)
    return sound


def _show_missing(mixture: str, root: str) -> bool:
    """Print the data sets of a mixture that are missing below `root`; return whether there are none."""
    # Of several conversions of the same recordings one is enough.
    recordings: dict[str, list[OpenXSource]] = {}
    for source in mixture_weights(mixture):
        recordings.setdefault(source.same_as or source.name, []).insert(0, source)
    missing = [same[-1] for same in recordings.values() if not any(find_set(source, root) for source in same)]
    print(f"\nmixture {mixture}: {len(recordings) - len(missing)} of {len(recordings)} data sets lie in {root}")
    if missing:
        print("  to copy the others:")
    for source in missing:
        print(f"    {copy_command(source, root)}")
    return not missing


def _print_problem(data_set: DataSet, problem: str) -> None:
    # Most messages begin with the path already.
    where = "" if str(data_set.path) in problem else f"{data_set.path}: "
    print(f"  ! {where}{problem}")


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    entry_points.doctor.main()

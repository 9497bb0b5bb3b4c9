"""The section of the report on latent actions: what `vw2-probe-latents` left, put in order for its template.

Reads `latent_report.json` and the images beside it, found anywhere below the given folders; nothing is measured here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from .curves import code_usage_panel, scatter_panel
from .inline_files import data_uri, lies_in
from .run_folders import labels
from .tables import number

FORMAT_VERSION = 1
FEATURES = {
    "codes_one_hot": "codes",
    "pixels_equal": "pixel difference, as wide",
    "untrained_codes": "codes of an untrained encoder",
    "random_codes": "random codes",
    "shuffled_codes": "shuffled codes",
}
SWAP = {
    "follows_donor": "the donor of the codes",
    "follows_own": "the clip itself",
    "follows_third": "a third clip",
    "unswapped": "itself, unswapped",
    "ceiling": "itself, true images",
}
NUISANCE = {
    "pixel_change": "change of the image",
    "to_actions": "distance to actions",
    "sensitivity": "trace in the code",
    "on_action": "effect on an action's code",
    "phantom_motion": "motion read from it",
}
IMAGES = {
    "swap": "A first and last, B first and last, A with the codes of B, A with its own codes",
    "neighbors": "a step (first, middle, last frame), then the three steps with the nearest codes",
    "nuisances": "a still frame, then the same after one step of moving, zooming, light, cut; last: the real step",
}


@dataclass(frozen=True)
class LatentReport:
    """One folder of `vw2-probe-latents`."""

    name: str
    path: Path
    content: dict[str, Any]


def read_latent_reports(runs: Sequence[str | Path]) -> list[LatentReport]:
    """All latent reports below the given folders, each once.

    Raises:
        InputError: one cannot be read, or another release wrote it.
    """
    found: dict[Path, LatentReport] = {}
    roots = [Path(run) for run in runs]
    for root, label in zip(roots, labels(roots), strict=True):
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            path = Path(folder)
            is_one = "latent_report.json" in files and lies_in(path, path / "latent_report.json")
            if is_one and path.resolve() not in found:
                found[path.resolve()] = _read((Path(label) / path.relative_to(root)).as_posix(), path)
    return list(found.values())


def _read(name: str, folder: Path) -> LatentReport:
    path = folder / "latent_report.json"
    content = with_new_keys(read_json(path, cure="run vw2-probe-latents again"))
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version!r}, this release reads {FORMAT_VERSION}; run vw2-probe-latents again"
        )
    return LatentReport(name, folder, content)


def latent_section(reports: Sequence[LatentReport], environment: Any) -> str:
    """The section as HTML, "" without a report; `environment` is jinja2's, over templates/."""
    if not reports:
        return ""
    facts = []
    for i, report in enumerate(reports):
        try:
            facts.append(_facts(report, ids=f"latents-{i}"))
        except (LookupError, TypeError, ValueError, AttributeError, StopIteration, ArithmeticError) as error:
            raise InputError(
                f"{report.path}/latent_report.json holds something else than vw2-probe-latents writes "
                f"({type(error).__name__}: {str(error)[:200]}); run vw2-probe-latents again"
            ) from error
    page: str = environment.get_template("latents.html.jinja").render(reports=facts)
    return page


def _facts(report: LatentReport, *, ids: str) -> dict[str, Any]:
    content = report.content
    points = content["map"]["points"]
    form = "umap" if "umap" in points else "pca"
    maps = [("direction of motion", "direction", content["map"]["directions"])]
    if len(content["map"]["sources"]) > 1:
        maps.append(("data set", "source", content["map"]["sources"]))
    return {
        "name": report.name,
        "facts": f"{content['checkpoint']}, {content['codes_per_step']} codes of levels {content['levels']} a step of "
        f"{content['stride']} frames; " + ", ".join(f"{d['name']}: {d['steps']:,} steps" for d in content["data"]),
        "probes": [
            _probe(content, name, kind) for name, kinds in content["probe"]["in_scene"].items() for kind in kinds
        ],
        "transfers": [_transfer(kind, tables) for kind, tables in content["probe"]["transfer"].items()],
        "swaps": [_swap(entry) for entry in content["swap"]],
        "nuisances": _nuisances(content["nuisance"]),
        "panels": [
            scatter_panel(f"{form.upper()}, by {words}", points[form], points[key], names, ids=f"{ids}-{key}")
            for words, key, names in maps
        ],
        "silhouettes": {name: value for name, value in content["map"]["silhouette"].items() if value is not None},
        "neighbors": _neighbors(content["map"]["neighbors"]),
        "codes": code_usage_panel(content["codes"], ids=f"{ids}-codes"),
        "images": [
            {"words": words, "uri": data_uri(path, "image/png")}
            for name, words in IMAGES.items()
            if lies_in(report.path, path := report.path / f"{name}.png")
        ],
    }


def bar(words: str, entry: Mapping[str, Any], key: str, color: int) -> dict[str, Any]:
    """A bar on [0, 1]; values and intervals beyond it are drawn at its ends and written as they are."""
    value, (low, high) = entry[key], entry["ci95"]
    ends = (0.0 if v is None else min(1.0, max(0.0, v)) for v in (value, low, high))
    share, left, right = ends
    return {"words": words, "text": cell(entry, key), "share": share, "low": left, "high": right, "color": color}


def cell(entry: Mapping[str, Any], key: str) -> str:
    """A number and its interval, "–" where there is none."""
    if entry[key] is None:
        return "–"
    low, high = entry["ci95"]
    return number(entry[key]) if low is None else f"{number(entry[key])} [{number(low)}, {number(high)}]"


def _probe(content: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    scores = content["probe"]["in_scene"][name][kind]
    dimensions = [key for key in scores["codes_one_hot"]["linear"] if key != "all"]
    widths = content["probe"]["widths"]
    return {
        "title": f"{name}: {'actions commanded' if kind == 'commanded' else 'how the hand moved'}",
        "bars": [
            bar(words, scores[feature]["linear"]["translation"], "r2", color)
            for color, (feature, words) in enumerate(FEATURES.items(), 1)
        ],
        "head": dimensions,
        "rows": [
            [f"{words} ({widths[feature]}), {form}", *(cell(scores[feature][form][d], "r2") for d in dimensions)]
            for feature, words in FEATURES.items()
            for form in scores[feature]
        ],
    }


def _transfer(kind: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    goals = list(next(iter(tables["codes_one_hot"].values())))
    rows = [
        [FEATURES[feature], source, *(cell(row[goal]["translation"], "r2") if goal in row else "–" for goal in goals)]
        for feature, sources in tables.items()
        if feature in FEATURES
        for source, row in sources.items()
    ]
    title = "actions commanded" if kind == "commanded" else "how the hand moved"
    return {"title": title, "head": ["fitted in", *goals], "rows": rows}


def _swap(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": f"first frames of {entry['first']}, codes of {entry['donor']} ({entry['pairs']} pairs)",
        "bars": [
            bar(words, entry[key]["mean"], "correlation", color) for color, (key, words) in enumerate(SWAP.items(), 1)
        ],
    }


def _nuisances(nuisance: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [name, kind.replace("_", " "), *(cell(entry[key], "ratio") if key in entry else "–" for key in NUISANCE)]
        for name, found in nuisance.items()
        for kind, entry in found["kinds"].items()
    ]
    return {"head": list(NUISANCE.values()), "rows": rows}


def _neighbors(neighbors: Mapping[str, Any]) -> list[list[str]]:
    return [
        [{"code": "codes", "pixels": "pixel difference"}[feature], known, asked]
        + [cell(entry[key], "ratio") for key in ("accuracy", "commonest")]
        for feature, sources in neighbors.items()
        for known, row in sources.items()
        for asked, entry in row.items()
    ]

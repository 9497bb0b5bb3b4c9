"""The report's section on latent actions: results of `vw2-probe-latents`, brought into the form of its template.

Reads `latent_report.json` and the images beside it, found anywhere below the given folders. Nothing is measured here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

from .curves import code_usage_panel, explained_panel, scatter_panel
from .inline_files import data_uri, lies_in
from .run_folders import labels
from .tables import number

FORMAT_VERSION = 1
FEATURES = {
    "codes_one_hot": "codes",
    "pixels_equal": "pixel difference, same width",
    "pixels_quantized": "pixel difference, quantized as codes are",
    "untrained_codes": "codes of an untrained encoder",
    "random_codes": "random codes",
    "shuffled_codes": "shuffled codes",
}
SWAP = {
    "follows_donor": "the donor of the codes",
    "follows_own": "the clip itself",
    "follows_third": "a third clip",
    "unswapped": "itself, from its codes",
    "ceiling": "itself, true images",
}
NUISANCE = {
    "pixel_change": "change of the image",
    "to_actions": "distance to actions",
    "sensitivity": "sensitivity of the code",
    "on_action": "effect on an action's code",
    "phantom_motion": "motion predicted from its code",
}
IMAGES = {
    "swap": "A first and last, B first and last, A with the codes of B, A with the codes of A",
    "neighbors": "a step (first, middle, last frame), then the three steps with the nearest codes",
    "nuisances": "a still frame, then the same after one step of moving, zooming, light, cut; last: the real step",
}


@dataclass(frozen=True)
class LatentReport:
    """One folder of `vw2-probe-latents`, or of another program whose report is a json file."""

    name: str
    path: Path
    content: dict[str, Any]


def read_latent_reports(runs: Sequence[str | Path]) -> list[LatentReport]:
    """Return all latent reports below the given folders, each once.

    Args:
        runs: Folders; reports are found anywhere below them.

    Raises:
        InputError: One cannot be read, or another release wrote it.
    """
    return read_reports(runs, "latent_report.json", program="vw2-probe-latents")


def read_reports(runs: Sequence[str | Path], file_name: str, *, program: str) -> list[LatentReport]:
    """Return all files of that name below the given folders, each once.

    Args:
        runs: Folders; reports are found anywhere below them.
        file_name: Of the reports.
        program: That writes them.

    Raises:
        InputError: One cannot be read, or another release wrote it.
    """
    found: dict[Path, LatentReport] = {}
    roots = [Path(run) for run in runs]
    for root, label in zip(roots, labels(roots), strict=True):
        for folder, below, files in os.walk(root):
            below[:] = sorted(name for name in below if not name.startswith("."))
            path = Path(folder)
            file = path / file_name
            if file.name not in files or not lies_in(path, file) or path.resolve() in found:
                continue
            # Without `aliases.with_new_keys`: "steps" are latent steps here, not those of a training loop.
            content = read_json(file, cure=f"run {program} again")
            version = content.get("format_version")
            if version != FORMAT_VERSION:
                raise InputError(
                    f"{file} has format_version {version!r}, this release reads {FORMAT_VERSION}; run {program} again"
                )
            name = (Path(label) / path.relative_to(root)).as_posix()
            found[path.resolve()] = LatentReport(name, path, content)
    return list(found.values())


def latent_section(reports: Sequence[LatentReport], environment: Any) -> str:
    """Return the section as HTML, "" without a report.

    Args:
        reports: The latent reports.
        environment: jinja2's environment over templates/.

    Raises:
        InputError: A report lacks something, or holds a value of another type.
    """
    if not reports:
        return ""
    facts = []
    for i, report in enumerate(reports):
        # The report has dozens of nested keys. Instead of checking each beforehand, any error of reading one is taken
        # as damage of the file.
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
    """Return what the template needs of one report; `ids`: prefix of ids in its figures."""
    content = report.content
    points = content["map"]["points"]
    # UMAP needs an extra package; the probe falls back to PCA without it.
    projection = "umap" if "umap" in points else "pca"
    # With a single data set a map by data set has one color only.
    maps = [("direction of motion", "direction", content["map"]["directions"])]
    if len(content["map"]["sources"]) > 1:
        maps.append(("data set", "source", content["map"]["sources"]))
    nuisance_rows = [
        [name, kind.replace("_", " "), *(cell(entry[key], "ratio") if key in entry else "–" for key in NUISANCE)]
        for name, found in content["nuisance"].items()
        for kind, entry in found["kinds"].items()
    ]
    return {
        "name": report.name,
        "facts": f"{content['checkpoint']}, {content['codes_per_step']} codes of levels {content['levels']} a step of "
        f"{content['stride']} frames; " + ", ".join(f"{d['name']}: {d['steps']:,} steps" for d in content["data"]),
        "probes": [
            _probe(content, name, kind) for name, kinds in content["probe"]["in_scene"].items() for kind in kinds
        ],
        "domains": _domains(content["domains"]) if content.get("domains") else None,
        "explained": [
            explained_panel(f"{name}: {values['clips']} clips", values, ids=f"{ids}-explained-{number}")
            for number, (name, values) in enumerate(content.get("video_model", {}).items())
        ],
        "shuffle_ratios": {
            name: values["shuffle_ratio_no_control"]
            for name, values in content.get("video_model", {}).items()
            if values["shuffle_ratio_no_control"] is not None
        },
        "before": _before(content["before"]) if "before" in content else None,
        "transfers": [_transfer(kind, tables) for kind, tables in content["probe"]["transfer"].items()],
        "swaps": [_swap(entry) for entry in content["swap"]],
        "nuisances": {"head": list(NUISANCE.values()), "rows": nuisance_rows},
        "panels": [
            scatter_panel(
                f"{projection.upper()}, by {label}", points[projection], points[key], names, ids=f"{ids}-{key}"
            )
            for label, key, names in maps
        ],
        # None: all points have the same label, so there is no silhouette.
        "silhouettes": {name: value for name, value in content["map"]["silhouette"].items() if value is not None},
        "neighbors": _neighbors(content["map"]["neighbors"]),
        "codes": code_usage_panel(content["codes"], ids=f"{ids}-codes"),
        "images": [
            {"caption": caption, "uri": data_uri(path, "image/png")}
            for name, caption in IMAGES.items()
            if lies_in(report.path, path := report.path / f"{name}.png")
        ],
    }


def bar(label: str, entry: Mapping[str, Any], key: str, color: int) -> dict[str, Any]:
    """Return a bar on [0, 1]; values beyond are drawn at its ends, the text has the true ones.

    Args:
        label: Text beside the bar.
        entry: `key` and "ci95".
        key: Key of the value, such as "r2".
        color: Number of the page's color.
    """
    value = entry[key]
    low, high = entry["ci95"]
    # R² and correlations can be negative; bars have no place for that.
    share, left, right = (0.0 if v is None else min(1.0, max(0.0, v)) for v in (value, low, high))
    return {"label": label, "text": cell(entry, key), "share": share, "low": left, "high": right, "color": color}


def cell(entry: Mapping[str, Any], key: str) -> str:
    """Return a number with its interval as text, "–" where there is none."""
    if entry[key] is None:
        return "–"
    low, high = entry["ci95"]
    return number(entry[key]) if low is None else f"{number(entry[key])} [{number(low)}, {number(high)}]"


def _probe(content: Mapping[str, Any], name: str, kind: str) -> dict[str, Any]:
    """Return bars and table of the probes in one data set; `kind`: which motion the probe predicts."""
    scores = content["probe"]["in_scene"][name][kind]
    dimensions = [key for key in scores["codes_one_hot"]["linear"] if key != "all"]
    widths = content["probe"]["widths"]
    return {
        "title": f"{name}: {_motion(kind)}",
        "bars": [
            bar(label, scores[feature]["linear"]["translation"], "r2", color)
            for color, (feature, label) in enumerate(FEATURES.items(), 1)
            if feature in scores
        ],
        "head": dimensions,
        "rows": [
            [f"{label} ({widths[feature]}), {probe}", *(cell(scores[feature][probe][d], "r2") for d in dimensions)]
            for feature, label in FEATURES.items()
            if feature in scores  # the oldest reports have fewer
            for probe in scores[feature]
        ],
    }


def _motion(kind: str) -> str:
    return "commanded actions" if kind == "commanded" else "motion of the end effector"


def _transfer(kind: str, tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of probes fitted in one data set (rows) and tested in another (columns)."""
    # Every row has the same targets, or a part of them where a data set lacks some labels.
    targets = list(next(iter(tables["codes_one_hot"].values())))
    rows = [
        [FEATURES[feature], source, *(cell(row[name]["translation"], "r2") if name in row else "–" for name in targets)]
        for feature, sources in tables.items()
        if feature in FEATURES
        for source, row in sources.items()
    ]
    return {"title": _motion(kind), "head": ["fitted in", *targets], "rows": rows}


def _domains(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return bars of how often the data set is read from a step, and the table of overlaps of histograms."""
    colors = {feature: color for color, feature in enumerate(FEATURES, 1)}
    return {
        "chance": found["chance"],
        "bars": [
            bar(FEATURES[feature], entry, "ratio", colors[feature]) for feature, entry in found["accuracy"].items()
        ],
        "head": ["one half of", *found["overlap"]["codes_one_hot"]],
        "rows": [
            [FEATURES[feature], first, *map(number, row.values())]
            for feature, rows in found["overlap"].items()
            for first, row in rows.items()
        ],
    }


def _before(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of what has changed since another checkpoint, and a line on nuisances and perplexity."""
    columns = ("translation", "rotation", "all")
    now = found["nuisance"]["now"]
    changed = [("perplexity", *found["perplexity"].values())]
    changed += [
        (f"{name}, {NUISANCE[measure]}", value, now[name][measure])
        for name, measures in found["nuisance"]["before"].items()
        for measure, value in measures.items()
    ]
    return {
        "dldm": found["dldm"],
        "head": list(columns),
        "rows": [
            [name, _motion(kind), *(cell(scores[c], "difference") if c in scores else "–" for c in columns)]
            for name, kinds in found["r2"].items()
            for kind, scores in kinds.items()
        ],
        "changed": "; ".join(
            f"{what} {' → '.join('–' if value is None else number(value) for value in values)}"
            for what, *values in changed
        ),
    }


def _swap(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bars of the swap test between two data sets."""
    if "own_codes" in entry:  # the key's name in older releases
        entry = {**entry, "unswapped": entry["own_codes"]}
    return {
        "title": f"first frames of {entry['first']}, codes of {entry['donor']} ({entry['pairs']} pairs)",
        "bars": [
            bar(label, entry[key]["mean"], "correlation", color) for color, (key, label) in enumerate(SWAP.items(), 1)
        ],
    }


def _neighbors(neighbors: Mapping[str, Any]) -> list[list[str]]:
    """Return the rows of the table of nearest neighbors, by feature, reference data set and query data set."""
    return [
        [{"code": "codes", "pixels": "pixel difference"}[feature], reference, query]
        + [cell(entry[key], "ratio") for key in ("accuracy", "commonest")]
        for feature, sources in neighbors.items()
        for reference, row in sources.items()
        for query, entry in row.items()
    ]

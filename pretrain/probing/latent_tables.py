"""The main numbers of a latent report as markdown tables, each with its 95 % interval over demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vw2_robot.contracts import ACTION_NAMES

from ..diagnostics.explained_change import TIMES
from .video_model import SHUFFLE_RATIO

FEATURES = {
    "codes_one_hot": "codes, one-hot FSQ dimensions",
    "code_values": "codes, values",
    "pixels_equal": "pixel difference, same width",
    "pixels_quantized": "pixel difference, quantized as codes are",
    "pixels_wide": "pixel difference, wider",
    "untrained_codes": "codes of an untrained encoder",
    "random_codes": "random codes",
    "shuffled_codes": "shuffled codes",
}
"""What `probe` compares, in the order of the tables."""
SWAP = {
    "follows_donor": "donor of the codes",
    "follows_own": "the clip itself",
    "follows_third": "a third clip",
    "unswapped": "itself, from its codes",
    "ceiling": "itself, true images",
}
"""Whose motion the swap test compares with, in the order of the table."""


def latent_tables(report: Mapping[str, Any]) -> str:
    """Return all tables of a report."""
    parts = [data_table(report["data"])]
    parts += [probe_table(report, name, kind) for name, kinds in report["probe"]["in_scene"].items() for kind in kinds]
    units = {entry["units"] for entry in report["data"]}
    parts += [transfer_table(kind, found, units=len(units)) for kind, found in report["probe"]["transfer"].items()]
    if report["domains"] is not None:
        parts.append(domain_table(report["domains"]))
    if "video_model" in report:
        parts.append(video_model_table(report["video_model"]))
    parts += [swap_table(report["swap"]), nuisance_table(report["nuisance"]), map_table(report["map"])]
    if "before" in report:
        parts.append(before_tables(report["before"]))
    codes = report["codes"]
    parts.append(f"Codes: {codes['used']} used, {codes['dead']} never, perplexity {codes['perplexity']:.1f}.\n")
    return "\n".join(parts)


def video_model_table(found: Mapping[str, Mapping[str, float | None]]) -> str:
    """Return the table of explained change: right, shuffled and null codes, the decoder, and the shuffle ratio."""
    body = [
        [name, label, *(value(entry[f"explained_change{codes}_t{t}"]) for t in TIMES)]
        + ([value(entry["explained_change_decoder"]), value(entry[SHUFFLE_RATIO])] if not codes else ["–", "–"])
        for name, entry in found.items()
        for codes, label in {"": "right", "_shuffled": "of another clip", "_null": "null"}.items()
    ]
    head = ["data set", "codes", *(f"t = {t}" for t in TIMES), "decoder alone", "shuffle ratio"]
    return (
        "Explained change: the share of a clip's motion that the video model renders from frame 0 and codes, without "
        f"control video, on test clips (0: a still image, 1: the true clip):\n\n{table(head, body)}"
    )


def domain_table(found: Mapping[str, Any]) -> str:
    """Return the table of the domain probe, and that of the overlaps of code histograms."""
    accuracy = [[FEATURES[feature], cell(entry, "ratio")] for feature, entry in found["accuracy"].items()]
    overlap = [
        [FEATURES[feature], first, *map(value, row.values())]
        for feature, rows in found["overlap"].items()
        for first, row in rows.items()
    ]
    names = list(found["overlap"]["codes_one_hot"])
    return (
        f"Data set read from a step by a linear probe, share of {found['rows']} balanced test steps (chance "
        f"{found['chance']:.2f}):\n\n{table(['features', 'accuracy'], accuracy)}\n"
        "Overlap of the code histograms, halves of the demonstrations (the diagonal is one data set with itself):\n\n"
        f"{table(['features', 'one half of', *names], overlap)}"
    )


def before_tables(found: Mapping[str, Any]) -> str:
    """Return the table of what has changed in R2, and one line for each other measure."""
    columns = ("translation", "rotation", "all")
    body = [
        [name, kind, *(cell(scores[column], "difference") if column in scores else "–" for column in columns)]
        for name, kinds in found["r2"].items()
        for kind, scores in kinds.items()
    ]
    lines = [
        f"{name}, {measure.replace('_', ' ')} (mean of the nuisances): {value(before)} before, "
        f"{value(found['nuisance']['now'][name][measure])} now.\n"
        for name, measures in found["nuisance"]["before"].items()
        for measure, before in measures.items()
    ]
    perplexity = found["perplexity"]
    lines.append(f"Perplexity: {perplexity['before']:.1f} before, {perplexity['now']:.1f} now.\n")
    return (
        f"Difference of R2 (codes, one-hot, linear) to {found['dldm']}:\n\n"
        f"{table(['data set', 'motion', *columns], body)}\n{''.join(lines)}"
    )


def value(number: float | None) -> str:
    """Return a number as text, "–" where there is none."""
    return "–" if number is None else f"{number:.2f}"


def cell(entry: Mapping[str, Any], key: str) -> str:
    """Return a number with its interval as text, "–" where there is none."""
    if entry[key] is None:
        return "–"
    low, high = entry["ci95"]
    return f"{entry[key]:.2f}" if low is None else f"{entry[key]:.2f} [{low:.2f}, {high:.2f}]"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Return a markdown table."""
    return "".join("| " + " | ".join(line) + " |\n" for line in [head, ["---"] * len(head), *body])


def data_table(sets: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of data sets, one for each list of actions: sizes, units, mean and deviation of the actions."""
    alike: dict[tuple[str, ...], list[list[str]]] = {}
    for entry in sets:
        mean_and_std = zip(entry["actions"]["mean"], entry["actions"]["std"], strict=True)
        cells = [entry["name"], str(entry["demonstrations"]), entry["units"]]
        cells += [f"{m:.3f} ± {s:.3f}" for m, s in mean_and_std]
        # Reports of earlier releases know no other names.
        alike.setdefault(tuple(entry.get("action_names", ACTION_NAMES)), []).append(cells)
    tables = (table(["data set", "demonstrations", "units", *names], body) for names, body in alike.items())
    return "Actions as they are stored, mean ± standard deviation:\n\n" + "\n".join(tables)


def probe_table(report: Mapping[str, Any], name: str, kind: str) -> str:
    """Return the table of R2 within one data set, by feature and by dimension.

    Args:
        report: the whole latent report; its entry "probe" is read.
        name: of the data set.
        kind: the motion that is predicted, "commanded" or "moved".

    Returns:
        Markdown: a caption and the table.
    """
    scores = report["probe"]["in_scene"][name][kind]
    columns = list(scores["codes_one_hot"]["linear"])
    widths = report["probe"]["widths"]
    body = [
        [f"{label} ({widths[feature]})", form, *(cell(scores[feature][form][column], "r2") for column in columns)]
        for feature, label in FEATURES.items()
        for form in scores[feature]
    ]
    caption = f"R2 of the motion ({kind}) of a step, {name}, on {report['probe']['rows'][name]['test']} steps:\n\n"
    return caption + table(["features (width)", "probe", *columns], body)


def transfer_table(kind: str, tables: Mapping[str, Any], *, units: int) -> str:
    """Return the table of R2 across data sets.

    Args:
        kind: the motion that is predicted, "commanded" or "moved".
        tables: feature -> data set fitted in -> data set evaluated in -> scores.
        units: number of different units among the data sets; if not 1, the caption names the standardization.

    Returns:
        Markdown: a caption and the table; "–" where a pair of data sets has no score.
    """
    goals = list(next(iter(tables["codes_one_hot"].values())))
    body = [
        [FEATURES[feature], source, *(cell(row[goal]["translation"], "r2") if goal in row else "–" for goal in goals)]
        for feature, sources in tables.items()
        for source, row in sources.items()
    ]
    apart = "" if units == 1 else "; where units differ, each data set's translation is standardized"
    caption = f"R2 of the translation ({kind}), fitted in one data set (rows), evaluated in another{apart}:\n\n"
    return caption + table(["features", "fitted in", *goals], body)


def swap_table(swaps: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of the swap test: correlation with each motion."""
    body = [
        [f"{s['first']}, codes of {s['donor']}", str(s["pairs"]), *(cell(s[c]["mean"], "correlation") for c in SWAP)]
        for s in swaps
    ]
    head = ["first frames", "pairs", *SWAP.values()]
    return "Swap test, correlation of the motion estimated from the decoded clip:\n\n" + table(head, body)


def nuisance_table(nuisance: Mapping[str, Any]) -> str:
    """Return the table of nuisances: each ratio by data set and kind."""
    columns = ("pixel_change", "to_actions", "sensitivity", "on_action", "phantom_motion")
    body = [
        [name, kind, *(cell(entry[c], "ratio") if c in entry else "–" for c in columns)]
        for name, found in nuisance.items()
        for kind, entry in found["kinds"].items()
    ]
    return "Only camera or light change (ratios to actions):\n\n" + table(
        ["data set", "kind", *(c.replace("_", " ") for c in columns)], body
    )


def map_table(found: Mapping[str, Any]) -> str:
    """Return the table of nearest neighbors: how often their majority moves in the same direction."""
    body = [
        [feature, known, query, cell(entry["accuracy"], "ratio"), cell(entry["commonest"], "ratio")]
        for feature, sources in found["neighbors"].items()
        for known, row in sources.items()
        for query, entry in row.items()
    ]
    scores = {name: "undefined" if value is None else f"{value:.2f}" for name, value in found["silhouette"].items()}
    silhouettes = ", ".join(f"by {name} {score}" for name, score in scores.items())
    return f"Direction by the nearest neighbors' majority (silhouette score {silhouettes}):\n\n" + table(
        ["features", "neighbors in", "queries in", "accuracy", "most frequent class"], body
    )

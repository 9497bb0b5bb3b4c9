"""The section is rendered from a report as the probe writes it; numbers here are made up."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from vw2_robot.errors import InputError
from vw2_robot.rollouts.report.latent_section import bar, cell, read_latent_reports
from vw2_robot.rollouts.report.report import write_report


def number(value, key):
    return {key: value, "ci95": [value - 0.1, value + 0.1]}


def report(**changes):
    names = ("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper", "translation", "rotation", "all")
    scores = {name: number(0.5, "r2") for name in names} | {"gripper": {"r2": None, "ci95": [None, None]}}
    features = ("codes_one_hot", "code_values", "pixels_equal", "untrained_codes", "random_codes", "shuffled_codes")
    table = {feature: {"linear": dict(scores)} for feature in features}
    table["codes_one_hot"]["linear"]["translation"] = number(0.81, "r2")
    table["random_codes"]["linear"]["translation"] = number(-0.03, "r2")
    ratios = ("pixel_change", "to_actions", "sensitivity", "phantom_motion")
    return {
        "format_version": 1,
        "checkpoint": "step_9",
        "codes_per_step": 4,
        "levels": [8, 5, 5, 5],
        "stride": 4,
        "data": [{"name": "A <1>", "steps": 1234}, {"name": "B", "steps": 10}],
        "probe": {
            "widths": dict.fromkeys(features, 92),
            "in_scene": {"A <1>": {"commanded": table}},
            "transfer": {
                "commanded": {"codes_one_hot": {"A <1>": {"A <1>": scores, "B": scores}, "others": {"B": scores}}}
            },
        },
        "swap": [
            {
                "first": "A <1>",
                "donor": "B",
                "pairs": 77,
                **{
                    key: {"mean": number(value, "correlation")}
                    for key, value in (
                        ("follows_donor", 0.72),
                        ("follows_own", 0.01),
                        ("follows_third", -0.02),
                        ("unswapped", 0.7),
                        ("ceiling", 0.9),
                    )
                },
            }
        ],
        "nuisance": {"B": {"kinds": {"camera_cut": {key: number(0.4, "ratio") for key in ratios}}}},
        "map": {
            "directions": ["+x", "-x", "+y", "-y", "+z", "-z"],
            "sources": ["A <1>", "B"],
            "points": {"direction": [0, 1, 5], "source": [0, 1, 1], "pca": [[0, 0], [1, 1], [2, 0]]},
            "silhouette": {"direction": 0.31, "source": None},
            "neighbors": {
                "code": {"A <1>": {"B": {"accuracy": number(0.66, "ratio"), "commonest": number(0.2, "ratio")}}}
            },
        },
        "codes": {"histogram": [3, 0, 2], "by_slot": [[3, 0, 2]], "used": 2, "dead": 1, "perplexity": 1.9},
        **changes,
    }


def write(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "latent_report.json").write_text(json.dumps(report(**changes)))
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "swap.png")
    return folder


def test_a_latent_report_alone_is_a_page(tmp_path):
    write(tmp_path / "run" / "latent_report")
    page = write_report([tmp_path / "run"], tmp_path / "page").read_text()
    assert 'href="#latents"' in page
    section = page[page.index('<section id="latents">') :]
    text = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    for expected in (
        "run/latent_report",
        "0.81 [0.71, 0.91]",
        "0.72 [0.62, 0.82]",
        "−0.03",
        "77 pairs",
        "0.66",
        "1,234",
    ):
        assert expected in text, expected
    assert "A &lt;1&gt;" in section
    assert "A <1>" not in section
    assert section.count("data:image/png;base64,") == 1
    assert section.count("<svg") == 3  # two maps and the use of the codes
    assert "None" not in text
    assert "by source" not in text


def test_what_the_video_model_reads_and_what_has_changed_are_shown_where_the_report_has_them(tmp_path):
    explained = {f"explained_change{codes}_t{t}": 0.1 for codes in ("", "_shuffled", "_null") for t in (0.8, 0.9, 0.97)}
    explained |= {"explained_change_t0.97": 0.61, "explained_change_shuffled_t0.97": None}
    video = {"clips": 48, "shuffle_ratio_no_control": 3.14, "explained_change_decoder": 0.76, **explained}
    accuracy = {f: number(0.58, "ratio") for f in ("codes_one_hot", "pixels_quantized", "pixels_equal")}
    overlap = {"codes_one_hot": {"A <1>": {"A <1>": 0.9, "B": 0.43}, "B": {"A <1>": 0.44, "B": 0.91}}}
    scores = {"translation": number(0.07, "difference"), "all": number(0.03, "difference")}
    nuisance = {"B": {"on_action": 0.8, "sensitivity": None}}
    write(
        tmp_path / "run",
        video_model={"A <1>": video},
        domains={"chance": 0.5, "rows": 90, "accuracy": accuracy, "overlap": overlap},
        before={
            "dldm": "runs/x/step_5",
            "r2": {"A <1>": {"moved": scores}},
            "nuisance": {"before": nuisance, "now": {"B": {"on_action": 0.7, "sensitivity": 0.6}}},
            "perplexity": {"before": 431.0, "now": 333.0},
        },
    )
    page = write_report([tmp_path / "run"], tmp_path / "page").read_text()
    section = page[page.index('<section id="latents">') :]
    text = " ".join(re.sub(r"<[^>]+>", " ", section).split())
    for expected in (
        "right codes 0.61",
        "those of another clip –",
        "A &lt;1&gt; 3.14",
        "48 clips",
        "chance is 0.50",
        "0.58 [0.48, 0.68]",
        "0.43",
        "Change since runs/x/step_5",
        "0.07 [−0.03, 0.17]",
        "perplexity 431.00 → 333.00",
        "effect on an action’s code 0.80 → 0.70".replace("’", "&#39;"),
        "– → 0.60",
    ):
        assert expected in text, expected
    assert section.count("<svg") == 4


def test_a_page_without_latent_reports_has_no_such_section(tmp_path):
    stage = tmp_path / "run" / "dldm"
    stage.mkdir(parents=True)
    (stage / "metrics.jsonl").write_text('{"step": 1, "dldm/loss": 1.0}\n')
    page = write_report([tmp_path / "run"], tmp_path / "page").read_text()
    assert "latents" not in page


def test_reports_are_found_below_folders_and_each_once(tmp_path):
    write(tmp_path / "run" / "a" / "latent_report")
    write(tmp_path / "run" / "b" / "latent_report")
    found = read_latent_reports([tmp_path / "run", tmp_path / "run" / "a"])
    assert [entry.name for entry in found] == ["run/a/latent_report", "run/b/latent_report"]


def test_another_version_and_damage_are_refused(tmp_path):
    write(tmp_path / "new", format_version=99)
    with pytest.raises(InputError, match="format_version 99"):
        read_latent_reports([tmp_path / "new"])
    (tmp_path / "new" / "latent_report.json").write_text("{")
    with pytest.raises(InputError, match="no valid JSON"):
        read_latent_reports([tmp_path / "new"])


def test_bars_stay_within_the_track_and_have_the_true_number():
    one = bar("x", {"r2": -0.4, "ci95": [-0.9, 1.7]}, "r2", 1)
    assert (one["share"], one["low"], one["high"]) == (0.0, 0.0, 1.0)
    assert one["text"] == "−0.40 [−0.90, 1.70]"
    nothing = {"r2": None, "ci95": [None, None]}
    assert cell(nothing, "r2") == bar("x", nothing, "r2", 1)["text"] == "–"

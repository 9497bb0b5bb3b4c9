"""The gate on reports that pass, with one measure of one seed spoiled at a time."""

from __future__ import annotations

import json

import pytest

from vw2_robot.errors import InputError
from vw2_robot.pretrain.probing.config import GateLatentsConfig, GateThresholds
from vw2_robot.pretrain.probing.gate import gate, main

COLUMNS = {"x": 0.6, "y": 0.6, "z": 0.6, "translation": 0.6, "roll": 0.4, "pitch": 0.2, "yaw": 0.2, "opening": 0.2}


def report(seed):
    """Data set `a` was seen in training; of `b`, which was not, the video model explains less."""

    def in_scene(less):
        return {"linear": {name: {"r2": r2 - less} for name, r2 in COLUMNS.items()}}

    video = {"explained_change_t0.97": 0.6, "explained_change_decoder": 0.7, "shuffle_ratio_no_control": 3.0}
    probes = {"moved": {"codes_one_hot": in_scene(0.0), "pixels_quantized": in_scene(0.05)}}
    accuracy = {feature: {"ratio": 0.7} for feature in ("codes_one_hot", "pixels_quantized", "pixels_equal")}
    # Through JSON: nothing is shared between data sets.
    return json.loads(
        json.dumps(
            {
                "encoder_hash": f"seed {seed}",
                "data": [{"name": "a"}, {"name": "b"}],
                "probe": {"in_scene": {"a": probes, "b": probes}},
                "domains": {"chance": 0.5, "accuracy": accuracy},
                "video_model": {"a": video, "b": {**video, "explained_change_t0.97": 0.49}},
            }
        )
    )


def write(root, reports):
    paths = []
    for number, content in enumerate(reports):
        folder = root / f"seed_{number}"
        folder.mkdir()
        (folder / "latent_report.json").write_text(json.dumps(content))
        paths.append(str(folder))
    return paths


def spoiled(place, value):
    """Three reports; the second one has another value at that place."""
    reports = [report(seed) for seed in range(3)]
    *path, last = place.split("/")
    entry = reports[1]
    for key in path:
        entry = entry[key]
    entry[last] = value
    return reports


@pytest.mark.parametrize(
    ("measure", "place", "value"),
    [
        ("explained change", "video_model/a/explained_change_t0.97", 0.49),
        ("explained change over the decoder's", "video_model/a/explained_change_decoder", 0.9),
        ("shuffle ratio", "video_model/a/shuffle_ratio_no_control", 1.9),
        ("R2 translation", "probe/in_scene/a/moved/codes_one_hot/linear/translation/r2", 0.49),
        ("R2 roll", "probe/in_scene/a/moved/codes_one_hot/linear/roll/r2", 0.29),
        ("R2 pitch", "probe/in_scene/a/moved/codes_one_hot/linear/pitch/r2", 0.09),
        ("R2 yaw", "probe/in_scene/a/moved/codes_one_hot/linear/yaw/r2", -0.1),
        ("R2 gripper", "probe/in_scene/a/moved/codes_one_hot/linear/opening/r2", None),
        ("R2 above quantized pixel differences", "probe/in_scene/a/moved/pixels_quantized/linear/x/r2", 1.0),
    ],
)
def test_each_measure_fails_by_itself_on_the_seed_that_misses_it(measure, place, value):
    checks = gate(spoiled(place, value), GateThresholds(), unseen=["b"])
    failed = [(check.measure, check.data_set, check.passed) for check in checks if not all(check.passed)]
    assert failed == [(measure, "a", [True, False, True])]


def test_a_column_far_below_zero_counts_as_zero_in_the_mean():
    *_, check = gate(spoiled("probe/in_scene/b/moved/pixels_quantized/linear/pitch/r2", -10.0), GateThresholds())
    assert (check.measure, check.data_set) == ("R2 above quantized pixel differences", "b")
    assert check.values == pytest.approx([0.05, 0.05 + 0.15 / 7, 0.05])


def test_the_exit_status_and_the_table_state_whether_all_seeds_pass(tmp_path, capsys):
    paths = write(tmp_path, [report(seed) for seed in range(3)])
    main(GateLatentsConfig(reports=paths, unseen=["b"]))
    assert "all 18 checks pass on every seed" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        main(GateLatentsConfig(reports=paths))  # 0.49 is too little for a data set that was seen
    assert stopped.value.code == 1
    printed = capsys.readouterr().out
    assert "| explained change | b | >= 0.5 | 0.49 FAIL | 0.49 FAIL | 0.49 FAIL |" in printed
    assert "1 of 18 checks FAIL" in printed
    assert "codes, one-hot FSQ dimensions: 0.70, 0.70, 0.70 (chance 0.50)" in printed


def test_a_column_that_pixel_differences_predict_better_is_named_and_not_judged(tmp_path, capsys):
    reports = spoiled("probe/in_scene/a/moved/pixels_quantized/linear/roll/r2", 0.45)
    main(GateLatentsConfig(reports=write(tmp_path, reports), unseen=["b"]))
    assert "a: quantized pixel differences predict roll better on 1 of 3 seeds" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_hash": "seed 0"}, "same dLDM as another"),
        ({"data": [{"name": "a"}]}, "probe the same ones"),
        ({"video_model": None}, "lacks video_model"),
    ],
)
def test_reports_that_cannot_be_compared_are_refused(tmp_path, changes, message):
    second = {key: value for key, value in (report(1) | changes).items() if value is not None}
    with pytest.raises(InputError, match=message):
        main(GateLatentsConfig(reports=write(tmp_path, [report(0), second, report(2)])))
    with pytest.raises(ValueError, match="expected at least 3"):
        GateLatentsConfig(reports=["a", "b"])


def test_an_unseen_data_set_must_be_in_the_reports(tmp_path):
    with pytest.raises(InputError, match=r"unseen=\['c'\]"):
        main(GateLatentsConfig(reports=write(tmp_path, [report(seed) for seed in range(3)]), unseen=["c"]))

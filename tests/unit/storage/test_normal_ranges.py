import json
from pathlib import Path

import pytest

from vw2_robot.storage import normal_ranges as module
from vw2_robot.storage.files import sha256_of
from vw2_robot.storage.normal_ranges import flat_settings, main_metric, normal_ranges, phases_of, range_at

REPO = Path(__file__).resolve().parents[3]
CURVE = {"steps": [10, 20], "low": [1.0, 0.5], "high": [3.0, 2.5]}
REFERENCE = {
    "runs": 4,
    "settings": {"dldm.queries": 4, "train_dldm.phase1.batch_size": 16},
    "phase_steps": {"1": 100, "2": 50},
    "curves": {"1": {"dldm/loss": CURVE}, "2": {"dldm/loss": CURVE}},
}


@pytest.fixture(autouse=True)
def reference(monkeypatch):
    monkeypatch.setattr(module, "_references", lambda: {"dldm": REFERENCE})


def config(queries=4, batch_size=16):
    return {"dldm": {"queries": queries}, "train_dldm": {"phase1": {"batch_size": batch_size}}, "seed": 3}


def test_a_range_lies_between_the_two_that_are_known_and_ends_where_the_reference_does():
    curves = normal_ranges("dldm", config()).curve("dldm/loss", [(0, 1.0), (100, 2.0)])
    assert range_at(curves, 10) == (1.0, 3.0)
    assert range_at(curves, 15) == (0.75, 2.75)
    assert range_at(curves, 120) == (0.5, 2.5)
    assert [range_at(curves, step) for step in (5, 60, 121)] == [None] * 3


def test_a_phase_after_a_shorter_one_than_in_the_reference_has_no_range():
    ranges = normal_ranges("dldm", config())
    assert len(ranges.curve("dldm/loss", [(0, 1.0), (80, 2.0)])) == 2
    assert len(ranges.curve("dldm/loss", [(0, 1.0), (79, 2.0)])) == 1


def test_another_model_has_no_range_and_other_settings_are_named():
    longer = normal_ranges("dldm", config(batch_size=32))
    assert longer.differences == ("train_dldm.phase1.batch_size 32, not 16",)
    assert longer.curve("dldm/loss", [(0, 1.0)])
    assert not normal_ranges("dldm", config(queries=8)).curve("dldm/loss", [(0, 1.0)])
    assert normal_ranges("latents", config()) is None


def test_phases_begin_after_the_last_step_of_the_one_before():
    assert phases_of([50, 100, 150], [1.0, 1.0, 2.0]) == [(0, 1.0), (100, 2.0)]
    assert phases_of([], []) == [(0, 1.0)]


def test_the_metric_that_matters_is_the_first_that_is_there():
    assert main_metric(["dldm/loss", "dldm/ratio_to_copy"]) == "dldm/ratio_to_copy"
    assert main_metric(["dldm/loss"]) is None


def test_the_ranges_of_the_package_hold_for_its_smallest_model(monkeypatch):
    monkeypatch.undo()
    for stage, reference in module._references().items():
        assert reference["runs"] >= 3
        assert normal_ranges(stage, flat_settings(reference["settings"])).is_same_model
        for curves in reference["curves"].values():
            for curve in curves.values():
                assert len(curve["steps"]) == len(curve["low"]) == len(curve["high"]) > 1
                assert all(low < high for low, high in zip(curve["low"], curve["high"], strict=True))
    assert len(json.dumps(module._references())) < 40_000


def test_ranges_state_the_runs_they_are_made_of(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPO))  # benchmarks are not part of the package
    from benchmarks.results import normal_ranges as program

    for seed in range(3):
        stage = tmp_path / f"seed_{seed}" / "dldm"
        stage.mkdir(parents=True)
        lines = [json.dumps({"step": step, "dldm/loss": 1 + (step + seed) % 3}) for step in range(1, 20)]
        (stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        (stage / "config.yaml").write_text(f"seed: {seed}\ndldm: {{queries: 4}}\n")
    runs = [str(tmp_path / f"seed_{seed}") for seed in range(3)]
    monkeypatch.setattr("sys.argv", ["", "--of", "three runs", "--out", str(tmp_path / "ranges.json"), *runs])
    program.main()
    content = json.loads((tmp_path / "ranges.json").read_text())
    assert "--of 'three runs'" in content["made_with"]["command"]
    first = content["made_with"]["runs"]["dldm"][0]
    assert (first["run"], first["seed"], first["last_step"]) == ("seed_0/dldm", 0, 19)
    assert first["metrics_sha256"] == sha256_of(tmp_path / "seed_0" / "dldm" / "metrics.jsonl")
    assert content["stages"]["dldm"]["settings"] == {"dldm.queries": 4}


def test_the_file_of_the_package_names_its_runs_or_says_that_they_are_not_known():
    made_with = json.loads((REPO / "vw2_robot" / "storage" / module.FILE).read_text())["made_with"]
    assert made_with["command"].startswith("python -m benchmarks.results.normal_ranges --of ")
    assert made_with["runs"] or "not archived" in made_with["note"]

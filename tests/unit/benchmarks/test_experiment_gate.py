"""The gate before fine-tuning, on files that pass and with one value spoiled at a time."""

import json
import sys
from pathlib import Path

import pytest
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.experiment.gate import main
from vw2_robot.checkpoint import save_checkpoint

COLUMNS = ("x", "y", "z", "translation", "roll", "pitch", "yaw", "opening")


@pytest.fixture
def files(tmp_path):
    """Return a function that writes a report and a policy and checks them."""

    def check(*arguments, video=None, has_video=True, encoder_hash="abc", head=None):
        scores = {"linear": {name: {"r2": 0.0} for name in COLUMNS}}
        seen = {"explained_change_t0.97": 0.6, "explained_change_decoder": 0.7, "shuffle_ratio_no_control": 3.0}
        report = {
            "encoder_hash": encoder_hash,
            "data": [{"name": "D"}, {"name": "B"}],
            "probe": {
                "in_scene": {key: {"moved": {"codes_one_hot": scores, "pixels_quantized": scores}} for key in "DB"}
            },
            "video_model": {"D": seen | (video or {}), "B": seen | {"explained_change_t0.97": 0.49}},
        }
        if not has_video:
            del report["video_model"]
        (tmp_path / "latent_report.json").write_text(json.dumps(report))
        save_checkpoint(
            tmp_path / "policy",
            kind="policy",
            config={"policy": {}, "dldm": {}, "head": None, **(head or {})},
            modules={"policy": nn.Linear(1, 1)},
            facts={"encoder_hash": "abc"},
        )
        main(["--report", str(tmp_path), "--policy", str(tmp_path / "policy"), *arguments])

    return check


TUNED = {"head": {"width": 1}, "acting": "expected"}


def test_a_seed_passes_by_its_video_model_and_its_acting_mode(files, capsys):
    files("--unseen", "B", head=TUNED)
    assert capsys.readouterr().out == "the gate is open: acting=expected, on D, B\n"
    files("--unseen", "B", "--experiment", "finetune/reference", head=TUNED | {"acting": "parallel"})
    assert "acting=parallel" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": {"explained_change_t0.97": 0.49}}, "explained change on D is 0.49, needed 0.5"),
        ({"video": {"explained_change_decoder": 0.9}}, "explained change over the decoder's on D is 0.67, needed 0.7"),
        ({"video": {"shuffle_ratio_no_control": 1.0}}, "shuffle ratio on D is 1.00, needed 2"),
        (
            {"video": {"explained_change_t0.97": None}},
            "explained change on D is not known, needed 0.5; explained change over the decoder's on D is not known.*",
        ),
        ({"has_video": False}, "the dLDM has no video model"),
        ({"encoder_hash": "other"}, "the report is of another dLDM than the policy's"),
        ({"head": TUNED | {"acting": "none"}}, r"the policy decodes no codes in control \(acting=none\)"),
    ],
)
def test_what_does_not_hold_is_the_reason(files, changes, message):
    with pytest.raises(SystemExit, match=f"^the gate is closed: {message}$"):
        files("--unseen", "B", **{"head": TUNED} | changes)


def test_a_scene_that_was_seen_needs_more_and_all_reasons_are_named(files):
    with pytest.raises(
        SystemExit, match=r"ratio on D is 1\.50, needed 2; explained change on B is 0\.49, needed 0\.5$"
    ):
        files(head=TUNED, video={"shuffle_ratio_no_control": 1.5})
    with pytest.raises(SystemExit, match="--unseen C: the report is on D, B"):
        files("--unseen", "C", head=TUNED)


def test_before_fine_tuning_the_experiment_says_how_the_policy_will_act(files):
    with pytest.raises(SystemExit, match="give --experiment"):
        files("--unseen", "B")
    with pytest.raises(SystemExit, match="acting=none"):
        files("--unseen", "B", "--experiment", "finetune/oracle_10")

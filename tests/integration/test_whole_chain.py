"""The whole chain through the programs a user types, on a miniature: every arrow of the data flow, once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.sim]
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model=tiny",
    "hardware.threads=1",
    "train_vdm.train_steps=4",
    "train_vdm.batch_size=2",
    "train_dldm.phase1.train_steps=6",
    "train_dldm.phase1.batch_size=4",
    "++train_dldm.reader.loop={train_steps: 2, batch_size: 2, log_every: 1, save_every: 2, optim: {warmup_steps: 1}}",
    "train_dldm.phase2.train_steps=2",
    "train_dldm.phase2.batch_size=2",
    "train_dldm.validation_clips=4",
    "train_policy.loop.train_steps=4",
    "train_policy.loop.batch_size=2",
]


def run(module: str, *overrides: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"vw2_robot.{module}", *overrides],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=600,
    )
    assert done.returncode == 0, f"{module} {overrides}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def test_video_of_one_robot_becomes_a_policy_and_a_report_for_another(tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="the openx extra is not installed")
    run("envs.recording.record", "env=other_robots", "format=rlds", "episodes=6", f"out={tmp_path}/arms")
    run("pretrain.pretrain_on_openx", "data=rlds", f"data.path={tmp_path}/arms", f"run_dir={tmp_path}/pretrain", *SMALL)
    for stage in ("vdm", "dldm", "policy"):
        assert (tmp_path / "pretrain" / stage / "latest").is_file()
    usage = json.loads((tmp_path / "pretrain/dldm/codes.json").read_text())
    assert sum(usage["histogram"]) > 0
    assert (tmp_path / "pretrain/dldm/reconstructions.png").stat().st_size > 1000

    run("envs.recording.record", "tasks=[open_drawer,close_drawer]", "episodes=8", f"out={tmp_path}/calvin")
    run(
        "finetune.train_head",
        f"policy={tmp_path}/pretrain",
        f"data.path={tmp_path}/calvin",
        "label_fraction=0.5",
        f"run_dir={tmp_path}/finetune",
        "loop.train_steps=4",
        "loop.batch_size=4",
    )
    labels = json.loads((tmp_path / "finetune/labels.json").read_text())
    assert len(labels["episode_ids"]) == round(0.5 * labels["total"])

    run(
        "rollouts",
        f"policy={tmp_path}/finetune",
        "num_sequences=2",
        "videos=2",
        "workers=2",
        "env.max_steps=12",
        f"run_dir={tmp_path}/rollout",
    )
    rows = [json.loads(line) for line in (tmp_path / "rollout/results.jsonl").read_text().splitlines()]
    assert [row["sequence"] for row in rows] == [0, 1]
    summary = json.loads((tmp_path / "rollout/summary.json").read_text())
    assert summary["num_sequences"] == 2
    assert summary["label_fraction"] == 0.5

    out = run("rollouts.report.report", f"runs=[{tmp_path}]", f"out={tmp_path}/report")
    page = (tmp_path / "report/report.html").read_text()
    assert "report.html" in out
    for part in ("pretrain/dldm", "pretrain/policy", "finetune", "data:video/mp4", "data:image/png"):
        assert part in page, part

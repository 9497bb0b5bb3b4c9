"""The video model of the small preset reads codes: given the true motion, it renders where the arm goes."""

import pytest

from benchmarks.video_model.oracle_codes import compose_config, open_clips, read_oracle_codes
from vw2_robot.pretrain.diagnostics.explained_change import TIMES

pytest.importorskip("pybullet")
from vw2_robot.envs.recording.config import CALVIN_TARGET, RecordConfig
from vw2_robot.envs.recording.record import record

pytestmark = [pytest.mark.slow, pytest.mark.sim]


def test_the_video_model_reads_oracle_codes(tmp_path):
    """Bounds of the method's correction 8.1; before it, the explained change was below 0 and the ratio 1.03."""
    out = tmp_path / "D"
    env = {"_target_": CALVIN_TARGET, "scene": "D"}
    record(RecordConfig(str(out), env=env, episodes=100, tasks=["all"], seed=3))
    config = compose_config(["model=tiny", "dldm.num_frames=5"])
    clips = open_clips([str(out)], config, tmp_path / "frames")
    found = read_oracle_codes(config, clips, train_steps=400, seed=0)
    right, null = (found[f"explained_change{kind}_t{TIMES[-1]}"] for kind in ("", "_null"))
    assert right >= 0.45
    assert right - null >= 0.15
    assert found["ratio"] >= 1.5
    assert min(found[f"explained_change_t{t}"] for t in TIMES) > 0

"""The video model of the small preset reads codes: given the true motion, it renders where the arm goes."""

import pytest
import torch

from benchmarks.video_model.oracle_codes import compose_config, judge, open_clips, train_on_oracle_codes
from vw2_robot.pretrain.diagnostics.explained_change import TIMES

pytest.importorskip("pybullet")
from vw2_robot.envs.recording.config import CALVIN_TARGET, RecordConfig
from vw2_robot.envs.recording.record import record

pytestmark = [pytest.mark.slow, pytest.mark.sim]


def test_the_video_model_reads_oracle_codes_and_no_frame_those_of_later_steps(tmp_path):
    """Bounds of the method's correction 8.1; before it, the explained change was below 0 and the ratio 1.03."""
    env = {"_target_": CALVIN_TARGET, "scene": "D", "assets": "builtin", "renderer": "layered"}
    record(RecordConfig(str(tmp_path / "D"), env=env, episodes=100, tasks="all", seed=3))
    config = compose_config(["model=tiny"])
    assert config.dldm.latent_steps >= 2
    clips = open_clips([str(tmp_path / "D")], config, tmp_path / "frames")
    vdm, codec = train_on_oracle_codes(config, clips, train_steps=400, seed=0)
    found = judge(vdm, codec, clips)
    right, null = (found[f"explained_change{kind}_t{TIMES[-1]}"] for kind in ("", "_null"))
    assert right >= 0.45
    assert right - null >= 0.15
    assert found["ratio"] >= 1.5
    assert min(found[f"explained_change_t{t}"] for t in TIMES) > 0
    # Trained, the mask matters: another code of the last step changes its frames and no earlier one.
    x, codes, _ = clips.read(clips.held_out.nonzero()[0][:2])
    latents = codec.encode(x)
    noisy = 0.03 * latents + 0.97 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    others = torch.cat([codes[:, :-1], -codes[:, -1:] + 1], dim=1)
    with torch.no_grad():
        before, after = (
            noisy - 0.97 * vdm.velocity(noisy, torch.full((2,), 0.97), latents[:, :, 0], given, control_video=None)
            for given in (codes, others)
        )
    assert torch.equal(before[:, :, :-1], after[:, :, :-1])
    moved = (codec.decode(after) - codec.decode(before))[:, -config.codec.stride :].abs().amax()
    assert float(moved) > 0.2

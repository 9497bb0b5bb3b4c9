"""The programs of the craft bench on toy videos: a square moves through seven positions, one a key step."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.judge import OTHER
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig
from vw2_robot.models.video.config import CodecConfig, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.pretrain.config import make_geometry
from vw2_robot.pretrain.craft import imagine_craft as imagining
from vw2_robot.pretrain.craft.compare_codes import compare_codes
from vw2_robot.pretrain.craft.config import CompareCodesConfig, ImagineCraftConfig, TrainJudgeConfig, judge_loop
from vw2_robot.pretrain.craft.imagine_craft import imagine_craft
from vw2_robot.pretrain.craft.train_judge import LabeledFrames, accuracy, judge_loss, train_judge
from vw2_robot.pretrain.dldm_modules import encoder_hash
from vw2_robot.rollouts.craft.config import JudgeVideosConfig
from vw2_robot.rollouts.craft.judge_videos import judge_videos, text_table
from vw2_robot.rollouts.report.report import write_report
from vw2_robot.storage.mp4 import Mp4Writer

CPU = Hardware("cpu", threads=1)
DLDM_CONFIG = DLDMConfig(
    num_frames=9,
    height=16,
    width=16,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2),
    z_channels=8,
)
POLICY = PolicyConfig(
    backbone=BackboneConfig(hidden=16, ffn=16, layers=1, heads=2, kv_heads=1), image_px=8, image_widths=(8,)
)
TINY_VDM = VDMConfig(heads=1, head_dim=12, layers=1, adaln_lora_dim=4, context_width=8, control_width=8)
FRAMES = 25
KEY_FRAMES = list(range(3, 24, 3))


def write_videos(folder, count, *, seed):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    lines = []
    for number in range(count):
        track = np.clip(np.cumsum(rng.normal(0, 0.08, (FRAMES, 2)), axis=0) + 0.5, 0.1, 0.8)
        name = f"video_{number}.mp4"
        with Mp4Writer(folder / name, fps=5, encoding=["-crf", "5", "-bitexact"]) as video:
            for x, y in (32 * track).astype(int):
                frame = np.full((32, 32, 3), 40 + 30 * number, np.uint8)
                frame[y : y + 6, x : x + 6] = (250, 30, 30)
                video.add(frame)
        task = ("gate", "tower")[number % 2]
        row = {"file": name, "task": task, "instruction": f"build a {task}", "hz": 5.0, "key_frames": KEY_FRAMES}
        lines.append(json.dumps(row | {"track": track.tolist()}))
    (folder / "captions.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two folders of videos, a policy, its dLDM stage with a VDM, and a VDM stage."""
    root = tmp_path_factory.mktemp("craft")
    write_videos(root / "hand", 4, seed=0)
    write_videos(root / "robot", 3, seed=1)
    torch.manual_seed(0)
    model = DLDM(DLDM_CONFIG).eval()
    save_checkpoint(
        root / "policy",
        kind="policy",
        config={"policy": config_tree(POLICY), "dldm": config_tree(DLDM_CONFIG), "head": None},
        modules={"policy": LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0)), "dldm": model},
        facts={"latent_hz": [5.0]},
    )
    codec = CodecConfig()
    video = {"vdm": VDM(TINY_VDM, make_geometry(DLDM_CONFIG, TINY_VDM, codec)), "codec": DCTCodec(codec)}
    save_checkpoint(
        root / "dldm",
        kind="dldm",
        config=config_tree(DLDM_CONFIG),
        modules={"dldm": model, **video},
        facts={
            "encoder_hash": encoder_hash(model),
            "vdm": config_tree(TINY_VDM),
            "codec": config_tree(codec),
            "time_base": {"target_hz": None, "gap_seconds": None},
        },
    )
    save_checkpoint(
        root / "prior", kind="vdm", config=config_tree(TINY_VDM) | {"codec": config_tree(codec)}, modules=video
    )
    return root


def judge_config(made, run_dir):
    loop = replace(judge_loop(), train_steps=3, batch_size=4, log_every=1, save_every=2)
    return TrainJudgeConfig(
        [str(made / "hand")], str(run_dir), px=32, width=4, frames_per_state=2, shift_px=1, loop=loop, hardware=CPU
    )


def test_videos_are_imagined_judged_and_reported(made, tmp_path):
    report = train_judge(judge_config(made, tmp_path / "judge"))
    assert report["tasks"] == ["gate", "tower"]
    assert report["videos"] == {"training": 3, "held_out": 1}
    assert sum(map(sum, report["held_out"]["confusion"])) == report["held_out"]["frames"]
    # A complete run reports the same again.
    assert train_judge(judge_config(made, tmp_path / "judge")) == report
    config = ImagineCraftConfig(
        policy=str(made / "policy"),
        dldm=str(made / "dldm"),
        prior=str(made / "prior"),
        videos=str(made / "robot"),
        out=str(tmp_path / "imagined"),
        episodes=2,
        seconds=2.0,
        sample_steps=1,
        hardware=CPU,
    )
    imagine_craft(config)
    lines = [json.loads(line) for line in (tmp_path / "imagined/vw2/imagined.jsonl").read_text().splitlines()]
    # Two seconds are ten frames: two segments of eight frames after the first.
    assert [line["frames"] for line in lines] == [list(range(17))] * 2
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("imagined/*/*.mp4")}
    assert len(times) == 6
    imagine_craft(config)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    with pytest.raises(InputError, match="another configuration"):
        imagine_craft(replace(config, seed=1))
    settings = JudgeVideosConfig(
        str(tmp_path / "judge"), str(made / "robot"), [config.out], str(tmp_path / "table"), hardware=CPU
    )
    table = judge_videos(settings)
    rows = {row["method"]: row for row in table["rows"]}
    assert set(rows) == {"vw2", "videoworld", "vdm", "true"}
    assert rows["vdm"]["videos"] == [2]
    assert 0 < rows["videoworld"]["metrics"]["ssim"]["mean"] < 1
    assert "lpips" in table["not_measured"]
    assert "videoworld" in text_table(table)
    page = write_report([tmp_path / "table"], tmp_path / "report").read_text()
    assert "stand-in for DINOv2" in page
    assert "97.2" in page  # the paper's row, apart
    (tmp_path / "table/craft_table.json").write_text(json.dumps(table | {"rows": [{}]}))
    with pytest.raises(InputError, match="vw2-judge again"):
        write_report([tmp_path / "table"], tmp_path / "report")


def test_the_prior_alone_is_given_the_first_frame_and_no_codes(made):
    vdm, codec = imagining.open_prior(str(made / "prior"), DLDM(DLDM_CONFIG))
    first = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    noise = torch.Generator().manual_seed(1)
    found = imagining.prior_segments(vdm, codec, first, DLDM(DLDM_CONFIG), 2, 1, noise)
    assert found.shape == (17, 3, 16, 16)
    torch.testing.assert_close(found[0], first[0])
    # Whatever the codes are: with guidance 0 nothing but the null context is left.
    anchor = codec.encode(first[:, None])[:, :, 0]
    options = {"control_video": None, "num_steps": 1, "guidance": 0.0}
    one, other = (
        vdm.sample(anchor, codes, generator=torch.Generator().manual_seed(2), **options)
        for codes in (torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 4, 4))
    )
    torch.testing.assert_close(one, other)


def test_code_books_are_compared_on_the_motion_of_the_tool_and_reported(made, tmp_path):
    config = CompareCodesConfig(
        {"joint": str(made / "dldm")},
        {"hand": str(made / "hand"), "robot": str(made / "robot")},
        str(tmp_path / "codes"),
        hardware=CPU,
    )
    report = compare_codes(config)
    found = report["dldms"]["joint"]
    assert report["sets"]["hand"]["videos"] == 4
    assert set(found["transfer"]["hand"]) == {"hand", "robot"}
    assert set(found["transfer"]["hand"]["robot"]) == {"right", "down", "both"}
    assert set(found["codes"]["sets"]) == {"hand", "robot"}
    # 25 frames are three clips of two steps, in each of seven videos; the later half of a step moves no less.
    assert sum(found["codes"]["histogram"]) == 7 * 6 * 4
    page = write_report([tmp_path / "codes"], tmp_path / "report").read_text()
    assert "steps with the nearest codes" in page
    few = write_videos(tmp_path / "few", 2, seed=2)
    with pytest.raises(InputError, match="at least 3"):
        compare_codes(replace(config, videos={"hand": str(few), "robot": str(made / "robot")}))


def test_another_task_is_asked_only_once_tasks_look_different():
    logits = torch.zeros(2, 3, 9)
    logits[1, 1:, OTHER] = 50.0  # sure of "another task's", where that is right
    logits[0, 1:, OTHER] = -50.0  # and wrong at a state where the other tasks are not asked
    logits[0, 0, 1] = logits[1, 0, 5] = 50.0
    task, state = torch.tensor([0, 0]), torch.tensor([1, 5])
    assert judge_loss(logits, task, state) < 1e-6
    logits[1, 2, OTHER] = -50.0
    assert judge_loss(logits, task, state) > 1


def test_balanced_accuracy_weighs_states_alike():
    class Fixed(torch.nn.Module):
        def forward(self, x):
            logits = torch.zeros(len(x), 1, 9)
            logits[:, 0, 0] = 1.0  # always "nothing done"
            return logits

    state = np.array([0, 0, 0, 0, 0, 0, 1, 2])
    frames = LabeledFrames(
        np.zeros((8, 8, 8, 3), np.uint8), np.zeros(8, int), state, np.array([0, 0, 0, 1, 1, 1, 0, 1])
    )
    found = accuracy(Fixed(), frames, seed=0, device=torch.device("cpu"))
    assert found["balanced_accuracy"] == pytest.approx(1 / 3)
    assert found["within_one"] == pytest.approx(7 / 8)
    low, high = found["interval95"]
    assert low <= 1 / 3 <= high

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.episodes import Episode
from vw2_robot.data.frame_cache import FrameCache, cache_frames
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.image_metrics import psnr
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.acting import act
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig, Sampling
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.pretrain import imagine as program
from vw2_robot.pretrain.config import ImagineConfig, make_geometry
from vw2_robot.pretrain.dldm_modules import encoder_hash
from vw2_robot.pretrain.imagination import Renderer, imagine_segments, plan_of, policy_decoder
from vw2_robot.pretrain.imagine import STREAM_CODES, imagine, read_photograph
from vw2_robot.random_numbers import generator

CONFIG = DLDMConfig(
    num_frames=9,
    height=16,
    width=16,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
    z_channels=8,
)
POLICY = PolicyConfig(
    backbone=BackboneConfig(hidden=16, ffn=16, layers=1, heads=2, kv_heads=1), image_px=8, image_widths=(8,)
)
TINY_VDM = VDMConfig(heads=1, head_dim=12, layers=1, adaln_lora_dim=4, context_width=8, control_width=8)
GEOMETRY = Geometry(channels=32, latent_steps=2, height=4, width=4, queries=4, fsq_dims=4)


def dldm():
    torch.manual_seed(0)
    return DLDM(CONFIG).eval()


def codes(count, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 1000, (count, 4)))


def first():
    return torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1


def given(all_codes):
    return lambda number, _: all_codes[None, 2 * number : 2 * number + 2]


def decode(model, indices, start):
    with torch.no_grad():
        anchor = model.features(start[:, None])[:, 0]
        return model.decode(model.fsq.codes_of(indices), anchor, start).clamp(-1, 1)


def noise():
    return torch.Generator().manual_seed(1)


def test_segments_are_joined_at_their_common_frame():
    model, chosen = dldm(), codes(4)
    made = imagine_segments(model, first(), given(chosen), segments=2, generator=noise())
    assert made.coarse.shape == (1 + 2 * 8, 3, 16, 16)
    torch.testing.assert_close(made.coarse[0], first()[0], rtol=0, atol=0)
    one = decode(model, chosen[None, :2], first())
    torch.testing.assert_close(made.coarse[1:9], one[0, 1:])
    two = decode(model, chosen[None, 2:], one[:, -1])
    torch.testing.assert_close(made.coarse[9:], two[0, 1:])
    assert torch.equal(made.codes, chosen)
    assert made.rendered is None


class Brighter(Renderer):
    """Renders the coarse clip one shade brighter, to be told apart; remembers what it was given."""

    def __init__(self):
        object.__setattr__(self, "starts", [])

    def render(self, codes, coarse, first, generator):
        self.starts.append(first)
        return (coarse + 0.25).clamp(-1, 1)


@pytest.mark.parametrize("anchor", ["coarse", "rendered"])
def test_the_anchor_says_from_which_last_frame_the_coarse_video_goes_on(anchor):
    model, chosen, renderer = dldm(), codes(4), Brighter()
    made = imagine_segments(
        model, first(), given(chosen), segments=2, anchor=anchor, renderer=renderer, generator=noise()
    )
    start = made.coarse[8:9] if anchor == "coarse" else made.rendered[8:9]
    torch.testing.assert_close(made.coarse[9:], decode(model, chosen[None, 2:], start)[0, 1:])
    torch.testing.assert_close(renderer.starts[1], made.rendered[8:9])  # the rendered video follows itself in any case


@pytest.mark.parametrize("plan", ["full", "requery"])
def test_a_full_plan_decodes_once_and_requerying_decodes_every_segment(plan):
    calls = []

    def decode_call(frame, steps, so_far):
        calls.append((frame.clone(), steps))
        return codes(steps, seed=len(calls))[None]

    made = imagine_segments(
        dldm(), first(), plan_of(decode_call, plan=plan, latent_steps=2, segments=3), segments=3, generator=noise()
    )
    assert [steps for _, steps in calls] == ([6] if plan == "full" else [2, 2, 2])
    if plan == "full":
        assert torch.equal(made.codes, codes(6, seed=1))
    else:
        torch.testing.assert_close(calls[1][0][0], made.coarse[8])
        torch.testing.assert_close(calls[2][0][0], made.coarse[16])


def test_a_full_plan_goes_on_from_the_newest_frame_after_each_run_and_from_all_codes_before():
    calls = []

    def decode_call(frame, steps, so_far):
        calls.append((frame.clone(), steps, so_far))
        return codes(steps, seed=len(calls))[None]

    plan = plan_of(decode_call, plan="full", latent_steps=2, segments=5, condition_every=4)
    made = imagine_segments(dldm(), first(), plan, segments=5, generator=noise())
    runs = [codes(4, seed=number) for number in (1, 2, 3)]
    assert torch.equal(made.codes, torch.cat(runs)[:10])
    assert [steps for _, steps, _ in calls] == [4, 4, 4]
    assert calls[0][2] is None
    assert torch.equal(calls[2][2][0], torch.cat(runs[:2]))
    torch.testing.assert_close(calls[1][0][0], made.coarse[16])


@pytest.mark.parametrize("acting", ["argmax", "expected", "parallel"])
def test_a_run_follows_the_codes_before_it_as_far_as_the_policy_was_trained(acting):
    policy = LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0)).eval()
    given = {"acting": acting, "chunk_size": 6, "sampling": Sampling(), "generator": noise()}
    call = policy_decoder(policy, "open the drawer", **given)
    followed, other, longer = (call(first(), 2, part[None]) for part in (codes(4), codes(4, seed=9), codes(8)))
    assert followed.shape == (1, 2, 4)
    assert torch.equal(longer, call(first(), 2, codes(8)[None, 4:]))
    assert acting == "parallel" or not torch.equal(followed, other)


@pytest.fixture
def trained(tmp_path):
    """A policy, its dLDM stage with a VDM, and a frame cache of two episodes."""
    model = dldm()
    save_checkpoint(
        tmp_path / "policy",
        kind="policy",
        config={"policy": config_tree(POLICY), "dldm": config_tree(CONFIG), "head": None},
        modules={"policy": LatentPolicy(POLICY, generator=torch.Generator().manual_seed(0)), "dldm": model},
        facts={"latent_hz": [5.0]},
    )
    codec = CodecConfig()
    save_checkpoint(
        tmp_path / "dldm",
        kind="dldm",
        config=config_tree(CONFIG),
        modules={
            "dldm": model,
            "vdm": VDM(TINY_VDM, GEOMETRY._replace(channels=codec.channels)),
            "codec": DCTCodec(codec),
        },
        facts={"encoder_hash": encoder_hash(model), "vdm": config_tree(TINY_VDM), "codec": config_tree(codec)},
    )
    rng = np.random.default_rng(0)
    episodes = (
        Episode("noise", str(n), f"do {n}", 5.0, tuple(rng.integers(0, 256, (19, 16, 16, 3), dtype=np.uint8)))
        for n in range(2)
    )
    cache_frames(episodes, tmp_path / "frames", height=16, width=16, description={})
    return tmp_path


@pytest.fixture
def recorded(monkeypatch):
    """Frames and rate of every video, instead of a file."""
    videos = []
    monkeypatch.setattr(
        program, "write_video", lambda path, frames, *, fps, enlarge: videos.append((path, frames, fps))
    )
    return videos


def settings(trained, **change):
    base = ImagineConfig(
        policy=str(trained / "policy"),
        out=str(trained / "seen.mp4"),
        frame_cache=str(trained / "frames"),
        hardware=Hardware("cpu", threads=1),
    )
    return replace(base, **change)


def test_true_codes_are_compared_with_the_true_continuation(trained, recorded):
    imagine(settings(trained, codes="encoded", episode=1, start=2, segments=2))
    path, frames, fps = recorded[0]
    facts = json.loads(path.with_suffix(".json").read_text())
    true = FrameCache(trained / "frames").read(1, np.arange(2, 19))
    assert frames.shape == (17, 16, 32, 3)  # coarse, true
    assert fps == 5.0
    np.testing.assert_array_equal(frames[:, :, 16:], true)
    assert facts["prompt"] == "do 1"
    assert facts["columns"] == ["coarse", "true"]
    assert facts["compared_frames"] == 16
    np.testing.assert_allclose(facts["coarse"]["psnr_db"]["per_frame"], psnr(frames[1:, :, :16], true[1:]), atol=1e-3)
    still = psnr(np.broadcast_to(true[:1], true.shape)[1:], true[1:]).mean()
    assert facts["copy_first_frame"]["psnr_db"]["mean"] == pytest.approx(still, abs=1e-3)
    assert set(facts["coarse"]) == {"psnr_db", "ssim"}
    model = dldm()
    clips = [to_model_range(torch.from_numpy(true[i : i + 9]))[None] for i in (0, 8)]
    assert facts["codes"] == [step for clip in clips for step in model.indices(clip)[0].tolist()]


def test_the_true_continuation_is_shown_at_the_rate_of_the_codes(trained, recorded):
    checkpoint = load_checkpoint(trained / "policy", kind="policy")
    policy, model = LatentPolicy.from_checkpoint(checkpoint), dldm()
    save_checkpoint(
        trained / "slow",
        kind="policy",
        config=checkpoint.config,
        modules={"policy": policy, "dldm": model},
        files=checkpoint.files,
        facts={**checkpoint.facts, "time_base": {"target_hz": 2.5, "gap_seconds": None}, "latent_hz": [2.5]},
    )
    imagine(settings(trained, policy=str(trained / "slow"), codes="encoded"))
    _, frames, fps = recorded[0]
    assert fps == 2.5
    np.testing.assert_array_equal(frames[:, :, 16:], FrameCache(trained / "frames").read(0, 2 * np.arange(9)))


def test_an_image_and_an_instruction_become_predicted_codes_and_a_rendered_video(trained, recorded):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(image).save(trained / "table.png")
    made = settings(
        trained,
        frame_cache=None,
        image=str(trained / "table.png"),
        prompt="open the drawer",
        vdm=str(trained / "dldm"),
        sample_steps=2,
        segments=2,
    )
    imagine(made)
    imagine(replace(made, plan="full"))
    (path, frames, _), (_, full, _) = recorded
    assert frames.shape == full.shape == (17, 16, 32, 3)  # coarse, rendered
    resized = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(frames[0], np.concatenate([resized, resized], axis=1))
    np.testing.assert_array_equal(frames[:9, :, :16], full[:9, :, :16])  # the first segment is planned alike
    assert "coarse" not in json.loads(path.with_suffix(".json").read_text())  # nothing to compare with


@pytest.mark.parametrize("acting", ["expected", "sampled", "argmax", "parallel"])
def test_a_fine_tuned_policy_is_drawn_by_the_codes_that_it_acts_with(trained, recorded, acting):
    checkpoint = load_checkpoint(trained / "policy", kind="policy")
    policy = LatentPolicy.from_checkpoint(checkpoint).eval()
    with torch.no_grad():  # sure of its codes, so that the modes differ
        policy.backbone.model.get_output_embeddings().weight.mul_(30)
    config = checkpoint.config | {"head": {"hidden": 8}, "acting": acting}
    save_checkpoint(
        trained / "tuned",
        kind="policy",
        config=config,
        modules={"policy": policy, "dldm": dldm()},
        files=checkpoint.files,
        facts=checkpoint.facts,
    )
    imagine(settings(trained, policy=str(trained / "tuned")))
    image = to_model_range(torch.from_numpy(FrameCache(trained / "frames").read(0, [0])))
    image = F.interpolate(image, size=(8, 8), mode="bilinear", antialias=True)
    noise = generator(0, 0, stream=STREAM_CODES)
    with torch.no_grad():
        prompt = policy.prompt(["do 0"], image)
        acted = act(policy, prompt, latent_steps=2, acting=acting, last_code=True, generator=noise)
    assert json.loads((trained / "seen.json").read_text())["codes"] == acted.codes_BHN[0].tolist()
    if acting == "argmax":  # as the policy before fine-tuning
        return
    with torch.no_grad():
        greedy = act(policy, prompt, latent_steps=2, acting="argmax", last_code=True).codes_BHN
    assert not torch.equal(acted.codes_BHN, greedy)


def test_a_policy_that_acts_without_codes_has_none_to_draw(trained):
    checkpoint = load_checkpoint(trained / "policy", kind="policy")
    config = checkpoint.config | {"head": {"hidden": 8}, "acting": "none"}
    modules = {"policy": LatentPolicy.from_checkpoint(checkpoint), "dldm": dldm()}
    save_checkpoint(trained / "tuned", kind="policy", config=config, modules=modules, facts=checkpoint.facts)
    with pytest.raises(InputError, match=r"acts without codes \(acting=none\)"):
        imagine(settings(trained, policy=str(trained / "tuned")))


def test_a_larger_vdm_renders_with_guidance_beside_an_enlarged_coarse_video(trained, recorded):
    model, codec = dldm(), CodecConfig()
    larger = replace(TINY_VDM, frame_height=32, frame_width=32, code_dropout=0.1)
    torch.manual_seed(0)
    vdm = VDM(larger, make_geometry(CONFIG, larger, codec))
    save_checkpoint(
        trained / "larger",
        kind="dldm",
        config=config_tree(CONFIG),
        modules={"dldm": model, "vdm": vdm, "codec": DCTCodec(codec)},
        facts={
            "encoder_hash": encoder_hash(model),
            "vdm": config_tree(larger),
            "codec": config_tree(codec),
            "control_grayscale": False,
        },
    )
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(trained / "table.png")
    made = settings(
        trained,
        frame_cache=None,
        image=str(trained / "table.png"),
        prompt="open the drawer",
        vdm=str(trained / "larger"),
        sample_steps=2,
    )
    imagine(made)
    imagine(replace(made, guidance=3.0))
    imagine(replace(made, grayscale_control=False))
    np.save(trained / "prompt.npy", np.ones((3, larger.context_width), np.float16))
    imagine(replace(made, guidance=3.0, negative_prompt=str(trained / "prompt.npy")))
    plain, guided, colored, against_text = (frames for _, frames, _ in recorded)
    assert plain.shape == guided.shape == (9, 32, 64, 3)  # coarse, rendered
    np.testing.assert_array_equal(plain[0, :, 32:], image)
    np.testing.assert_array_equal(plain[:, :, :32], guided[:, :, :32])
    assert not np.array_equal(plain[1:, :, 32:], guided[1:, :, 32:])
    np.testing.assert_array_equal(plain, colored)  # as it was trained
    assert not np.array_equal(guided[1:, :, 32:], against_text[1:, :, 32:])
    np.save(trained / "prompt.npy", np.ones((3, 4), np.float16))
    with pytest.raises(InputError, match=r"prompt\.npy: expected floats \[tokens, 8\], found float16 \[3, 4\]"):
        imagine(replace(made, guidance=3.0, negative_prompt=str(trained / "prompt.npy")))


def test_codes_of_a_file_are_decoded(trained, recorded):
    np.save(trained / "codes.npy", codes(3).numpy())
    imagine(settings(trained, codes=str(trained / "codes.npy")))
    _, frames, _ = recorded[0]
    start = to_model_range(torch.from_numpy(FrameCache(trained / "frames").read(0, [0])))
    expected = to_pixels(decode(dldm(), codes(3)[None, :2], start))[0].numpy()
    np.testing.assert_array_equal(frames[1:, :, :16], expected[1:])


def test_a_video_is_an_mp4_of_even_size(tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    from vw2_robot.pretrain.imagine import write_video

    write_video(tmp_path / "deep" / "a.mp4", np.zeros((3, 5, 7, 3), np.uint8), fps=5.0, enlarge=3)
    assert b"ftyp" in (tmp_path / "deep" / "a.mp4").read_bytes()[:12]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.mp4"]


def other_encoder(trained):
    save_checkpoint(
        trained / "other", kind="dldm", config={}, modules={"dldm": dldm()}, facts={"encoder_hash": "0" * 64}
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episode": 2}, "episode=2, but .* holds 2 episodes"),
        ({"start": 19}, "start=19, but episode 0 has 19 frames"),
        ({"codes": "encoded", "segments": 3}, "codes=encoded gives 4 latent steps, 3 segments need 6"),
        ({"codes": "nowhere.npy"}, r"give predicted, encoded, a \.npy file, or a \.pt file"),
        ({"codes": "bad.npy"}, r"codes lie in 0 \.\. 999"),
        ({"codes": "flat.npy"}, r"expected integers \[latent steps, 4\]"),
        ({"vdm": "other"}, "belongs to encoder 00000000, the policy predicts"),
        ({"frame_cache": None, "image": "gone.png", "prompt": "x"}, "cannot be read as an image"),
        ({"vdm": "dldm", "guidance": 2.0}, r"guidance=2\.0: the VDM of .* was trained without null codes"),
    ],
)
def test_wrong_input_is_named(trained, recorded, monkeypatch, change, message):
    monkeypatch.chdir(trained)
    np.save("bad.npy", np.full((2, 4), 1000))
    np.save("flat.npy", np.zeros(8, int))
    other_encoder(trained)
    with pytest.raises(InputError, match=message):
        imagine(settings(trained, **change))
    assert not recorded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "a.png"}, "either image=FILE or frame_cache=DIR"),
        ({"frame_cache": None}, "either image=FILE or frame_cache=DIR"),
        ({"frame_cache": None, "image": "a.png", "codes": "encoded"}, "codes=encoded needs a true continuation"),
        ({"frame_cache": None, "image": "a.png"}, "codes=predicted needs an instruction"),
        ({"anchor": "rendered"}, "needs a VDM that renders"),
        ({"policy": None}, r"give policy=DIR, or dldm=DIR"),
        ({"policy": None, "dldm": "runs"}, "no policy that predicts codes"),
        ({"segments": -1}, "segments must be at least 1"),
        ({"negative_prompt": "text.npy"}, "negative_prompt is for guidance"),
    ],
)
def test_contradictions_are_refused(trained, change, message):
    with pytest.raises(ValueError, match=message):
        settings(trained, **change)


def test_a_photograph_is_upright_and_keeps_its_shades(tmp_path):
    shades = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8) * 5
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(shades).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_photograph(str(tmp_path / "turned.png"))[..., 0], np.rot90(shades, -1))
    Image.fromarray(shades.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_photograph(str(tmp_path / "deep.png"))[..., 2], shades)
    Image.fromarray(shades.astype(np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "text.png").write_text("no image")
    for name in ("float.tiff", "text.png", "gone.png"):
        with pytest.raises(InputError, match=rf"image=.*{name} cannot be read as an image"):
            read_photograph(str(tmp_path / name))


def test_the_video_is_not_named_like_the_json_beside_it(trained):
    with pytest.raises(ValueError, match=r"out=imagined\.json: give the name of a video"):
        settings(trained, out="imagined.json")

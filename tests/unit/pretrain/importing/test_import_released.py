import importlib.util
import pickle
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint
from vw2_robot.command_line import entry_points
from vw2_robot.command_line.config_tree import config_from, config_tree
from vw2_robot.data.latents import LatentCache
from vw2_robot.devices import Hardware
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.video.config import CodecConfig, VDMConfig, WanConfig
from vw2_robot.models.video.cosmos import block_arguments
from vw2_robot.models.video.cosmos_folder import save_weights
from vw2_robot.models.video.wan import build_vae
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.pretrain import imagine
from vw2_robot.pretrain.config import ImagineConfig
from vw2_robot.pretrain.importing import import_released as import_program
from vw2_robot.pretrain.importing.import_released import (
    ReleasedLayout,
    import_released,
    names_of,
    plan_lines,
    released_layout,
    write_published,
)
from vw2_robot.pretrain.importing.released_names import AUTOENCODER, CODES, NEGATIVE, TRANSFORMER
from vw2_robot.pretrain.importing.released_weights import to_theirs
from vw2_robot.pretrain.train_vdm import vdm_of_dldm

# The reference beside this file; tests have no packages.
SPEC = importlib.util.spec_from_file_location("published", Path(__file__).with_name("published.py"))
published = sys.modules["published"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(published)

WAN = WanConfig(base_dim=8, dim_mult=(1, 1, 1, 1), res_blocks=1)
LAYOUT = ReleasedLayout(
    DLDMConfig(
        num_frames=9,
        height=32,
        width=48,
        stem=StemConfig("haar", 4, 4, 3, width=published.BASE, factorized=True),
        levels=(
            LevelConfig(8, 2, downsample_space=True),
            LevelConfig(16, 2, downsample_space=True),
            LevelConfig(16, 2, attention=True),
        ),
        qformer=QFormerConfig(last_residual=True, centered_positions=True),
        z_channels=published.Z,
        post_quant="conv",
        code_attention="lowest",
        decoder_extra_blocks=1,
        released_decoder=True,
    ),
    VDMConfig(
        heads=2,
        head_dim=12,
        layers=4,
        adaln_lora_dim=4,
        padding_channel=True,
        context_width=published.CONTEXT,
        projection="convolution",
        projection_width=published.Z,
        context_tokens=16,
        code_visibility="none",
        temporal_causal_self_attention=False,
        control="released",
    ),
    CodecConfig(kind="wan", block=8, precision="float32", wan=WAN),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The published files at reduced width, and a VAE."""
    path = tmp_path_factory.mktemp("published")
    torch.save(
        {f"network.{name}": value for name, value in {**autoencoder(), **published.CONSTANTS}.items()},
        path / AUTOENCODER,
    )
    counters = {"net.accum_iteration": torch.tensor(7), "net.pos_embedder.seq": torch.arange(4.0)}
    in_training = {f"ldm_net.network.{name}": value for name, value in autoencoder().items()}
    torch.save({**transformer(), **counters, **in_training}, path / TRANSFORMER)
    torch.save({"paper_boat_21": [row() for _ in range(2)], "horse_0": torch.tensor([row()])}, path / CODES)
    (path / NEGATIVE).write_bytes(pickle.dumps([np.full((3, published.CONTEXT), 0.5, np.float32)]))
    save_weights(build_vae(WAN), path / "wan", "vae")
    return path


@pytest.fixture(scope="module")
def imported(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported")
    import_released(folder, out, LAYOUT, vae=str(folder / "wan"))
    return out


def autoencoder():
    return published.random_tensors(published.autoencoder_shapes(), seed=0)


def transformer():
    return published.random_tensors(published.transformer_shapes(), seed=1)


def row(seed=0):
    return np.random.default_rng(seed).integers(0, 1000, 8).tolist()


def dldm_of(out):
    checkpoint = load_checkpoint(out / "dldm", kind="dldm")
    model = DLDM(config_from(DLDMConfig, checkpoint.config))
    checkpoint.load_into(dldm=model)
    return model.double().eval()


def test_the_table_has_exactly_the_published_names_and_shapes():
    names = names_of(LAYOUT)
    for links, shapes in (
        (names.autoencoder, published.autoencoder_shapes()),
        (names.transformer, published.transformer_shapes()),
    ):
        assert {name: tuple(value.shape) for name, value in to_theirs(links, names.ours).items()} == shapes
    filled = {name for link in (*names.autoencoder, *names.transformer) for name in link.ours}
    assert names.ours.keys() - filled == {"vdm.projection.null"}


def test_an_imported_autoencoder_computes_what_the_formulas_say(imported):
    model, reference = dldm_of(imported), published.Reference(autoencoder())
    # Areas of 8 x 8 pixels that change from frame to frame.
    x = torch.rand(2, 9, 3, 4, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 2 - 1
    x = x.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    with torch.no_grad():
        features = model.features(x)
        expected = reference.features(x.transpose(1, 2))
        torch.testing.assert_close(features.transpose(1, 2), expected, rtol=0, atol=2e-6)
        indices = model.indices(x)
        assert torch.equal(indices, reference.codes(expected))
        assert len(indices.unique()) > 4
        clip = model.decode(model.fsq.codes_of(indices).double(), features[:, 0], x[:, 0])
        wanted = reference.decode(expected, indices).transpose(1, 2)
    assert wanted.std() > 0.1
    torch.testing.assert_close(clip, wanted, rtol=1e-6, atol=1e-5)


def test_the_transformer_has_the_names_that_diffusers_gives_it_and_codes_and_control_enter_as_published(imported):
    from diffusers.loaders.single_file_utils import convert_cosmos_transformer_checkpoint_to_diffusers

    checkpoint = load_checkpoint(imported / "dldm", kind="dldm")
    vdm, _ = vdm_of_dldm(checkpoint, LAYOUT.dldm)
    theirs = transformer()
    stock = convert_cosmos_transformer_checkpoint_to_diffusers(
        {name: value.float() for name, value in theirs.items() if name.startswith("net.")}
    )
    ours = vdm.transformer.state_dict()
    assert ours.keys() == stock.keys()
    assert all(torch.equal(value, stock[name]) for name, value in ours.items())
    # 1. Context: the block of the autoencoder's file, zeros behind it; without codes the negative embedding.
    indices = torch.tensor(row()).view(1, 2, 4)
    codes = DLDM(LAYOUT.dldm).fsq.codes_of(indices)
    with torch.no_grad():
        context = vdm.projection(codes)
        wanted = published.Reference(autoencoder()).context(indices, 16)
        torch.testing.assert_close(context.double(), wanted, rtol=0, atol=2e-6)
        dropped = vdm.projection(codes, torch.tensor([False]))
        assert dropped[0, :3].eq(0.5).all()
        assert dropped[0, 3:].eq(0).all()
        # 2. Control: embedders of its own, the control video after the first block, half of what each block gives.
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(1, 18, 3, 4, 6, generator=generator)
        control_video = torch.randn(1, 16, 3, 4, 6, generator=generator)
        times = torch.tensor([[0.0001, 0.5, 0.5]])
        tokens, arguments = block_arguments(vdm.control, x[:, :16], x[:, 16:], times, context)
        found = vdm.control(tokens, arguments, control_video)
        p = {name.removeprefix("net_ctrl."): value.float() for name, value in theirs.items()}
        h = patches(x) @ p["x_embedder.proj.1.weight"].T
        temb, embedded = vdm.control.time_embed(h, times.flatten())
        padded = torch.cat([control_video, torch.zeros(1, 113, 3, 4, 6)], dim=1)
        video = patches(padded) @ p["x_embedder2.proj.1.weight"].T
        for layer in range(8):
            video = torch.nn.functional.silu(video) if layer else video
            name = f"input_hint_block.{2 * layer}"
            video = video @ p[f"{name}.weight"].T + p[f"{name}.bias"]
        for number, block in enumerate(vdm.control.blocks):
            h = block(h, context, embedded, temb, vdm.transformer.rope(x, fps=None))
            h = h + video if number == 0 else h
            out = h @ p[f"zero_blocks.block{number}.weight"].T + p[f"zero_blocks.block{number}.bias"]
            torch.testing.assert_close(found[number], 0.5 * out)
    assert not any("unread" in name for name, v in vdm.named_parameters() if v in {*vdm.trainable_parameters()})


def test_the_video_model_reads_the_embedders_of_its_branch_and_a_text_in_place_of_codes(imported):
    vdm, _ = vdm_of_dldm(load_checkpoint(imported / "dldm", kind="dldm"), LAYOUT.dldm)
    vdm.trainable_parameters()
    noisy = torch.randn(1, 16, 3, 4, 6, generator=torch.Generator().manual_seed(4))
    codes = DLDM(LAYOUT.dldm).fsq.codes_of(torch.tensor(row()).view(1, 2, 4))
    given = (noisy, torch.tensor([0.5]), noisy[:, :, 0], codes)
    vdm.velocity(*given, control_video=noisy).square().sum().backward()
    assert all(part.weight.grad.any() for part in (vdm.control.patch_embed.proj, vdm.control.time_embed.norm))
    with torch.no_grad():
        dropped = vdm.velocity(*given, control_video=noisy, keep_codes=torch.tensor([False]))
        assert torch.equal(vdm.velocity(*given, control_video=noisy, text=vdm.projection.null), dropped)
        assert not torch.equal(vdm.velocity(*given, control_video=noisy), dropped)


def test_the_width_before_the_block_must_be_given():
    with pytest.raises(ValueError, match=r"vdm\.projection=convolution needs vdm\.projection_width"):
        replace(LAYOUT.vdm, projection_width=None)


def patches(x):
    """[B, C, K, h, w] -> tokens of 2 x 2 places, channels first."""
    b, c, k, h, w = x.shape
    return x.view(b, c, k, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(b, k * h * w // 4, 4 * c)


def test_an_export_writes_every_tensor_back_bit_by_bit(imported, folder, tmp_path):
    write_published(imported / "dldm", tmp_path)
    for file in (AUTOENCODER, TRANSFORMER):
        there, back = (torch.load(place / file, weights_only=True) for place in (folder, tmp_path))
        kept = {
            name: value for name, value in there.items() if not name.startswith(("ldm_net.", "net.accum", "net.pos"))
        }
        assert back.keys() == kept.keys()
        for name, value in kept.items():
            # The wavelets are constants, stored here in the precision of the file.
            assert torch.equal(back[name], value.to(back[name].dtype)), name
            assert value.dtype == back[name].dtype or "wavelets" in name


def test_published_codes_are_decoded_and_rendered_from_the_first_frame_of_their_video(
    imported, folder, tmp_path, monkeypatch
):
    videos = []
    monkeypatch.setattr(imagine, "write_video", lambda path, frames, **options: videos.append(frames))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "paper_boat_21.png")
    config = ImagineConfig(
        out=str(tmp_path / "boat.mp4"),
        dldm=str(imported),
        vdm=str(imported),
        image=str(tmp_path / "paper_boat_21.png"),
        codes=str(folder / CODES),
        sample_steps=1,
        hardware=Hardware("cpu", threads=1),
    )
    imagine.imagine(config)
    imagine.imagine(replace(config, guidance=8.0, segments=1))
    plain, guided = videos
    assert plain.shape == (1 + 2 * 8, 32, 2 * 48, 3)  # both clips of the video; coarse, rendered
    assert guided.shape == (1 + 8, 32, 2 * 48, 3)
    np.testing.assert_array_equal(plain[:9, :, :48], guided[:, :, :48])
    assert not np.array_equal(plain[1:9, :, 48:], guided[1:, :, 48:])  # away from the negative embedding
    model = dldm_of(imported).float()
    first = to_model_range(torch.from_numpy(pixels[None]))
    with torch.no_grad():
        values = model.fsq.codes_of(torch.tensor(row()).view(1, 2, 4))
        clip = model.decode(values, model.features(first[:, None])[:, 0], first)
    np.testing.assert_array_equal(plain[1:9, :, :48], to_pixels(clip.clamp(-1, 1))[0, 1:].numpy())
    with pytest.raises(InputError, match="has no codes of video='boat'; of its 2 nearest: paper_boat_21"):
        imagine.imagine(replace(config, video="boat"))


def test_codes_become_a_latent_cache_of_the_imported_encoder(imported):
    facts = load_checkpoint(imported / "dldm", kind="dldm").facts
    cache = LatentCache(imported / "latents", encoder_hash=facts["encoder_hash"])
    assert cache.facts["episodes"] == ["horse_0", "paper_boat_21"]
    assert cache.windows.episode.tolist() == [0, 1, 1]
    assert cache.windows.start.tolist() == [0, 0, 8]
    assert cache.windows.codes[2].flatten().tolist() == row()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("network.quant_conv.conv3d.bias"), r"1 missing \(quant_conv\.conv3d\.bias\)"),
        (lambda t: t.update({"network.more": torch.zeros(1)}), r"1 unexpected \(more\)"),
        (
            lambda t: t.update({"network.encoder.act.weight": torch.zeros(8, 16)}),
            r"1 of another shape \(encoder\.act\.weight \[8, 16\] instead of \[4, 16\]\)",
        ),
        (
            lambda t: t.update({"network.encoder.patcher3d.patch_size_buffer": torch.tensor([2])}),
            r"patch_size_buffer is \[2\.?0?\], expected \[4\]",
        ),
        (lambda t: t.update({"network.more": "text"}), "more is no tensor"),
        (lambda t: t.clear(), "expected weights by name, found dict"),
    ],
)
def test_weights_that_differ_from_the_published_ones_are_named_and_nothing_is_written(
    change, message, folder, tmp_path
):
    tensors = torch.load(folder / AUTOENCODER, weights_only=True)
    change(tensors)
    torch.save(tensors, tmp_path / AUTOENCODER)
    with pytest.raises(InputError, match=message):
        import_released(tmp_path, tmp_path / "out", LAYOUT)
    assert not (tmp_path / "out").exists()


class Hostile:
    def __reduce__(self):
        return (print, ("run",))


def test_no_file_runs_code_and_a_missing_one_is_named(folder, tmp_path, capsys):
    with pytest.raises(InputError, match=f"{AUTOENCODER} does not exist"):
        import_released(tmp_path, tmp_path / "out", LAYOUT)
    torch.save({"network.more": Hostile()}, tmp_path / AUTOENCODER)
    with pytest.raises(InputError, match="cannot be read as tensors and plain data"):
        import_released(tmp_path, tmp_path / "out", LAYOUT)
    for file in (AUTOENCODER, TRANSFORMER):
        (tmp_path / file).unlink(missing_ok=True)
        (tmp_path / file).symlink_to(folder / file)
    with pytest.raises(InputError, match=r"give vae=DIR"):
        import_released(tmp_path, tmp_path / "out", LAYOUT)
    (tmp_path / NEGATIVE).write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(InputError, match="not readable as plain data"):
        import_released(tmp_path, tmp_path / "out", LAYOUT, vae=str(folder / "wan"))
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # As the published callback writes it: zip(clips, name of the video).
        (
            [(codes, letter) for codes, letter in zip([row(), row(1)], "paper_boat_21", strict=False)],
            "letters of its name",
        ),
        ({"a": [row()[:-1]]}, r"a: expected integers \[clips, 8\], found int64 \[1, 7\]"),
        ({"a": [[1000] * 8]}, r"codes lie in 0 \.\. 999, found 1000 \.\. 1000"),
        ({"a": [row(), row()[:2]]}, r"a: no rows of 8 codes"),
        ({"a": "text"}, r"a: no rows of 8 codes"),
        ([], "expected codes by the name of a video, found list"),
    ],
)
def test_files_without_codes_are_refused_with_the_reason(content, message, folder, tmp_path):
    (tmp_path / AUTOENCODER).symlink_to(folder / AUTOENCODER)
    torch.save(content, tmp_path / CODES)
    with pytest.raises(InputError, match=message):
        import_released(tmp_path, tmp_path / "out", LAYOUT)


def test_an_autoencoder_alone_is_imported_without_a_video_model_and_cannot_be_written_back(folder, tmp_path):
    (tmp_path / AUTOENCODER).symlink_to(folder / AUTOENCODER)
    import_released(tmp_path, tmp_path / "out", LAYOUT)
    assert load_checkpoint(tmp_path / "out" / "dldm", kind="dldm").facts["vdm"] is None
    with pytest.raises(InputError, match="has no video model"):
        write_published(tmp_path / "out" / "dldm", tmp_path / "back")


def test_what_has_another_layout_or_learned_apart_cannot_be_written_back(imported, tmp_path):
    checkpoint = load_checkpoint(imported / "dldm", kind="dldm")
    vdm, codec = vdm_of_dldm(checkpoint, LAYOUT.dldm)
    model = DLDM(LAYOUT.dldm)
    checkpoint.load_into(dldm=model)
    torch.nn.init.ones_(vdm.projection.lift.weight)
    modules = {"dldm": model, "vdm": vdm, "codec": codec}
    save_checkpoint(tmp_path / "apart", kind="dldm", config=checkpoint.config, modules=modules, facts=checkpoint.facts)
    with pytest.raises(InputError, match=r"trained apart from .* post_quant_conv\.conv3d\.weight"):
        write_published(tmp_path / "apart", tmp_path / "back")
    other = config_tree(replace(LAYOUT.vdm, control="full"))
    save_checkpoint(
        tmp_path / "other",
        kind="dldm",
        config=checkpoint.config,
        modules={"dldm": model},
        facts={**checkpoint.facts, "vdm": other},
    )
    with pytest.raises(InputError, match=r"another layout .*vdm\.control=full"):
        write_published(tmp_path / "other", tmp_path / "back")


def test_a_whole_import_is_planned_without_memory_and_has_the_published_sizes():
    layout = released_layout()
    assert sum(value.numel() for name, value in names_of(layout).ours.items() if name.startswith("dldm.decoder")) == (
        76_197_760  # 76.2 M, as published
    )
    lines = list(plan_lines(layout))
    assert any(line.startswith(f"{TRANSFORMER}  net_ctrl.x_embedder2.proj.1.weight  [2048, 516]") for line in lines)
    assert f"{AUTOENCODER}: 462 tensors, 142,588,548 numbers, 0.27 GiB in bfloat16" in lines
    assert f"{TRANSFORMER}: 657 tensors, 2,196,907,808 numbers, 4.09 GiB in bfloat16" in lines


def test_the_commands_of_the_page_run_as_they_stand(folder, tmp_path, monkeypatch, capsys):
    page = next(path for path in Path(__file__).parents if (path / "docs").is_dir()) / "docs" / "import.md"
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL) for line in block.splitlines()
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "VideoWorld2_dLDM_2B").symlink_to(folder)
    (tmp_path / "checkpoints" / "wan").symlink_to(folder / "wan")
    Image.new("RGB", (50, 40)).save("paper_boat_21.jpg")
    monkeypatch.setattr(import_program, "released_layout", lambda: LAYOUT)
    monkeypatch.setattr(
        imagine, "write_video", lambda path, frames, **options: Path(path).write_bytes(frames.tobytes())
    )
    for command in commands:
        program, *overrides = command.split()
        small = ["sample_steps=1", "hardware.device=cpu", "hardware.threads=1"] if program == "vw2-imagine" else []
        monkeypatch.setattr(sys, "argv", [program, *(o for o in overrides if not o.startswith("sample_steps")), *small])
        entry_points.COMMANDS[program].main()
    assert len(commands) == 4
    assert f"{TRANSFORMER}: 177 tensors" in capsys.readouterr().out
    assert Path("runs/boat.mp4").stat().st_size == 17 * 32 * 96 * 3
    assert {file.name for file in Path("published").iterdir()} == {AUTOENCODER, TRANSFORMER}

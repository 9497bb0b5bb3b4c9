"""Folders in diffusers' layout: what stock writes we read, what we write stock reads, bit for bit."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig, WanConfig
from vw2_robot.models.video.cosmos import plain_state, stock_options
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import WanCodec, build_codec

PAPER_GEOMETRY = Geometry(channels=16, latent_steps=23, height=60, width=104, queries=4, fsq_dims=4)
SMALL = PAPER_GEOMETRY._replace(latent_steps=2, height=4, width=6)
# The 2B model's depth, names and switches at a width that fits in a test.
NARROW = VDMConfig(
    heads=2,
    head_dim=12,
    layers=28,
    mlp_ratio=4.0,
    adaln_lora_dim=8,
    rope_scale=(1.0, 3.0, 3.0),
    padding_channel=True,
    context_width=16,
    projection_layers=1,
    temporal_causal_self_attention=False,
    control="none",
    code_dropout=0.0,
    lora_rank=2,
)
WAN = CodecConfig(
    kind="wan", stride=4, block=8, precision="float32", wan=WanConfig(base_dim=8, dim_mult=(1, 1, 2, 2), res_blocks=1)
)


def paper_preset():
    tree = yaml.safe_load((Path(__file__).parents[4] / "configs/model/paper.yaml").read_text(encoding="utf-8"))
    return (
        config_from(kind, tree[name])
        for kind, name in ((VDMConfig, "vdm"), (CodecConfig, "codec"), (DLDMConfig, "dldm"))
    )


def stock(kind, folder):
    import diffusers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, kind).from_pretrained(str(folder), local_files_only=True)


def build(config=NARROW, seed=0):
    torch.manual_seed(seed)
    return VDM(config, SMALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as the 2B model comes, made by stock diffusers alone: transformer/ in shards, vae/, scheduler/."""
    import diffusers

    path = tmp_path_factory.mktemp("Cosmos-Predict2-narrow")
    torch.manual_seed(1)
    transformer = diffusers.CosmosTransformer3DModel(**stock_options(NARROW, SMALL))
    transformer.save_pretrained(str(path / "transformer"), max_shard_size="200KB")
    vae = diffusers.AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 2, 2], num_res_blocks=1)
    vae.save_pretrained(str(path / "vae"))
    diffusers.FlowMatchEulerDiscreteScheduler().save_pretrained(str(path / "scheduler"))
    return path


@pytest.mark.slow
def test_the_paper_preset_is_the_2b_model():
    config, codec, _ = paper_preset()
    with torch.device("meta"):
        model = VDM(replace(config, control="none", train="full"), PAPER_GEOMETRY)
        state = model.transformer.state_dict()
    assert sum(p.numel() for p in model.transformer.parameters()) == 1_956_413_440
    assert len(state) == 567
    assert model.transformer.config.in_channels == 18  # 16, the conditioning mask, the padding mask
    with torch.device("meta"):
        assert sum(p.numel() for p in build_codec(codec).vae.parameters()) == 126_892_531


def test_key_names_at_reduced_width_are_those_of_the_2b_model(folder):
    config, *_ = paper_preset()
    with torch.device("meta"):
        full = VDM(replace(config, control="none", train="full"), PAPER_GEOMETRY).transformer.state_dict()
    index = json.loads((folder / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(full)
    assert len(set(index["weight_map"].values())) > 1  # sharded, as the real one


@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_folder_loads_and_saves_back_bit_for_bit(folder, tmp_path, train):
    model = build(replace(NARROW, train=train))
    model.load_folder(folder)
    source = stock("CosmosTransformer3DModel", folder / "transformer")
    assert {k: v.tolist() for k, v in plain_state(model.transformer).items()} == {
        k: v.tolist() for k, v in source.state_dict().items()
    }
    model.save_folder(tmp_path / "saved")
    back = stock("CosmosTransformer3DModel", tmp_path / "saved/transformer")
    assert {k: v.tolist() for k, v in back.state_dict().items()} == {
        k: v.tolist() for k, v in source.state_dict().items()
    }
    described = {k: v for k, v in back.config.items() if not k.startswith("_")}
    assert described == {k: v for k, v in source.config.items() if not k.startswith("_")}
    assert stock("FlowMatchEulerDiscreteScheduler", tmp_path / "saved/scheduler").config.sigma_max == 80


def test_the_padding_channel_stands_where_stock_diffusers_puts_it(folder, monkeypatch):
    """Stock resizes its padding mask with torchvision; here nearest-neighbor resizing stands in for that call."""
    from types import SimpleNamespace

    from diffusers.models.transformers import transformer_cosmos

    functional = SimpleNamespace(resize=lambda mask, size, interpolation: torch.nn.functional.interpolate(mask, size))
    mode = SimpleNamespace(NEAREST="nearest")
    monkeypatch.setattr(
        transformer_cosmos, "transforms", SimpleNamespace(functional=functional, InterpolationMode=mode), raising=False
    )
    model = build(replace(NARROW, code_visibility="none"))
    model.load_folder(folder)
    seen = {}
    model.transformer.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    generator = torch.Generator().manual_seed(0)
    noisy, first = (torch.randn(1, 16, *shape, generator=generator) for shape in ((3, 4, 6), (4, 6)))
    with torch.no_grad():
        ours = model.velocity(noisy, torch.tensor([0.7]), first, torch.rand(1, 2, 4, 4), control_video=None)
        theirs = stock("CosmosTransformer3DModel", folder / "transformer")(
            **{
                **seen,
                "condition_mask": seen["condition_mask"][:, :1],
                "timestep": seen["timestep"].view(1, 1, 3, 1, 1),
            },
            padding_mask=torch.zeros(1, 1, 32, 48),
        )[0]
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=1e-5)


def test_trained_adapters_are_saved_inside_the_weights_or_beside_them(tmp_path):
    model = build(replace(NARROW, train="lora", layers=2, padding_channel=False))
    with torch.no_grad():
        for name, parameter in model.transformer.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    generator = torch.Generator().manual_seed(0)
    noisy, first = (torch.randn(1, 16, *shape, generator=generator) for shape in ((3, 4, 6), (4, 6)))
    arguments = (noisy, torch.tensor([0.7]), first, torch.rand(1, 2, 4, 4))

    def answer(transformer):
        plain = build(replace(NARROW, layers=2, padding_channel=False))
        plain.projection.load_state_dict(model.projection.state_dict())
        plain.transformer.load_state_dict(plain_state(transformer, merged=True))
        with torch.no_grad():
            return plain.velocity(*arguments, control_video=None)

    with torch.no_grad():
        expected = model.velocity(*arguments, control_video=None)
    model.save_folder(tmp_path / "merged")
    merged = stock("CosmosTransformer3DModel", tmp_path / "merged/transformer")
    torch.testing.assert_close(answer(merged), expected, atol=1e-4, rtol=1e-4)

    model.save_folder(tmp_path / "beside", merged=False)
    beside = stock("CosmosTransformer3DModel", tmp_path / "beside/transformer")
    assert all(torch.equal(v, plain_state(model.transformer)[k]) for k, v in beside.state_dict().items())
    assert not torch.allclose(answer(beside), expected, atol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        beside.load_lora_adapter(
            str(tmp_path / "beside/transformer"),
            prefix=None,
            weight_name="pytorch_lora_weights.safetensors",
            adapter_name="default",
        )
    torch.testing.assert_close(answer(beside), expected, atol=1e-4, rtol=1e-4)


def test_a_tiny_prior_takes_the_same_way_through_a_folder_as_the_2b_model(tmp_path):
    tiny = replace(NARROW, layers=2, padding_channel=False, prediction="change", control="full", control_layers=1)
    trained, other = build(tiny), build(tiny, seed=5)
    trained.save_folder(tmp_path)
    trained.save_folder(tmp_path)  # over the first
    other.load_folder(tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(trained.transformer.parameters(), other.transformer.parameters(), strict=True)
    )
    block = trained.transformer.transformer_blocks[0]
    assert all(torch.equal(a, b) for a, b in zip(other.control.blocks[0].parameters(), block.parameters(), strict=True))


def broken(folder, tmp_path, part):
    """A copy of one part of the folder, to be damaged."""
    shutil.copytree(folder / part, tmp_path / part)
    return tmp_path / part


def test_a_folder_that_is_not_there_is_named_with_what_is_expected(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path)) + r".*vdm\.weights.*diffusers"):
        build(replace(NARROW, layers=1)).load_folder(tmp_path)


@pytest.mark.parametrize(
    ("change", "named"), [({"layers": 27}, "transformer_blocks.27"), ({"rope_scale": (1.0, 1.0, 1.0)}, "rope_scale")]
)
def test_a_folder_of_another_size_is_refused_with_the_number_that_differs(folder, change, named):
    with pytest.raises(InputError, match=f"another size than vdm describes: {re.escape(named)}"):
        build(replace(NARROW, **change)).load_folder(folder)


def test_missing_and_damaged_weights_are_refused(folder, tmp_path):
    copied = broken(folder, tmp_path, "transformer")
    shard = sorted(copied.glob("*.safetensors"))[0]
    weights = load_file(shard)
    lost = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != lost}, shard, metadata={"format": "pt"})
    model = build()
    with pytest.raises(InputError, match="transformer"):
        model.load_folder(tmp_path)
    shard.write_bytes(b"no safetensors")
    with pytest.raises(InputError, match="cannot be read"):
        model.load_folder(tmp_path)
    (copied / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json describes no CosmosTransformer3DModel"):
        model.load_folder(tmp_path)


def test_the_vae_of_a_folder_becomes_the_codec(folder):
    codec = WanCodec(WAN)
    codec.load_folder(folder)
    source = stock("AutoencoderKLWan", folder / "vae")
    assert all(torch.equal(v, codec.vae.state_dict()[k]) for k, v in source.state_dict().items())
    x = torch.rand(1, 5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = source.encode(x.transpose(1, 2)).latent_dist.mode()
    offset, size = (torch.tensor(source.config[name])[:, None, None, None] for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(codec.encode(x), (mean - offset) / size)


@pytest.mark.parametrize("named", ["../elsewhere.safetensors", "absent.safetensors"])
def test_an_index_names_files_of_its_own_folder_alone(folder, tmp_path, named):
    copied = broken(folder, tmp_path, "transformer")
    shutil.copy(sorted(copied.glob("*.safetensors"))[0], tmp_path / "elsewhere.safetensors")
    index = copied / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"] = dict.fromkeys(content["weight_map"], named)
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match="names no files of this folder"):
        build().load_folder(tmp_path)

"""Cosmos-Predict2.5, and the .pt files of Cosmos-Predict2 with names of their own, at a small width."""

import re
from dataclasses import replace

import diffusers
import pytest
import torch
from torch import nn

from vw2_robot.errors import InputError
from vw2_robot.models.video import cosmos
from vw2_robot.models.video.config import Geometry, VDMConfig
from vw2_robot.models.video.cosmos import plain_state, stock_options
from vw2_robot.models.video.cosmos_native import variant_of
from vw2_robot.models.video.vdm import VDM

GEOMETRY = Geometry(channels=3, latent_steps=2, height=4, width=4, queries=4, fsq_dims=4)
NARROW = VDMConfig(
    heads=2,
    head_dim=12,
    layers=1,
    adaln_lora_dim=8,
    context_width=16,
    control="none",
    temporal_causal_self_attention=False,
    code_visibility="none",
)
# The names of one block and of what is around it, as the published files have them, and as diffusers does.
ATTENTION = (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("output_proj", "to_out.0"))
NORMS = (("q_norm", "norm_q"), ("k_norm", "norm_k"))
NATIVE = {
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "t_embedding_norm": "time_embed.norm",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
    "blocks.0.mlp.layer1": "transformer_blocks.0.ff.net.0.proj",
    "blocks.0.mlp.layer2": "transformer_blocks.0.ff.net.2",
    **{
        f"blocks.0.adaln_modulation_{native}.{i}": f"transformer_blocks.0.norm{number}.linear_{i}"
        for number, native in ((1, "self_attn"), (2, "cross_attn"), (3, "mlp"))
        for i in (1, 2)
    },
    **{
        f"blocks.0.{native}.{theirs}": f"transformer_blocks.0.{stock}.{ours}"
        for native, stock in (("self_attn", "attn1"), ("cross_attn", "attn2"))
        for theirs, ours in (*ATTENTION, *NORMS)
    },
}


def build(config=NARROW, seed=0):
    torch.manual_seed(seed)
    return VDM(config, GEOMETRY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in diffusers' layout, saved by diffusers."""
    path = tmp_path_factory.mktemp("Cosmos-Predict2-narrow")
    torch.manual_seed(1)
    diffusers.CosmosTransformer3DModel(**stock_options(NARROW, GEOMETRY)).save_pretrained(str(path / "transformer"))
    return path


def native_file(path, folder, *, change=0.0):
    """The weights of the folder under native names, with what else such files hold."""
    stock = diffusers.CosmosTransformer3DModel.from_pretrained(str(folder / "transformer"), local_files_only=True)
    weights = {f"net.{native}.weight": stock.state_dict()[f"{name}.weight"] + change for native, name in NATIVE.items()}
    assert len(weights) == len(stock.state_dict())
    counters = {"net.accum_iteration": torch.zeros(1), "net.pos_embedder.seq": torch.arange(3)}
    torch.save(weights | counters | {"net.blocks.0.self_attn.attn_op._extra_state": None}, path)
    return path


def test_a_native_file_becomes_the_weights_of_diffusers_and_its_name_says_the_variant(folder, tmp_path):
    file = native_file(tmp_path / "model-480p-16fps.pt", folder)
    from_file, from_folder = build(), build(seed=2)
    from_file.load_folder(file)
    from_folder.load_folder(folder)
    for name, value in from_folder.transformer.state_dict().items():
        assert torch.equal(from_file.transformer.state_dict()[name], value), name
    assert "93 frames of 480 x 832 at 16 fps, by its name" in variant_of(file)
    assert "says no variant" in variant_of(file.rename(tmp_path / "other.pt"))


def test_a_folder_says_its_variant_where_an_equal_native_file_is_in_it(folder, tmp_path):
    (tmp_path / "transformer").symlink_to(folder / "transformer")
    assert "480p or 720p, 10 or 16 fps" in variant_of(tmp_path)
    native_file(tmp_path / "model-480p-16fps.pt", folder, change=0.5)
    assert "480p or 720p" in variant_of(tmp_path)
    native_file(tmp_path / "model-720p-10fps.pt", folder)
    assert "61 frames of 720 x 1280 at 10 fps, as model-720p-10fps.pt in it" in variant_of(tmp_path)


def test_native_files_that_do_not_fit_are_refused(folder, tmp_path):
    file = native_file(tmp_path / "model.pt", folder)
    with pytest.raises(InputError, match=r"model\.pt does not hold all weights.*transformer_blocks\.1"):
        build(replace(NARROW, layers=2)).load_folder(file)
    with pytest.raises(InputError, match=r"proj_out\.weight \[12, 24\]|does not fit"):
        build(replace(NARROW, heads=3)).load_folder(file)
    torch.save({"net.proj": print}, file)
    with pytest.raises(InputError, match="no weights that can be read"):
        build().load_folder(file)
    file.write_bytes(b"no weights")
    with pytest.raises(InputError, match="no weights that can be read"):
        build().load_folder(file)


def test_codes_go_around_the_text_layer_of_version_2_5_which_never_learns_but_loads_both_ways(tmp_path):
    config = replace(NARROW, text_projection=40)
    torch.manual_seed(1)
    stock = diffusers.CosmosTransformer3DModel(**stock_options(config, GEOMETRY))
    assert stock.crossattn_proj[0].weight.shape == (16, 40)
    stock.save_pretrained(str(tmp_path / "stock/transformer"))
    model = build(config)
    model.load_folder(tmp_path / "stock")
    model.save_folder(tmp_path / "saved")
    back = diffusers.CosmosTransformer3DModel.from_pretrained(str(tmp_path / "saved/transformer"))
    for state in (plain_state(model.transformer), back.state_dict()):
        assert {k: v.tolist() for k, v in state.items()} == {k: v.tolist() for k, v in stock.state_dict().items()}
    assert back.config.use_crossattn_projection
    noisy, first, codes = torch.randn(1, 3, 3, 4, 4), torch.randn(1, 3, 4, 4), torch.rand(1, 2, 4, 4)
    codes.requires_grad_()
    found = model.velocity(noisy, torch.tensor([0.7]), first, codes, control_video=None)
    stock.crossattn_proj = nn.Identity()
    marks = torch.zeros(1, 1, 3, 4, 4)
    marks[:, :, 0] = 1
    times = torch.tensor([cosmos.CLEAN_TIME, 0.7, 0.7]).view(1, 1, 3, 1, 1)
    x = torch.cat([first[:, :, None], noisy[:, :, 1:]], dim=2)
    expected = stock(x, times, model.projection(codes), condition_mask=marks, return_dict=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    model.trainable_parameters()
    found.square().sum().backward()
    assert codes.grad.any()
    still = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert still == {"transformer.crossattn_proj.0.weight", "transformer.crossattn_proj.0.bias"}


def test_a_diffusers_without_version_2_5_is_named(monkeypatch):
    class Older(diffusers.CosmosTransformer3DModel):
        def __init__(self, in_channels: int, concat_padding_mask: bool) -> None: ...

    monkeypatch.setattr(diffusers, "CosmosTransformer3DModel", Older)
    with pytest.raises(InputError, match=re.escape(diffusers.__version__) + r" has no Cosmos-Predict2\.5"):
        cosmos.build_transformer(
            {"in_channels": 3, "concat_padding_mask": False, "use_crossattn_projection": True}, filled=True
        )

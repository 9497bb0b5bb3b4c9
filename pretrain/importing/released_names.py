"""The published weights as a table: their names, our names, and what is done between them.

Place in the flow: the published files -> `released_weights.py` -> our checkpoint of the dLDM stage, and back. A row is
one layer (weight and bias) or one tensor; groups of rows are the kinds of blocks; `dldm_links` and `transformer_links`
put them where the configuration has such blocks. No tensor is stored here, and no shape: shapes follow from our modules
through the forms, so that names and shapes of a whole file are known without one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Literal, NamedTuple

from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.video.config import VDMConfig
from vw2_robot.models.video.cosmos_native import stock_name

AUTOENCODER = "VideoWorld2_dLDM_VAE.pt"
TRANSFORMER = "VideoWorld2_dLDM_DiT.pth"
CODES = "VideoCraft-dLDM-codes.pt"
NEGATIVE = "default_neg.pickle"

Form = Literal["same", "matrix", "patched", "unpatched", "flipped", "patches"]
"""How a tensor differs from ours. matrix: a convolution of one place, ours is a linear layer; patched, unpatched: input
or output channels are wavelet bands in another order, an eighth of ours in size; flipped: column before row; patches: a
linear layer on patches of 2 x 2, ours is a convolution."""


class LayerRow(NamedTuple):
    """One layer or tensor. Several names of one side are joined along the first axis, in order."""

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]
    form: Form = "same"


class TensorLink(NamedTuple):
    """A row in its place: full names of tensors."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    form: Form


def native_row(name: str) -> LayerRow:
    """Return the row of a layer that Cosmos-Predict2 has under the same name, ours being that of diffusers."""
    return LayerRow(name, stock_name(f"{name}.weight").removesuffix(".weight"))


RESIDUAL = (
    LayerRow("norm1.norm", "norm1.norm"),
    LayerRow("conv1.0.conv3d", "conv1.0"),
    LayerRow("conv1.1.conv3d", "conv1.1"),
    LayerRow("norm2.norm", "norm2.norm"),
    LayerRow("conv2.0.conv3d", "conv2.0"),
    LayerRow("conv2.1.conv3d", "conv2.1"),
    LayerRow("nin_shortcut.conv3d", "skip"),
)
ATTENTION = (
    LayerRow("norm.norm", "norm.norm"),
    LayerRow(("q.conv3d", "k.conv3d", "v.conv3d"), "qkv", "matrix"),
    LayerRow("proj_out.conv3d", "out", "matrix"),
)
CODE_ATTENTION = (
    LayerRow("norm.norm", "norm.norm"),
    LayerRow("q_proj.conv3d", "cross.q", "matrix"),
    LayerRow("kv_proj", ("cross.k", "cross.v")),
    LayerRow("proj_out.conv3d", "cross.out", "matrix"),
)
DOWNSAMPLE = (LayerRow("conv1.conv3d", "conv_space"), LayerRow("conv3.conv3d", "mix"))
UPSAMPLE = (LayerRow("conv2.conv3d", "conv"), LayerRow("conv3.conv3d", "mix"))
NORM = (LayerRow("norm", "norm"),)
QUERY_ATTENTION = (
    LayerRow("q_proj", "q"),
    LayerRow("k_proj", "k"),
    LayerRow("v_proj", "v"),
    LayerRow("out_proj", "out"),
)
LAYER = (LayerRow("", ""),)
AUTOENCODER_ENDS = (
    LayerRow("encoder.conv_in.0.conv3d", "encoder.stem.0", "patched"),
    LayerRow("encoder.conv_in.1.conv3d", "encoder.stem.1"),
    LayerRow("encoder.pos_embedding.positional_encoding_gaussian_matrix", "qformer.frequencies", "flipped"),
    LayerRow("encoder.act.weight", "qformer.queries"),
    LayerRow("encoder.qformer_ldm.qformer.norm_final_attn", "qformer.norm_cross.{depth}"),
    LayerRow("encoder.outproj_ldm.conv3d", "pre_quant.0", "matrix"),
    LayerRow("quant_conv.conv3d", "pre_quant.1", "matrix"),
    LayerRow("post_quant_conv.conv3d", "decoder.post_quant.0", "matrix"),
    LayerRow("decoder.conv_in.0.conv3d", "decoder.post_quant.1.0"),
    LayerRow("decoder.conv_in.1.conv3d", "decoder.post_quant.1.1"),
    LayerRow("decoder.conv_out.0.conv3d", "decoder.up.head.0"),
    LayerRow("decoder.conv_out.1.conv3d", "decoder.up.head.1", "unpatched"),
)
TRANSFORMER_BLOCK = tuple(
    native_row(name)
    for name in (
        *(f"adaln_modulation_{part}.{layer}" for part in ("self_attn", "cross_attn", "mlp") for layer in (1, 2)),
        *(
            f"{part}.{layer}"
            for part in ("self_attn", "cross_attn")
            for layer in ("q_proj", "k_proj", "v_proj", "output_proj", "q_norm", "k_norm")
        ),
        "mlp.layer1",
        "mlp.layer2",
    )
)
EMBEDDERS = tuple(
    map(native_row, ("x_embedder.proj.1", "t_embedder.1.linear_1", "t_embedder.1.linear_2", "t_embedding_norm"))
)
LAST_LAYER = tuple(
    map(native_row, ("final_layer.adaln_modulation.1", "final_layer.adaln_modulation.2", "final_layer.linear"))
)
CONTROL_VIDEO = (
    LayerRow("x_embedder2.proj.1", "embed", "patches"),
    *(LayerRow(f"input_hint_block.{number}", f"mlp.{number}") for number in range(0, 16, 2)),
)

CONSTANTS = {
    "encoder.patcher3d.wavelets": (2**-0.5, 2**-0.5),
    "encoder.patcher3d._arange": (0, 1),
    "encoder.patcher3d.patch_size_buffer": (4,),
    "decoder.unpatcher3d.wavelets": (2**-0.5, 2**-0.5),
    "decoder.unpatcher3d._arange": (0, 1),
}
"""buffers of the published autoencoder that hold the same in every file; ours has no weights there"""
WITHOUT_WEIGHTS = r"(^|\.)(_extra_state|accum_\w+|pos_embedder\.\w+|quantizer\.\w+)$|^(loss|metric)\."
"""names of counters, positions and losses that published files may hold; they are neither read nor written"""
WRAPPERS = ("_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
"""parts of names that PyTorch's wrappers leave"""


def dldm_links(config: DLDMConfig, present: Collection[str]) -> list[TensorLink]:
    """Return the links of the autoencoder's file: to the dLDM, and to the projection of the VDM.

    Args:
        config: of the dLDM.
        present: names of our tensors, `dldm.` or `vdm.` before them; a row of another one is left out.
    """
    depth = config.qformer.depth
    ends = [row._replace(ours=row.ours.format(depth=depth)) for row in AUTOENCODER_ENDS if isinstance(row.ours, str)]
    queries = "encoder.qformer_ldm.qformer"
    places = [
        ("", "dldm.", ends),
        *(
            (f"{queries}.layers.{number}.{theirs}", f"dldm.qformer.{ours}", rows)
            for number in range(depth)
            for theirs, ours, rows in (
                ("cross_attn_token_to_image.", f"cross.{number}.", QUERY_ATTENTION),
                ("norm2", f"norm_cross.{number}", LAYER),
                ("mlp.lin1", f"mlp.{number}.0", LAYER),
                ("mlp.lin2", f"mlp.{number}.2", LAYER),
                ("norm3", f"norm_mlp.{number}", LAYER),
            )
        ),
        (f"{queries}.final_attn_token_to_image.", f"dldm.qformer.cross.{depth}.", QUERY_ATTENTION),
        *((theirs, f"dldm.encoder.body.{number}.", rows) for number, (theirs, rows) in enumerate(_encoder(config))),
        ("decoder.mid.block_1.", "dldm.decoder.block_in.", RESIDUAL),
        ("decoder.mid.attn_1.0.", "dldm.decoder.attention.", CODE_ATTENTION),
        ("decoder.mid.attn_1.1.", "dldm.decoder.space.", ATTENTION),
        ("decoder.mid.attn_1.2.", "dldm.decoder.time.", ATTENTION),
        ("decoder.mid.block_2.", "dldm.decoder.block_out.", RESIDUAL),
        *((theirs, f"dldm.decoder.up.body.{number}.", rows) for number, (theirs, rows) in enumerate(_decoder(config))),
        ("quant_to_dit_dim.", "vdm.projection.block.", RESIDUAL),
        ("", "vdm.projection.", [LayerRow("post_quant_conv.conv3d", "lift", "matrix")]),
    ]
    return list(_links(places, present))


def _encoder(config: DLDMConfig) -> Iterator[tuple[str, tuple[LayerRow, ...]]]:
    """Yield the blocks of the encoder in the order of `CausalEncoder.body`."""
    for number, level in enumerate(config.levels):
        for block in range(level.blocks):
            yield f"encoder.down.{number}.block.{block}.", RESIDUAL
        if level.downsample_space:
            yield f"encoder.down.{number}.downsample.", DOWNSAMPLE
    yield "encoder.mid.block_1.", RESIDUAL
    yield "encoder.mid.attn_1.0.", ATTENTION
    yield "encoder.mid.attn_1.1.", ATTENTION
    yield "encoder.mid.block_2.", RESIDUAL
    yield "encoder.norm_out.", NORM


def _decoder(config: DLDMConfig) -> Iterator[tuple[str, tuple[LayerRow, ...]]]:
    """Yield the blocks of the decoder in the order of `CausalDecoder.body`."""
    for number, level in reversed(list(enumerate(config.levels))):
        if level.downsample_space:
            yield f"decoder.up.{number + 1}.upsample.", UPSAMPLE
        for block in range(level.blocks + config.decoder_extra_blocks):
            yield f"decoder.up.{number}.block.{block}.", RESIDUAL
            if level.attention:
                yield f"decoder.up.{number}.attn.{block}.0.", CODE_ATTENTION
                yield f"decoder.up.{number}.attn.{block}.1.", ATTENTION
                yield f"decoder.up.{number}.attn.{block}.2.", ATTENTION
    yield "decoder.norm_out.", NORM


def transformer_links(config: VDMConfig, present: Collection[str]) -> list[TensorLink]:
    """Return the links of the transformer's file: to the transformer and to the control branch.

    Args:
        config: of the VDM.
        present: names of our tensors; a row of another one is left out.
    """
    places = [
        ("net.", "vdm.transformer.", (*EMBEDDERS, *LAST_LAYER)),
        *(
            (f"net.blocks.{number}.", f"vdm.transformer.transformer_blocks.{number}.", TRANSFORMER_BLOCK)
            for number in range(config.layers)
        ),
        ("net_ctrl.", "vdm.control.", (*EMBEDDERS, *CONTROL_VIDEO)),
        ("net_ctrl.", "vdm.control.unread.", LAST_LAYER),
        *(
            (f"net_ctrl.{theirs}", f"vdm.control.{ours}", rows)
            for number in range(config.controlled)
            for theirs, ours, rows in (
                (f"blocks.{number}.", f"blocks.{number}.", TRANSFORMER_BLOCK),
                (f"zero_blocks.block{number}", f"after.{number}", LAYER),
            )
        ),
    ]
    return list(_links(places, present))


def _links(places: Iterable[tuple[str, str, Iterable[LayerRow]]], present: Collection[str]) -> Iterator[TensorLink]:
    """Yield the tensors of all rows in their places: weight and bias of layers, and tensors by themselves."""
    for theirs, ours, rows in places:
        for row in rows:
            their_names, our_names = ((names,) if isinstance(names, str) else names for names in row[:2])
            for end in ("", ".weight", ".bias"):
                full = tuple(f"{ours}{name}{end}" for name in our_names)
                if full[0] in present:
                    yield TensorLink(tuple(f"{theirs}{name}{end}" for name in their_names), full, row.form)

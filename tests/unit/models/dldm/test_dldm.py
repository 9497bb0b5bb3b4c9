from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.keys import defaults_of
from vw2_robot.models.dldm.code_attention import CodeAttention, Codes, attend, visible_codes
from vw2_robot.models.dldm.code_decoder import CodeDecoder
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip, pad_to_stride
from vw2_robot.models.dldm.qformer import CrossAttention, QFormer

TINY = DLDMConfig(
    num_frames=13,
    height=16,
    width=16,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(16, 1),),
    z_channels=16,
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
)


def build(config=TINY):
    torch.manual_seed(0)
    model = DLDM(config)
    model.train()
    for seed in range(3):  # running statistics of real inputs
        model.encode(fake_clip(config, 8, seed=seed))
    return model.eval()


@pytest.mark.parametrize("context", ["adjacent", "all", "current"])
@pytest.mark.parametrize("frame", range(13))
def test_changing_any_frame_after_a_codes_step_leaves_that_code_unchanged(context, frame):
    model = build(
        replace(
            TINY,
            qformer=QFormerConfig(
                heads=2, context=context, role_embedding=True, value_pos=True, difference_values=True
            ),
        )
    )
    x = fake_clip(TINY, 4)
    changed = x.clone()
    changed[:, frame + 1 :] = torch.rand_like(changed[:, frame + 1 :]) * 2 - 1
    finished = frame // 4  # latent step k ends with frame 4k
    before, after = model.encode(x), model.encode(changed)
    assert torch.equal(before.codes_BMNL[:, :finished], after.codes_BMNL[:, :finished])
    assert torch.equal(before.indices_BMN[:, :finished], after.indices_BMN[:, :finished])
    if finished < 3:  # z itself moves, so the test above is not empty
        z_before = model.pre_quant(model.qformer(model.features(x)))[:, finished:]
        z_after = model.pre_quant(model.qformer(model.features(changed)))[:, finished:]
        assert not torch.equal(z_before, z_after)


@pytest.mark.parametrize("frames", [2, 6, 11])
def test_extreme_values_after_a_step_leave_its_code_bit_equal_also_where_the_clip_is_padded(frames):
    model = build()
    x = fake_clip(TINY, 4)[:, :frames]
    changed = x.clone()
    finished = (frames - 1) // 4
    changed[:, 4 * finished + 1 :] = 1e6
    assert torch.equal(model.indices(x)[:, :finished], model.indices(changed)[:, :finished])
    assert torch.isfinite(model.encode(changed).codes_BMNL).all()


def test_a_short_clip_has_the_same_codes_alone_and_padded_into_a_batch_of_longer_ones():
    model = build()
    x = fake_clip(TINY, 3)
    short = x[:1, :6]
    padded = torch.cat([short, short[:, -1:].expand(-1, 7, -1, -1, -1)], dim=1)
    together = model.indices(torch.cat([padded, x[1:]]))
    alone = model.indices(short)
    assert torch.equal(together[:1, :2], alone)
    assert torch.equal(together[1:], model.indices(x[1:]))


def test_a_clip_of_one_frame_has_no_codes_and_decodes_to_its_anchor():
    model = build(replace(TINY, output="change"))
    x = fake_clip(TINY, 2)[:, :1]
    encoded = model.encode(x)
    rec = model.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    assert encoded.indices_BMN.shape == (2, 0, 4)
    with_codes = model.encode(fake_clip(TINY, 2))
    whole = model.decode(with_codes.codes_BMNL, with_codes.anchor_BChw, x[:, 0])
    assert rec.shape == (2, 1, 3, 16, 16)
    torch.testing.assert_close(rec, whole[:, :1])


@pytest.mark.parametrize(("context", "seen"), [("adjacent", {1, 2}), ("all", {0, 1, 2}), ("current", {2})])
def test_queries_of_a_step_see_exactly_the_frames_of_their_context(context, seen):
    model = build(
        replace(
            TINY,
            qformer=QFormerConfig(
                heads=2, context=context, role_embedding=True, value_pos=True, difference_values=True
            ),
        )
    )
    f = torch.randn(1, 4, 16, 4, 4, requires_grad=True)
    model.qformer(f)[:, 1].square().sum().backward()  # latent step 2
    gradient = f.grad.abs().amax(dim=(0, 2, 3, 4))
    assert {k for k in range(4) if gradient[k] > 0} == seen


@pytest.mark.parametrize("context", ["adjacent", "all", "current"])
def test_vectorised_queries_equal_one_step_at_a_time(context):
    model = build(
        replace(
            TINY,
            qformer=QFormerConfig(
                heads=2, context=context, role_embedding=True, value_pos=True, difference_values=True
            ),
        )
    )
    f = torch.randn(2, 4, 16, 4, 4)
    together = model.qformer(f)
    for k in range(1, 4):
        alone = model.qformer(f[:, max(0, k - 1) if context != "all" else 0 : k + 1])[:, -1]
        torch.testing.assert_close(together[:, k - 1], alone, atol=1e-5, rtol=1e-5)


def test_adjacent_queries_know_which_frame_came_first():
    model = build()
    f = torch.randn(1, 2, 16, 4, 4)
    assert not torch.allclose(model.qformer(f), model.qformer(f.flip(1)))
    blind = build(replace(TINY, qformer=QFormerConfig(heads=2, value_pos=True)))
    torch.testing.assert_close(blind.qformer(f), blind.qformer(f.flip(1)), atol=1e-5, rtol=1e-5)


def test_the_released_queries_have_a_last_residual_and_positions_of_centers():
    model = build(replace(TINY, qformer=QFormerConfig(heads=2, last_residual=True, centered_positions=True)))
    qformer = model.qformer
    angles = 2 * torch.pi * torch.tensor([-0.75, 0.25]) @ qformer.frequencies  # row 0, column 2 of 4 x 4
    torch.testing.assert_close(qformer.position(4, 4)[2], torch.cat([angles.sin(), angles.cos()]), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for parameter in qformer.cross[-1].out.parameters():
            parameter.zero_()
    f = torch.randn(1, 3, 16, 4, 4)
    assert qformer(f).std() > 0.1  # what the layers before have found is still there
    unlike = QFormer(replace(TINY, qformer=QFormerConfig(heads=2)))
    unlike.load_state_dict(qformer.state_dict())
    assert unlike(f).abs().max() == 0


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("adjacent", [False, True, True]),  # step 3 moves too: it looks back at the end of step 2
        ("current", [False, True, False]),
    ],
)
def test_motion_in_one_step_changes_only_that_steps_code_input(context, expected):
    config = replace(
        TINY,
        qformer=QFormerConfig(heads=2, context=context, role_embedding=True, value_pos=True, difference_values=True),
    )
    model = build(config)
    # without temporal attention and with flat temporal kernels the trunk is local in time
    for module in model.encoder.modules():
        if getattr(module, "axis", None) == "time":
            torch.nn.init.zeros_(module.out.weight)
            torch.nn.init.zeros_(module.out.bias)
        if getattr(module, "kernel", None) == (3, 1, 1):
            module.weight.data[:, :, :2] = 0
    still = fake_clip(config, 1)[:, :1].expand(-1, 13, -1, -1, -1).clone()
    moving = still.clone()
    moving[:, 5:9] += 0.5  # frames of latent step 2
    z_still, z_moving = (model.pre_quant(model.qformer(model.features(x))) for x in (still, moving))
    differs = [not torch.allclose(z_still[:, m], z_moving[:, m], atol=1e-6) for m in range(3)]
    assert differs == expected


@pytest.mark.parametrize(("frames", "steps"), [(1, 0), (2, 1), (5, 1), (6, 2), (12, 3), (13, 3)])
def test_lengths_that_are_no_multiple_of_the_stride_are_padded_with_the_last_frame(frames, steps):
    model = build()
    x = fake_clip(TINY, 2)[:, :frames]
    encoded = model.encode(x)
    assert encoded.indices_BMN.shape == (2, steps, 4)
    rec = model.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    assert rec.shape == (2, 1 + 4 * steps, 3, 16, 16)
    padded = pad_to_stride(x, 4)
    assert torch.equal(padded[:, frames:], x[:, -1:].expand(-1, padded.shape[1] - frames, -1, -1, -1))


def test_a_clip_is_encoded_the_same_alone_and_in_a_batch():
    model = build()
    x = fake_clip(TINY, 5)
    together = model.indices(x)
    assert torch.equal(together, torch.cat([model.indices(x[i : i + 1]) for i in range(5)]))


@pytest.mark.parametrize(("visibility", "expected"), [("causal", {0, 1}), ("current", {1})])
def test_decoder_attention_sees_exactly_the_codes_that_the_switch_allows(visibility, expected):
    mask = visible_codes(3, 4, visibility=visibility, device=torch.device("cpu"))
    assert {int(c) // 4 for c in mask[1].nonzero()} == expected
    assert mask.any(dim=1).all()


DEEP = replace(
    TINY,
    stem=StemConfig("pixel", 2, 2, 1),
    levels=(LevelConfig(8, 1, downsample_space=True), LevelConfig(16, 1, downsample_time=True), LevelConfig(16, 2)),
)
"""a latent step is two steps of features at the first level, the grid twice as high and wide there"""


@pytest.mark.parametrize("visibility", ["causal", "current"])
@pytest.mark.parametrize(("variant", "attentions"), [("middle", 1), ("lowest", 3), ("every", 5)])
def test_a_decoded_frame_depends_on_codes_up_to_its_step_and_frame_0_on_none(variant, attentions, visibility):
    model = build(replace(DEEP, code_attention=variant, code_visibility=visibility))
    inside = [block for block in model.decoder.up.body if isinstance(block, CodeAttention)]
    assert 1 + len(inside) == attentions
    codes = torch.rand(1, 3, 4, 4, requires_grad=True)
    x = fake_clip(DEEP, 1)
    rec = model.decode(codes, model.encode(x).anchor_BChw.detach(), x[:, 0])
    for step, frames in enumerate((slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 13))):
        (gradient,) = torch.autograd.grad(rec[:, frames].square().sum(), codes, retain_graph=True)
        touched = gradient.abs().amax(dim=(0, 2, 3)) > 0
        # The past of the features has the earlier codes also where attention sees the present ones alone.
        assert touched.tolist() == [earlier < step for earlier in range(3)]
    for block in inside:
        (gradient,) = torch.autograd.grad(rec.square().sum(), block.cross.v.weight, retain_graph=True)
        assert gradient.abs().max() > 0


def test_attention_by_step_is_attention_with_a_mask_of_all_tokens():
    cross = CrossAttention(8, inner=8, heads=2, context=6)
    tokens, keys = torch.randn(2, 3, 5, 8), torch.randn(2, 12, 6)
    seen = visible_codes(3, 4, visibility="causal", device=torch.device("cpu"))
    whole = cross(tokens.flatten(1, 2), keys, keys, seen.repeat_interleave(5, dim=0))
    torch.testing.assert_close(attend(cross, tokens, Codes(keys, seen)).flatten(1, 2), whole)


@pytest.mark.parametrize(("preset", "attentions"), [("paper", 7), ("release", 4)])
def test_masks_at_full_size_have_a_row_for_a_step(preset, attentions, monkeypatch):
    config = config_from(DLDMConfig, defaults_of("pretrain", f"model={preset}")["dldm"])
    masks = []

    def attention(q, k, v, attn_mask=None, **options):
        if attn_mask is not None:
            masks.append((q.shape[-2], attn_mask))
        return torch.empty_like(q)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    with FakeTensorMode():  # shapes and types without data
        decoder = CodeDecoder(config)
        decoder(torch.empty(1, 23, 4, 4), torch.empty(1, 512, *config.grid), torch.empty(1, 3, 240, 416))
    assert len(masks) == attentions
    assert max(tokens for tokens, _ in masks) == (60 * 104 if preset == "paper" else 15 * 26)
    assert {(mask.dtype, tuple(mask.shape)) for _, mask in masks} == {(torch.bool, (23, 1, 1, 92))}


def test_a_code_mixes_with_its_two_predecessors_by_switch_and_with_no_later_one():
    for switch, reach in (("linear", 0), ("conv", 2)):
        model = build(replace(TINY, post_quant=switch))
        codes = torch.rand(1, 3, 4, 4, requires_grad=True)
        model.decoder.post_quant(codes)[:, 1, 2].sum().backward()  # code 6 of the flat row
        touched = codes.grad.abs().sum(-1).flatten().nonzero().flatten().tolist()
        assert touched == list(range(6 - reach, 7))


def test_with_a_gap_only_every_gap_th_frame_is_read_and_reconstructed():
    config = replace(TINY, num_frames=9, gap=4, stem=StemConfig("pixel", 1, 4, 1))
    assert (config.temporal_stride, config.latent_steps) == (4, 2)
    model = build(config)
    x = fake_clip(config, 2)
    unseen = x.clone()
    unseen[:, [1, 2, 3, 5, 6, 7]] = 0.9
    assert torch.equal(model.indices(x), model.indices(unseen))
    assert torch.equal(model.subsample(x), x[:, ::4])
    encoded = model.encode(x)
    assert model.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0]).shape == model.subsample(x).shape


def test_a_learned_codebook_takes_the_place_of_fsq():
    config = replace(TINY, quantizer="vq", fsq_levels=(8,), vq_width=5, z_norm="none")
    model = build(config)
    x = fake_clip(config, 4)
    encoded = model.encode(x)
    assert (config.vocabulary, config.code_dims) == (8, 5)
    assert torch.equal(encoded.codes_BMNL, model.fsq.codes_of(encoded.indices_BMN))
    model.train()
    f = model.features(x)
    codes, indices = model.quantize(f)
    assert torch.equal(indices, model.fsq.indices(model.pre_quant(model.qformer(f))))  # of z, not of the noisy codes
    codes.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in (model.fsq.codebook, model.qformer.queries))


def test_recomputed_activations_change_neither_outputs_nor_gradients():
    gradients = []
    for switch in (False, True):
        model = build(
            replace(TINY, levels=(LevelConfig(16, 1, downsample_space=True), LevelConfig(16, 1, attention=True)))
        )
        model.train()
        if switch:
            model.checkpoint_gradients()
        x = fake_clip(TINY, 2)
        encoded = model.encode(x)
        rec = model.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
        (rec - x).square().mean().backward()
        gradients.append([rec.detach(), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_recomputing_keeps_fewer_activations():
    kept = {}
    for switch in (False, True):
        model = build().train()
        if switch:
            model.checkpoint_gradients()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model.features(fake_clip(TINY, 2))
        kept[switch] = sum(sizes)
    assert kept[True] < 0.5 * kept[False]


def test_encoding_keeps_the_training_mode_it_found():
    model = build().train()
    model.indices(fake_clip(TINY, 2))
    assert model.training


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 1}, "num_frames"),
        ({"height": 18}, "height"),
        ({"levels": ()}, "levels"),
        ({"gap": 0}, "gap"),
        ({"quantizer": "vq"}, "one number"),
        ({"post_quant": "conv", "code_visibility": "current"}, "post_quant"),
    ],
)
def test_impossible_configurations_are_refused_with_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_wrong_image_size_is_refused():
    with pytest.raises(ValueError, match="16 x 16"):
        build().encode(torch.zeros(1, 5, 3, 32, 32))


def test_paper_size_has_the_published_shape():
    config = DLDMConfig()
    assert (config.temporal_stride, config.latent_steps, config.grid, config.vocabulary) == (4, 23, (15, 26), 1000)

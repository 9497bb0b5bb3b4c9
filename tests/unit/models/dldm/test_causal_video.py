import shutil

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vw2_robot.models.dldm.causal_video import (
    CausalConv3d,
    CausalDecoder,
    CausalEncoder,
    Downsample,
    FrameAttention,
    FrameNorm,
    Patcher,
    ResidualBlock,
    Upsample,
    blocks_of,
)
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, StemConfig

LEVELS = (LevelConfig(8, 1, downsample_space=True, attention=True), LevelConfig(8, 1, downsample_time=True))


def gradients_of(y, *inputs):
    """Gradients of a sum in which every output counts differently."""
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return torch.autograd.grad((y * weights).sum(), inputs)


def sizes_kept(run):
    """Number of bytes of every tensor that autograd keeps while `run` runs."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
        run()
    return sizes


@pytest.mark.parametrize("num_frames", [1, 2, 5])
@pytest.mark.parametrize("kernel", [(1, 3, 3), (3, 1, 1), (1, 1, 1)])
def test_causal_convolution_and_its_gradients_equal_conv3d_on_the_padded_clip(kernel, num_frames):
    conv, x = CausalConv3d(3, 5, kernel), torch.randn(2, num_frames, 3, 8, 8, requires_grad=True)
    padded = torch.cat([x[:, :1]] * (kernel[0] - 1) + [x], dim=1).transpose(1, 2)
    reference = F.conv3d(padded, conv.weight, conv.bias, padding=(0, kernel[1] // 2, kernel[2] // 2)).transpose(1, 2)
    torch.testing.assert_close(conv(x), reference, atol=1e-5, rtol=1e-5)
    inputs = (x, conv.weight, conv.bias)
    for found, expected in zip(gradients_of(conv(x), *inputs), gradients_of(reference, *inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_the_temporal_convolution_are_those_of_finite_differences(stride):
    conv = CausalConv3d(2, 2, (3, 1, 1), temporal_stride=stride).double()
    assert torch.autograd.gradcheck(conv, torch.randn(1, 4, 2, 1, 2, dtype=torch.float64, requires_grad=True))


def test_temporal_convolution_keeps_its_frames_once_in_the_precision_of_autocast():
    conv, x = CausalConv3d(4, 4, (3, 1, 1)), torch.randn(1, 8, 4, 4, 4, requires_grad=True)
    weight_bytes = conv.weight.numel() * 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16
        assert sum(sizes_kept(lambda: conv(x))) == x.numel() * 2 + weight_bytes
    assert conv(x).dtype == torch.float32


def test_strided_convolution_equals_conv3d_padded_right_and_bottom():
    conv, x = CausalConv3d(3, 5, (1, 3, 3), spatial_stride=2), torch.randn(2, 3, 3, 8, 8)
    reference = F.conv3d(F.pad(x.transpose(1, 2), (0, 1, 0, 1)), conv.weight, conv.bias, stride=(1, 2, 2)).transpose(
        1, 2
    )
    torch.testing.assert_close(conv(x), reference, atol=1e-5, rtol=1e-5)


def test_time_halves_from_one_plus_2m_to_one_plus_m_and_back():
    x = torch.randn(1, 9, 4, 4, 4)
    small = Downsample(4, time=True, space=True)(x)
    assert small.shape == (1, 5, 4, 2, 2)
    assert Upsample(4, 4, time=True, space=True)(small).shape == x.shape


def test_a_channels_last_norm_learns_although_its_input_is_frozen():
    x = torch.randn(6, 8, 5, 4).contiguous(memory_format=torch.channels_last).unflatten(0, (2, 3))
    norm = FrameNorm(8)
    expected = gradients_of(norm(x.clone().requires_grad_()), *norm.parameters())
    for found, wanted in zip(gradients_of(norm(x), *norm.parameters()), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("patch", ["haar", "pixel"])
def test_patcher_is_orthonormal_and_exactly_invertible(patch):
    patcher, x = Patcher(StemConfig(patch, 4, 4)), torch.randn(2, 9, 3, 8, 8)
    y = patcher(x)
    assert y.shape == (2, 3, 2, 2, 192)
    torch.testing.assert_close(patcher.inverse(y), x, atol=1e-5, rtol=0)
    torch.testing.assert_close(y[:, 1:].square().sum(), x[:, 1:].square().sum(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("frame", [0, 1, 4, 5, 8, 9, 15])
def test_features_do_not_see_later_frames(frame):
    torch.manual_seed(0)
    encoder = CausalEncoder(StemConfig("pixel", 2, 2), LEVELS).eval()
    x = torch.randn(1, 17, 3, 16, 16)
    other = x.clone()
    other[:, frame + 1 :] = 100 * torch.randn_like(other[:, frame + 1 :])
    finished = 1 + frame // 4  # feature steps that end at or before `frame`
    same, changed = encoder(x), encoder(other)
    assert torch.equal(same[:, :finished], changed[:, :finished])
    assert not torch.equal(same[:, finished:], changed[:, finished:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("silu", [False, True])
def test_frame_norm_of_wide_inputs_is_group_norm_to_the_last_bit(silu, dtype):
    norm, x = FrameNorm(4, silu=silu).to(dtype), torch.randn(2, 3, 4, 5, 5, dtype=dtype)
    reference = torch.stack([F.group_norm(clip, 1, norm.norm.weight, norm.norm.bias, 1e-6) for clip in x])
    assert torch.equal(norm(x), F.silu(reference) if silu else reference)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("silu", [False, True])
def test_frame_norm_of_a_narrow_input_is_the_float32_norm_rounded_once(silu, layout):
    norm = FrameNorm(4, silu=silu)
    nn.init.normal_(norm.norm.weight)
    nn.init.normal_(norm.norm.bias)
    frames = (5 + torch.randn(6, 4, 5, 3)).to(torch.bfloat16, memory_format=layout)  # a mean far above the deviation
    x = frames.unflatten(0, (2, 3)).requires_grad_()
    wide = x.detach().float().requires_grad_()
    weights = (norm.norm.weight, norm.norm.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = norm(x)
    reference = norm(wide)
    assert torch.equal(narrow, reference.bfloat16())
    # A gradient that bfloat16 holds exactly.
    grad = torch.randn_like(reference).bfloat16()
    found = torch.autograd.grad(narrow, (x, *weights), grad)
    expected = torch.autograd.grad(reference, (wide, *weights), grad.float())
    assert [g.dtype for g in found] == [torch.bfloat16, torch.float32, torch.float32]
    torch.testing.assert_close(found[0], expected[0].bfloat16(), atol=1e-6, rtol=2**-7)
    torch.testing.assert_close(found[1:], expected[1:], atol=1e-5, rtol=1e-5)


def test_residual_block_keeps_six_maps_in_the_precision_of_autocast():
    block, x = ResidualBlock(4, 4), torch.randn(1, 8, 4, 16, 16).bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sizes = [size for size in sizes_kept(lambda: block(x)) if size >= x.nbytes]  # no weights
    assert sizes == [x.nbytes] * 6  # inputs of two norms and of four convolutions


def test_a_norm_that_pools_over_time_fails_the_causality_check():
    class PooledNorm(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            return self.norm(x.transpose(1, 2)).transpose(1, 2)

    torch.manual_seed(0)
    encoder = CausalEncoder(StemConfig("pixel", 2, 2), LEVELS).eval()
    for module in list(encoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FrameNorm):
                setattr(module, name, PooledNorm(child.norm))
    x = torch.randn(1, 9, 3, 16, 16)
    other = x.clone()
    other[:, 5:] = 0
    assert not torch.equal(encoder(x)[:, :2], encoder(other)[:, :2])


def test_decoder_mirrors_the_encoder_in_shape():
    stem = StemConfig("haar", 2, 2)
    features = CausalEncoder(stem, LEVELS)(torch.randn(2, 9, 3, 16, 16))
    assert features.shape == (2, 3, 8, 4, 4)
    assert CausalDecoder(DLDMConfig(stem=stem, levels=LEVELS))(features).shape == (2, 9, 3, 16, 16)


@pytest.mark.parametrize("field", [{"temporal_patch_size": 3}, {"spatial_patch_size": 0}, {"spatial_kernel_size": 2}])
def test_impossible_stems_are_refused(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        StemConfig(**field)


def test_blocks_are_listed_in_order_and_hold_all_weights_but_stem_and_last_norm():
    encoder = CausalEncoder(StemConfig("pixel", 2, 2), LEVELS)
    names = [type(block).__name__ for block in blocks_of(encoder)]
    attention = ["FrameAttention"] * 2
    level = ["ResidualBlock", *attention, "Downsample"]
    middle = ["ResidualBlock", *attention, "ResidualBlock"]
    assert names == [*level, "ResidualBlock", "Downsample", *middle]
    inside = {parameter for block in blocks_of(encoder) for parameter in block.parameters()}
    outside = {name for name, parameter in encoder.named_parameters() if parameter not in inside}
    last = len(encoder.body) - 1
    assert outside == {"stem.weight", "stem.bias", f"body.{last}.norm.weight", f"body.{last}.norm.bias"}
    assert blocks_of(CausalDecoder(DLDMConfig(stem=StemConfig("pixel", 2, 2), levels=LEVELS)))


@pytest.fixture
def shapes_unchecked():
    """Switch the check of shapes off, which torch's compiler does not read, and begin with nothing compiled."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs g++")


every_kind_of_block = pytest.mark.parametrize(
    "block",
    [
        lambda: ResidualBlock(4, 8),
        lambda: FrameAttention(4, axis="space"),
        lambda: FrameAttention(4, axis="time"),
        lambda: Downsample(4, time=True, space=True),
        lambda: Upsample(4, 8, time=True, space=True),
    ],
    ids=["residual", "space", "time", "down", "up"],
)


@needs_compiler
@pytest.mark.filterwarnings("default")  # torch's compiler causes warnings that it hides itself
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@every_kind_of_block
def test_every_kind_of_block_compiles_without_graph_breaks_and_gives_the_same(block):
    torch.manual_seed(0)
    block, x = block(), torch.randn(2, 3, 4, 4, 4, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, dynamic=False)
    y, y_compiled = block(x), compiled(x)
    torch.testing.assert_close(y_compiled, y, atol=1e-5, rtol=1e-5)
    inputs = (x, *block.parameters())
    for found, expected in zip(gradients_of(y_compiled, *inputs), gradients_of(y, *inputs), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
@every_kind_of_block
def test_every_kind_of_block_is_traced_as_a_whole_under_autocast(block):
    torch.manual_seed(0)
    block, x = block(), torch.randn(2, 3, 4, 4, 4).bfloat16().requires_grad_()
    # Traced and run as it is: rounding to bfloat16 in other places, as generated code does, would hide an error.
    traced = torch.compile(block, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, y_traced = block(x), traced(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y_traced, y)
    inputs = (x, *block.parameters())
    for found, expected in zip(gradients_of(y_traced, *inputs), gradients_of(y, *inputs), strict=True):
        assert torch.equal(found, expected)


@needs_compiler
@pytest.mark.filterwarnings("default")  # torch's compiler causes warnings that it hides itself
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
def test_compiled_trunk_recomputes_activations_and_keeps_the_names_of_its_weights():
    torch.manual_seed(0)
    encoder = CausalEncoder(StemConfig("pixel", 2, 2), (LevelConfig(4, 1),))
    x, names = torch.randn(1, 5, 3, 8, 8), list(encoder.state_dict())
    weights = tuple(encoder.parameters())
    y = encoder(x)
    expected = gradients_of(y, *weights)
    encoder.compile_blocks()
    assert list(encoder.state_dict()) == names
    for checkpointing in (False, True):
        encoder.checkpointing = checkpointing
        torch.testing.assert_close(encoder(x), y, atol=1e-5, rtol=1e-5)
        for found, gradient in zip(gradients_of(encoder(x), *weights), expected, strict=True):
            torch.testing.assert_close(found, gradient, atol=2e-5, rtol=1e-5)
    # With recomputation the input of each block is kept; the stem keeps patches and weights, which have other sizes.
    assert sizes_kept(lambda: encoder(x)).count(y.nbytes) == len(encoder.body)


@pytest.mark.filterwarnings("default")
@pytest.mark.slow
@pytest.mark.usefixtures("shapes_unchecked")
def test_more_widths_than_torch_compiles_by_default_are_compiled(monkeypatch):
    compile_module = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda *a, **options: compile_module(*a, backend="aot_eager", **options))
    levels = [LevelConfig(width, 1) for width in range(1, 11)]
    encoder, x = CausalEncoder(StemConfig("pixel", 2, 2), levels), torch.randn(1, 3, 3, 4, 4)
    with torch.no_grad():
        y = encoder(x)
        encoder.compile_blocks()
        assert torch.equal(encoder(x), y)

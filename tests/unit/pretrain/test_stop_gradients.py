"""Who learns from which loss: the table of the method, row by row, and what the losses compare with."""

import copy
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from vw2_robot.distributed.batch_share import PartOfBatch, StatisticsGroups
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.perceptual import BLOCKS, PerceptualDistance
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pixels import jitter_color
from vw2_robot.pretrain.config import TrainDLDMConfig
from vw2_robot.pretrain.dldm_losses import phase_one_loss, phase_two_loss, reader_loss
from vw2_robot.pretrain.targets import frame_error, make_control_video
from vw2_robot.random_numbers import SampleNoise
from vw2_robot.schedule import LoopConfig, OptimConfig

DLDM_TINY = DLDMConfig(
    num_frames=9,
    height=8,
    width=8,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(16, 1),),
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
    z_channels=16,
)
VDM_TINY = VDMConfig(
    heads=2,
    head_dim=12,
    layers=2,
    adaln_lora_dim=8,
    context_width=16,
    control_width=8,
    code_dropout=0.0,
    still_control=True,
)
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1, warmup_steps=1)
LOOP = LoopConfig(train_steps=10, batch_size=2, optim=OPTIM)
PHASES = TrainDLDMConfig(phase1=LOOP, phase2=LOOP, control_dropout=0.0, target_color_jitter=0.0)


def build(*, shaken=True, family=None):
    """dLDM, VDM, codec. Shaken: zero-initialized layers are moved off zero, as after a few steps of training."""
    torch.manual_seed(0)
    dldm = DLDM(DLDM_TINY)
    vdm = VDM(
        replace(VDM_TINY, family=family),
        Geometry(channels=24, latent_steps=2, height=2, width=2, queries=4, fsq_dims=4),
    )
    if shaken:
        with torch.no_grad():
            for parameter in vdm.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return dldm, vdm, DCTCodec(CodecConfig())


def noise_of(count, seed=0):
    return SampleNoise(seed, 0, stream=0, samples=range(count))


def groups(dldm, vdm):
    return {
        "trunk": list(dldm.encoder.parameters()),
        "queries": [dldm.qformer.queries, *dldm.qformer.parameters()],
        "pre-quantization projection": list(dldm.pre_quant.parameters()),
        "decoder": list(dldm.decoder.parameters()),
        "projection": [p for name, p in vdm.projection.named_parameters() if name != "null"],
        "null token": [vdm.projection.null],
        "transformer": list(vdm.transformer.parameters()),
        "control": list(vdm.control.parameters()),
    }


def learners(loss, dldm, vdm):
    """Names of the groups of which any parameter got a gradient that is not exactly zero."""
    for module in (dldm, vdm):
        module.zero_grad(set_to_none=True)
    loss.backward()
    return {
        name
        for name, parameters in groups(dldm, vdm).items()
        if any(p.grad is not None and bool(p.grad.any()) for p in parameters)
    }


def two(dldm, vdm, codec, *, phases=PHASES, seed=0):
    x = fake_clip(DLDM_TINY, 4)
    valid = torch.ones(4, 2, dtype=torch.bool)
    return phase_two_loss(dldm, vdm, codec, x, valid, phases=phases, noise=noise_of(4, seed))[0]


AUTOENCODER = {"trunk", "queries", "pre-quantization projection", "decoder"}
RENDERER = {"projection", "null token", "transformer", "control"}


def test_phase_one_trains_the_whole_autoencoder_and_nothing_else():
    dldm, vdm, _ = build()
    loss, parts, _ = phase_one_loss(dldm, fake_clip(DLDM_TINY, 4), torch.ones(4, 2, dtype=torch.bool))
    assert learners(loss, dldm, vdm) == AUTOENCODER
    assert not parts["dldm/reconstruction_l2"].requires_grad
    assert all(p.grad is not None for p in dldm.parameters())


def test_the_reader_trains_the_video_model_alone():
    dldm, vdm, codec = build()
    x, valid = fake_clip(DLDM_TINY, 4), torch.ones(4, 2, dtype=torch.bool)
    loss = reader_loss(dldm.eval(), vdm, codec, x, valid, phases=PHASES, noise=noise_of(4))[0]
    assert learners(loss, dldm, vdm) == RENDERER


@pytest.mark.parametrize("anchor_grad", [False, True])
def test_reconstruction_in_phase_two_trains_the_decoder_and_by_switch_the_trunk(anchor_grad):
    dldm, vdm, codec = build()
    loss = two(dldm, vdm, codec, phases=replace(PHASES, denoise_weight=0.0, anchor_grad=anchor_grad))
    assert learners(loss, dldm, vdm) == ({"decoder", "trunk"} if anchor_grad else {"decoder"})


@pytest.mark.parametrize(("anchor_grad", "family"), [(False, None), (True, None), (False, "wan")])
def test_denoising_trains_codes_projection_transformer_and_control_but_never_the_decoder(anchor_grad, family):
    dldm, vdm, codec = build(family=family)
    loss = two(dldm, vdm, codec, phases=replace(PHASES, reconstruction_weight=0.0, anchor_grad=anchor_grad))
    assert learners(loss, dldm, vdm) == (AUTOENCODER - {"decoder"}) | RENDERER
    assert all(p.grad is None or not p.grad.any() for p in dldm.decoder.parameters())


@pytest.mark.parametrize("anchor_grad", [False, True])
def test_without_the_stop_gradient_reconstruction_still_trains_the_whole_autoencoder(anchor_grad):
    dldm, vdm, codec = build()
    phases = replace(PHASES, stop_gradient=False, anchor_grad=anchor_grad, denoise_weight=0.0)
    assert learners(two(dldm, vdm, codec, phases=phases), dldm, vdm) == AUTOENCODER
    phases = replace(phases, denoise_weight=1.0, reconstruction_weight=0.0)
    assert learners(two(dldm, vdm, codec, phases=phases), dldm, vdm) == (AUTOENCODER - {"decoder"}) | RENDERER


def test_phase_one_can_keep_the_gradient_off_the_first_feature():
    dldm, _, _ = build()
    x = fake_clip(DLDM_TINY, 4)
    valid = torch.ones(4, 2, dtype=torch.bool)
    with torch.no_grad():
        f = dldm.features(x)
    f.requires_grad_()
    dldm.features = lambda x: f
    for anchor_grad in (True, False):
        f.grad = None
        phase_one_loss(dldm, x, valid, anchor_grad=anchor_grad)[0].backward()
        codes_alone = f.grad[:, 0].clone()
        if anchor_grad:
            both = codes_alone
    assert codes_alone.any()  # f_0 is also what step 1 is compared with
    assert not torch.equal(both, codes_alone)


def test_the_reconstruction_loss_is_squared_or_absolute():
    rec, x = torch.zeros(2, 9, 3, 4, 4), torch.full((2, 9, 3, 4, 4), 0.5)
    valid = torch.ones(2, 2, dtype=torch.bool)
    assert float(frame_error(rec, x, valid)) == pytest.approx(0.25)
    assert float(frame_error(rec, x, valid, norm="l1")) == pytest.approx(0.5)
    dldm, vdm, codec = build()
    noise = noise_of(4)
    clip = fake_clip(DLDM_TINY, 4), torch.ones(4, 2, dtype=torch.bool)
    parts = phase_two_loss(dldm, vdm, codec, *clip, phases=replace(PHASES, reconstruction_loss="l1"), noise=noise)[1]
    assert set(parts) == {"dldm/reconstruction_l1", "dldm/denoising_loss", "dldm/correlation"}


@pytest.mark.parametrize("quantizer", ["fsq", "vq"])
def test_under_autocast_matrix_products_are_bfloat16_but_codes_and_losses_are_float32(quantizer):
    torch.manual_seed(0)
    levels, width = ((8, 5, 5, 5), 4) if quantizer == "fsq" else ((8,), 4)
    dldm = DLDM(replace(DLDM_TINY, quantizer=quantizer, fsq_levels=levels, vq_width=width))
    _, vdm, codec = build()
    x = fake_clip(DLDM_TINY, 4)
    valid = torch.ones(4, 2, dtype=torch.bool)
    products = []
    dldm.qformer.cross[0].register_forward_hook(lambda module, inputs, output: products.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes, _ = dldm.quantize(dldm.features(x))
        assert products == [torch.bfloat16]
        assert codes.dtype == torch.float32
        assert phase_one_loss(dldm, x, valid)[0].dtype == torch.float32
        loss, parts, _ = phase_two_loss(dldm, vdm, codec, x, valid, phases=PHASES, noise=noise_of(4))
    assert {loss.dtype, *(part.dtype for part in parts.values())} == {torch.float32}
    loss.backward()
    assert {p.grad.dtype for p in dldm.parameters() if p.grad is not None} == {torch.float32}


def test_both_losses_add_up_with_their_weights():
    dldm, vdm, codec = build()
    dldm.eval()
    rec = two(dldm, vdm, codec, phases=replace(PHASES, denoise_weight=0.0))
    den = two(dldm, vdm, codec, phases=replace(PHASES, reconstruction_weight=0.0))
    both = two(dldm, vdm, codec, phases=replace(PHASES, denoise_weight=10.0, reconstruction_weight=0.5))
    torch.testing.assert_close(both, 0.5 * rec + 10 * den)


def test_a_perceptual_distance_is_added_to_the_reconstruction_with_its_weight(tmp_path):
    layers = [number for block in BLOCKS for number in block]
    parts = {f"features.{n}.weight": torch.randn(2, 3 if n == 0 else 2, 3, 3) for n in layers}
    save_file(parts | {f"features.{n}.bias": torch.zeros(2) for n in layers}, tmp_path / "vgg.safetensors")
    perceptual = PerceptualDistance(tmp_path)
    config = replace(DLDM_TINY, height=16, width=16)  # VGG halves an image four times
    large, x, valid = DLDM(config), fake_clip(config, 2), torch.ones(2, 2, dtype=torch.bool)
    plain = phase_one_loss(large, x, valid)
    found = phase_one_loss(large, x, valid, perceptual=perceptual, perceptual_weight=0.5)
    distance = found.metrics["dldm/perceptual"]
    assert distance > 0
    torch.testing.assert_close(found.loss, plain.loss + 0.5 * distance)
    torch.testing.assert_close(found.metrics["dldm/reconstruction_l2"], plain.loss.detach())


def test_control_learns_from_its_second_step_on():
    """Zero-initialized output layers get the first gradient, what lies before them the second."""
    dldm, vdm, codec = build(shaken=False)
    optimizer = build_optimizer(vdm.parameters(), OPTIM)
    for step in range(2):
        loss = two(dldm, vdm, codec)
        loss.backward()
        assert any(p.grad.any() for p in vdm.control.out.parameters())
        assert bool(vdm.control.embed.weight.grad.any()) == (step > 0)
        optimizer_step(loss.detach(), optimizer, step=step, config=OPTIM, total_steps=10)


def test_steps_move_only_the_parameters_of_their_phase_although_weight_decay_is_on():
    dldm, vdm, codec = build()
    x = fake_clip(DLDM_TINY, 4)
    valid = torch.ones(4, 2, dtype=torch.bool)
    frozen = copy.deepcopy(vdm.state_dict()), copy.deepcopy(codec.state_dict())
    before = [p.detach().clone() for p in dldm.parameters()]
    optimizer = build_optimizer(dldm.parameters(), OPTIM)
    loss = phase_one_loss(dldm, x, valid)[0]
    loss.backward()
    optimizer_step(loss.detach(), optimizer, step=0, config=OPTIM, total_steps=10)
    assert all(torch.equal(value, frozen[0][name]) for name, value in vdm.state_dict().items())
    assert not any(torch.equal(a, b) for a, b in zip(before, dldm.parameters(), strict=True) if a.ndim > 1)

    moved = build_optimizer([*dldm.parameters(), *vdm.parameters()], OPTIM)
    loss = two(dldm, vdm, codec)
    loss.backward()
    optimizer_step(loss.detach(), moved, step=0, config=OPTIM, total_steps=10)
    assert all(torch.equal(value, frozen[1][name]) for name, value in codec.state_dict().items())
    assert not torch.equal(vdm.projection.null, frozen[0]["projection.null"])


def test_the_control_video_is_gray_in_the_luma_of_its_colors_and_stays_in_range():
    rec = torch.rand(2, 3, 3, 4, 4) * 4 - 2
    gray = make_control_video(rec, size=rec.shape[-2:], grayscale=True)
    assert torch.equal(gray[:, :, 0], gray[:, :, 1])
    assert torch.equal(gray[:, :, 0], gray[:, :, 2])
    clamped = rec.clamp(-1, 1)
    torch.testing.assert_close(
        gray[:, :, 0], 0.299 * clamped[:, :, 0] + 0.587 * clamped[:, :, 1] + 0.114 * clamped[:, :, 2]
    )
    torch.testing.assert_close(
        make_control_video(torch.ones(1, 1, 3, 2, 2), size=(4, 6), grayscale=True), torch.ones(1, 1, 3, 4, 6)
    )
    assert torch.equal(make_control_video(rec, size=rec.shape[-2:], grayscale=False), clamped)


class RecordingLoss:
    """Stands for `VDM.denoising_loss`: keeps what it was given."""

    def __call__(self, latents, codes, *, control_video, valid, noise, valid_steps):
        self.latents = latents
        self.codes = codes
        self.control_video = control_video
        return latents.new_zeros(())


def given_to_the_vdm(phases, *, batch=64, seed=0):
    """Clip, coarse clip, and what the VDM was given, decoded back to pixels by a lossless codec."""
    torch.manual_seed(0)
    dldm, codec = DLDM(DLDM_TINY).eval(), DCTCodec(CodecConfig(keep=4))
    vdm = VDM(VDM_TINY, Geometry(channels=192, latent_steps=2, height=2, width=2, queries=4, fsq_dims=4))
    vdm.denoising_loss = RecordingLoss()
    x = fake_clip(DLDM_TINY, batch)
    valid = torch.ones(batch, 2, dtype=torch.bool)
    phase_two_loss(dldm, vdm, codec, x, valid, phases=phases, noise=noise_of(batch, seed))
    given = vdm.denoising_loss
    encoded = dldm.encode(x)
    rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    return x, rec.detach(), codec.decode(given.latents), codec.decode(given.control_video)


def test_a_dropped_control_video_is_frame_0_repeated_and_drops_fall_per_sample():
    x, rec, _, control = given_to_the_vdm(replace(PHASES, control_dropout=0.7, control_grayscale=False))
    whole = rec.clamp(-1, 1)
    frozen = torch.tensor([torch.allclose(h, h[:1].expand_as(h), atol=1e-5) for h in control])
    torch.testing.assert_close(control[~frozen], whole[~frozen], atol=1e-5, rtol=0)
    torch.testing.assert_close(control[frozen], x[frozen][:, :1].expand(-1, 9, -1, -1, -1), atol=1e-5, rtol=0)
    assert 32 <= int(frozen.sum()) <= 58  # 0.7 of 64
    for share, dropped in ((0.0, 0), (1.0, 64)):
        control = given_to_the_vdm(replace(PHASES, control_dropout=share))[3]
        assert sum(torch.allclose(h, h[:1].expand_as(h), atol=1e-5) for h in control) == dropped


def test_the_control_video_carries_no_gradient_and_colors_only_by_switch():
    _, rec, _, control = given_to_the_vdm(replace(PHASES, control_grayscale=False), batch=4)
    torch.testing.assert_close(control, rec.clamp(-1, 1), atol=1e-5, rtol=0)
    assert not control.requires_grad


def test_the_renderers_target_is_jittered_while_the_encoder_sees_true_colors():
    x, _, target, _ = given_to_the_vdm(PHASES, batch=4)
    torch.testing.assert_close(target, x, atol=1e-5, rtol=0)
    jittered = given_to_the_vdm(replace(PHASES, target_color_jitter=0.3), batch=4)
    assert not torch.allclose(jittered[2], x, atol=0.01)
    # Codes and coarse clip are of the true clip.
    torch.testing.assert_close(jittered[1], given_to_the_vdm(PHASES, batch=4)[1])


def test_jitter_is_one_change_of_colors_for_a_whole_clip():
    still = torch.rand(8, 1, 3, 4, 4).expand(-1, 5, -1, -1, -1) * 1.2 - 0.6
    moved = jitter_color(still, strength=0.3, noise=noise_of(8))
    assert torch.equal(moved, moved[:, :1].expand_as(moved))
    assert moved.abs().max() <= 1
    change = (moved - still)[:, 0].flatten(2)
    assert (change.mean(2).std(0) > 0.01).all()  # clips differ from one another
    assert (change.mean(2).std(1) > 0.001).all()  # channels differ within a clip
    again = jitter_color(still, strength=0.3, noise=noise_of(8))
    assert torch.equal(again, moved)
    assert jitter_color(still, strength=0.0, noise=noise_of(8)) is still


def test_jitter_is_affine_in_every_channel_so_that_edges_stay_where_they_are():
    x = torch.linspace(-0.3, 0.3, 16).view(1, 1, 1, 4, 4).expand(1, 1, 3, 4, 4)
    y = jitter_color(x, strength=0.2, noise=noise_of(1)).flatten(3)
    slopes = y.diff(dim=-1) / x.flatten(3).diff(dim=-1)
    torch.testing.assert_close(slopes, slopes[..., :1].expand_as(slopes), atol=1e-4, rtol=0)
    assert (slopes > 0.5).all()


def test_frame_error_is_the_mean_over_valid_frames():
    x, rec = torch.zeros(2, 9, 3, 2, 2), torch.zeros(2, 9, 3, 2, 2)
    rec[0, 0], rec[0, 1:5], rec[1, 5:] = 1.0, 2.0, 100.0
    valid = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(frame_error(rec, x, valid), torch.tensor((1 + 4 * 4) / (9 + 5)))
    torch.testing.assert_close(frame_error(rec, x, valid, with_anchor=False), torch.tensor(4 * 4 / (8 + 4.0)))


def test_frame_error_pads_a_short_clip_like_the_encoder():
    x = torch.arange(7.0).view(1, 7, 1, 1, 1).expand(1, 7, 3, 2, 2)
    rec = torch.cat([x, x[:, -1:], x[:, -1:]], dim=1)
    assert float(frame_error(rec, x, torch.tensor([[True, True]]))) == 0


def test_padding_alone_costs_nothing():
    x = torch.randn(1, 5, 3, 2, 2)
    assert float(frame_error(-x, x, torch.tensor([[False]]), with_anchor=False)) == 0


@pytest.mark.parametrize("with_anchor", [True, False])
def test_errors_of_the_parts_of_a_batch_add_up_to_its_error(with_anchor):
    torch.manual_seed(0)
    rec, x = torch.randn(6, 9, 3, 4, 4), torch.randn(6, 9, 3, 4, 4)
    valid = torch.tensor([[True, True], [True, False], [False, False], [True, True], [True, False], [True, True]])
    frames = 6.0 * with_anchor + 4 * int(valid.sum())
    parts = [
        frame_error(rec[part], x[part], valid[part], with_anchor=with_anchor, frames=frames)
        for part in (slice(1), slice(1, 3), slice(3, 6))
    ]
    torch.testing.assert_close(sum(parts), frame_error(rec, x, valid, with_anchor=with_anchor))


@pytest.mark.parametrize("phase", [1, 2])
def test_both_losses_and_their_gradients_are_those_of_all_parts_together(phase):
    """Correlations are taken within groups of two clips, and each part has whole groups."""
    dldm, vdm, codec = build()
    dldm.share_statistics(StatisticsGroups(2), 4, micro_batches=1)
    x = fake_clip(DLDM_TINY, 8)
    valid = torch.ones(8, 2, dtype=torch.bool)
    valid[1, 1] = valid[6, 0] = valid[6, 1] = False
    phases = replace(PHASES, encoder_augmentation=0.5, control_dropout=0.5, target_color_jitter=0.1)

    def found(*parts):
        for module in (dldm, vdm):
            module.zero_grad(set_to_none=True)
        losses = []
        for rows in parts:
            here = slice(rows.start, rows.stop)
            options = {
                "part": PartOfBatch(len(rows) / 8, 8, valid.sum()),
                "groups": StatisticsGroups(2),
            }
            if phase == 1:
                found = phase_one_loss(dldm, x[here], valid[here], decorrelation=0.3, **options)
            else:
                noise = SampleNoise(0, 0, stream=0, samples=rows)
                given = replace(phases, decorrelation=0.3)
                found = phase_two_loss(dldm, vdm, codec, x[here], valid[here], phases=given, noise=noise, **options)
            found.loss.backward()
            losses.append(found.loss.detach())
        return sum(losses), [p.grad for module in (dldm, vdm) for p in module.parameters() if p.grad is not None]

    loss, gradients = found(range(8))
    parts, gradients_of_parts = found(range(4), range(4, 6), range(6, 8))
    torch.testing.assert_close(parts, loss)
    assert len(gradients) == len(gradients_of_parts) > 10
    for one, other in zip(gradients, gradients_of_parts, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-5)

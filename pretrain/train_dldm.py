"""Stage `dldm`: clips -> the latent dynamics model, in two phases.

    vw2-train-dldm data=bridge_sample data.path=DIR model=tiny run_dir=runs/first

Phase 1 (warm-up): L2(dec(z_q, f_0), x), gradients everywhere in the autoencoder.
Phase 2 (disentangled): L_rec(dec(sg(z_q), sg(f_0)), x) + w_d * L_den(VDM(x | proj(z_q), sg(rec), frame 0)). The decoder
goes on reconstructing but no longer shapes the codes; the codes learn only from what the video diffusion model still
needs once it has the first frame and the coarse clip. Method specification 1.9 and 1.10; the table of 1.9 is a test,
row by row.
"""

# B batch · T frames · M latent steps · N codes per step · s temporal stride
from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vw2_robot.checkpoint import load_checkpoint, load_optimizer, save_checkpoint, weights_digest
from vw2_robot.cli import program
from vw2_robot.config_tree import config_tree
from vw2_robot.models.dldm import DLDM, pad_to_stride
from vw2_robot.models.vdm import VDM
from vw2_robot.models.video_codec import VideoCodec
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.runs import Run, generator

from .clips import clip_sampler, to_device, training_clips
from .config import PhasesConfig, Pretrain, finished_stage, open_frames, training_split
from .dldm_health import code_usage, draw_reconstructions, explain_shortfall, validate
from .targets import frame_error, jitter_colour, make_hint
from .train_vdm import load_vdm

STREAM_INIT, STREAM_PHASE2 = 20, 21


def phase_one_loss(
    dldm: DLDM, x: Float[Tensor, "B T 3 H W"], valid: Bool[Tensor, "B M"]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction with gradients everywhere in the autoencoder."""
    encoded = dldm.encode(x)
    rec = dldm.decode(encoded.codes_BMNL, encoded.anchor_BChw, x[:, 0])
    loss = frame_error(rec, x, valid)
    return loss, {"dldm/reconstruction_l2": loss.detach()}


def phase_two_loss(
    dldm: DLDM,
    vdm: VDM,
    codec: VideoCodec,
    x: Float[Tensor, "B T 3 H W"],
    valid: Bool[Tensor, "B M"],
    *,
    phases: PhasesConfig,
    noise: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction for the decoder alone, denoising for everything else; the stop-gradients stand here."""
    f = dldm.features(x)
    codes, _ = dldm.quantise(f)
    anchor = f[:, 0]
    # Differs from the release: f_0 is detached unless anchor_grad, so L_rec trains the decoder and nothing else.
    anchor = anchor if phases.anchor_grad else anchor.detach()
    rec = dldm.decode(codes.detach(), anchor, x[:, 0])
    rec_loss = frame_error(rec, x, valid)

    hint = make_hint(rec.detach(), grayscale=phases.hint_grayscale)
    dropped = torch.rand(len(x), generator=noise).to(x.device) < phases.hint_dropout
    hint = torch.where(dropped[:, None, None, None, None], hint[:, :1].expand_as(hint), hint)
    # The encoder saw the true colours, the VDM must take its own from the conditioning frame.
    target = jitter_colour(pad_to_stride(x, dldm.config.stride), strength=phases.target_color_jitter, noise=noise)
    den_loss = vdm.denoising_loss(codec.encode(target), codes, hint=codec.encode(hint), valid=valid, generator=noise)
    loss = phases.reconstruction_weight * rec_loss + phases.denoise_weight * den_loss
    return loss, {"dldm/reconstruction_l2": rec_loss.detach(), "dldm/denoising_loss": den_loss.detach()}


def build_dldm(config: Pretrain) -> DLDM:
    """An untrained dLDM; the weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator(config.seed, 0, stream=STREAM_INIT))))
        return DLDM(config.dldm)


def train_dldm(config: Pretrain) -> None:
    """Train both phases, then leave codes.json and reconstructions.png; return at once when complete."""
    phases = config.train_dldm
    boundary, total = phases.phase1.steps, phases.phase1.steps + phases.phase2.steps
    run = Run(
        config.stage_dir("dldm"),
        config.stage_tree("data", "dldm", "vdm", "codec", "train_vdm", "train_dldm", "seed"),
        stage="dldm",
        total_steps=total,
        save_every=phases.phase1.save_every,
        log_every=phases.phase1.log_every,
    )
    folder = config.stage_dir("dldm")
    if run.complete and (folder / "reconstructions.png").is_file():
        return
    device = config.hardware.torch_device()
    frames = open_frames(config)
    train_ids, validation_ids = training_split(config, frames)
    training = training_clips(config, frames, train_ids, validation_ids, run.path)
    held_out = clip_sampler(config, frames, validation_ids, augment=False)
    check = to_device(held_out.batch(0, phases.validation_clips), device)
    dldm = build_dldm(config).to(device)
    vdm, codec = load_vdm(finished_stage(config, "vdm"), config)
    vdm, codec = vdm.to(device), codec.to(device)
    if run.checkpoint is not None:
        checkpoint = load_checkpoint(run.checkpoint, kind="dldm")
        checkpoint.load_into(dldm=dldm, vdm=vdm, codec=codec)
        training.restore(checkpoint.facts["clips"])

    def fit() -> float:
        own = to_device(
            clip_sampler(config, frames, train_ids, augment=False).batch(0, phases.validation_clips), device
        )
        return validate(dldm, vdm, codec, own, phase=1, seed=config.seed, grayscale=True)["dldm/ratio_to_copy"]

    def save(step: int, optimizer: torch.optim.Optimizer) -> None:
        run.save(
            step,
            lambda path: save_checkpoint(
                path,
                kind="dldm",
                config=config_tree(config.dldm),
                modules={"dldm": dldm, "vdm": vdm, "codec": codec},
                facts={
                    "encoder_hash": encoder_hash(dldm),
                    "vdm": config_tree(config.vdm),
                    "codec": config_tree(config.codec),
                    "frames_digest": frames.digest,
                    "clips": training.state(),
                },
                optimizer=optimizer,
            ),
        )

    for phase, loop, stop in ((1, phases.phase1, boundary), (2, phases.phase2, total)):
        if run.start >= stop:
            continue
        fast = vdm.trainable_parameters() if phase == 2 else ()
        optimizer = build_optimizer(dldm.parameters(), loop.optim, fast=fast, fast_mult=phases.vdm_lr_mult)
        first = 0 if phase == 1 else boundary
        if run.start > first:
            assert run.checkpoint is not None
            load_optimizer(run.checkpoint, optimizer)
        for step in run.steps(stop, what=f"phase {phase}"):
            x, valid = to_device(training.batch(step, loop.batch), device)
            noise = generator(config.seed, step, stream=STREAM_PHASE2)
            with config.hardware.autocast(device):
                if phase == 1:
                    loss, values = phase_one_loss(dldm, x, valid)
                else:
                    loss, values = phase_two_loss(dldm, vdm, codec, x, valid, phases=phases, noise=noise)
            norm = optimizer_step(loss, optimizer, step=step - first, config=loop.optim, total_steps=loop.steps)
            if run.due(step, loop.log_every) or step + 1 == stop:
                health = validate(
                    dldm, vdm, codec, check, phase=phase, seed=config.seed, grayscale=phases.hint_grayscale
                )
                run.log(step, {"dldm/phase": phase, **values, "dldm/grad_norm": norm, **health})
            if run.due(step, loop.save_every) or step + 1 == stop:
                save(step, optimizer)
            if phase == 1 and step + 1 == stop and health["dldm/ratio_to_copy"] > phases.advance_ratio:
                run.say(explain_shortfall(health["dldm/ratio_to_copy"], fit(), limit=phases.advance_ratio))
    usage = code_usage(dldm, frames, config, device=device)
    summary = validate(dldm, vdm, codec, check, phase=2, seed=config.seed, grayscale=phases.hint_grayscale)
    run.say(
        f"reconstruction {summary['dldm/ratio_to_copy']:.3f} of copy-first-frame on held-out clips, {fit():.3f} on "
        "training clips, "
        f"{usage['used']} different codes, perplexity {usage['perplexity']:.0f}, "
        f"shuffle ratio {summary['dldm/shuffle_ratio']:.3f}"
    )
    draw_reconstructions(folder, dldm, vdm, codec, held_out, seed=config.seed, phases=phases, device=device)
    training.close()
    run.close()


def encoder_hash(dldm: DLDM) -> str:
    """Identity of everything that decides a code: trunk, queries, head, levels."""
    return weights_digest(dldm.encoder, dldm.qformer, dldm.z_head)


main = program(Pretrain, config_name="pretrain")(train_dldm)

if __name__ == "__main__":
    main()

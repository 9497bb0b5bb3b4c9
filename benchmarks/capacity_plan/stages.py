"""What one clip of each training stage costs: arithmetic by part, weights, and the memory of activations.

Nothing here depends on the number of GPUs; `schedule.py` divides it. VDM and dLDM are computed on tensors without data,
by shape and type alone. The policy is small, so it runs on one sample; on a CPU its attention is written out, and the
matrices of scores, which a GPU does not keep, count as activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.dldm import preset_tree
from benchmarks.memory_plan import (
    PHASE_TWO,
    Kept,
    Step,
    blocks_with_checkpoints,
    geometry_of,
    kept_by,
    learning_bytes,
    load_preset,
    models_without_data,
    noise_of,
    trained_as,
    weight_bytes,
)
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.finetune.config import FinetuneLoopConfig
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, PolicyConfig
from vw2_robot.models.video.config import CodecConfig, VDMConfig
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import build_codec
from vw2_robot.pretrain.config import ExtractLatentsConfig, TrainDLDMConfig, TrainPolicyConfig
from vw2_robot.pretrain.dldm_losses import phase_one_loss
from vw2_robot.schedule import LoopConfig

from .flops import PartsCounter, Work

INSTRUCTION = "put the red block into the open drawer"  # its length is that of usual instructions
CACHED_WINDOWS = 1_000_000  # the latent cache depends on the data; its time is given for this many
ENLARGED = {"paper": (1, 2)}  # the paper's VDM runs at twice the side of its dLDM
# Encodings of the video codec for one clip: the target alone, or target and control video.
ENCODINGS = {"video prior": 1, "phase 1": 0, "phase 2": 2}


@dataclass(frozen=True)
class Stage:
    """A stage of training and what one sample of it costs. All sizes are in bytes."""

    name: str
    pixels: tuple[int, int]
    """height and width of its clips"""
    num_frames: int
    """frames that are read for a sample"""
    batch: int
    """samples of one step, over all GPUs"""
    samples: int
    """of the whole stage"""
    work: Mapping[str, Work]
    """by part, all activations kept"""
    recomputed: Mapping[str, int] = field(default_factory=dict)
    """FLOPs that recomputation adds, by part; empty where the stage has none"""
    sharded: int = 0
    """weights of the models that learn, which FSDP divides"""
    replicated: int = 0
    """weights of the others"""
    learning: int = 0
    """gradients and AdamW's moments"""
    block: int = 0
    """weights of the largest block, which FSDP gathers at once"""
    kept: int = 0
    """activations that the backward pass needs"""
    kept_recomputing: int = 0
    """the same where all but the inputs of blocks is computed again, with the largest block"""
    batch_is_per_gpu: bool = False
    """the batch is of one process; there is no step that all GPUs share"""

    @property
    def gradients(self) -> int:
        """Return the bytes of the gradients: one of the three float32 numbers of each weight that learns."""
        return self.learning // 3

    def flops(self, *, recompute: bool) -> int:
        """Return the work of one sample, in floating-point operations."""
        return sum(part.total for part in self.work.values()) + (sum(self.recomputed.values()) if recompute else 0)


@dataclass(frozen=True)
class Preset:
    """A model size: what `configs/model/NAME.yaml` says."""

    name: str
    dldm: DLDMConfig
    vdm: VDMConfig
    codec: CodecConfig
    tree: Mapping[str, Any]


def open_preset(name: str) -> Preset:
    return Preset(name, *load_preset(name), preset_tree(name))


def stages_of(preset: Preset) -> Iterator[Stage]:
    """Yield all stages of a preset in the order in which they run; the larger VDM comes after phase 2."""
    phases = config_from(TrainDLDMConfig, preset.tree["train_dldm"])
    prior = config_from(LoopConfig, preset.tree["train_vdm"])
    full, lora = (trained_as(preset.vdm, train) for train in ("full", "lora"))
    if preset.vdm.init == "prior":
        yield training_stage(preset, "video prior", full, PRIOR, prior)
    yield training_stage(preset, "phase 1", full, PHASE_ONE, phases.phase1)
    for enlarge in ENLARGED.get(preset.name, (1,)):
        yield training_stage(preset, "phase 2, full", full, PHASE_TWO, phases.phase2, enlarge=enlarge)
        yield training_stage(preset, "phase 2, LoRA", lora, PHASE_TWO, phases.phase2, enlarge=enlarge)
    yield latent_stage(preset)
    yield from policy_stages(preset)


# -------------------------------------------------------------------------------------- video model and dLDM


def prior_forward(dldm: DLDM, vdm: VDM, *, clips: int = 1) -> Tensor:
    """Return the loss of the video prior: no codes, no control video."""
    grid = vdm.geometry
    return vdm.denoising_loss(
        torch.zeros(clips, grid.channels, grid.latent_steps + 1, grid.height, grid.width),
        torch.zeros(clips, grid.latent_steps, grid.queries, grid.fsq_dims),
        control_video=None,
        valid=torch.ones(clips, grid.latent_steps, dtype=torch.bool),
        noise=noise_of(clips),
        drop_codes=True,
    )


def phase_one_forward(dldm: DLDM, vdm: VDM, *, clips: int = 1) -> Tensor:
    valid = torch.ones(clips, dldm.config.latent_steps, dtype=torch.bool)
    return phase_one_loss(dldm, fake_clip(dldm.config, clips), valid).loss


PRIOR = Step(prior_forward, lambda dldm, vdm: vdm.trainable_parameters(prior=True))
PHASE_ONE = Step(phase_one_forward, lambda dldm, vdm: list(dldm.parameters()))


def parts_of(dldm: DLDM, vdm: VDM) -> dict[str, list[nn.Module]]:
    parts: dict[str, list[nn.Module]] = {
        "dLDM encoder": [dldm.encoder, dldm.qformer, dldm.pre_quant],
        "dLDM decoder": [dldm.decoder],
        "code projection": [vdm.projection],
        "control branch": [] if vdm.control is None else [vdm.control],
        "VDM transformer": [vdm.transformer],
    }
    return parts


def training_stage(
    preset: Preset, name: str, vdm_config: VDMConfig, step: Step, loop: LoopConfig, *, enlarge: int = 1
) -> Stage:
    """Count a stage that trains the VDM, the dLDM or both.

    Args:
        preset: gives the dLDM and the codec.
        name: of the stage; its beginning is a key of `ENCODINGS`.
        vdm_config: full or LoRA.
        step: loss and trained parameters.
        loop: batch and number of steps.
        enlarge: side of the VDM's pixels over that of the dLDM.

    Returns:
        The stage, with and without recomputation.
    """
    geometry = geometry_of(preset.dldm, preset.codec, enlarge=enlarge)
    with models_without_data(preset.dldm, vdm_config, geometry, preset.codec) as (dldm, vdm):
        learning = step.learning(dldm, vdm)
        kept, work = count_step(dldm, vdm, step)
        dldm.checkpoint_gradients()
        vdm.checkpoint_gradients()
        recomputing, _ = kept_by(dldm, vdm, step)
        again = count_again(dldm, vdm, step)
        # The dLDM is built after the prior is finished; the VDM and its codec are there in both phases.
        trained = set(map(id, learning))
        models = [vdm] if step is PRIOR else [dldm, vdm]
        learn = [model for model in models if any(id(p) in trained for p in model.parameters())]
        idle = [model for model in models if model not in learn]
        block = max(weight_bytes(block) for block in blocks_with_checkpoints(dldm, vdm))
    encodings = ENCODINGS[name.split(",", 1)[0]]
    if encodings:
        work["video codec"] = Work(forward=encodings * codec_flops(preset, enlarge=enlarge))
    with torch.device("meta"):
        codec = build_codec(preset.codec)
    return Stage(
        name,
        (enlarge * preset.dldm.height, enlarge * preset.dldm.width),
        preset.dldm.num_frames,
        loop.batch_size,
        loop.train_steps * loop.batch_size,
        work,
        {part: again[part].total - work[part].total for part in again},
        sharded=weight_bytes(*learn),
        replicated=weight_bytes(*idle, codec),
        learning=learning_bytes(learning),
        block=block,
        kept=kept.bytes,
        kept_recomputing=recomputing.bytes + kept.largest,
    )


def count_step(dldm: DLDM, vdm: VDM, step: Step) -> tuple[Kept, dict[str, Work]]:
    """Return what autograd keeps of a step, and its work by part, with all activations kept."""
    with PartsCounter(parts_of(dldm, vdm)) as counter:
        kept, loss = kept_by(dldm, vdm, step)
        counter.backward(loss)
    return kept, dict(counter.work)


def count_again(dldm: DLDM, vdm: VDM, step: Step) -> dict[str, Work]:
    """Return the work by part with recomputation, which must be switched on."""
    # Without the norms in float32 of `kept_by`: they end with the forward pass, and a recomputed type must be the same.
    with PartsCounter(parts_of(dldm, vdm)) as counter:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = step.forward(dldm, vdm)
        counter.backward(loss)
    return dict(counter.work)


def codec_flops(preset: Preset, *, enlarge: int) -> int:
    """Return the work of encoding one clip to latents."""
    frames = 1 + preset.dldm.latent_steps * preset.dldm.temporal_stride
    with torch.device("meta"):
        codec = build_codec(preset.codec)
    with FakeTensorMode(allow_non_fake_inputs=True), PartsCounter({}) as counter:
        codec = codec.to_empty(device="cpu")
        codec.encode(torch.zeros(1, frames, 3, enlarge * preset.dldm.height, enlarge * preset.dldm.width))
    return counter.total


def latent_stage(preset: Preset) -> Stage:
    """Count the encoding of the latent cache; it has no backward pass, and its memory is not counted."""
    config = config_from(ExtractLatentsConfig, preset.tree.get("extract_latents", {}))
    with torch.device("meta"):
        dldm = DLDM(preset.dldm)
    with FakeTensorMode(allow_non_fake_inputs=True):
        dldm = dldm.to_empty(device="cpu")
        encoder = {"dLDM encoder": [dldm.encoder, dldm.qformer, dldm.pre_quant]}
        with PartsCounter(encoder) as counter, torch.autocast("cpu", dtype=torch.bfloat16):
            dldm.indices(fake_clip(preset.dldm, 1))
    return Stage(
        "latents",
        (preset.dldm.height, preset.dldm.width),
        preset.dldm.num_frames,
        config.batch_size,
        CACHED_WINDOWS,
        dict(counter.work),
        replicated=weight_bytes(dldm),
        batch_is_per_gpu=True,
    )


# ------------------------------------------------------------------------------------------------------ policy


def policy_stages(preset: Preset) -> Iterator[Stage]:
    """Yield the pre-training of the policy, and its fine-tuning with the defaults of `configs/finetune.yaml`."""
    config = config_from(PolicyConfig, preset.tree["policy"])
    loop = config_from(TrainPolicyConfig, preset.tree["train_policy"]).loop
    policy = LatentPolicy(config, generator=torch.Generator().manual_seed(0))
    steps = preset.dldm.latent_steps
    yield _policy_stage(policy, None, "policy", loop, latent_steps=steps)
    path = Path(__file__).parents[2] / "configs" / "finetune.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    head = ActionHead(
        config_from(ActionHeadConfig, tree["head"]),
        width=policy.backbone.width,
        queries=config.queries,
        stride=preset.dldm.temporal_stride,
        action_size=7,
    )
    yield _policy_stage(
        policy,
        head,
        "fine-tuning",
        config_from(FinetuneLoopConfig, tree["loop"]),
        latent_steps=tree["latent_steps"],
    )


def _policy_stage(
    policy: LatentPolicy,
    head: ActionHead | None,
    name: str,
    loop: LoopConfig,
    *,
    latent_steps: int,
) -> Stage:
    px = policy.config.image_px
    models: list[nn.Module] = [policy] if head is None else [policy, head]
    codes = torch.zeros(1, latent_steps, policy.config.queries, dtype=torch.long)
    kept = Kept(*models)

    def losses() -> Tensor:
        prompt = policy.prompt([INSTRUCTION], torch.zeros(1, 3, px, px))
        states = policy.states(prompt, codes, last_code=head is not None)
        valid = torch.ones(1, latent_steps, dtype=torch.bool)
        loss, _ = policy.code_loss(states[:, :, : policy.config.queries], codes, valid)
        return loss if head is None else loss + head(states).float().square().mean()

    parts: dict[str, list[nn.Module]] = {} if head is None else {"action head": [head]}
    with PartsCounter(parts, rest="policy") as counter:
        with kept.counting([]), torch.autocast("cpu", dtype=torch.bfloat16):
            loss = losses()
        counter.backward(loss)
    work = dict(counter.work)
    if head is not None:
        # code_source=hindsight: codes are sampled from one more pass, without gradient.
        sampling = _flops_of(lambda: policy.states(policy.prompt([INSTRUCTION], torch.zeros(1, 3, px, px)), codes))
        work["sampling of codes"] = Work(forward=sampling)
    return Stage(
        name,
        (px, px),
        1,
        loop.batch_size,
        loop.train_steps * loop.batch_size,
        work,
        sharded=weight_bytes(*models),
        learning=learning_bytes(p for model in models for p in model.parameters()),
        block=max(weight_bytes(layer) for layer in _layers(policy)),
        kept=kept.bytes,
    )


@torch.no_grad()
def _flops_of(run: Callable[[], object]) -> int:
    with PartsCounter({}) as counter:
        run()
    return counter.total


def _layers(policy: LatentPolicy) -> Iterable[nn.Module]:
    return policy.backbone.model.base_model.layers  # type: ignore[no-any-return]

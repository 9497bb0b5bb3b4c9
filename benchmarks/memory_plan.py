"""GPU memory that dLDM training takes at the paper's size, one clip at a time: one table, computed without a GPU.

Run: python -m benchmarks.memory_plan [--preset paper] [--layers N] [--phase 1]

Phase 2 (the default): the whole sum for each way of training. Phase 1: what is kept for the backward pass, by block.

The forward pass of the phase runs on tensors without data, in bfloat16 autocast over float32 weights, and everything
that autograd keeps for the backward pass is counted once. CUDA runs torch's norms in float32 under autocast; this is
added here, as the tensors are on a CPU. Weights, gradients and AdamW's two moments are computed from sizes. With
recomputed activations the largest block is added, since it is recomputed in the backward pass. The sum is a lower
bound: context, fragmentation, workspaces, and temporaries of the backward pass and of AdamW are not counted; a tenth
of the GPU is left for them. The Wan VAE runs first and without gradients: its weights are counted, its activations are
not.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.keys import defaults_of
from vw2_robot.models.dldm.causal_video import CausalConv3d, FrameNorm
from vw2_robot.models.dldm.causal_video import blocks_of as trunk_blocks
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.video.config import CodecConfig, Geometry, VDMConfig
from vw2_robot.models.video.control import FullControl
from vw2_robot.models.video.cosmos import blocks_of
from vw2_robot.models.video.vdm import VDM
from vw2_robot.models.video.video_codec import build_codec
from vw2_robot.pretrain.dldm_losses import phase_one_loss
from vw2_robot.random_numbers import SampleNoise

GB = 1e9
MB = 1e6
CARDS = (80, 141)  # GB of an A100 or H100, and of an H200
HEADROOM = 0.9  # share of it that is usable


class NormsInFloat32(TorchFunctionMode):
    """Norms in float32 on a CPU, as under autocast on CUDA."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.nn.functional.layer_norm, torch.nn.functional.group_norm):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        return func(*args, **(kwargs or {}))


class Kept:
    """Bytes that autograd keeps between forward and backward, without weights; `largest` is that of one block."""

    def __init__(self, *models: nn.Module) -> None:
        self._weights = {t.untyped_storage()._cdata for m in models for t in (*m.parameters(), *m.buffers())}
        self._seen: dict[int, Tensor] = {}  # holds the tensors, so that no storage is seen twice under one address
        self.bytes = self.largest = 0
        self.inside: Counter[nn.Module | None] = Counter()  # by the innermost counted block, None outside of all
        self._running: list[nn.Module | None] = [None]

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor; autograd calls this for every tensor that it keeps."""
        # Views share a storage and are counted once.
        key = tensor.untyped_storage()._cdata
        if key not in self._weights and key not in self._seen:
            self._seen[key] = tensor
            self.bytes += tensor.untyped_storage().nbytes()
            self.inside[self._running[-1]] += tensor.untyped_storage().nbytes()
        return tensor

    @contextmanager
    def counting(self, blocks: list[nn.Module]) -> Iterator[None]:
        """Count the kept bytes inside the context, and those that each of `blocks` adds."""
        begun: dict[nn.Module, int] = {}

        def begin(block: nn.Module, _: Any) -> None:
            begun[block] = self.bytes
            self._running.append(block)

        def end(block: nn.Module, _: Any, __: Any) -> None:
            self.largest = max(self.largest, self.bytes - begun[block])
            self._running.pop()

        handles = [h for b in blocks for h in (b.register_forward_pre_hook(begin), b.register_forward_hook(end))]
        with torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor):
            yield
        for handle in handles:
            handle.remove()


def load_preset(name: str) -> tuple[DLDMConfig, VDMConfig, CodecConfig]:
    tree = defaults_of("pretrain", f"model={name}")
    return (
        config_from(DLDMConfig, tree["dldm"]),
        config_from(VDMConfig, tree["vdm"]),
        config_from(CodecConfig, tree["codec"]),
    )


def geometry_of(dldm: DLDMConfig, codec: CodecConfig, *, enlarge: int = 1) -> Geometry:
    """Return the VDM's shapes; `enlarge` 2 is the paper's 480 x 832 beside a dLDM at 240 x 416."""
    height, width = (enlarge * side // codec.block for side in (dldm.height, dldm.width))
    return Geometry(codec.channels, dldm.latent_steps, height, width, dldm.queries, len(dldm.fsq_levels))


@dataclass(frozen=True)
class Step:
    """A training step of one clip, or of `clips=` more: its loss, and the parameters that learn.

    Asking for the parameters sets `requires_grad`.
    """

    forward: Callable[..., Tensor]
    learning: Callable[[DLDM, VDM], list[nn.Parameter]]


def noise_of(clips: int) -> SampleNoise:
    return SampleNoise(0, 0, stream=0, samples=range(clips))


def phase_two_forward(dldm: DLDM, vdm: VDM, *, clips: int = 1) -> Tensor:
    """Return the two losses of phase 2, latents given (the same memory, without masks and jitter)."""
    x = fake_clip(dldm.config, clips)
    grid = vdm.geometry
    latents = torch.zeros(clips, grid.channels, grid.latent_steps + 1, grid.height, grid.width)
    f = dldm.features(x)
    codes, _ = dldm.quantize(f)
    rec = dldm.decode(codes.detach(), f[:, 0].detach(), x[:, 0])
    denoising = vdm.denoising_loss(
        latents,
        codes,
        control_video=latents,
        valid=torch.ones(clips, grid.latent_steps, dtype=torch.bool),
        noise=noise_of(clips),
    )
    return (rec - x).square().mean() + denoising


PHASE_TWO = Step(phase_two_forward, lambda dldm, vdm: [*dldm.parameters(), *vdm.trainable_parameters()])


@contextmanager
def models_without_data(
    dldm_config: DLDMConfig, vdm_config: VDMConfig, geometry: Geometry, codec: CodecConfig
) -> Iterator[tuple[DLDM, VDM]]:
    """Give both models on tensors that have a shape and a type but no data, inside the context alone.

    Args:
        dldm_config: of the dLDM.
        vdm_config: of the VDM.
        geometry: of the VDM.
        codec: of the VDM.
    """
    with torch.device("meta"):
        dldm, vdm = DLDM(dldm_config), VDM(vdm_config, geometry, codec)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield dldm.to_empty(device="cpu"), vdm.to_empty(device="cpu")


def blocks_with_checkpoints(dldm: DLDM, vdm: VDM) -> list[nn.Module]:
    """Return the blocks whose activations are recomputed with `hardware.gradient_checkpointing`."""
    blocks = [*dldm.encoder.body, *dldm.decoder.up.body, *blocks_of(vdm.transformer)]
    if isinstance(vdm.control, FullControl):
        blocks += vdm.control.blocks
    return blocks


def kept_by(dldm: DLDM, vdm: VDM, step: Step) -> tuple[Kept, Tensor]:
    """Run a forward pass, and return what autograd keeps of it and its loss.

    Args:
        dldm: without data.
        vdm: without data.
        step: gives the loss.
    """
    kept = Kept(dldm, vdm)
    with (
        kept.counting(blocks_with_checkpoints(dldm, vdm)),
        torch.autocast("cpu", dtype=torch.bfloat16),
        NormsInFloat32(),
    ):
        loss = step.forward(dldm, vdm)
    return kept, loss


def activations(
    dldm_config: DLDMConfig, vdm_config: VDMConfig, geometry: Geometry, codec: CodecConfig, *, recompute: bool
) -> int:
    """Return the bytes of a phase-2 step that are neither weights nor gradients nor optimizer states."""
    with models_without_data(dldm_config, vdm_config, geometry, codec) as (dldm, vdm):
        # For its effect: it sets `requires_grad`, and autograd keeps less for frozen weights.
        PHASE_TWO.learning(dldm, vdm)
        # With recomputation the largest block is held again in the backward pass.
        largest = 0
        if recompute:
            largest = kept_by(dldm, vdm, PHASE_TWO)[0].largest
            dldm.checkpoint_gradients()
            vdm.checkpoint_gradients()
        return kept_by(dldm, vdm, PHASE_TWO)[0].bytes + largest


def weight_bytes(*models: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def learning_bytes(learning: Iterable[nn.Parameter]) -> int:
    """Return the bytes of gradients and AdamW's two moments, in float32."""
    return sum(p.numel() for p in learning) * 3 * 4


def phase_one_kept(dldm: DLDM, blocks: list[nn.Module], *, clips: int = 1) -> Kept:
    """Return what autograd keeps of some clips in phase 1."""
    kept = Kept(dldm)
    valid = torch.ones(clips, dldm.config.latent_steps, dtype=torch.bool)
    with kept.counting(blocks), torch.autocast("cpu", dtype=torch.bfloat16), NormsInFloat32():
        phase_one_loss(dldm, fake_clip(dldm.config, clips), valid)
    return kept


def phase_one_rows(config: DLDMConfig) -> None:
    """Print MB kept in phase 1: a row for the blocks of one kind at one size, a column for the layers that keep it."""
    with torch.device("meta"):
        dldm = DLDM(config)
    half = {module: name.partition(".")[0] for name, module in dldm.named_modules()}
    row_of: dict[nn.Module | None, str] = {None: "loss"}
    for module, name in half.items():
        row_of[module] = f"rest of the {name}" if name in ("encoder", "decoder") else "q-former and quantizer"
    number: Counter[str] = Counter()

    def name_row(block: nn.Module, _: Any, out: Tensor) -> None:
        width, height, breadth = out.shape[2:]
        row = f"{half[block]}, {type(block).__name__}, {width} x {height} x {breadth}"
        number[row] += 1
        row_of.update((module, row) for module in block.modules())

    blocks = trunk_blocks(dldm)
    with FakeTensorMode(allow_non_fake_inputs=True):
        dldm = dldm.to_empty(device="cpu")
        handles = [block.register_forward_hook(name_row) for block in blocks]
        kept = phase_one_kept(dldm, list(dldm.modules()))
        for handle in handles:
            handle.remove()
        two_clips = phase_one_kept(dldm, [], clips=2).bytes
        dldm.checkpoint_gradients()
        recomputed = phase_one_kept(dldm, []).bytes
    columns: dict[str, Counter[str]] = defaultdict(Counter)
    for module, size in kept.inside.items():
        norm = isinstance(module, FrameNorm | nn.GroupNorm | nn.LayerNorm)
        column = "norms" if norm else "convolutions" if isinstance(module, CausalConv3d) else "rest"
        columns[row_of[module]][column] += size
    print(f"{'kept in phase 1, MB':<44}{'blocks':>7}{'norms':>8}{'convolutions':>14}{'rest':>7}{'sum':>8}")
    for row, sizes in columns.items():
        norms, convolutions, rest = (sizes[column] / MB for column in ("norms", "convolutions", "rest"))
        total = sizes.total() / MB
        print(f"{row:<44}{number[row] or '':>7}{norms:>8.0f}{convolutions:>14.0f}{rest:>7.0f}{total:>8.0f}")
    print(f"{'all':<73}{kept.bytes / MB:>15.0f}")
    # Less than the first one: copies of the weights in bfloat16 are kept once.
    print(f"{'each further clip':<73}{(two_clips - kept.bytes) / MB:>15.0f}")
    # The largest block is held again while it is recomputed.
    largest = max(sum(kept.inside[module] for module in block.modules()) for block in blocks)
    print(f"{'with recomputation':<73}{(recomputed + largest) / MB:>15.0f}")


def states(dldm_config: DLDMConfig, vdm_config: VDMConfig, geometry: Geometry, codec: CodecConfig) -> tuple[int, int]:
    """Return the bytes of all weights, and of gradients and AdamW's moments (float32) of trained ones."""
    with torch.device("meta"):
        dldm, vdm, wan = DLDM(dldm_config), VDM(vdm_config, geometry, codec), build_codec(codec)
    return weight_bytes(dldm, vdm, wan), learning_bytes(PHASE_TWO.learning(dldm, vdm))


def parameters_by_part(dldm: DLDM, vdm: VDM, wan: nn.Module) -> dict[str, int]:
    """Return the number of parameters by the name of each part; the decoder is a part of the dLDM."""
    parts = {
        "dLDM": dldm,
        "its decoder": dldm.decoder,
        "VDM transformer": vdm.transformer,
        "code projection": vdm.projection,
        "control branch": vdm.control,
        "codec": wan,
    }
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items() if part is not None}


def trained_as(vdm: VDMConfig, train: str) -> VDMConfig:
    """Return the configuration of a VDM that is trained `full`, with `lora` or `frozen`."""
    # Frozen bf16 weights are allowed only with pretrained ones, which have no warp; the name is never opened here.
    precision = "float32" if train == "full" else "bf16"
    given = {} if train == "full" else {"weights": "given", "warp": False}
    config = replace(vdm, train=train, frozen_precision=precision, **given)  # type: ignore[arg-type]
    # LoRA uses the light control branch: copied blocks would be trained in full.
    return replace(config, control="light", control_layers=0) if train == "lora" else config


def describe(dldm_config: DLDMConfig, vdm_config: VDMConfig, geometry: Geometry, codec: CodecConfig) -> None:
    with torch.device("meta"):
        dldm, vdm, wan = DLDM(dldm_config), VDM(vdm_config, geometry, codec), build_codec(codec)
    for name, count in parameters_by_part(dldm, vdm, wan).items():
        print(f"{name:<18}{count / 1e6:>10.1f} M parameters")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--preset", default="paper")
    arguments.add_argument("--layers", type=int, help="fewer blocks of the VDM, for a quick run")
    arguments.add_argument("--phase", type=int, choices=(1, 2), default=2)
    chosen = arguments.parse_args()
    dldm, vdm, codec = load_preset(chosen.preset)
    if chosen.phase == 1:
        phase_one_rows(dldm)
        return
    vdm = replace(vdm, layers=chosen.layers or vdm.layers)
    # The sides of the VDM's frames over the dLDM's: `model=paper` at its own size and at the paper's, others at theirs.
    scales = (1, 2) if vdm.frame_height is None else (vdm.frame_height // dldm.height,)
    describe(dldm, vdm, geometry_of(dldm, codec, enlarge=scales[0]), codec)
    print(
        f"\n{'VDM at':<12}{'VDM trained':<14}{'recompute':<11}{'weights':>9}{'grad+Adam':>11}{'activations':>13}"
        f"{'sum, GB':>9}" + "".join(f"{f'{card} GB':>8}" for card in CARDS)
    )
    for enlarge in scales:
        geometry = geometry_of(dldm, codec, enlarge=enlarge)
        for train in ("full", "lora", "frozen"):
            config = trained_as(vdm, train)
            weights, learning = (size / GB for size in states(dldm, config, geometry, codec))
            for recompute in (False, True):
                held = activations(dldm, config, geometry, codec, recompute=recompute) / GB
                total = weights + learning + held
                fits = "".join(f"{'fits' if total < HEADROOM * card else 'no':>8}" for card in CARDS)
                size = f"{enlarge * dldm.height}x{enlarge * dldm.width}"
                print(
                    f"{size:<12}{train:<14}{'yes' if recompute else 'no':<11}{weights:>9.1f}{learning:>11.1f}"
                    f"{held:>13.1f}{total:>9.1f}{fits}",
                    flush=True,
                )


if __name__ == "__main__":
    main()

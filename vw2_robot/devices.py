"""The hardware section of a configuration, and the opening of a torch device by its name.

torch is imported where a device is opened, since a program describes its options without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

from vw2_robot.errors import InputError
from vw2_robot.limits import Count, Rate

if TYPE_CHECKING:
    import torch

ModuleT = TypeVar("ModuleT", bound="torch.nn.Module")
Sharding = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True)
class Hardware:
    """Options that depend on the machine; they may differ between two starts of one run."""

    device: str = "auto"
    """auto (the first of cuda, mps, cpu that is there), cpu, cuda, cuda:0, mps, ..."""
    precision: Literal["float32", "bf16", "float64"] = "float32"
    """bf16: autocast for matrix products; quantizer, losses and weights stay float32. float64: everything, to compare
    runs on other numbers of ranks; slow"""
    threads: int = 0
    """CPU threads of torch; 0: torch decides. Bit-exact resume needs the same number."""
    compile: bool = False
    """blocks of the dLDM, VDM and language model through torch.compile; minutes at the start, worth it on a GPU"""
    gradient_checkpointing: bool = False
    """VDM and dLDM stages: recompute activations in the backward pass instead of keeping them; same numbers"""
    sharding: Sharding = "ddp"
    """with several ranks. none: each holds everything, gradients are summed after the backward pass; ddp: during it;
    fsdp: weights, gradients and optimizer states are sharded over the ranks. Same numbers"""
    micro_batches: Count = 1
    """forward passes of each rank for one batch, whose gradients are added: less memory, same numbers"""
    validation_batch: Count = 16
    """held-out clips in one forward pass; same numbers"""
    grace_seconds: Rate = 10.0
    """seconds from SIGTERM to the kill; a checkpoint of more than 1 GB is written at a stop only with more than 10"""

    @property
    def shards_weights(self) -> bool:
        """Return whether weights are sharded: with `sharding=fsdp` and several ranks."""
        from vw2_robot.distributed.ranks import world_size

        return self.sharding == "fsdp" and world_size() > 1

    @property
    def dtype(self) -> torch.dtype:
        """Return the type of weights and pixels."""
        import torch

        return torch.float64 if self.precision == "float64" else torch.float32

    def torch_device(self, *, option: str = "hardware.device") -> torch.device:
        """Return the device, after setting the number of threads.

        Raises:
            InputError: there is no such device; names `option`.
        """
        import torch

        from vw2_robot.distributed.ranks import local_rank, world_size

        if self.threads > 0:
            torch.set_num_threads(self.threads)
        device = open_device(self.device, option=option)
        if device.type == "mps" and self.precision == "float64":
            raise InputError(f"{option}={self.device}: Apple's GPUs have no float64; give {option}=cpu")
        if device.type == "cuda" and world_size() > 1:
            # One GPU for each rank of a machine, also where the option names one for a single process.
            device = open_device(f"cuda:{local_rank()}", option=option)
            torch.cuda.set_device(device)
        if device.type == "cuda":
            # TF32: the range of float32 with 10 bits of mantissa, and several times as fast on GPUs that have it.
            torch.backends.cuda.matmul.allow_tf32 = True
        return device

    def placed(self, module: ModuleT, device: torch.device) -> ModuleT:
        """Return the module on the device; its weights keep their types, frozen ones bfloat16, except in float64."""
        import torch

        return torch.nn.Module.to(module, device, torch.float64 if self.precision == "float64" else None)

    def autocast(self, device: torch.device) -> torch.autocast:
        """Return the precision context of forward passes."""
        import torch

        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def open_device(name: str, *, option: str = "device") -> torch.device:
    """Return a device that torch can compute on.

    Args:
        name: auto (the first of cuda, mps and cpu that is there), cpu, cuda, cuda:0, mps, ...
        option: the option that the name came from, for the message.

    Raises:
        InputError: no such device, or torch cannot compute on it here.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = next(kind for kind in there if there[kind]) if name == "auto" else name
    try:
        device = torch.device(found)
    except RuntimeError as error:
        raise InputError(f"{option}={name}: expected auto, cpu, cuda, cuda:0, mps, ...") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        seen = torch.cuda.device_count() if torch.cuda.is_available() else "no"
        raise InputError(f"{option}={name}, but torch {torch.__version__} sees {seen} CUDA device")
    # A device may have a valid name and still fail at the first tensor, so one is made.
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # mps elsewhere, meta, no driver
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{option}={name}: torch {torch.__version__} cannot compute on it here ({reason}); give auto or cpu"
        ) from error
    return device

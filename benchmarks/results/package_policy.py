"""Copy a fine-tuned policy into the package, in half precision, as `builtin:NAME`.

    python -m benchmarks.results.package_policy runs/results/reference/finetune --name calvin-tiny

The dLDM is included, since it defines the latent tokens. All checkpoints of the package together must stay below 8 MB.
The folder is written under a temporary name and renamed.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from vw2_robot.agent import CHECKPOINTS, VW2Agent
from vw2_robot.checkpoint import resolve, save_tensors
from vw2_robot.storage.files import MANIFEST, atomic_folder, write_manifest

LIMIT_MB = 8.0
# The first two are for resuming only; weights and manifest are written anew.
LEFT_BEHIND = ("optimizer.safetensors", "training.json", "model.safetensors", MANIFEST)


def package(run: Path, out: Path) -> float:
    """Copy the last checkpoint of `run` to `out` with half-precision weights; return its size in MB.

    Raises:
        SystemExit: it is not a policy with an action head, or too large.
    """
    source = resolve(run)
    VW2Agent.from_pretrained(source)  # raises where it is not a policy with an action head
    weights = load_file(source / "model.safetensors")
    # Half precision halves the file; loading converts back to float32.
    halves = {name: value.half() if value.dtype == torch.float32 else value for name, value in weights.items()}
    # A weight above 65504 would become infinite.
    if wrong := [name for name, value in halves.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise SystemExit(f"{source}: {wrong[:3]} do not fit half precision")
    with atomic_folder(out) as folder:
        for file in source.iterdir():
            if file.name not in LEFT_BEHIND:
                shutil.copyfile(file, folder / file.name)
        save_tensors(halves, folder / "model.safetensors")
        write_manifest(folder)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        if size > LIMIT_MB:
            raise SystemExit(
                f"{source} takes {size:.1f} MB in half precision, more than {LIMIT_MB:g} MB; train a smaller one"
            )
    return size


def main() -> None:
    """Package one policy and load it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a fine-tuning run, or one of its checkpoints")
    parser.add_argument("--name", default="calvin-tiny")
    args = parser.parse_args()
    CHECKPOINTS.mkdir(exist_ok=True)
    size = package(args.run, CHECKPOINTS / args.name)
    agent = VW2Agent.from_pretrained(f"builtin:{args.name}")
    print(f"builtin:{args.name}: {size:.1f} MB\n{json.dumps(agent.metadata, indent=1)}")


if __name__ == "__main__":
    main()

"""Core-minutes of the registered rows before the start: CPU time of a few steps of each loop, times its steps.

    python -m benchmarks.experiment.costs --frames FRAMES --labeled DATA --pretraining NAME... --tuning FAMILY/ROW...

FRAMES is a frame cache as the pre-trainings read it, DATA recordings with labels. Prints a JSON line for each name
with the CPU seconds of its parts: those of a step and of a validation, times the numbers that its configuration file
has. CPU time, since other work may run beside it; even so caches are shared, and a busy machine counts too much.
Without the probe, the gate and the rollouts, whose time `left` prints after the first jobs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.finetune import train_head
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.finetune.labeled_windows import VideoWindows
from vw2_robot.optim import build_optimizer, optimizer_step
from vw2_robot.pretrain import train_dldm, train_policy, train_vdm
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.dldm_modules import build_dldm, build_modules
from vw2_robot.pretrain.extract_latents import encode_episodes
from vw2_robot.random_numbers import SampleNoise
from vw2_robot.schedule import LoopConfig

from ..results.settings import nested, settings_of
from .gate import FINETUNE
from .jobs import PRETRAIN
from .plan import FAMILIES, finetune_experiment, rows_by_id

MEASURED = 6
"""steps of each loop, of which the first two are left out"""
EPISODES = 24
"""of the latent cache"""


@contextmanager
def timed(module: Any, name: str, *, between: bool = False) -> Iterator[list[float]]:
    """Record the CPU seconds of the calls of a function of a module, or of what lies between their ends.

    Args:
        module: where it is looked up.
        name: of the function.
        between: from the end of a call to that of the next, as for a step of a loop that calls it once.
    """
    called: Callable[..., Any] = getattr(module, name)
    found: list[float] = []
    ends: list[float] = []

    def timing(*args: Any, **options: Any) -> Any:
        begin = time.process_time()
        result = called(*args, **options)
        end = time.process_time()
        found.append(end - (ends[-1] if between and ends else begin))
        ends.append(end)
        return result

    setattr(module, name, timing)
    try:
        yield found
    finally:
        setattr(module, name, called)


def typical(seconds: Sequence[float]) -> float:
    """Return the median of a step, without the first ones, in which PyTorch prepares."""
    return statistics.median(seconds[2:])


def short(loop: LoopConfig) -> LoopConfig:
    """Return the loop with the steps that are measured, and one validation after the last."""
    return replace(loop, train_steps=MEASURED, log_every=MEASURED, save_every=MEASURED)


def pretraining_seconds(name: str, frames: Path, folder: Path) -> dict[str, float]:
    """Return CPU seconds of each part of a pre-training, all steps of its file together.

    Args:
        name: of configs/experiment/pretrain.
        frames: the frame cache.
        folder: for what is written; the policy is then in policy/.
    """
    given = (f"data.frame_cache={frames}", "hardware.threads=1", "track=none", f"run_dir={folder}")
    settings = settings_of(PRETRAIN, [f"+experiment=pretrain/{name}", *given])
    assert settings is not None
    config = config_from(PretrainConfig, nested(settings))
    phases = config.train_dldm
    loops = {"prior": config.train_vdm, "phase 1": phases.phase1, "phase 2": phases.phase2}
    reader = phases.reader
    if reader is not None:
        loops["reader"] = reader.loop
        reader = replace(reader, loop=short(reader.loop))
    brief = replace(
        config,
        train_vdm=short(config.train_vdm),
        train_dldm=replace(phases, phase1=short(phases.phase1), reader=reader, phase2=short(phases.phase2)),
    )
    cache = FrameCache(frames, threads=config.data.decode_threads)
    found: dict[str, float] = {}
    if config.needs_prior:
        with timed(train_vdm, "optimizer_step", between=True) as of_step:
            train_vdm.train_vdm(brief)
        found["prior"] = typical(of_step) * loops["prior"].train_steps
    ids, _ = train_policy.training_split(config, cache)
    with (
        timed(train_dldm, "optimizer_step", between=True) as of_step,
        timed(train_dldm, "validate_on") as of_validation,
        timed(train_dldm, "summarize") as of_summary,
    ):
        train_dldm.train_dldm(brief)
    for number, phase in enumerate(train_dldm.phases_of(brief)):
        one = typical(of_step[number * MEASURED :][:MEASURED])
        loop = loops[phase.name]
        validations = loop.train_steps / loop.log_every + 1
        found[phase.name] = one * loop.train_steps + of_validation[number] * validations
    found["summary"] = sum(of_summary)
    # The latent cache of some episodes; all others take as long for each window.
    dldm = build_dldm(config)
    if dldm.pixel_differences is not None:
        dldm = build_modules(config, cache, ids, device=torch.device("cpu"), resumed=False).dldm
    begin = time.process_time()
    windows = encode_episodes(config, dldm.eval(), cache, range(EPISODES), torch.device("cpu"))
    share = len(cache.episodes) / EPISODES
    found["latents"] = (time.process_time() - begin) * share
    loop = config.train_policy.loop
    data = train_policy.PolicyDatasets(
        *(train_policy.PolicyBatches(windows, cache, image_px=config.policy.image_px) for _ in range(2)), dldm, None
    )
    policy = train_policy.build_policy(config, dldm)
    optimizer = build_optimizer(policy.parameters(), loop.optim)
    ends = []
    for step in range(MEASURED):
        rows = torch.randint(len(windows), (loop.batch_size,)).numpy()
        noise = SampleNoise(0, step, stream=0, samples=range(len(rows)), device=torch.device("cpu"))
        count = torch.tensor(int(windows.valid[rows].sum()) * config.policy.queries)
        read = data.train.read(rows, torch.device("cpu"))
        loss = train_policy.policy_loss(config, policy, *read, noise, count).loss
        loss.backward()
        optimizer_step(loss, optimizer, step=step, config=loop.optim, total_steps=loop.train_steps)
        ends.append(time.process_time())
    begin = time.process_time()
    train_policy.validate(config, policy, data.held_out)
    validation = (time.process_time() - begin) * loop.train_steps / loop.log_every
    found["policy"] = typical([b - a for a, b in itertools.pairwise(ends)]) * loop.train_steps + validation
    train_policy.save(folder / "policy", config=config, datasets=data, policy=policy, optimizer=optimizer)
    return found


def tuning_seconds(row_id: str, policy: Path, labeled: Path, folder: Path) -> dict[str, float]:
    """Return CPU seconds of the steps of a fine-tuning, of its validations, and of the codes of a thousand windows.

    Args:
        row_id: FAMILY/ROW.
        policy: of a pre-training, or whose sizes an untrained one takes.
        labeled: recordings with labels.
        folder: for what is written.
    """
    family, row = rows_by_id(FAMILIES)[row_id]
    given = (
        f"{'network.like' if row.pretraining is None else 'policy'}={policy}", f"data.path={labeled}",
        f"data.frame_cache={folder / 'frames'}", "data.validation_split=null", "hardware.threads=1", "track=none",
        f"run_dir={folder / row_id.replace('/', '_')}",
    )  # fmt: skip
    settings = settings_of(FINETUNE, [f"+experiment={finetune_experiment(family, row)}", *given])
    assert settings is not None
    config = config_from(FinetuneConfig, nested(settings))
    loop = config.loop
    brief = replace(
        config,
        label_fraction=0.1,
        loop=replace(loop, **dict.fromkeys(("train_steps", "log_every", "save_every"), MEASURED)),
    )
    windows: list[int] = []
    real = VideoWindows.encode_codes

    def counting(self: VideoWindows, *args: Any, **options: Any) -> None:
        windows.append(len(self))
        real(self, *args, **options)

    VideoWindows.encode_codes = counting  # type: ignore[method-assign]
    try:
        with (
            timed(train_head, "optimizer_step", between=True) as of_step,
            timed(train_head, "validate") as of_validation,
            timed(VideoWindows, "encode_codes") as of_codes,
        ):
            train_head.finetune(brief)
    finally:
        VideoWindows.encode_codes = real  # type: ignore[method-assign]
    return {
        "loop": typical(of_step) * loop.train_steps,
        "validations": of_validation[0] * loop.train_steps / loop.log_every,
        "a thousand codes": 1000 * sum(of_codes) / max(1, sum(windows)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=Path, required=True)
    parser.add_argument("--labeled", type=Path)
    parser.add_argument("--pretraining", nargs="+", required=True)
    parser.add_argument("--tuning", nargs="*", default=[], help="rows; they begin with the first pre-training")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in args.pretraining:
            show(name, pretraining_seconds(name, args.frames, folder / name))
        for row_id in args.tuning:
            show(row_id, tuning_seconds(row_id, folder / args.pretraining[0] / "policy", args.labeled, folder))


def show(name: str, parts: dict[str, float]) -> None:
    """Print a JSON line."""
    print(json.dumps({name: {part: round(of, 2) for part, of in parts.items()}}), flush=True)


if __name__ == "__main__":
    main()

"""One rank of a test: runs the jobs of a JSON file one after the other, in one process group.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python rank.py jobs.json

A job is {"program": "pretrain" or "finetune", "overrides": [...]}. With "losses" the loss and gradient norm of every
optimizer step are appended to that file. "signals" is a list of [stage, rank, number of the call, signal]: what that
rank sends itself when an optimizer step ends.
"""

import json
import os
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.command_line.program import check_same_on_all_ranks
from vw2_robot.distributed.ranks import is_main, joined_ranks, rank
from vw2_robot.finetune import train_head
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.pretrain import extract_latents, train_dldm, train_policy, train_vdm
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx
from vw2_robot.pretrain.stages import alone
from vw2_robot.process import orderly

PROGRAMS = {"pretrain": (PretrainConfig, alone(pretrain_on_openx)), "finetune": (FinetuneConfig, train_head.finetune)}
real_step = train_vdm.optimizer_step


def record(file, stage, signals):
    calls = 0

    def step(loss, optimizer, **options):
        nonlocal calls
        norm = real_step(loss, optimizer, **options)
        for where, who, call, number in signals:
            if (where, who, call) == (stage, rank(), calls):
                os.kill(os.getpid(), number)
        calls += 1
        if is_main() and file is not None:
            with Path(file).open("a") as lines:
                lines.write(json.dumps([stage, float(loss), float(norm)]) + "\n")
        return norm

    return step


def run(program, overrides, losses=None, signals=()):
    for module in (train_vdm, train_dldm, train_policy, train_head):
        module.optimizer_step = record(losses, module.__name__.rpartition("_")[2], signals)
    cls, function = PROGRAMS[program]
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = OmegaConf.to_container(compose(program, overrides), resolve=True)
    config = config_from(cls, tree)
    check_same_on_all_ranks(config)
    function(config)


if __name__ == "__main__":
    torch.set_num_threads(1)
    extract_latents.EPISODES_PER_SHARD = 3
    with orderly("rank"), joined_ranks():
        for job in json.loads(Path(sys.argv[1]).read_text()):
            run(**job)

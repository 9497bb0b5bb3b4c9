"""One rank of a test: runs the jobs of a JSON file one after the other, in one process group.

    RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python rank.py jobs.json

A job is {"program": "pretrain" or "finetune", "overrides": [...]}.
"""

import json
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.distributed.ranks import joined_ranks
from vw2_robot.finetune.config import FinetuneConfig
from vw2_robot.finetune.train_head import finetune
from vw2_robot.pretrain import extract_latents
from vw2_robot.pretrain.config import PretrainConfig, alone
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

PROGRAMS = {"pretrain": (PretrainConfig, alone(pretrain_on_openx)), "finetune": (FinetuneConfig, finetune)}


def run(program, overrides):
    cls, function = PROGRAMS[program]
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        tree = OmegaConf.to_container(compose(program, overrides), resolve=True)
    function(config_from(cls, tree))


if __name__ == "__main__":
    torch.set_num_threads(1)
    extract_latents.EPISODES_PER_SHARD = 3
    with joined_ranks():
        for job in json.loads(Path(sys.argv[1]).read_text()):
            run(job["program"], job["overrides"])

"""The latent cache of several ranks: the bytes of one process, from any part of them on."""

import multiprocessing
import os
import socket

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.distributed import ranks
from vw2_robot.pretrain import extract_latents
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx


def configure(overrides):
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(PretrainConfig, OmegaConf.to_container(compose("pretrain", overrides), resolve=True))


def run_rank(rank, world_size, port, overrides):
    """One rank, in a process of its own."""
    os.environ.update(RANK=f"{rank}", WORLD_SIZE=f"{world_size}", MASTER_ADDR="127.0.0.1", MASTER_PORT=f"{port}")
    torch.set_num_threads(1)
    extract_latents.EPISODES_PER_SHARD = 2
    with ranks.joined_ranks():
        extract_latents.extract_latents(configure(overrides))


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_three_ranks_write_the_latent_cache_of_one_process(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(extract_latents, "EPISODES_PER_SHARD", 2)
    torch.set_num_threads(1)
    overrides = miniature(tmp_path)
    pretrain_on_openx(configure([*overrides, "stages=[vdm,dldm,latents]"]))
    folder = tmp_path / "latents"
    whole = files(folder)
    assert len(whole) == 5 + 3
    for name in ("index.json", "log.txt", "windows-00000.npz", "windows-00002.npz", "windows-00003.npz"):
        (folder / name).unlink()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=run_rank, args=(rank, 3, port, overrides)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert files(folder) == whole

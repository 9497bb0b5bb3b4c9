"""The chain on a compressed frame cache: the weights and codes that a decoded one gives."""

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

torch.set_num_threads(1)


@pytest.mark.slow
def test_all_stages_give_the_same_weights_and_codes_from_compressed_frames(miniature, calvin_folder, tmp_path):
    for storage in ("decoded", "compressed"):
        run_dir = tmp_path / storage
        overrides = [line for line in miniature(run_dir) if not line.startswith("data.frame_cache")]
        with initialize_config_module("vw2_robot.configs", version_base="1.3"):
            tree = compose("pretrain", [*overrides, f"data.path={calvin_folder}", f"data.frame_storage={storage}"])
        pretrain_on_openx(config_from(PretrainConfig, OmegaConf.to_container(tree, resolve=True)))
    assert (tmp_path / "compressed/frames/shard-00000.images").is_file()
    results = [path for path in (tmp_path / "decoded").rglob("*") if path.suffix in (".safetensors", ".npz")]
    assert len(results) >= 4
    for path in results:
        other = tmp_path / "compressed" / path.relative_to(tmp_path / "decoded")
        assert path.read_bytes() == other.read_bytes(), path

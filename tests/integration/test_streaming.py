"""Training where decoded frames do not fit on the disk: clips streamed from the data sets, resumed exactly and blind to
held-out episodes; a compressed frame cache."""

import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from vw2_robot.command_line.config_tree import config_from
from vw2_robot.data.frame_cache import FrameCache
from vw2_robot.distributed.batch_share import BatchShare
from vw2_robot.errors import InputError
from vw2_robot.pretrain import train_dldm, train_vdm
from vw2_robot.pretrain.cache_frames import open_frames, training_split
from vw2_robot.pretrain.clips import CachedClips, StreamedClips, training_clips
from vw2_robot.pretrain.config import PretrainConfig
from vw2_robot.pretrain.pretrain_on_openx import pretrain_on_openx

torch.set_num_threads(1)


class Kill(BaseException):
    """Stands for the end of the process."""


def configure(overrides):
    with initialize_config_module("vw2_robot.configs", version_base="1.3"):
        return config_from(PretrainConfig, OmegaConf.to_container(compose("pretrain", overrides), resolve=True))


@pytest.fixture
def streaming(miniature, calvin_folder):
    """Configurations of the miniature chain on a CALVIN data set, streamed."""

    def make(run_dir, *more):
        kept = [line for line in miniature(run_dir) if not line.startswith("data.frame_cache")]
        return configure([*kept, f"data.path={calvin_folder}", "data.stream=true", "stages=[vdm,dldm]", *more])

    return make


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.txt" and "tensorboard" not in path.parts
    }


def die_after(patch, module, *, steps):
    real, left = module.optimizer_step, [steps]

    def dying(*arguments, **options):
        result = real(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            raise Kill
        return result

    patch.setattr(module, "optimizer_step", dying)


@pytest.mark.slow
def test_a_killed_streaming_run_ends_in_the_bytes_of_an_undisturbed_one(streaming, tmp_path):
    pretrain_on_openx(streaming(tmp_path / "whole"))
    config = streaming(tmp_path / "killed", "data.decode_threads=0")
    for module, steps in ((train_vdm, 1), (train_vdm, 3), (train_dldm, 2), (train_dldm, 3), (train_dldm, 2)):
        with pytest.MonkeyPatch.context() as patch:
            die_after(patch, module, steps=steps)
            with pytest.raises(Kill):
                pretrain_on_openx(config)
    pretrain_on_openx(config)
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    weights = [name for name in whole if name.endswith(".safetensors")]
    assert len(weights) >= 4
    assert [name for name in weights if whole[name] != killed[name]] == []


def test_a_stream_never_shows_a_held_out_episode_and_its_clips_are_the_caches(streaming, tmp_path):
    config = streaming(tmp_path, "data.prefetch_batches=0")
    frames = open_frames(config)
    train, held_out = training_split(config, frames)
    assert len(held_out)
    names = {frames.episodes[index].episode_id: index for index in train}
    clips = training_clips(config, frames, train, held_out, tmp_path)
    assert isinstance(clips, StreamedClips)
    seen = set()
    for step in range(60):
        batch = clips.batch(step, BatchShare.of(2))
        seen |= set(batch.episode_id)
    clips.close()
    assert seen == set(names)


def test_without_streaming_the_cache_is_sampled(streaming, tmp_path):
    config = streaming(tmp_path, "data.stream=false", "data.prefetch_batches=0")
    frames = open_frames(config)
    assert isinstance(training_clips(config, frames, *training_split(config, frames), tmp_path), CachedClips)


def test_the_cache_of_a_streaming_run_holds_no_more_episodes_than_asked_for(streaming, tmp_path):
    open_frames(streaming(tmp_path, "data.cache_episodes=3"))
    assert len(FrameCache(tmp_path / "frames").episodes) == 3


def test_streaming_from_a_frame_cache_is_refused(miniature, tmp_path):
    with pytest.raises(InputError, match=r"data\.stream=true needs data\.path"):
        configure([*miniature(tmp_path), "data.stream=true"])


def test_another_data_set_does_not_continue_the_stream(streaming, tmp_path, calvin_folder):
    with pytest.MonkeyPatch.context() as patch:
        die_after(patch, train_vdm, steps=3)
        with pytest.raises(Kill):
            pretrain_on_openx(streaming(tmp_path))
    with pytest.raises(InputError, match="shuffle_mb"):
        pretrain_on_openx(streaming(tmp_path, "data.shuffle_mb=7"))


@pytest.mark.slow
def test_all_stages_give_the_same_weights_and_codes_from_compressed_frames(streaming, tmp_path):
    stages = "stages=[vdm,dldm,latents,policy]"
    for storage in ("decoded", "compressed"):
        config = streaming(tmp_path / storage, "data.stream=false", f"data.frame_storage={storage}", stages)
        pretrain_on_openx(config)
    decoded, compressed = files(tmp_path / "decoded"), files(tmp_path / "compressed")
    assert "frames/shard-00000.images" in compressed
    # The table of episodes says how each is stored.
    results = [name for name in decoded if name.endswith((".safetensors", ".npz")) and name != "frames/episodes.npz"]
    assert len(results) >= 4
    assert [name for name in results if decoded[name] != compressed[name]] == []

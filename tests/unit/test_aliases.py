import torch
from torch import nn

from vw2_robot.aliases import first_name, with_new_keys, with_new_names
from vw2_robot.checkpoint import weights_digest


def test_old_keys_are_renamed_at_any_depth_and_a_new_key_wins():
    old = {"dldm": {"frames": 9, "quantiser": "vq"}, "horizon": 8, "batch": 1, "batch_size": 2, "own": [{"arm": "x"}]}
    assert with_new_keys(old) == {
        "dldm": {"num_frames": 9, "quantizer": "vq"},
        "chunk_size": 8,
        "batch_size": 2,
        "own": [{"method": "x"}],
    }


def test_a_key_that_moved_into_a_section_is_found_there():
    assert with_new_keys({"pose_weight": 1.0, "seed": 0}) == {"aids": {"pose_weight": 1.0}, "seed": 0}
    new = {"aids": {"pose_weight": 0.5}}
    assert with_new_keys(new) == new


def test_weights_are_renamed_by_whole_parts_of_their_names():
    old = {
        "dldm.z_head.0.weight": 1,
        "dldm.encoder.body.2.conv_s.bias": 2,
        "policy.image.asked.0.bias": 3,
        "z_heads.w": 4,
    }
    new = with_new_names(old)
    assert new == {
        "dldm.pre_quant.0.weight": 1,
        "dldm.encoder.body.2.conv_space.bias": 2,
        "policy.image.instruction.0.bias": 3,
        "z_heads.w": 4,
    }
    assert [first_name(name) for name in new] == list(old)


def test_a_renamed_module_keeps_its_digest():
    """Latent caches and results hold digests that were made over the first release's names."""
    torch.manual_seed(0)
    layers = [nn.Linear(2, 3), nn.Linear(3, 1)]
    old, new = nn.Module(), nn.Module()
    for module, names in ((old, ("z_head", "step")), (new, ("pre_quant", "step"))):
        for name, layer in zip(names, layers, strict=True):
            module.add_module(name, layer)
    assert weights_digest(old) == weights_digest(new)


def test_the_words_of_a_benchmark_of_others_are_not_translated_and_deep_nesting_is_left_alone() -> None:
    tree = {"env": {"steps": 4, "arm": "left", "sentences": "validation"}, "batch": 2}
    assert with_new_keys(tree) == {"env": {"steps": 4, "arm": "left", "instructions": "validation"}, "batch_size": 2}
    deep: dict[str, object] = {}
    for _ in range(5000):
        deep = {"frames": deep}
    assert list(with_new_keys(deep)) == ["frame_cache"]

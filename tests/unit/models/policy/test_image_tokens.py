"""The ways in which a policy without a vision-language model sees its image."""

from dataclasses import replace

import pytest
import torch

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint, weights_digest
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig
from vw2_robot.models.policy.image_tokens import DISCRETE_LEVELS, DiscreteTokens, FeatureTokens, PixelTokens
from vw2_robot.optim import build_optimizer
from vw2_robot.schedule import OptimConfig

DLDM_CONFIG = DLDMConfig(
    num_frames=5,
    height=16,
    width=24,
    stem=StemConfig("pixel", 2, 4, 1),
    levels=(LevelConfig(8, 1, downsample_time=True),),
)
TINY = PolicyConfig(
    backbone=BackboneConfig(tokenizer="bytes", hidden=32, ffn=48, layers=2, heads=4, kv_heads=2),
    image_px=16,
    image_widths=(8, 16, 16),
    image_grid=2,
    image_patch=4,
)
PRETRAINED = replace(TINY, image="pretrained", image_px=32)
INSTRUCTIONS = ["push", "pull the drawer"]


def dldm(seed=0):
    torch.manual_seed(seed)
    return DLDM(DLDM_CONFIG).eval()


def build(image, *, teacher=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    config = PRETRAINED if image == "pretrained" else replace(TINY, image=image)
    return LatentPolicy(config, generator=generator, dldm=teacher, imagenet=False).eval()


def images(batch=2, side=16, seed=0):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def train_once(policy):
    codes = torch.zeros(2, 1, 4).long()
    optimizer = build_optimizer(policy.parameters(), OptimConfig(lr=1e-2, weight_decay=0.5))
    states = policy.states(policy.prompt(INSTRUCTIONS, images(side=policy.config.image_px)), codes)
    policy.code_loss(states, codes, torch.ones(2, 1, dtype=torch.bool))[0].backward()
    optimizer.step()


@pytest.mark.parametrize(("image", "count"), [("pixels", 4), ("pretrained", 4), ("features", 4), ("discrete", 16)])
def test_every_way_fills_its_places_between_img_tokens_and_matters(image, count):
    policy = build(image, teacher=dldm())
    px = policy.config.image_px
    prompt, other = (policy.prompt(INSTRUCTIONS, images(side=px, seed=seed)) for seed in (0, 1))
    assert prompt.inputs.shape == (2, 2 + len(INSTRUCTIONS[1]) + 2 + count + 2, 32)
    image = slice(-2 - count, -2)
    assert not torch.equal(prompt.inputs[:, image], other.inputs[:, image])
    same = torch.ones(prompt.inputs.shape[1], dtype=torch.bool)
    same[image] = False
    assert torch.equal(prompt.inputs[:, same], other.inputs[:, same])
    states = [policy.states(p, torch.zeros(2, 1, 4).long()) for p in (prompt, other)]
    assert not torch.equal(*states)


@pytest.mark.parametrize("way", ["pixels", "pretrained"])
def test_an_untrained_policy_sees_the_same_image_whatever_is_asked_and_learns_to_choose(way):
    policy = build(way)
    one = images(1, side=policy.config.image_px).expand(2, -1, -1, -1)
    image = slice(-6, -2)
    before = policy.prompt(INSTRUCTIONS, one).inputs[:, image]
    assert torch.equal(before[0], before[1])
    train_once(policy)
    after = policy.prompt(INSTRUCTIONS, one).inputs[:, image]
    assert not torch.allclose(after[0], after[1])


def test_an_instruction_is_asked_for_alike_alone_and_in_a_batch():
    policy = build("pixels")
    train_once(policy)
    instructions = [*INSTRUCTIONS, ""]
    image = images(3)
    together = policy.prompt(instructions, image).inputs[:, -6:-2]
    alone = [policy.prompt([text], image[i : i + 1]).inputs[0, -6:-2] for i, text in enumerate(instructions)]
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-6, rtol=1e-5)


def test_blocks_of_pixels_make_the_grid_coarser_and_lose_no_pixel():
    torch.manual_seed(0)
    module = PixelTokens(16, (8, 16), 5, block=2)
    assert module.count == 4
    instructions = torch.zeros(1, 5)
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    module(image, instructions).square().sum().backward()
    assert image.grad.abs().sum(1).gt(0).all()
    with pytest.raises(ValueError, match=r"multiple of 16 \(blocks of 2, 3 halvings\), found 24"):
        replace(TINY, image_block=2, image_px=24)


def test_equal_things_at_two_places_look_different():
    torch.manual_seed(0)
    module = PixelTokens(64, (8, 16), 5, block=1)
    with torch.no_grad():
        module.position.zero_()
    grid = module(torch.zeros(1, 3, 64, 64), torch.zeros(1, 5))[0].view(16, 16, 5)
    assert not torch.allclose(grid[8, 4], grid[8, 11], atol=1e-3)  # far from the edges, which differ anyway
    assert not torch.allclose(grid[4, 8], grid[11, 8], atol=1e-3)


def test_features_are_the_pooled_first_feature_of_the_dldm():
    teacher = dldm()
    module = FeatureTokens(teacher, grid=2, width=5)
    image = torch.rand(3, 3, 16, 24) * 2 - 1
    anchor = teacher.encode(torch.stack([image] * 5, dim=1)).anchor_BChw  # f_0 depends on frame 0 alone
    pooled = torch.nn.functional.adaptive_avg_pool2d(anchor, 2).flatten(2).transpose(1, 2)
    expected = module.project(module.norm(pooled)) + module.position
    torch.testing.assert_close(module(image), expected, atol=1e-5, rtol=1e-5)


def test_a_image_of_another_size_is_brought_to_that_of_the_encoder():
    module = FeatureTokens(dldm(), grid=2, width=5)
    smooth = torch.linspace(-1, 1, 48)[None, None, None].expand(1, 3, 32, 48)
    small = torch.nn.functional.interpolate(smooth, (16, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(module(smooth), module(small))


def test_the_encoder_never_moves_even_if_every_parameter_is_asked_to():
    policy = build("features", teacher=dldm())
    policy.requires_grad_(True)
    before = weights_digest(policy.image.encoder)
    project = policy.image.project.weight.detach().clone()
    train_once(policy)
    assert weights_digest(policy.image.encoder) == before
    assert not torch.equal(policy.image.project.weight, project)


@pytest.mark.parametrize("frozen", [None, 2, 5])
def test_pretrained_stages_train_from_the_first_that_is_not_frozen(frozen):
    generator = torch.Generator().manual_seed(0)
    policy = LatentPolicy(replace(PRETRAINED, image_frozen=frozen), generator=generator, imagenet=False)
    network = policy.image.network
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = frozen or 0
    assert {name.split(".")[1] for name in trained if "stages" in name} == {str(n) for n in range(frozen, 5)}
    assert ("stem.weight" in trained) == (frozen == 0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    policy.requires_grad_(True)  # as fine-tuning does
    train_once(policy)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == trained
    assert policy.image.modulations[str(max(frozen - 1, 0))].weight.abs().max() > 0  # also where no stage trains


@pytest.mark.parametrize("way", ["features", "pretrained"])
def test_a_policy_is_whole_in_its_checkpoint_with_its_image_encoder(way, tmp_path, monkeypatch):
    monkeypatch.setattr("vw2_robot.models.efficientnet.PACKAGE", "not_installed")
    policy = build(way, teacher=dldm())
    save_checkpoint(
        tmp_path / "step_1",
        kind="policy",
        config={"policy": config_tree(policy.config), "dldm": config_tree(DLDM_CONFIG)},
        modules={"policy": policy},
        files=policy.files(),
    )
    again = LatentPolicy.from_checkpoint(load_checkpoint(tmp_path / "step_1", kind="policy")).eval()
    image = images(side=policy.config.image_px)
    assert torch.equal(*(p.decode(p.prompt(INSTRUCTIONS, image), latent_steps=2).states_BHND for p in (policy, again)))


def test_features_without_a_dldm_are_refused():
    with pytest.raises(ValueError, match=r"image=features reads the encoder of a dLDM"):
        build("features")


def test_discrete_images_have_tokens_of_their_own_before_the_latent_ones():
    policy = build("discrete")
    vocabulary = policy.backbone.vocabulary
    count = 8 * 5**4
    assert vocabulary.image == (267, 267 + count)
    assert vocabulary.latent == (267 + count, 1267 + count)
    assert vocabulary.to_json()["image"] == [267, 267 + count]
    ids = policy.image(images())
    rows = policy.backbone.embed(ids + 267)
    assert torch.equal(policy.prompt(INSTRUCTIONS, images()).inputs[:, -18:-2], rows)


def test_discrete_tokens_say_which_color_and_slope_a_patch_has():
    tokens = DiscreteTokens(16, patch=8)
    digits = tokens.fsq.fsq_dims_of(torch.arange(tokens.fsq.vocabulary))
    assert digits.amax(0).tolist() == [level - 1 for level in DISCRETE_LEVELS]

    def fsq_dims_of(image):
        return tokens.fsq.fsq_dims_of(tokens(image[None]))[0, 0]

    gray = torch.zeros(3, 16, 16)
    ramp = torch.linspace(-0.8, 0.8, 8).repeat(2)
    middle = fsq_dims_of(gray)
    assert fsq_dims_of(gray + 0.5)[0] > middle[0] > fsq_dims_of(gray - 0.5)[0]
    assert fsq_dims_of(gray + torch.tensor([0.5, -0.5, 0])[:, None, None])[1] > middle[1]
    assert fsq_dims_of(gray + torch.tensor([0, -0.5, 0.5])[:, None, None])[2] > middle[2]
    assert fsq_dims_of(gray + ramp)[3] != middle[3] == fsq_dims_of(gray + ramp[:, None])[3]
    assert fsq_dims_of(gray + ramp[:, None])[4] != middle[4] == fsq_dims_of(gray + ramp)[4]


def test_discrete_tokens_keep_what_a_coarse_image_shows():
    tokens = DiscreteTokens(32, patch=4)
    across, down = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="xy")
    image = 0.5 * torch.stack([across, down, (across * 3).sin()])[None]
    ids = tokens(image)
    assert ids.shape == (1, 64)
    error, spread = (tokens.image(ids) - image).square().mean(), image.var()
    assert float(error) < 0.2 * float(spread)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"image": "discrete", "image_px": 18}, "multiple of policy.image_patch=4, found 18"),
        ({"image_grid": 0}, "image_grid must be at least 1"),
        ({"image": "pretrained", "image_px": 48}, "multiple of 32 with image=pretrained, found 48"),
        ({"image_stages": 8}, r"image_stages must lie in 1..7 .* found 8 and 0"),
        ({"image_stages": 2, "image_frozen": 3}, "found 2 and 3"),
        ({"image": "vlm"}, r"image=vlm needs policy.backbone.weights"),
    ],
)
def test_configurations_that_cannot_work_are_refused(change, says):
    with pytest.raises(ValueError, match=says):
        replace(TINY, **change)

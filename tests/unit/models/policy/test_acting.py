"""What is read in the slots of each acting mode, by the cache as by one pass, and which states the head gets."""

from dataclasses import replace

import pytest
import torch

from vw2_robot.errors import InputError
from vw2_robot.models.policy.acting import act, check_acting, null_codes
from vw2_robot.models.policy.ar_policy import NULL_CODE, LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig
from vw2_robot.models.policy.decoding import sample_codes
from vw2_robot.random_numbers import SampleNoise

TINY = PolicyConfig(
    backbone=BackboneConfig(hidden=32, ffn=64, layers=2, heads=4, kv_heads=2), image_px=16, image_widths=(8, 16, 16)
)
INSTRUCTIONS = ["open the drawer", "push", "lift the red block"]
CPU = torch.device("cpu")


def build(*, null_token=True, **change):
    policy = LatentPolicy(
        replace(TINY, **change), generator=torch.Generator().manual_seed(0), null_token=null_token
    ).eval()
    with torch.no_grad():  # sure enough of its codes that what is read matters
        policy.backbone.model.get_output_embeddings().weight.mul_(20)
    return policy


def prompt_of(policy, rows=slice(None)):
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        return policy.prompt(INSTRUCTIONS[rows], images[rows])


@torch.no_grad()
def acted_by(policy, acting, *, latent_steps=2, last_code=True, rows=slice(None), seed=0):
    noise = SampleNoise(seed, 0, stream=0, samples=range(3)[rows])
    prompt = prompt_of(policy, rows)
    return act(policy, prompt, latent_steps=latent_steps, acting=acting, last_code=last_code, generator=noise)


@pytest.mark.parametrize("queries", [4, 1])
@pytest.mark.parametrize("latent_steps", [1, 3])
@pytest.mark.parametrize("acting", ["expected", "sampled", "argmax"])
def test_cached_decoding_reads_what_it_says_and_the_head_gets_the_state_after_the_last_code(
    acting, latent_steps, queries
):
    policy = build(queries=queries)
    acted = acted_by(policy, acting, latent_steps=latent_steps)
    with torch.no_grad():
        states = policy.states(prompt_of(policy), acted.read, last_code=True)
        logits = policy.backbone.latent_logits(states[:, :, :queries])
    assert states.shape == (3, latent_steps, queries + 1, 32)
    torch.testing.assert_close(acted.states_BHRD, states, atol=2e-6, rtol=2e-6)
    torch.testing.assert_close(acted.states_BHRD[:, 1:, 0], acted.states_BHRD[:, :-1, -1], rtol=0, atol=0)
    without = acted_by(policy, acting, latent_steps=latent_steps, last_code=False)
    torch.testing.assert_close(without.states_BHRD, acted.states_BHRD[:, :, :-1], rtol=0, atol=0)
    likeliest = logits.argmax(-1)
    first, end = policy.backbone.vocabulary.latent
    if acting == "expected":
        mean = logits.softmax(-1) @ policy.backbone.embed(torch.arange(first, end))
        torch.testing.assert_close(acted.read, mean, atol=2e-6, rtol=2e-5)
    else:
        assert torch.equal(acted.read, acted.codes_BHN)
    assert torch.equal(acted.codes_BHN, likeliest) == (acting != "sampled")


@pytest.mark.parametrize("null_token", [True, False])
def test_null_tokens_are_one_token_that_is_no_code_but_in_old_vocabularies(null_token):
    policy = build(null_token=null_token)
    first, end = policy.backbone.vocabulary.latent
    assert ("<null>" in policy.backbone.vocabulary.to_json()["special"]) == null_token
    zeros = first + int(policy.fsq.indices(torch.zeros(4)))
    assert policy.null_token == (policy.backbone.vocabulary.special["<null>"] if null_token else zeros)
    assert (first <= policy.null_token < end) != null_token
    acted = acted_by(policy, "parallel")
    assert torch.equal(acted.read, null_codes(policy, 3, latent_steps=2, device=CPU))
    assert (acted.read == NULL_CODE).all()
    embeddings = policy.backbone.embed(torch.full((3, 2, 4), policy.null_token))
    with torch.no_grad():
        states = policy.states(prompt_of(policy), embeddings, last_code=True)
    torch.testing.assert_close(acted.states_BHRD, states, rtol=0, atol=0)
    assert torch.equal(acted.codes_BHN, policy.backbone.latent_logits(states[:, :, :4]).argmax(-1))


def test_a_policy_that_acts_without_codes_has_the_states_of_parallel_and_no_codes():
    policy = build()
    parallel, none = (acted_by(policy, acting) for acting in ("parallel", "none"))
    assert none.codes_BHN is None
    assert torch.equal(none.states_BHRD, parallel.states_BHRD)


@pytest.mark.parametrize("acting", ["expected", "sampled", "argmax", "parallel"])
def test_a_sample_of_a_batch_acts_as_it_does_alone(acting):
    policy = build()
    together = acted_by(policy, acting)
    for row in range(3):
        alone = acted_by(policy, acting, rows=slice(row, row + 1))
        assert torch.equal(alone.codes_BHN[0], together.codes_BHN[row])
        torch.testing.assert_close(alone.states_BHRD[0], together.states_BHRD[row], atol=5e-6, rtol=5e-6)


def test_sampled_codes_follow_their_noise_and_their_probabilities():
    policy = build()
    assert torch.equal(acted_by(policy, "sampled").codes_BHN, acted_by(policy, "sampled").codes_BHN)
    assert not torch.equal(acted_by(policy, "sampled").codes_BHN, acted_by(policy, "sampled", seed=1).codes_BHN)
    probabilities = torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0])
    uniform = torch.cat([torch.rand(20_000, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1 - 2**-24])])
    found = sample_codes(probabilities.expand(len(uniform), 5), uniform).bincount(minlength=5)
    assert found[[0, 2, 4]].sum() == 0
    assert float(found[1] / len(uniform)) == pytest.approx(0.2, abs=0.01)


def test_a_vision_language_model_cannot_read_embeddings():
    policy = build()
    check_acting(policy, "expected")
    policy.image = None
    check_acting(policy, "argmax")
    with pytest.raises(InputError, match=r"acting=expected feeds embeddings, .* use acting=argmax"):
        check_acting(policy, "expected")

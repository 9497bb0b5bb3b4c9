"""Latent step by latent step, long plans, and how a code is chosen."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from vw2_robot.models.policy import backbone as backbone_module
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig, Sampling
from vw2_robot.models.policy.decoding import choose_codes
from vw2_robot.models.policy.kv_cache import StaticCache

TINY = PolicyConfig(
    backbone=BackboneConfig(tokenizer="bytes", hidden=32, ffn=64, layers=2, heads=4, kv_heads=2, max_positions=96),
    image_px=16,
    image_widths=(8, 16, 16),
    restrict_softmax=True,
)
INSTRUCTIONS = ["open the drawer", "push"]


@pytest.fixture(scope="module")
def policy():
    return LatentPolicy(TINY, generator=torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def prompt(policy):
    with torch.no_grad():
        return policy.prompt(INSTRUCTIONS, torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def test_step_by_step_gives_what_all_at_once_gives(policy, prompt):
    whole = policy.decode(prompt, latent_steps=3)
    conversation = policy.begin(prompt, latent_steps=3)
    for step in range(3):
        part = conversation.step()
        assert torch.equal(part.codes_BHN[:, 0], whole.codes_BHN[:, step])
        assert torch.equal(part.states_BHND[:, 0], whole.states_BHND[:, step])


def test_no_more_steps_than_were_announced(policy, prompt):
    conversation = policy.begin(prompt, latent_steps=1)
    conversation.step()
    with pytest.raises(ValueError, match="reserved for"):
        conversation.step()


def test_given_codes_count_as_chosen(policy, prompt):
    whole = policy.decode(prompt, latent_steps=3)
    rest = policy.decode(prompt, latent_steps=2, given=whole.codes_BHN[:, :1])
    assert torch.equal(rest.codes_BHN, whole.codes_BHN[:, 1:])
    torch.testing.assert_close(rest.states_BHND, whole.states_BHND[:, 1:], atol=2e-6, rtol=2e-6)
    other = policy.decode(prompt, latent_steps=2, given=(whole.codes_BHN[:, :1] + 1) % 1000)
    assert not torch.equal(other.states_BHND, rest.states_BHND)


def test_more_steps_than_the_model_has_positions_for_are_refused_with_numbers(policy, prompt):
    length = int(prompt.positions_BP[:, -1].max()) + 1
    most = (96 - length + 1) // 4
    assert policy.decode(prompt, latent_steps=most).codes_BHN.shape == (2, most, 4)
    with pytest.raises(ValueError, match=rf"{most + 1} latent steps behind a prompt of {length} tokens .* has 96"):
        policy.decode(prompt, latent_steps=most + 1)


def test_a_long_plan_slides_a_window_and_up_to_the_horizon_it_is_plain_decoding(policy, prompt):
    assert torch.equal(
        policy.long_plan(prompt, latent_steps=3, window=4), policy.decode(prompt, latent_steps=3).codes_BHN
    )
    plan = policy.long_plan(prompt, latent_steps=30, window=4)
    assert plan.shape == (2, 30, 4)
    assert torch.equal(plan[:, :4], policy.decode(prompt, latent_steps=4).codes_BHN)
    expected = policy.decode(prompt, latent_steps=2, given=plan[:, 10:12]).codes_BHN
    assert torch.equal(plan[:, 12:14], expected)
    assert policy.long_plan(prompt, latent_steps=5, window=1).shape == (2, 5, 4)


def test_a_long_plan_is_drawn_from_the_generator(policy, prompt):
    plans = [
        policy.long_plan(
            prompt,
            latent_steps=6,
            window=2,
            temperature=1.0,
            top_p=0.9,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(plans[0], plans[1])
    assert not torch.equal(plans[0], plans[2])


def drawn(sampling, logits, draws=4000):
    rows = torch.tensor(logits).expand(draws, -1)
    codes = choose_codes(rows, sampling, torch.Generator().manual_seed(0))
    return torch.bincount(codes, minlength=len(logits)).float() / draws


def test_codes_are_drawn_by_their_chances():
    logits = [0.0, 2.0, 1.0, -1.0]
    expected = torch.tensor(logits).softmax(0)
    torch.testing.assert_close(drawn(Sampling(temperature=1.0), logits), expected, atol=0.02, rtol=0)
    flat = (torch.tensor(logits) / 4).softmax(0)
    torch.testing.assert_close(drawn(Sampling(temperature=4.0), logits), flat, atol=0.02, rtol=0)


def test_top_k_and_top_p_leave_the_likeliest_codes():
    logits = torch.tensor([0.1, 0.5, 0.3, 0.1]).log().tolist()
    two = torch.tensor([0, 0.625, 0.375, 0])
    torch.testing.assert_close(drawn(Sampling(1.0, top_k=2), logits), two, atol=0.02, rtol=0)
    torch.testing.assert_close(drawn(Sampling(1.0, top_p=0.75), logits), two, atol=0.02, rtol=0)
    assert drawn(Sampling(1.0, top_p=0.4), logits)[1] == 1  # one code is always left
    assert drawn(Sampling(1.0, top_k=1), logits)[1] == 1


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_sampling_is_refused(wrong):
    with pytest.raises(ValueError, match="top_p in"):
        Sampling(**wrong)


def test_decoding_under_autocast_is_that_in_full_precision(policy, prompt):
    assert isinstance(policy.backbone.new_cache(prompt.positions_BP, further=3)[0], StaticCache)
    plain = policy.decode(prompt, latent_steps=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = policy.decode(prompt, latent_steps=2)
    assert torch.equal(mixed.states_BHND, plain.states_BHND)
    assert torch.equal(mixed.codes_BHN, plain.codes_BHN)


def test_training_goes_on_after_decoding():
    """Decoding moves weights next to one another; gradients, optimizer and saved names must not notice."""
    policies = [LatentPolicy(TINY, generator=torch.Generator().manual_seed(0)) for _ in range(2)]
    image, codes = torch.zeros(2, 3, 16, 16), torch.arange(8).view(2, 1, 4)
    for policy in policies:
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2)
        for _ in range(3):
            if policy is policies[0]:
                policy.decode(policy.prompt(INSTRUCTIONS, image), latent_steps=1)
            loss = policy.code_loss(
                policy.states(policy.prompt(INSTRUCTIONS, image), codes), codes, codes[..., 0] >= 0
            )[0]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    mine, theirs = (policy.state_dict() for policy in policies)
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_whole_vocabulary_may_take_part_in_the_loss():
    policy = LatentPolicy(replace(TINY, restrict_softmax=False), generator=torch.Generator().manual_seed(0)).eval()
    codes = torch.arange(8).view(2, 1, 4)
    states = policy.states(policy.prompt(INSTRUCTIONS, torch.zeros(2, 3, 16, 16)), codes)
    loss, parts = policy.code_loss(states, codes, torch.ones(2, 1, dtype=torch.bool))
    logits = policy.backbone.model.get_output_embeddings()(states)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), codes.flatten() + 267)
    torch.testing.assert_close(loss, expected)
    restricted = replace(policy.config, restrict_softmax=True)
    policy.config = restricted
    narrow, narrow_parts = policy.code_loss(states, codes, torch.ones(2, 1, dtype=torch.bool))
    assert float(narrow.detach()) < float(loss.detach())
    assert torch.equal(parts["accuracy"], narrow_parts["accuracy"])


def test_words_that_were_read_before_are_not_read_again_and_change_nothing(monkeypatch):
    """First policy call, second one, another batch around it: the same bits, and fewer positions read."""
    policy = LatentPolicy(TINY, generator=torch.Generator().manual_seed(0)).eval()
    read = []
    real = StaticCache.advance

    def counted(self, inputs, **rest):
        read.append(inputs.shape[:2])
        return real(self, inputs, **rest)

    monkeypatch.setattr(StaticCache, "advance", counted)
    image = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    alone = policy.prompt(["push"], image[:1])
    first = policy.decode(alone, latent_steps=1)
    assert read == [(1, 8), (1, 6), (1, 1), (1, 1), (1, 1)]  # instruction; image and what follows; three codes
    read.clear()
    again = policy.decode(alone, latent_steps=1)
    assert read == [(1, 6), (1, 1), (1, 1), (1, 1)]
    assert torch.equal(first.states_BHND, again.states_BHND)
    policy.decode(policy.prompt(["push", "open the drawer", "push"], image), latent_steps=1)
    assert torch.equal(policy.decode(alone, latent_steps=1).states_BHND, first.states_BHND)
    with torch.no_grad():  # a weight that moves makes it forget
        policy.backbone.model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
        read.clear()
        changed = policy.decode(alone, latent_steps=1)
        assert read[0] == (1, 8)
        torch.testing.assert_close(changed.states_BHND, policy.states(alone, changed.codes_BHN), atol=2e-6, rtol=2e-6)


def test_in_training_all_instructions_are_read_in_one_go(monkeypatch):
    """Every sample has its own, and the weights change before the next call."""
    policy = LatentPolicy(TINY, generator=torch.Generator().manual_seed(0)).train()
    reads = []
    real = StaticCache.advance

    def counted(self, inputs, **rest):
        reads.append(tuple(inputs.shape[:2]))
        return real(self, inputs, **rest)

    monkeypatch.setattr(StaticCache, "advance", counted)
    image = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompt = policy.prompt([f"push {number}" for number in range(8)], image)
    decoded = policy.decode(prompt, latent_steps=1)
    assert reads == [(8, prompt.mask_BP.shape[1]), (8, 1), (8, 1), (8, 1)]
    states = policy.states(prompt, decoded.codes_BHN)
    torch.testing.assert_close(decoded.states_BHND, states, atol=2e-6, rtol=2e-6)


def test_only_so_many_instructions_are_remembered(policy):
    image = torch.zeros(1, 3, 16, 16)
    for number in range(40):
        policy.decode(policy.prompt([f"push {number}"], image), latent_steps=1)
    assert len(policy.backbone._instruction_cache._known) == 32
    assert any(
        bytes(t for t in tokens if t < 256) == b"push 39" for tokens in policy.backbone._instruction_cache._known
    )


def test_tokens_of_a_fixed_shape_are_those_of_a_growing_one(policy, prompt, monkeypatch):
    growing = policy.decode(prompt, latent_steps=3)
    widths = []
    real = StaticCache._attend

    def attend(cache, q, keys, values, bias):
        if q.shape[1] == 1 and bias is not None:
            widths.append((keys.shape[2], bias.shape[-1]))
        return real(cache, q, keys, values, bias)

    monkeypatch.setattr(StaticCache, "_attend", attend)
    monkeypatch.setattr(backbone_module, "StaticCache", partial(StaticCache, fixed_shape=True))
    fixed = policy.decode(prompt, latent_steps=3)
    reserved = prompt.mask_BP.shape[1] + 3 * 4 - 1
    assert set(widths[1:]) == {(reserved, reserved)}
    assert torch.equal(fixed.codes_BHN, growing.codes_BHN)
    torch.testing.assert_close(fixed.states_BHND, growing.states_BHND, atol=2e-6, rtol=2e-6)

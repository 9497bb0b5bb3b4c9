from dataclasses import replace

import pytest
import torch

from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, PolicyConfig

TINY = PolicyConfig(
    backbone=BackboneConfig(hidden=32, ffn=64, layers=2, heads=4, kv_heads=2),
    image_px=16,
    image_widths=(8, 16, 16),
    restrict_softmax=True,
)
INSTRUCTIONS = ["open the drawer", "push", "", "lift the red block from the table"]


def build(seed=0, **change):
    policy = LatentPolicy(replace(TINY, **change), generator=torch.Generator().manual_seed(seed))
    return policy.eval()


def images(batch, seed=0):
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_codes(batch, steps, seed=0):
    return torch.randint(1000, (batch, steps, 4), generator=torch.Generator().manual_seed(seed))


def test_prompt_is_laid_out_as_documented():
    policy = build()
    image = images(2)
    prompt = policy.prompt(["ab", "c"], image)
    special, tokenizer = policy.backbone.vocabulary.special, policy.backbone.tokenizer
    instructions = policy.backbone.embed(torch.tensor([[ord("a"), ord("b")], [ord("c")] * 2])).mean(1)
    soft = policy.image(image, instructions)
    assert prompt.inputs.shape == (2, 2 + 2 + 2 + 4 + 2, 32)

    def row(*tokens):
        return policy.backbone.embed(torch.tensor(tokens))

    first = [
        row(tokenizer.bos, special["<instr>"], ord("a"), ord("b"), special["</instr>"], special["<img>"]),
        soft[0],
        row(special["</img>"], special["<lat>"]),
    ]
    assert torch.equal(prompt.inputs[0], torch.cat(first))
    assert prompt.mask_BP[0].all()
    assert prompt.mask_BP[1].tolist() == [False] + [True] * 11
    assert prompt.positions_BP[0].tolist() == list(range(12))
    assert prompt.positions_BP[1].tolist() == [0, *range(11)]
    assert torch.equal(prompt.inputs[1, 1:3], row(tokenizer.bos, special["<instr>"]))


@pytest.mark.parametrize(("image", "instructions"), [(images(2), ["a"]), (torch.zeros(1, 3, 8, 8), ["a"])])
def test_images_of_another_size_or_number_are_refused(image, instructions):
    with pytest.raises(ValueError, match=r"expects 1 images of shape \(3, 16, 16\)"):
        build().prompt(instructions, image)


def test_states_predict_codes_from_what_comes_before_them_only():
    policy, image = build(), images(1)
    codes = some_codes(1, 2)
    prompt = policy.prompt(["push"], image)
    before = policy.states(prompt, codes)
    for position in range(8):  # step-major, slot-minor
        changed = codes.clone()
        changed.view(-1)[position] = (changed.view(-1)[position] + 1) % 1000
        after = policy.states(prompt, changed)
        same = [torch.equal(a, b) for a, b in zip(before.flatten(0, 2), after.flatten(0, 2), strict=True)]
        assert same == [place <= position for place in range(8)]


def test_state_before_a_code_predicts_it_in_the_models_own_token_stream():
    """The state of z_1^1 is that of `<lat>`; the others are those of the code before."""
    policy, codes = build(), some_codes(1, 2)
    prompt = policy.prompt(["push"], images(1))
    tokens = codes.flatten(1) + policy.backbone.vocabulary.latent[0]
    whole = torch.cat([prompt.inputs, policy.backbone.embed(tokens)], dim=1)
    hidden = policy.backbone.model.model(inputs_embeds=whole).last_hidden_state
    start = prompt.inputs.shape[1] - 1
    torch.testing.assert_close(
        policy.states(prompt, codes).flatten(1, 2), hidden[:, start : start + 8], atol=2e-6, rtol=2e-6
    )


def test_loss_counts_latent_positions_of_valid_steps_and_nothing_else():
    policy, codes = build(), some_codes(3, 2)
    prompt = policy.prompt(INSTRUCTIONS[:3], images(3))
    valid = torch.tensor([[True, True], [True, False], [True, False]])
    loss, parts = policy.code_loss(policy.states(prompt, codes), codes, valid)
    logits = policy.backbone.latent_logits(policy.states(prompt, codes)).log_softmax(-1)
    picked = logits.gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(loss, -(picked[:, 0].sum() + picked[0, 1].sum()) / 16)
    changed = codes.clone()
    changed[1:, 1] = 7  # padding of a short episode
    again, again_parts = policy.code_loss(policy.states(prompt, changed), changed, valid)
    assert torch.equal(again, loss)
    assert torch.equal(again_parts["accuracy"], parts["accuracy"])


@pytest.mark.parametrize("of_codes", [False, True])
def test_losses_and_accuracies_of_the_parts_of_a_batch_add_up(of_codes):
    policy, codes = build(), some_codes(3, 2)
    states = policy.states(policy.prompt(INSTRUCTIONS[:3], images(3)), codes)
    codes[1] = policy.backbone.latent_logits(states)[1].argmax(-1)  # some are right
    valid = torch.tensor([[True, True], [True, False], [False, False]])
    if of_codes:
        valid = valid[..., None] & torch.tensor([True, True, False, True])
    count = valid.expand_as(codes).sum() if of_codes else 4 * valid.sum()
    whole, found = policy.code_loss(states, codes, valid)
    assert 0 < float(found["accuracy"]) < 1
    parts = [
        policy.code_loss(states[rows], codes[rows], valid[rows], count=count)
        for rows in (slice(1), slice(1, 2), slice(2, 3))
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    torch.testing.assert_close(sum(more["accuracy"] for _, more in parts), found["accuracy"])


def test_no_gradient_reaches_a_word_or_special_token_as_a_label():
    policy, codes = build(), some_codes(2, 1)
    states = policy.states(policy.prompt(INSTRUCTIONS[:2], images(2)), codes)
    policy.code_loss(states, codes, torch.ones(2, 1, dtype=torch.bool))[0].backward()
    gradient = policy.backbone.model.get_output_embeddings().weight.grad
    first = policy.backbone.vocabulary.latent[0]
    assert not gradient[:first].any()
    assert gradient[first:].abs().amax(1).gt(0).all()


def test_accuracy_counts_right_codes():
    policy, codes = build(), some_codes(2, 1)
    states = torch.randn(2, 1, 4, 32)
    best = policy.backbone.latent_logits(states).argmax(-1)
    mixed = torch.where(torch.tensor([True, False, True, True]), best, (best + 1) % 1000)
    assert float(policy.code_loss(states, mixed, torch.ones(2, 1, dtype=torch.bool))[1]["accuracy"]) == 0.75
    assert codes.shape == mixed.shape


def test_cached_decoding_equals_teacher_forcing_of_its_own_codes():
    policy = build()
    prompt = policy.prompt(INSTRUCTIONS, images(4))
    decoded = policy.decode(prompt, latent_steps=3)
    assert decoded.codes_BHN.shape == (4, 3, 4)
    states = policy.states(prompt, decoded.codes_BHN)
    torch.testing.assert_close(decoded.states_BHND, states, atol=2e-6, rtol=2e-6)
    assert torch.equal(policy.backbone.latent_logits(states).argmax(-1), decoded.codes_BHN)


def test_greedy_decoding_equals_transformers_generate_on_the_same_embeddings():
    from transformers import LogitsProcessor, LogitsProcessorList

    policy = build()
    prompt = policy.prompt(INSTRUCTIONS, images(4))
    first, end = policy.backbone.vocabulary.latent

    class LatentsOnly(LogitsProcessor):
        def __call__(self, input_ids, scores):
            scores = scores.clone()
            scores[:, :first] = -torch.inf
            scores[:, end:] = -torch.inf
            return scores

    tokens = policy.backbone.model.generate(
        inputs_embeds=prompt.inputs,
        attention_mask=prompt.mask_BP.long(),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=policy.backbone.tokenizer.pad,
        logits_processor=LogitsProcessorList([LatentsOnly()]),
    )
    assert torch.equal(policy.decode(prompt, latent_steps=2).codes_BHN.flatten(1), tokens - first)


def test_prompts_of_different_lengths_in_a_batch_equal_one_by_one():
    policy, image = build(), images(4)
    codes = some_codes(4, 2)
    together = policy.prompt(INSTRUCTIONS, image)
    states, decoded = policy.states(together, codes), policy.decode(together, latent_steps=2)
    for i, instructions in enumerate(INSTRUCTIONS):
        alone = policy.prompt([instructions], image[i : i + 1])
        torch.testing.assert_close(policy.states(alone, codes[i : i + 1])[0], states[i], atol=5e-6, rtol=5e-6)
        single = policy.decode(alone, latent_steps=2)
        assert torch.equal(single.codes_BHN[0], decoded.codes_BHN[i])
        torch.testing.assert_close(single.states_BHND[0], decoded.states_BHND[i], atol=5e-6, rtol=5e-6)


def test_what_stands_in_the_padding_changes_nothing():
    policy, codes = build(), some_codes(4, 2)
    prompt = policy.prompt(INSTRUCTIONS, images(4))._replace(instruction_tokens=())  # read whole, nothing remembered
    assert not prompt.mask_BP.all()
    other = prompt._replace(inputs=torch.where(prompt.mask_BP[..., None], prompt.inputs, 3.0))
    valid = torch.ones(4, 2, dtype=torch.bool)
    loss, changed = (policy.code_loss(policy.states(one, codes), codes, valid)[0] for one in (prompt, other))
    assert torch.equal(loss, changed)
    assert torch.equal(
        policy.decode(prompt, latent_steps=2).states_BHND, policy.decode(other, latent_steps=2).states_BHND
    )


def test_only_latent_tokens_come_out_even_if_the_model_wants_others():
    policy = build()
    prompt = policy.prompt(INSTRUCTIONS, images(4))
    before = policy.decode(prompt, latent_steps=2).codes_BHN
    vocabulary = policy.backbone.vocabulary
    state = policy.decode(prompt, latent_steps=1).states_BHND[0, 0, 0]
    with torch.no_grad():  # a word and a special token now have by far the largest logits
        head = policy.backbone.model.get_output_embeddings().weight
        head[[65, vocabulary.special["</lat>"]]] = 100 * state
        hidden = state[None]
        assert int((hidden @ head.T).argmax()) in (65, vocabulary.special["</lat>"])
    assert torch.equal(policy.decode(prompt, latent_steps=2).codes_BHN, before)
    hot = policy.decode(prompt, latent_steps=2, temperature=50.0, generator=torch.Generator().manual_seed(0)).codes_BHN
    assert int(hot.min()) >= 0
    assert int(hot.max()) < 1000


def test_sampling_depends_on_the_generator_and_follows_the_temperature():
    policy = build()
    prompt = policy.prompt(INSTRUCTIONS, images(4))

    def sample(seed, temperature):
        noise = torch.Generator().manual_seed(seed)
        return policy.decode(prompt, latent_steps=2, temperature=temperature, generator=noise).codes_BHN

    assert torch.equal(sample(0, 1.0), sample(0, 1.0))
    assert not torch.equal(sample(0, 1.0), sample(1, 1.0))
    assert torch.equal(sample(0, 1e-4), policy.decode(prompt, latent_steps=2).codes_BHN)


def test_words_and_image_both_matter():
    policy, codes = build(), some_codes(1, 1)

    def state(instructions, image):
        return policy.states(policy.prompt([instructions], image), codes)

    assert not torch.equal(state("push", images(1)), state("pull", images(1)))
    assert not torch.equal(state("push", images(1)), state("push", images(1, seed=1)))


def test_four_sequences_are_memorized():
    policy, image, codes = build().train(), images(4), some_codes(4, 2)
    valid = torch.ones(4, 2, dtype=torch.bool)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=5e-3, betas=(0.9, 0.98))
    for _ in range(60):
        loss, parts = policy.code_loss(policy.states(policy.prompt(INSTRUCTIONS, image), codes), codes, valid)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(parts["accuracy"]) > 0.99
    assert torch.equal(policy.eval().decode(policy.prompt(INSTRUCTIONS, image), latent_steps=2).codes_BHN, codes)


def test_a_image_size_that_does_not_halve_is_refused():
    with pytest.raises(ValueError, match=r"multiple of 8.*found 20"):
        replace(TINY, image_px=20)


def test_widths_that_do_not_fit_the_norm_are_refused_before_a_model_is_built():
    with pytest.raises(ValueError, match=r"multiples of 8, found .*12"):
        replace(TINY, image_widths=(8, 12))

"""Any model of transformers, from a folder that transformers saved: the same call as for a real one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vw2_robot.checkpoint import load_checkpoint, save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.errors import InputError
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import BackboneConfig, LoRAConfig, PolicyConfig
from vw2_robot.models.policy.kv_cache import LibraryCache, StaticCache
from vw2_robot.models.policy.pretrained import read_pretrained, rebuild_pretrained
from vw2_robot.optim import build_optimizer
from vw2_robot.schedule import OptimConfig

FAMILIES = ("llama", "llama_tied", "qwen2", "qwen3", "gemma2", "gpt2")
INSTRUCTIONS = ["open the drawer", "push", "", "Lift the red block, <image> please"]


def build(weights, *, image="pixels", seed=0, **backbone):
    side = 64 if image == "vlm" else 16
    config = PolicyConfig(
        backbone=BackboneConfig(weights=weights, **backbone), image=image, image_px=side, image_widths=(8, 16, 16)
    )
    return LatentPolicy(config, generator=torch.Generator().manual_seed(seed)).eval()


def policy_of(family, model_folder, **change):
    return build(model_folder(family), image="vlm" if family == "smolvlm" else "pixels", **change)


def images(policy, batch=4, seed=0):
    px = policy.config.image_px
    return torch.rand(batch, 3, px, px, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_codes(batch, steps, seed=0):
    return torch.randint(1000, (batch, steps, 4), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("family", [*FAMILIES, "smolvlm"])
def test_old_rows_are_those_of_the_folder_and_old_logits_stay_bit_equal(family, model_folder):
    plain = read_pretrained(model_folder(family), kind="image_text" if family == "smolvlm" else "causal").model
    policy = policy_of(family, model_folder, pad_to_multiple_of=64)
    model, vocabulary = policy.backbone.model, policy.backbone.vocabulary
    base = plain.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(4, 250).view(2, -1)[:, :60]
    assert vocabulary.base == base
    assert vocabulary.latent == (base + 7, base + 1007)
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0
    for of in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(model, of)().weight[:base], getattr(plain, of)().weight)
    with torch.no_grad():
        assert torch.equal(model(input_ids=tokens).logits[..., :base], plain.eval()(input_ids=tokens).logits)


@pytest.mark.parametrize("family", [*FAMILIES, "smolvlm"])
def test_latent_logits_are_those_of_the_model_itself(family, model_folder):
    backbone = policy_of(family, model_folder).backbone
    tokens, (first, end) = torch.arange(280, 300)[None], backbone.vocabulary.latent
    with torch.no_grad():
        hidden = backbone.hidden(
            backbone.embed(tokens), mask=torch.ones_like(tokens).bool(), positions=torch.arange(20)[None]
        )
        theirs = backbone.model(input_ids=tokens).logits
    torch.testing.assert_close(backbone.latent_logits(hidden), theirs[..., first:end], atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize(
    ("family", "expected"), [*((family, True) for family in FAMILIES), *((f, False) for f in [*FAMILIES, "smolvlm"])]
)
def test_cached_decoding_equals_teacher_forcing_for_mixed_prompts(family, expected, model_folder):
    policy = policy_of(family, model_folder)
    prompt = policy.prompt(INSTRUCTIONS, images(policy))
    decoded = policy.decode(prompt, latent_steps=3, expected=expected, last_code=True)
    with torch.no_grad():
        states = policy.states(prompt, decoded.read, last_code=True)
    torch.testing.assert_close(decoded.states_BHND, states, atol=4e-6, rtol=4e-6)
    assert torch.equal(policy.backbone.latent_logits(states[:, :, :-1]).argmax(-1), decoded.codes_BHN)


@pytest.mark.parametrize("family", [*FAMILIES, "smolvlm"])
def test_a_batch_of_mixed_prompts_equals_one_by_one(family, model_folder):
    policy = policy_of(family, model_folder)
    image, codes = images(policy), some_codes(4, 2)
    together = policy.prompt(INSTRUCTIONS, image)
    decoded = policy.decode(together, latent_steps=2)
    with torch.no_grad():
        states = policy.states(together, codes)
        for i, words in enumerate(INSTRUCTIONS):
            alone = policy.prompt([words], image[i : i + 1])
            single = policy.decode(alone, latent_steps=2)
            assert torch.equal(single.codes_BHN[0], decoded.codes_BHN[i])
            torch.testing.assert_close(single.states_BHND[0], decoded.states_BHND[i], atol=4e-6, rtol=4e-6)
            torch.testing.assert_close(policy.states(alone, codes[i : i + 1])[0], states[i], atol=4e-6, rtol=4e-6)
            assert torch.equal(
                policy.decode(together.rows(torch.tensor([i])), latent_steps=1).codes_BHN[0, 0], single.codes_BHN[0, 0]
            )


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_greedy_decoding_equals_generate(family, model_folder):
    from transformers import LogitsProcessor, LogitsProcessorList

    policy = policy_of(family, model_folder)
    prompt = policy.prompt(INSTRUCTIONS, images(policy))
    first, end = policy.backbone.vocabulary.latent

    class LatentsOnly(LogitsProcessor):
        def __call__(self, input_ids, scores):
            allowed = torch.zeros_like(scores, dtype=torch.bool)
            allowed[:, first:end] = True
            return scores.masked_fill(~allowed, -torch.inf)

    tokens = policy.backbone.model.generate(
        inputs_embeds=prompt.inputs,
        attention_mask=prompt.mask_BP.long(),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([LatentsOnly()]),
    )
    assert torch.equal(policy.decode(prompt, latent_steps=3).codes_BHN.flatten(1), tokens - first)


def test_llama_shaped_models_are_decoded_by_our_own_cache_and_others_by_that_of_transformers(model_folder):
    kinds = {}
    for family in FAMILIES:
        kinds[family] = type(policy_of(family, model_folder).backbone.new_cache(torch.zeros(1, 2).long(), further=1)[0])
    ours = {"llama", "llama_tied", "qwen2", "qwen3"}
    assert kinds == {family: StaticCache if family in ours else LibraryCache for family in FAMILIES}


def test_decoding_follows_every_update_of_the_weights(model_folder):
    """Its matrices are views of the model's parameters, also after a copy onto another model or device."""
    policy = policy_of("llama", model_folder)
    prompt = policy.prompt(INSTRUCTIONS, images(policy))
    before = policy.decode(prompt, latent_steps=2)
    names = [name for name, _ in policy.named_parameters()]
    with torch.no_grad():
        for parameter in policy.backbone.model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    prompt = policy.prompt(INSTRUCTIONS, images(policy))
    after = policy.decode(prompt, latent_steps=2)
    assert not torch.equal(before.states_BHND, after.states_BHND)
    for changed in (policy, policy.double().float()):
        states = changed.states(prompt, after.codes_BHN)
        torch.testing.assert_close(after.states_BHND, states, atol=4e-6, rtol=4e-6)
        torch.testing.assert_close(changed.decode(prompt, latent_steps=2).states_BHND, states, atol=4e-6, rtol=4e-6)
    assert [name for name, _ in policy.named_parameters()] == names


def test_words_are_read_by_the_folders_own_tokenizer_and_no_word_is_a_special_token(model_folder):
    found = read_pretrained(model_folder("llama"), kind="causal").tokenizer
    assert found.encode("  Open THE drawer ", limit=64) == found.encode("open the drawer", limit=64)
    assert len(found.encode("open the drawer", limit=64)) < len("open the drawer")
    assert len(found.encode("open the drawer", limit=2)) == 2
    assert not set(found.encode("a <image> </s>", limit=64)) & {0, 1, 2, 3}
    assert found.start == (1,)
    assert read_pretrained(model_folder("qwen2"), kind="causal").tokenizer.start == ()  # it knows no <bos>


@pytest.mark.parametrize("family", [*FAMILIES, "smolvlm"])
def test_a_checkpoint_alone_rebuilds_the_policy(family, model_folder, tmp_path):
    policy = policy_of(family, model_folder, pad_to_multiple_of=8)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)
    config = replace(policy.config, backbone=replace(policy.config.backbone, weights="gone/away"))
    save_checkpoint(
        tmp_path / "step_1",
        kind="policy",
        config={"policy": config_tree(config)},
        modules={"policy": policy},
        files=policy.files(),
    )
    again = LatentPolicy.from_checkpoint(load_checkpoint(tmp_path / "step_1", kind="policy")).eval()
    image = images(policy)
    mine, theirs = (p.decode(p.prompt(INSTRUCTIONS, image), latent_steps=2) for p in (policy, again))
    assert torch.equal(mine.states_BHND, theirs.states_BHND)
    assert again.backbone.vocabulary == policy.backbone.vocabulary


def test_a_description_of_a_later_transformers_is_refused(model_folder):
    description = read_pretrained(model_folder("llama"), kind="causal").description
    with pytest.raises(InputError, match=r"described by transformers 99.0.*pip install \"transformers>=99\""):
        rebuild_pretrained(description | {"transformers": "99.0"})


@pytest.mark.parametrize(
    ("family", "train"),
    [
        ("llama", "freeze_base"),
        ("llama", "lora"),
        ("llama_tied", "freeze_base"),
        ("qwen3", "lora"),
        ("gpt2", "freeze_base"),
    ],
)
def test_the_base_model_stays_bit_equal_with_weight_decay_on(family, train, model_folder):
    policy = policy_of(family, model_folder, train=train, lora=LoRAConfig(rank=2)).train()
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    optimizer = build_optimizer(policy.parameters(), OptimConfig(lr=1e-2, weight_decay=0.5))
    image, codes = images(policy), some_codes(4, 2)
    for _ in range(3):
        states = policy.states(policy.prompt(INSTRUCTIONS, image), codes)
        loss = policy.code_loss(states, codes, torch.ones(4, 2, dtype=torch.bool))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    base = policy.backbone.vocabulary.base
    tables = {
        name for name, value in policy.named_parameters() if value.shape[:1] == (base + 1007,) and "backbone" in name
    }
    assert tables
    for name, value in policy.state_dict().items():
        if name.startswith("image.") or ".adapters." in name:
            assert not torch.equal(value, before[name]) or not value.is_floating_point(), name
        elif value.shape[:1] == (base + 1007,):
            assert torch.equal(value[:base], before[name][:base]), name
            moved = (value[base:] != before[name][base:]).any(dim=-1)
            assert moved[7:].float().mean() > 0.02, name  # every code that was fed or predicted
        else:
            assert torch.equal(value, before[name]), name


def test_adapters_on_a_model_without_linear_layers_are_refused(model_folder):
    with pytest.raises(InputError, match="lora on a GPT2LMHeadModel: there is no linear layer"):
        policy_of("gpt2", model_folder, train="lora")


def test_without_the_hook_and_without_the_mark_old_rows_would_move(model_folder):
    policy = policy_of("llama", model_folder, train="freeze_base")
    table = policy.backbone.model.get_input_embeddings().weight
    assert table.no_weight_decay
    table.no_weight_decay = False
    old = table[: policy.backbone.vocabulary.base].detach().clone()
    optimizer = build_optimizer(policy.parameters(), OptimConfig(lr=1e-2, weight_decay=0.5))
    codes = some_codes(1, 1)
    states = policy.states(policy.prompt(["push"], images(policy, 1)), codes)
    policy.code_loss(states, codes, torch.ones(1, 1, dtype=torch.bool))[0].backward()
    optimizer.step()
    assert not torch.equal(table[: len(old)], old)


def test_adapters_are_in_the_weights_of_a_policy_that_comes_from_a_checkpoint(model_folder, tmp_path):
    policy = policy_of("llama", model_folder, train="lora", lora=LoRAConfig(rank=2))
    with torch.no_grad():
        for up in policy.backbone.adapters.up:
            up.add_(0.1 * torch.randn(up.shape, generator=torch.Generator().manual_seed(0)))
    save_checkpoint(
        tmp_path / "step_1",
        kind="policy",
        config={"policy": config_tree(policy.config)},
        modules={"policy": policy},
        files=policy.files(),
    )
    again = LatentPolicy.from_checkpoint(load_checkpoint(tmp_path / "step_1", kind="policy")).eval()
    assert again.backbone.adapters is None
    assert again.config.backbone.train == "full"
    assert all(parameter.requires_grad for parameter in again.backbone.parameters())
    image = images(policy)
    mine, theirs = (p.decode(p.prompt(INSTRUCTIONS, image), latent_steps=2) for p in (policy, again))
    assert torch.equal(mine.codes_BHN, theirs.codes_BHN)
    torch.testing.assert_close(mine.states_BHND, theirs.states_BHND, atol=1e-4, rtol=1e-3)
    plain = build(model_folder("llama"))
    assert not torch.equal(plain.decode(plain.prompt(INSTRUCTIONS, image), latent_steps=2).codes_BHN, mine.codes_BHN)


def test_a_vision_language_model_sees_the_image_and_its_places_are_its_own_image_token(model_folder):
    policy = policy_of("smolvlm", model_folder)
    prompt = policy.prompt(["push", "pull it"], images(policy, 2))
    assert ((prompt.inputs == 3).sum(1) == 4).all()
    special, tokens = policy.backbone.vocabulary.special, prompt.inputs[1].tolist()
    assert tokens[:2] == [1, special["<instr>"]]
    assert tokens[-7:] == [special["<img>"], 3, 3, 3, 3, special["</img>"], special["<lat>"]]
    codes = some_codes(2, 1)
    other = policy.prompt(["push", "pull it"], images(policy, 2, seed=1))
    with torch.no_grad():
        assert not torch.equal(policy.states(prompt, codes), policy.states(other, codes))


@pytest.mark.parametrize(
    ("weights", "image", "says"),
    [
        ("no/such-folder-of-ours/at-all", "pixels", "cannot be loaded as a language model"),
        ("llama", "vlm", "cannot be loaded as a vision-language model"),
    ],
)
def test_weights_that_cannot_be_loaded_are_refused_in_words(weights, image, says, model_folder, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    weights = model_folder(weights) if weights in FAMILIES else weights
    with pytest.raises(InputError, match=says):
        build(weights, image=image)


def test_pickled_weights_are_not_opened(model_folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes(Path(model_folder("llama"), name).read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        build(str(tmp_path))


def test_a_model_whose_logits_we_would_misread_is_refused(model_folder, tmp_path):
    """Its head multiplies logits by a number that the configuration holds under a name we do not know."""
    import transformers

    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 3
            return out

    model = Odd.from_pretrained(model_folder("llama"))
    found = read_pretrained(model_folder("llama"), kind="causal")
    odd = replace(found, model=model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vw2_robot.models.policy.backbone.read_pretrained", lambda *_, **__: odd)
        with pytest.raises(InputError, match="Odd, whose logits are not"):
            build(model_folder("llama"))


def test_backbone_json_is_plain_json_without_paths(model_folder):
    description = policy_of("llama", model_folder).files()["backbone"]
    text = json.dumps(description)
    assert model_folder("llama") not in text
    assert description["config"]["vocab_size"] == 300  # before the extension

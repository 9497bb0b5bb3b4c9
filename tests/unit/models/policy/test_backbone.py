import hashlib
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from vw2_robot.envs.instructions import read_instructions
from vw2_robot.models.dldm.fsq import FSQ
from vw2_robot.models.policy.backbone import Backbone
from vw2_robot.models.policy.config import BackboneConfig
from vw2_robot.models.policy.vocabulary import (
    SPECIAL_TOKENS,
    ByteTokenizer,
    WordTokenizer,
    extend_vocabulary,
    instruction_words,
)

TINY = BackboneConfig(hidden=32, ffn=48, layers=2, heads=4, kv_heads=2, max_positions=64)
LEVELS = (8, 5, 5, 5)


def llama(*, tied=False):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=260,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    ).eval()


def extend(model, seed=0):
    return extend_vocabulary(model, FSQ(LEVELS), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("tied", [False, True])
def test_old_rows_and_old_logits_stay_bit_equal(tied):
    model, tokens = llama(tied=tied), torch.randint(260, (2, 9))
    rows = [t.weight.detach().clone() for t in (model.get_input_embeddings(), model.get_output_embeddings())]
    logits = model(tokens).logits
    extend(model)
    assert model.get_input_embeddings().weight.shape == (1267, 32)
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    assert torch.equal(model.get_input_embeddings().weight[:260], rows[0])
    assert torch.equal(model.get_output_embeddings().weight[:260], rows[1])
    assert torch.equal(model(tokens).logits[..., :260], logits)


def test_latent_tokens_come_last_and_contiguous_after_the_special_ones():
    vocabulary = extend(llama())
    assert vocabulary.base == 260
    assert list(vocabulary.special) == list(SPECIAL_TOKENS)
    assert list(vocabulary.special.values()) == list(range(260, 267))
    assert vocabulary.latent == (267, 1267)
    assert vocabulary.to_json() == {
        "base": 260,
        "special": vocabulary.special,
        "latent": [267, 1267],
        "levels": [8, 5, 5, 5],
        "image": None,
    }


def test_new_rows_are_spread_like_old_ones_and_neighbors_in_the_codebook_start_as_neighbors():
    model = llama()
    extend(model)
    for table in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        rows = table[267:].detach() - table[:260].detach().mean(0)
        assert 0.01 < float(rows.std(0).mean()) < 0.04  # mean_resizing=True would give 0.001
        codes = FSQ(LEVELS).codes_of(torch.arange(1000))
        far, near = torch.cdist(rows, rows), torch.cdist(codes, codes)
        assert float(torch.corrcoef(torch.stack([far.flatten(), near.flatten()]))[0, 1]) > 0.6


def test_extension_draws_from_the_generator_it_is_given():
    models = [llama(), llama(), llama()]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        torch.manual_seed(seed + 10)  # must not matter
        extend(model, seed)
    tables = [model.get_input_embeddings().weight for model in models]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])


def test_a_backbone_is_a_function_of_its_generator_and_leaves_the_global_one_alone():
    state = torch.get_rng_state()
    first, second, other = (
        Backbone(TINY, FSQ(LEVELS), generator=torch.Generator().manual_seed(seed)).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["model.model.embed_tokens.weight"], other["model.model.embed_tokens.weight"])


def test_latent_logits_are_the_models_own_logits_of_the_latent_tokens():
    backbone = Backbone(TINY, FSQ(LEVELS), generator=torch.Generator().manual_seed(0)).eval()
    first, end = backbone.vocabulary.latent
    tokens = torch.randint(end, (2, 7))
    hidden = backbone.hidden(
        backbone.embed(tokens), mask=torch.ones(2, 7, dtype=torch.bool), positions=torch.arange(7).expand(2, 7)
    )
    torch.testing.assert_close(backbone.latent_logits(hidden), backbone.model(tokens).logits[..., first:end])


@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_states_of_the_last_positions_are_those_of_a_pass_over_all_with_the_same_gradients(dtype, padding):
    backbone = Backbone(TINY, FSQ(LEVELS), generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, :padding] = False
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    tokens = torch.arange(14).view(2, 7)
    found = []
    for last in (None, 3):
        backbone.zero_grad()
        states = backbone.hidden(backbone.embed(tokens), mask=mask, positions=positions, last=last)[:, -3:]
        states.sin().sum().backward()
        found.append([states, *(p.grad for p in backbone.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[0], found[1])


def test_text_becomes_lower_case_bytes_up_to_the_limit():
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("  Öffne ", limit=64) == list("öffne".encode())
    assert tokenizer.encode("öffne", limit=2) == list("ö".encode())
    assert max(tokenizer.pad, tokenizer.bos, tokenizer.eos, tokenizer.unk) == tokenizer.size - 1


def spelled_out(tokens: list[int]) -> str:
    """What a WordTokenizer's tokens say, without space."""
    words = instruction_words()
    parts = [words[i - ByteTokenizer.size].encode() if i >= ByteTokenizer.size else bytes([i]) for i in tokens]
    return b"".join(parts).decode().replace(" ", "")


@given(st.text(max_size=40))
def test_words_lose_nothing_but_space_and_case(text):
    assert spelled_out(WordTokenizer().encode(text, limit=1000)) == re.sub(r"\s", "", text.lower())


def test_an_unknown_word_is_spelled():
    tokenizer = WordTokenizer()
    known = [tokenizer.encode(word, limit=9)[0] for word in ("push", "block")]
    assert tokenizer.encode(" Push  zyx qq, block", limit=64) == [known[0], *b"zyx qq ,", known[1]]
    assert tokenizer.encode("push zyx", limit=2) == [known[0], ord("z")]
    assert tokenizer.size == ByteTokenizer.size + len(set(instruction_words())) == max(known[0], tokenizer.size)


def test_no_calvin_instruction_is_spelled_and_each_has_its_own_tokens():
    tokenizer = WordTokenizer()
    sentences = {text for name in ("train", "enriched") for texts in read_instructions(name).values() for text in texts}
    found = [tuple(tokenizer.encode(text, limit=64)) for text in sentences]
    assert {token for tokens in found for token in tokens if token < tokenizer.size - len(instruction_words())} <= {
        ord(",")
    }
    assert len(set(found)) == len(sentences)
    assert max(map(len, found)) <= 16


def test_the_list_of_words_never_changes():
    """Checkpoints count on it; a better list gets another name."""
    digest = hashlib.sha256("\n".join(instruction_words()).encode()).hexdigest()
    assert digest.startswith("e88b2426e02df09c")


@pytest.mark.parametrize("change", [{"heads": 3}, {"kv_heads": 3}])
def test_heads_that_do_not_divide_the_width_are_refused(change):
    with pytest.raises(ValueError, match="multiple of"):
        BackboneConfig(**change)

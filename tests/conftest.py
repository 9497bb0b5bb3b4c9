"""Fixtures for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from vw2_robot.data.sources.rlds_builder import prepare_tensorflow

# A shell ignores Ctrl-C in what it runs in its background, and the programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
prepare_tensorflow()  # some tests import TensorFlow by themselves
# Shapes that signatures promise are checked in the tests alone.
SHAPES_CHECKED = (
    *(f"vw2_robot.models.{name}" for name in ("dldm", "causal_video", "fsq", "vq", "code_projection", "action_head")),
    "vw2_robot.pretrain.targets",
    "vw2_robot.pretrain.train_dldm",
)
install_import_hook(SHAPES_CHECKED, "beartype.beartype")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Recordings and original assets that lie beside a checkout and are not part of it."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder.name}/ beside the checkout")
    return folder


@pytest.fixture(scope="session")
def small_models() -> list[str]:
    """Overrides of `pretrain-on-openx` for images of 16 x 16 pixels and models of a few thousand weights."""
    return [
        "dldm.num_frames=5",
        "dldm.height=16",
        "dldm.width=16",
        "++dldm.stem={patch: pixel, temporal_patch_size: 4, spatial_patch_size: 4, spatial_kernel_size: 1}",
        "dldm.levels=[{width: 8, blocks: 1}]",
        "++dldm.qformer={context: adjacent, depth: 1, heads: 2}",
        "dldm.z_channels=8",
        "aids.reader=false",
        "++vdm={heads: 1, head_dim: 12, layers: 1, adaln_lora_dim: 4, context_width: 8, control_width: 8}",
        "++policy.backbone={hidden: 16, ffn: 16, layers: 1, heads: 2, kv_heads: 1}",
        "policy.image_px=16",
        "++policy.image_widths=[8, 8]",
    ]


# Folders of tiny models, saved by transformers itself: what a user's own folder looks like.
TOKENIZER_TEXTS = [
    "open the drawer",
    "push the red block to the left",
    "lift the pink block from the table",
    "turn on the led",
]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 128}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


def save_tokenizer(folder, *, bos=True):
    """A byte-level BPE tokenizer of about 300 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TOKENIZER_TEXTS, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", **({"bos_token": "<s>"} if bos else {})
    )
    fast.save_pretrained(folder)


def save_language_model(folder, family):
    """A model with random weights (seed 0) and its tokenizer; returns the model."""
    import torch
    import transformers

    config = {
        "llama": lambda: transformers.LlamaConfig(vocab_size=300, tie_word_embeddings=False, **SIZES, **HEADS),
        "llama_tied": lambda: transformers.LlamaConfig(vocab_size=300, tie_word_embeddings=True, **SIZES, **HEADS),
        "qwen2": lambda: transformers.Qwen2Config(vocab_size=304, tie_word_embeddings=True, **SIZES, **HEADS),
        "qwen3": lambda: transformers.Qwen3Config(
            vocab_size=300, head_dim=16, tie_word_embeddings=True, **SIZES, **HEADS
        ),
        "gemma2": lambda: transformers.Gemma2Config(vocab_size=300, head_dim=8, sliding_window=4, **SIZES, **HEADS),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=300, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
        ),
    }[family]()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # biases and norms begin at 0 and 1, where a forgotten one would not show
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    save_tokenizer(folder, bos=family != "qwen2")
    return model


def save_smolvlm(folder):
    """A vision-language model of 64 px: four image tokens."""
    import torch
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

    torch.manual_seed(0)
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = SmolVLMForConditionalGeneration(
        SmolVLMConfig(
            text_config={"model_type": "llama", "vocab_size": 300, "pad_token_id": 0, **SIZES, **HEADS},
            vision_config={**vision, "image_size": 64, "patch_size": 16},
            scale_factor=2,
            image_token_id=3,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    ).eval()
    model.save_pretrained(folder)
    side = {"longest_edge": 64}
    SmolVLMImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False).save_pretrained(folder)
    save_tokenizer(folder)
    return model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """`model_folder(family)` -> a folder as it would come from a hub, saved once."""
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            (save_smolvlm if family == "smolvlm" else lambda path: save_language_model(path, family))(made[family])
        return str(made[family])

    return folder

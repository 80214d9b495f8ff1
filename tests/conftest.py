"""What the tests share: two tiny random models, two tokenizers, samples of the world."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")           # models this small lose time in more threads
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")            # no test asks the network
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import sft
import synth
from base import documents, train

# EXAMPLES=2000 searches for longer, each time among other examples.
settings.register_profile("tests", max_examples=int(os.environ.get("EXAMPLES", 40)), deadline=None,
                          derandomize="EXAMPLES" not in os.environ, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


@pytest.fixture(scope="session")
def tokenizer():
    """The embedded model's kind: compact signatures, <|role|>text<|end|>."""
    return train.make_tokenizer(documents.vocabulary()[::12], 300)


@pytest.fixture(scope="session")
def chatml(tokenizer, tmp_path_factory):
    """Any other model's kind: no word of a tool style, so tools as JSON; <|im_start|>role, text, <|im_end|>."""
    folder = tmp_path_factory.mktemp("chatml")
    other = train.make_tokenizer(documents.vocabulary()[::40], 200)
    other.chat_template = CHATML
    other.init_kwargs.pop("tool_style")
    other.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    other.save_pretrained(folder)
    return sft.AutoTokenizer.from_pretrained(folder)


def tiny(kind, vocabulary, seed=0):
    """A random model in evaluation mode, its weights wide enough that tokens differ in probability."""
    torch.manual_seed(seed)
    config, model_class = KINDS[kind]
    model = model_class(config(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.15, bos_token_id=None, eos_token_id=1,
        pad_token_id=0, tie_word_embeddings=kind == "qwen2", attn_implementation="grouped"))
    return model.eval()


def save_tiny(kind, tokenizer, folder):
    """The folder, with a tiny model and its tokenizer in it."""
    tiny(kind, len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=KINDS)
def checkpoint(request, tokenizer, tmp_path_factory):
    """Folder of a saved model with its tokenizer."""
    return save_tiny(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def model(checkpoint):
    """A fresh model of each architecture; the test may change it."""
    return sft.load_model(checkpoint, "cpu")[0]


@pytest.fixture
def qwen2(tokenizer):
    """A fresh model where one architecture is enough."""
    return tiny("qwen2", len(tokenizer))


@pytest.fixture(scope="session")
def samples():
    """A few samples of the world."""
    return synth.make_samples(24, "train", seed=7)


@pytest.fixture(scope="session")
def shared_data():
    """Public data beside the repository, for checks on what nobody here wrote."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.exists():
        pytest.skip(f"{folder} is not here")
    return folder

"""A model: load it, adapt it, teach it.

    python sft.py --model base --out out/warmup                     # iTool's warm-up: easy, then medium, then hard
    python sft.py --from_scratch --out base2                        # an embedded base (base/train.py; --help: its settings)

LoRA, the layout of samples in a row, and the training loops are written out here. A row holds *trees* of tokens, side by side:
segments of text, each below a parent, where a token attends to its ancestors only. A sample is the smallest tree
(prompt, response); a toolset with many conversations, or all the steps that a search tried, are larger ones.
"""

import hashlib
import json
import math
import os
import random
import re
import sys
import tempfile
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")     # a kernel for each shape met, of which there is no end: gigabytes

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint
from tqdm import tqdm
from transformers import (AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, AutoTokenizer,
                          PreTrainedTokenizerFast)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging as hf_logging

import synth

hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()


class ModelError(ValueError):
    """A checkpoint that cannot be used; its text says which and why."""


class TrainingError(RuntimeError):
    """Training that has to stop, such as a loss that is no longer a number."""


def pick_device(name="auto"):
    """auto: CUDA, else MPS, else CPU. Raises ModelError for a device that is not there."""
    if name != "auto":
        try:
            return torch.zeros(1, device=name).device
        except (RuntimeError, AssertionError) as error:     # AssertionError: torch without CUDA
            raise ModelError(f"--device {name}: {first_line(error)}") from None
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


WIDE = 640     # of hidden states, from where a CPU's matrix units pay: in bfloat16 preference training takes 1.3 times as long as in
               # float32 at 256, and 0.7 times at 768


def bfloat16_pays(config, device):
    """Is a model of this config faster in bfloat16: on CUDA from Ampere on, and on CPUs with matrix units for it if it is wide?

    A CPU without them (most laptops) emulates bfloat16, a hundred times slower.
    """
    if device.type == "cpu":
        return config.get_text_config().hidden_size >= WIDE and torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(model):
    """bfloat16 where it pays, else the weights' own precision."""
    pays = bfloat16_pays(model.config, model.device)
    return torch.autocast(model.device.type, dtype=torch.bfloat16) if pays else nullcontext()


TOKENS = Counter()     # what the policy has worked on: tokens trained (forward and backward), decoded, and scored


def count_tokens(kind, n):
    TOKENS[kind] += n


def out_of_memory(error):
    """Is it an out-of-memory error (of CUDA or MPS, of cuBLAS, or of a CPU)?"""
    texts = "out of memory", "STATUS_ALLOC_FAILED", "allocate memory", "not enough memory"
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def first_line(error):
    """The line to report of an error raised elsewhere."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def within_memory(work, tokens):
    """(work(tokens), tokens), `tokens` being how many are computed together: halved until they fit the device's memory.

    work: starts over each time; its result must not depend on `tokens`. Raises TrainingError when nothing is left to
    halve.
    """
    while True:
        try:
            return work(tokens), tokens
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        if tokens < 64:
            raise TrainingError("out of memory, with one sample at a time too: leave out long ones with --max_tokens")
        tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        elif torch.backends.mps.is_available():
            torch.mps.empty_cache()
        tqdm.write(f"out of memory: going on with {tokens} tokens at a time")


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """SDPA; if the mask has `trees` or `parts`, of several sequences whose queries are side by side in one row, (1, heads, queries, size).

    trees (`read_batch`): their masks, one after the other. parts (decoding): key, value are a cache, (rows, KV heads, places, size),
    and each part (rows, places, taken, mask): slices of rows and of cache places; the indices of their queries, (rows, length),
    padded with -1; and the attention mask of those, (rows, 1, length, places). Only a part's places are read, and keys and values
    are not repeated for each head (grouped-query attention): heads that share them are stacked as queries of one head. Raises
    ValueError for attention sinks (gpt-oss), which SDPA would ignore.
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError("its attention has sinks")
    if trees := getattr(attention_mask, "trees", None):
        split = (x.split([mask.shape[-1] for mask in trees], 2) for x in (query, key, value))
        found = [sdpa_attention_forward(module, *states, mask, scaling=scaling, **kwargs)[0] for *states, mask in zip(*split, trees)]
        return torch.cat(found, 1), None
    if not (parts := getattr(attention_mask, "parts", None)):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    (_, heads, length, size), shared = query.shape, key.shape[1]
    query, out = query[0].transpose(0, 1), value.new_empty(length + 1, heads, size)
    for rows, places, taken, mask in parts:
        asked = query[taken].transpose(1, 2).reshape(len(taken), shared, -1, size)
        found = F.scaled_dot_product_attention(asked, key[rows, :, places], value[rows, :, places],
                                               attn_mask=torch.cat([mask] * (heads // shared), 2), scale=scaling)
        out[taken] = found.reshape(len(taken), heads, -1, size).transpose(1, 2)
    return out[None, :-1], None


CACHE = "cache" if "cache" in BaseModelOutputWithPast.__dataclass_fields__ else "past_key_values"     # its name before transformers 5.24

AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


def load_model(path, device="auto"):
    """(model, tokenizer) of any causal language model by path or hub name, with SDPA attention.

    Weights are as stored on an accelerator, and on a CPU where bfloat16 pays (autocast would cast float32 weights anew in every
    pass); else float32. Raises ModelError.
    """
    device = pick_device(device)
    path = path if path != "base" or Path(path).exists() else str(Path(__file__).with_name("base"))      # the embedded one, from anywhere
    try:
        # AutoTokenizer would give a Qwen2 model Qwen's own way to cut words, whatever its tokenizer.json says
        generic = get_tokenizer_config(path).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
        tokenizer = (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(path)
        config = AutoConfig.from_pretrained(path)
        dtype = "auto" if device.type != "cpu" or bfloat16_pays(config, device) else torch.float32
        model, report = AutoModelForCausalLM.from_pretrained(path, config=config, attn_implementation="grouped", dtype=dtype,
                                                             output_loading_info=True)
    except Exception as error:    # missing folder, broken weights, unknown architecture: one line each
        if (Path(path) / "adapter.json").exists() and not (Path(path) / "config.json").exists():
            raise ModelError(f"{path}: an adapter without its model (a run of loop.py has the last policy whole, in final/)") from None
        raise ModelError(f"{path}: no model could be loaded ({first_line(error)})") from None
    if getattr(model.config, "quantization_config", None):
        raise ModelError(f"{path}: quantized weights cannot be trained here: give the checkpoint in bfloat16")
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{path}: the checkpoint lacks {len(missing)} of the model's weights, such as {missing[0]}")
    try:
        model = model.to(device).eval()
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise ModelError(f"{path}: the device's memory cannot hold this model ({first_line(error)})") from None
    check_architecture(model, path)
    size, known = model.get_input_embeddings().num_embeddings, tokenizer.get_vocab()
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= size:
        known.pop(tokenizer.pad_token, None)
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)     # unused here, where nothing is padded
    if not tokenizer("a b")["input_ids"] or max(known.values()) >= size:
        raise ModelError(f"{path}: its tokenizer is not the model's: {len(known)} tokens, for an embedding of {size}")
    return model, tokenizer


@torch.no_grad()
def check_architecture(model, path):
    """Raises ModelError unless the model's logits are its head applied to its last hidden states, and it takes our mask,
    positions and cache, through grouped_attention: everything here relies on that."""
    tokens = [i % model.config.get_text_config().vocab_size for i in (1, 5, 7, 3)]
    try:
        batch = lay_out([[(tokens[:1], -1, False), (tokens[1:], 0, True)]]).to(model.device)
        ours = learned_logits(model, batch)
        with autocast(model):
            out = model(input_ids=batch.ids, use_cache=True)
        theirs = out.logits[0, :-1].float()
        # `parts`: tokens and their keys come in reverse; the part's query indices restore the order
        order, seen = [3, 2, 1, 0], additive(batch.masks[0].flip(-1))
        seen.parts = [(slice(None), slice(None), torch.tensor([order]), seen)]
        with autocast(model):
            packed = model.base_model(input_ids=batch.ids[:, order], attention_mask=seen, position_ids=batch.positions[:, order],
                                      use_cache=False).last_hidden_state
        packed = apply_head(model, packed[0, order[:3]])
        alike = all((found - theirs).norm() <= 0.05 * theirs.norm() for found in (ours, packed))      # what bfloat16 leaves, and more
        alike &= all(layer.keys.shape[-2] == len(tokens) for layer in out[CACHE].layers)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError, AssertionError) as error:
        raise ModelError(f"{path}: {type(model).__name__} cannot be used here ({first_line(error)})") from None
    if not alike:
        raise ModelError(f"{path}: {type(model).__name__} cannot be used here: its logits are not simply its head's, as Llama's and Qwen's "
                         "are")


def fingerprint(model):
    """A short text that tells these weights from others: a hash of the first values of every parameter."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        digest.update(f"{name} {tuple(weight.shape)}".encode() + weight.detach().flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def make_folder(path, model=""):
    """Create the folder for results, before the work and not after it. Raises ValueError, also where it is that of the model."""
    if model and Path(path).resolve() == Path(model).resolve():
        raise ValueError(f"--out {path} is the model's own folder: give another, or it is overwritten")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise ValueError(f"--out {path}: {error.strerror}") from None


def save_model(model, tokenizer, folder):
    """A plain checkpoint that AutoModelForCausalLM loads, with any LoRA layers folded in, in the dtype of the model's weights.

    Prints a warning where that dtype loses part of the update (bfloat16 keeps a tenth to a third of 50 steps at 1e-6); save_lora is
    exact. The model's LoRA layers are left unmerged.
    """
    merge_lora(model)
    if (kept := kept_by_merging(model)) < 0.9:
        print(f"rounded to {str(model.dtype).removeprefix('torch.')}, the merged weights keep {100 * kept:.0f}% of the update; the adapter "
              "has all of it")
    state = {k.replace(".base.", "."): v for k, v in model.state_dict().items() if not k.endswith((".A", ".B"))}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    unmerge_lora(model)


# ---------------------------------------------------------------------------------------------
# LoRA (Hu et al., arXiv 2106.09685, section 4.1): two thin matrices beside each frozen linear layer
# ---------------------------------------------------------------------------------------------


class LoRALinear(nn.Module):
    """y = base(x) + (alpha / rank) * B(A(dropout(x))), with x (..., in), A (rank, in), B (out, rank).

    B starts at zero, so a new layer computes exactly what its base does. A and B are float32 even beside a bfloat16
    base: a step of 1e-5 on a bfloat16 weight would round to nothing.
    """

    def __init__(self, base, rank, alpha, dropout=0.0):
        super().__init__()
        if rank < 1:
            raise ValueError(f"LoRA's rank is {rank}: it has to be at least 1")
        self.transposed = isinstance(base, Conv1D)  # GPT-2's linear layer keeps its weight as (in, out)
        n_in, n_out = base.weight.shape if self.transposed else base.weight.shape[::-1]
        self.base = base
        self.A = nn.Parameter(torch.empty(rank, n_in, dtype=torch.float32, device=base.weight.device))
        self.B = nn.Parameter(torch.empty(n_out, rank, dtype=torch.float32, device=base.weight.device))
        self.dropout = nn.Dropout(dropout)
        self.scale = alpha / rank
        self.unmerged = None  # while merged: the base's own weight, to come back from
        self.reset()
        self.train(base.training)  # a module is born in training mode; in an eval model dropout would be on

    @torch.no_grad()
    def reset(self):
        """A anew, uniform within 1/sqrt(in) (the paper says Gaussian, its authors' code does this), B zero."""
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        nn.init.zeros_(self.B)

    def forward(self, x):
        y = self.base(x)
        if self.unmerged is not None:
            return y
        if not torch.is_autocast_enabled(x.device.type):  # autocast picks the dtype of a matmul itself
            x = x.to(self.A.dtype)
        low = F.linear(self.dropout(x), self.A) * self.scale  # scaled here, where it is only rank wide
        return y + F.linear(low, self.B).to(y.dtype)

    def update(self):
        """What the layer adds to its base's weight, in that weight's shape, float32."""
        update = self.scale * self.B @ self.A  # (out, in)
        return update.T if self.transposed else update

    @torch.no_grad()
    def merge(self):
        """Add the update to the base's weight, so that forward has no extra work (for search and decoding).

        Keeps a copy of the base's weight, in the host's memory: subtracting would not bring a bfloat16 weight back. Such a weight rounds
        small updates (kept_by_merging).
        """
        if self.unmerged is None:
            weight = self.base.weight.data
            self.unmerged = weight.to("cpu", copy=True) if self.B.any() else weight      # as long as B is zero nothing is added
            weight.copy_(weight.float() + self.update())

    @torch.no_grad()
    def unmerge(self):
        """The base's own weight again, to the last bit."""
        if self.unmerged is not None:
            self.base.weight.copy_(self.unmerged)
            self.unmerged = None


def train_lora(model):
    """Training mode for the LoRA layers alone: the base's own dropout (GPT-2 has some) stays off, as for DPO's reference."""
    for layer in lora_layers(model.eval()).values():
        layer.train()


def add_lora(model, rank=8, alpha=16, dropout=0.0, targets=""):
    """Wrap, in place, linear layers with the regular expression `targets` in their names ("": all); freeze the rest.

    Never the output head: its weight is often the embedding itself, which a merge would change too. Nor a mixture's experts, which
    transformers keeps as one tensor (Mixtral, Qwen3-MoE): they are no linear layers. Raises ValueError, with the model as it was,
    when nothing matches or the model has LoRA layers already.
    """
    if lora_layers(model):
        raise ValueError("this model already has LoRA layers: reset_lora starts them anew, fold_lora makes it plain")
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ValueError(f"LoRA targets {targets!r} is not a regular expression: {error}") from None
    head = model.get_output_embeddings()
    linears = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}
    layers = {n: LoRALinear(m, rank, alpha, dropout) for n, m in linears.items() if pattern.search(n)}
    if not layers:
        kinds = dict.fromkeys(re.sub(r".*\.\d+\.", "", name) for name in linears)  # without 'model.layers.0.'
        raise ValueError(f"LoRA targets {targets!r} match no linear layer of this model; it has {', '.join(kinds)}")
    model.requires_grad_(False)
    for name, layer in layers.items():
        model.set_submodule(name, layer)
    model.lora = dict(rank=rank, alpha=alpha, dropout=dropout, targets=targets)  # what save_lora writes
    return model


def lora_layers(model):
    """{dotted name: LoRALinear} of a model, in its order; empty for a plain one."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def lora_tensors(model):
    """{dotted name of the layer + ".A" or ".B": parameter}, all of the adapter."""
    return {f"{name}.{k}": getattr(layer, k) for name, layer in lora_layers(model).items() for k in "AB"}


def lora_parameters(model):
    """What the optimizer gets."""
    return list(lora_tensors(model).values())


def merge_lora(model):
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge_lora(model):
    for layer in lora_layers(model).values():
        layer.unmerge()


@torch.no_grad()
def kept_by_merging(model):
    """Of merged LoRA layers: the share of the update that survives the weights' rounding, 1.0 if there is no update. Dot product
    of update and actual change, over the update's squared norm: rounding noise averages out."""
    found = wanted = 0.0
    for layer in lora_layers(model).values():
        update = layer.update()
        found += (update * (layer.base.weight.float() - layer.unmerged.to(update.device).float())).sum().item()
        wanted += (update * update).sum().item()
    return found / wanted if wanted else 1.0


def reset_lora(model):
    """Start the adapter anew, unmerged: the model computes what its base does. An optimizer keeps its old state."""
    for layer in lora_layers(model).values():
        layer.unmerge()
        layer.reset()


def fold_lora(model):
    """Merge for good and put the plain layers back, trainable: save_pretrained then writes an ordinary checkpoint."""
    for name, layer in lora_layers(model).items():
        layer.merge()
        model.set_submodule(name, layer.base)
    return model.requires_grad_(True)


def save_lora(model, folder):
    """Write adapter.json (rank, alpha, dropout, targets) and adapter.safetensors (every A and B) into `folder`."""
    tensors = {name: tensor.detach().cpu() for name, tensor in lora_tensors(model).items()}
    if not tensors:
        raise ValueError("this model has no LoRA layers to save")
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder, "adapter.safetensors"))
    Path(folder, "adapter.json").write_text(json.dumps(model.lora, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def load_lora(model, folder):
    """Read what save_lora wrote; a plain model gets the layers first. Returns the model, unmerged.

    Raises ValueError, with the model as it was, when the adapter is not one for this model.
    """
    path, saved = Path(folder, "adapter.json"), load_file(Path(folder, "adapter.safetensors"))
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict) or settings.keys() != {"rank", "alpha", "dropout", "targets"}:
        raise ValueError(f"{path}: expected rank, alpha, dropout and targets, found {settings}")
    plain = not lora_layers(model)
    if plain:
        add_lora(model, **settings)
    tensors = lora_tensors(model)
    has, wants = ({name: list(t.shape) for name, t in x.items()} for x in (saved, tensors))
    has["alpha"], wants["alpha"] = settings["alpha"], model.lora["alpha"]
    for name in has | wants:
        if has.get(name) != wants.get(name):
            if plain:
                fold_lora(model)  # B is still zero: the weights come out as they went in
            raise ValueError(f"{folder}: this adapter is not for this model, which has {name} = {wants.get(name)} "
                             f"where the adapter has {has.get(name)}")
    unmerge_lora(model)
    for name, tensor in tensors.items():
        tensor.copy_(saved[name])
    return model


# ---------------------------------------------------------------------------------------------
# Trees of tokens: many continuations of one prompt in one row
# ---------------------------------------------------------------------------------------------


# A tree is a list of segments (ids, parent, learned): token ids, the index of the segment that they continue (-1: none),
# and whether a loss or a score needs their log-probabilities, which a root's first token, with nothing in front of it, has not. Parents
# come before their children.


def sample_tree(tokenizer, sample):
    """Prompt, then response: the smallest tree. Its loss is over the response only (docs/method.md, stage 1)."""
    return [(synth.prompt_ids(tokenizer, sample), -1, False), (synth.target_ids(tokenizer, sample), 0, True)]


def tree_tokens(tree):
    return sum(len(ids) for ids, _, _ in tree)


@dataclass
class Batch:
    """Trees side by side in one row, laid out for one forward pass: no padding, and only attention keeps them apart."""
    ids: torch.Tensor        # (1, tokens) token ids
    positions: torch.Tensor  # (1, tokens) the position of each token on its own path
    masks: list              # of each tree (1, 1, its tokens, its tokens) bool: may the first attend to the second?
    starts: torch.Tensor     # (trees,) index of each tree's first token
    before: torch.Tensor     # (learned,) index of the token that predicts a learned one
    target: torch.Tensor     # (learned,) ids of the learned tokens
    segment: torch.Tensor    # (learned,) number of the learned segment that each belongs to, in order of the trees
    segments: int            # learned segments

    @property
    def tokens(self):
        return self.ids.shape[1]

    def to(self, device):
        move = lambda x: x.to(device) if torch.is_tensor(x) else [*map(move, x)] if type(x) is list else x
        return Batch(*map(move, vars(self).values()))


def lay_out(trees):
    """Trees -> Batch. Each token attends to itself, what precedes it in its segment, and the segment's path."""
    ids, positions, masks, starts, before, target, segment, n = [], [], [], [], [], [], [], 0
    for tree in trees:
        first, size, start, last = len(ids), tree_tokens(tree), 0, []        # last: index of the last token of each segment, in the tree
        mask, position = np.zeros((size, size), dtype=bool), np.zeros(size, dtype=np.int64)
        for tokens, parent, learned in tree:
            end = start + len(tokens)
            ids += tokens
            mask[start:end, start:end] = np.tri(end - start, dtype=bool)
            position[start:end] = np.arange(end - start)
            if parent >= 0:
                mask[start:end] |= mask[last[parent]]    # the ancestors of the parent's last token
                position[start:end] += position[last[parent]] + 1
            if learned:
                before.append(first + np.array([last[parent], *range(start, end - 1)]))
                target.append(np.array(tokens))
                segment.append(np.full(end - start, n))
                n += 1
            last.append(end - 1)
            start = end
        masks.append(torch.from_numpy(mask[None, None]))
        positions.append(position)
        starts.append(first)
    flat = lambda parts: torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))
    return Batch(torch.tensor([ids]), flat(positions)[None], masks, torch.tensor(starts), flat(before), flat(target), flat(segment), n)


def additive(mask):
    """A boolean mask; on a CPU an additive one, which SDPA would otherwise make anew in every layer."""
    return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf) if mask.device.type == "cpu" else mask


def read_batch(model, batch, cache=None):
    """(1, tokens, width) last hidden states. cache: an empty one, to be filled with keys and values."""
    seen = torch.full((1, 1, batch.tokens, 1), math.nan, device=batch.ids.device)     # never read: it carries the masks to grouped_attention
    seen.trees = [additive(mask) for mask in batch.masks]
    with autocast(model):
        return model.base_model(input_ids=batch.ids, attention_mask=seen, position_ids=batch.positions, use_cache=cache is not None,
                                **{CACHE: cache}).last_hidden_state


def learned_states(model, batch):
    """(learned, width) last hidden states, only where a learned token is predicted."""
    return read_batch(model, batch)[0, batch.before]


def apply_head(model, states):
    """(positions, vocabulary) logits in float32."""
    with autocast(model):
        return model.get_output_embeddings()(states).float()


def learned_logits(model, batch):
    """(learned, vocabulary) logits in float32."""
    return apply_head(model, learned_states(model, batch))


LOGITS = 2 ** 22     # kept at a time: with a vocabulary of 150,000 those of all learned tokens would be most of the memory


def logits_at_once(model):
    """Positions whose logits are kept at a time: LOGITS, or for a wide model an eighth of its head's size, since every part reads the
    whole head, and casts it anew under autocast where its weights are float32."""
    vocabulary, width = model.get_output_embeddings().weight.shape
    return max(1, LOGITS // vocabulary, width // 8 if width >= WIDE else 0)


def learned_logps(model, batch):
    """(learned,) log-probabilities in nats of the learned tokens, each given its own path.

    From twice `logits_at_once` on they are computed in parts, with gradient checkpointing (Chen et al., arXiv 1604.06174).
    """
    logps = lambda states, target: -F.cross_entropy(apply_head(model, states), target, reduction="none")
    states, most = learned_states(model, batch), logits_at_once(model)
    if len(states) < 2 * most:
        return logps(states, batch.target)
    return torch.cat([checkpoint(logps, *part, use_reentrant=False, preserve_rng_state=False)
                      for part in zip(states.split(most), batch.target.split(most))])


def segment_sum(batch, values):
    """(learned,) -> (segments,): sum over each learned segment's tokens."""
    return values.new_zeros(batch.segments).index_add_(0, batch.segment, values)


def filled(lengths, max_tokens):
    """Batches of trees in their order: lists of indices, each of at most `max_tokens` tokens or of one tree."""
    lists, room = [], 0
    for i, length in enumerate(lengths):
        if not lists or length > room:
            lists.append([])
            room = max_tokens
        lists[-1].append(i)
        room -= length
    return lists


def fitting(lengths, max_tokens):
    """How many of the first rows, shortest first, fit into `max_tokens` tokens with padding; at least one."""
    n = 1
    while n < len(lengths) and (n + 1) * lengths[n] <= max_tokens:
        n += 1
    return n


def check_numbers(logps):
    """Raises ModelError for log-probabilities (tensor) that are nan."""
    if logps.isnan().any():
        raise ModelError("the model's probabilities are not numbers (nan): its weights are broken, or overflow in their dtype")


@torch.no_grad()
def perplexities(model, tokenizer, samples, max_tokens=8192, progress=False):
    """(samples,) h = exp(-(1/n) sum_t log p(y_t | q, T, y_<t)) of each target under the policy (docs/method.md, 2a); at most exp(50)."""
    model.eval()
    trees, found = [sample_tree(tokenizer, s) for s in samples], np.zeros(len(samples))

    def score(max_tokens):
        for part in tqdm(filled(list(map(tree_tokens, trees)), max_tokens), desc="perplexity", disable=not progress, leave=False):
            batch = lay_out([trees[i] for i in part]).to(model.device)
            logps = segment_sum(batch, learned_logps(model, batch))
            check_numbers(logps)
            found[part] = [math.exp(min(50.0, -logp / len(trees[i][1][0]))) for i, logp in zip(part, logps.tolist())]
    within_memory(score, max_tokens)
    count_tokens("scored", sum(map(tree_tokens, trees)))
    return found


def split_too_long(tokenizer, samples, max_tokens):
    """(samples that fit the context, number of those that do not): nothing is truncated in silence."""
    kept = [s for s in samples if tree_tokens(sample_tree(tokenizer, s)) <= max_tokens]
    return kept, len(samples) - len(kept)


def context_length(model, limit, room=0):
    """Tokens that a sample may have: `limit`, or the model's context less `room` where that is less.

    A sliding window counts as a context: here every token sees all before it. Raises ModelError where `room` fills it.
    """
    config = model.config.get_text_config()
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    contexts = [size for size in (getattr(config, "max_position_embeddings", None), sliding) if size]
    if contexts and min(contexts) <= room:
        raise ModelError(f"the model's context of {min(contexts)} tokens leaves no room for a prompt beside a response of {room} tokens")
    return min(limit, *(size - room for size in contexts)) if contexts else limit


# ---------------------------------------------------------------------------------------------
# The warm-up: SFT from easy to hard
# ---------------------------------------------------------------------------------------------


CURRICULA = {"easy-to-hard": synth.LEVELS, "hard-to-easy": synth.LEVELS[::-1], "shuffled": (None,)}


@dataclass
class SFTConfig:
    model: str = "base"              # path or hub name of a causal language model
    data: str = ""                   # JSON lines or a JSON list, ours, OpenAI's or ToolACE's; none: the simulated world's training set
    n: int = 800                     # training samples to make when there is no --data
    talk: bool = True                # small talk around the simulated world's requests, seldom in training: a habit to repair
    out: str = "out/sft"             # folder for the adapter and the merged checkpoint
    curriculum: str = "easy-to-hard"  # the paper's order; or hard-to-easy, shuffled
    epochs: int = 3                  # passes over the data (the paper: 1)
    lr: float = 1e-3                 # of LoRA; the 8B model of the paper wants about 1e-4
    lr_warmup: float = 0.05          # share of the steps in which the learning rate rises; then cosine to zero
    batch_tokens: int = 1024         # tokens an update; a large model with JSON prompts wants more, say 16384
    micro_tokens: int = 8192         # tokens a forward pass: more than this are accumulated
    max_tokens: int = 4096           # longer samples are left out, and counted
    rank: int = 16                   # LoRA: width of A and B
    alpha: float = 32                # LoRA: the update is scaled by alpha / rank
    dropout: float = 0.0             # LoRA: on the input of A
    targets: str = ""                # LoRA: regular expression over layer names; none: every linear layer
    seed: int = 0
    device: str = "auto"             # auto, cpu, cuda, mps
    skip_bad: bool = False           # leave out records that cannot be used, and count them


def check_at_least_one(cfg, *names):
    """Raises ValueError for the first of these settings that is below 1."""
    for name in names:
        if getattr(cfg, name) < 1:
            raise ValueError(f"--{name} has to be at least 1 (got {getattr(cfg, name)})")


def check_training(cfg):
    """Raises ValueError for a setting that no warm-up can have."""
    check_at_least_one(cfg, "n", "epochs", "rank", "batch_tokens", "micro_tokens")
    if cfg.curriculum not in CURRICULA:
        raise ValueError(f"--curriculum is one of {', '.join(CURRICULA)} (got {cfg.curriculum})")
    if cfg.lr < 0:
        raise ValueError(f"--lr has to be at least 0 (got {cfg.lr})")
    if not 0 <= cfg.lr_warmup <= 1:
        raise ValueError(f"--lr_warmup is a share of the steps, from 0 to 1 (got {cfg.lr_warmup})")
    if not 0 <= cfg.dropout < 1:
        raise ValueError(f"--dropout is a share from 0 to below 1 (got {cfg.dropout})")


def cosine(step, steps, warmup):
    """Learning-rate factor: linear warm-up over a share `warmup` of the steps, then half a cosine to zero."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def curriculum_updates(samples, trees, cfg, rng):
    """Updates (lists of trees of about `batch_tokens` in all) in the order of training: each level shuffled within
    itself, levels in the curriculum's order."""
    updates, tokens = [], cfg.batch_tokens     # as if full: the first tree opens an update
    for _ in range(cfg.epochs):
        for level in CURRICULA[cfg.curriculum]:
            part = [tree for sample, tree in zip(samples, trees)
                    if level in (None, sample.level or synth.level_of(sample.tools, sample.calls))]
            rng.shuffle(part)
            for tree in part:
                if tokens >= cfg.batch_tokens:
                    updates.append([])
                    tokens = 0
                updates[-1].append(tree)
                tokens += tree_tokens(tree)
    return updates


def warm_up(model, tokenizer, samples, cfg, progress=True):
    """SFT of the LoRA layers on the samples' responses. Returns the mean loss (nats a token) of each update.

    Raises ValueError for a setting that cannot be, TrainingError when the loss is no longer a number.
    """
    check_training(cfg)
    rng = random.Random(cfg.seed)
    trees, micro_tokens = [sample_tree(tokenizer, s) for s in samples], cfg.micro_tokens
    updates = curriculum_updates(samples, trees, cfg, rng)
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=cfg.lr, weight_decay=0.0)
    losses = []
    train_lora(model)
    for step, update in enumerate(bar := tqdm(updates, desc="sft", disable=not progress, leave=False)):
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * cosine(step, len(updates), cfg.lr_warmup)

        def gradients(micro_tokens):
            optimizer.zero_grad(set_to_none=True)
            batches = [lay_out([update[i] for i in part]) for part in filled(list(map(tree_tokens, update)), micro_tokens)]
            learned, total = sum(len(b.target) for b in batches), 0.0
            for batch in batches:
                loss = -learned_logps(model, batch.to(model.device)).sum() / learned
                loss.backward()
                total += loss.item()
            return total

        loss, micro_tokens = within_memory(gradients, micro_tokens)
        count_tokens("trained", sum(map(tree_tokens, update)))
        step_or_stop(optimizer, loss, step)
        losses.append(loss)
        bar.set_postfix(loss=f"{np.mean(losses[-20:]):.3f}")
    model.eval()
    return losses


def step_or_stop(optimizer, loss, step, max_norm=1.0):
    """Clip the gradient and update; raises TrainingError instead when the loss or the gradient is no longer finite."""
    norm = nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], max_norm).item()
    for name, value in (("loss", loss), ("gradient's norm", norm)):
        if not math.isfinite(value):
            raise TrainingError(f"the {name} is {value} at step {step}: stopped before the update; try a lower learning rate")
    optimizer.step()


def load_training_set(cfg, tokenizer, model, room=0):
    """Samples for training: the file's, or the simulated world's; those that do not fit the context are left out.

    room: tokens of the context to leave free after each, for responses to be sampled.
    """
    if cfg.data:
        samples, skipped = synth.read_samples(cfg.data, cfg.skip_bad)
        if skipped:
            print(f"{cfg.data}: {skipped} records left out")
    else:
        samples = synth.make_samples(cfg.n, "train", cfg.seed, cfg.talk)
    limit = context_length(model, cfg.max_tokens, room)
    samples, too_long = split_too_long(tokenizer, samples, limit)
    if too_long:
        print(f"{too_long} samples left out: longer than {limit} tokens")
    if not samples:
        raise synth.DataError(f"{cfg.data or 'the simulated world'}: no sample is left to train on")
    return samples


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    if any(flag.split("=")[0] == "--from_scratch" for flag in argv):
        from base.train import BaseConfig, train_base    # built on this file
        return train_base(*synth.read_flags(argv, BaseConfig))
    cfg, = synth.read_flags(argv, SFTConfig)
    check_training(cfg)
    make_folder(cfg.out, cfg.model)
    model, tokenizer = load_model(cfg.model, cfg.device)
    samples = load_training_set(cfg, tokenizer, model)
    torch.manual_seed(cfg.seed)
    add_lora(model, cfg.rank, cfg.alpha, cfg.dropout, cfg.targets)
    before = perplexities(model, tokenizer, samples[:200]).mean()      # of some, to be quick
    losses = warm_up(model, tokenizer, samples, cfg)
    after = perplexities(model, tokenizer, samples[:200]).mean()
    save_lora(model, cfg.out)
    save_model(model, tokenizer, cfg.out)
    print(f"{cfg.out}: {len(samples)} samples, {len(losses)} updates, perplexity of targets {before:.2f} -> {after:.2f}")


def run(main):
    """Call a stage's main: a user's mistake ends with one line and status 1, Ctrl-C with status 130."""
    try:
        main()
    except (ModelError, TrainingError, synth.DataError, ValueError, OSError, SafetensorError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        sys.exit(f"{Path(sys.argv[0]).name}: the device's memory cannot hold this model's training ({first_line(error)})")
    except KeyboardInterrupt:
        name = Path(sys.argv[0]).name
        print(f"\n{name}: stopped" + ("; the same command goes on where a finished stage was saved" if name == "loop.py" else ""))
        sys.exit(130)


if __name__ == "__main__":
    import sft      # as other files know it: an error of base/train.py is then one that `run` catches
    sft.run(sft.main)

"""A model: load it, adapt it, teach it.

    python sft.py --model base --data train.jsonl --out warmup      # iTool's warm-up: easy, then medium, then hard
    python sft.py --from_scratch --out base                         # how the embedded base was made

LoRA, the layout of samples in rows, and the training loops are written out here. A row holds *trees* of tokens:
segments of text, each below a parent, where a token attends to its ancestors only. A sample is the smallest tree
(prompt, response); a toolset with many conversations, or all the steps that a search tried, are larger ones.
"""

import itertools
import json
import math
import os
import random
import re
import string
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import (AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer, HfArgumentParser,
                          PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.auto.tokenization_auto import get_tokenizer_config
from transformers.models.qwen2.modeling_qwen2 import rotate_half
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
    """auto: CUDA, else MPS, else CPU."""
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device):
    """bfloat16 where the hardware multiplies it fast: CUDA, and CPUs with matrix units for it; else full precision.

    A CPU without them (most laptops) emulates bfloat16, a hundred times slower than float32.
    """
    fast = device.type == "cuda" or device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.autocast(device.type, dtype=torch.bfloat16) if fast else nullcontext()


TOKENS = Counter()     # what the policy has worked on: tokens trained (forward and backward), decoded, and scored


def count_tokens(kind, n):
    TOKENS[kind] += n


def within_memory(work, tokens):
    """(work(tokens), tokens), `tokens` being how many are computed together: halved while the device's memory runs out.

    work: begins anew each time, and its result does not depend on `tokens`. Raises TrainingError when nothing is left to
    halve.
    """
    while True:
        try:
            return work(tokens), tokens
        except RuntimeError as error:     # the texts of CUDA and MPS, and of CPU
            if not any(text in str(error) for text in ("out of memory", "allocate memory")):
                raise
        if tokens < 64:
            raise TrainingError("out of memory, with one sample at a time too: leave out long ones with --max_tokens")
        tokens //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        tqdm.write(f"out of memory: going on with {tokens} tokens at a time")


def grouped_attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """SDPA; a few queries (decoding) of heads that share their keys and values stand side by side as one head's.

    query: (rows, heads, length, size); key, value: (rows, fewer heads, all, size). transformers would copy keys and
    values for each head, the whole cache at every step; here each is read once, and as it is. The mask may have `parts`,
    a list of (slice of rows, number of first places that none of them sees): those places are not read at all.
    """
    rows, heads, length, size = query.shape
    each = heads // key.shape[1]
    if each == 1 or length > 16 or attention_mask is None or attention_mask.shape[1] > 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    query, mask = query.reshape(rows, key.shape[1], each * length, size), attention_mask.repeat(1, 1, each, 1)
    out = torch.cat([F.scaled_dot_product_attention(query[part], key[part, :, start:], value[part, :, start:],
                                                    attn_mask=mask[part, ..., start:], scale=scaling)
                     for part, start in getattr(attention_mask, "parts", [(slice(None), 0)])])
    return out.reshape(rows, heads, length, size).transpose(1, 2).contiguous(), None


AttentionInterface.register("grouped", grouped_attention)
AttentionMaskInterface.register("grouped", sdpa_mask)


def load_model(path, device="auto"):
    """(model, tokenizer) of any causal language model by path or hub name, with SDPA attention.

    Weights are float32 on CPU and as stored on an accelerator. Raises ModelError.
    """
    device = pick_device(device)
    try:
        # AutoTokenizer would give a Qwen2 model Qwen's own way to cut words, whatever its tokenizer.json says
        generic = get_tokenizer_config(path).get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
        tokenizer = (PreTrainedTokenizerFast if generic else AutoTokenizer).from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="grouped",
                                                     dtype=torch.float32 if device.type == "cpu" else "auto")
    except Exception as error:    # missing folder, broken weights, unknown architecture: one line each
        raise ModelError(f"{path}: no model could be loaded ({str(error).strip().splitlines()[0]})") from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def save_model(model, tokenizer, folder):
    """A plain checkpoint that AutoModelForCausalLM loads; folds in any LoRA layers of a copy, not of `model`."""
    merge_lora(model)
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
        self.enabled = True  # False: forward is the base's
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
        if self.unmerged is not None or not self.enabled:
            return y
        if not torch.is_autocast_enabled(x.device.type):  # autocast picks the dtype of a matmul itself
            x = x.to(self.A.dtype)
        low = F.linear(self.dropout(x), self.A) * self.scale  # scaled here, where it is only rank wide
        return y + F.linear(low, self.B).to(y.dtype)

    @torch.no_grad()
    def merge(self):
        """Add the update to the base's weight, so that forward has no extra work (for search and decoding).

        Keeps a copy of the base's weight: subtracting would not bring a bfloat16 weight back.
        """
        if self.unmerged is None:
            weight, update = self.base.weight, self.scale * self.B @ self.A  # update: (out, in)
            self.unmerged = weight.clone()
            weight.copy_(weight.float() + (update.T if self.transposed else update))

    @torch.no_grad()
    def unmerge(self):
        """The base's own weight again, to the last bit."""
        if self.unmerged is not None:
            self.base.weight.copy_(self.unmerged)
            self.unmerged = None


def add_lora(model, rank=8, alpha=16, dropout=0.0, targets=""):
    """Wrap, in place, linear layers with the regular expression `targets` in their names ("": all); freeze the rest.

    Never the output head: its weight is often the embedding itself, which a merge would change too. Raises
    ValueError, with the model as it was, when nothing matches or the model has LoRA layers already.
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


@contextmanager
def disable_lora(model):
    """Within it the model is its frozen base: the reference of DPO without a second model in memory."""
    layers = lora_layers(model).values()
    before = [(layer.enabled, layer.unmerged is not None) for layer in layers]
    for layer in layers:
        layer.unmerge()
        layer.enabled = False
    try:
        yield model
    finally:
        for layer, (enabled, merged) in zip(layers, before):
            layer.enabled = enabled
            if merged:
                layer.merge()


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
# and whether a loss or a score needs their log-probabilities. Parents come before their children.


def sample_tree(tokenizer, sample):
    """Prompt, then response: the smallest tree. Its loss is over the response only (paper.md, Stage 1)."""
    return [(synth.prompt_ids(tokenizer, sample), -1, False), (synth.target_ids(tokenizer, sample), 0, True)]


def tree_tokens(tree):
    return sum(len(ids) for ids, _, _ in tree)


@dataclass
class Batch:
    """Rows of trees, laid out for one forward pass."""
    ids: torch.Tensor        # (rows, length) token ids, padded at the end
    positions: torch.Tensor  # (rows, length) the position of each token on its own path
    mask: torch.Tensor       # (rows, 1, length, length) bool: may the first attend to the second?
    before: torch.Tensor     # (learned,) index into rows * length of the token that predicts a learned one
    target: torch.Tensor     # (learned,) ids of the learned tokens
    segment: torch.Tensor    # (learned,) number of the learned segment that each belongs to, in order of the trees
    segments: int            # learned segments
    tokens: int              # all, without padding

    def to(self, device):
        return Batch(*(x.to(device, non_blocking=True) if torch.is_tensor(x) else x for x in vars(self).values()))


def lay_out(rows, pad_id):
    """Rows of trees -> Batch. Each token attends to itself, what precedes it in its segment, and the segment's path."""
    length = max(sum(map(tree_tokens, row)) for row in rows)
    ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    positions = np.zeros((len(rows), length), dtype=np.int64)
    mask = np.zeros((len(rows), 1, length, length), dtype=bool)
    before, target, segment, n = [], [], [], 0
    for r, row in enumerate(rows):
        start = 0
        for tree in row:
            last = []        # index of the last token of each segment
            for tokens, parent, learned in tree:
                end = start + len(tokens)
                ids[r, start:end] = tokens
                mask[r, 0, start:end, start:end] = np.tri(end - start, dtype=bool)
                positions[r, start:end] = np.arange(end - start)
                if parent >= 0:
                    mask[r, 0, start:end] |= mask[r, 0, last[parent]]    # the ancestors of the parent's last token
                    positions[r, start:end] += positions[r, last[parent]] + 1
                if learned:
                    before.append(r * length + np.array([last[parent], *range(start, end - 1)]))
                    target.append(np.array(tokens))
                    segment.append(np.full(end - start, n))
                    n += 1
                last.append(end - 1)
                start = end
        padding = np.arange(start, length)
        mask[r, 0, padding, padding] = True     # attention over nothing is not a number
    flat = lambda parts: torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))
    return Batch(torch.from_numpy(ids), torch.from_numpy(positions), torch.from_numpy(mask), flat(before), flat(target),
                 flat(segment), n, sum(map(tree_tokens, itertools.chain(*rows))))


def additive(mask):
    """A boolean mask as CPU's attention wants it: it would turn booleans into this in every layer anew."""
    return torch.zeros(mask.shape).masked_fill_(~mask, -torch.inf) if mask.device.type == "cpu" else mask


def learned_logits(model, batch):
    """(learned, vocabulary) logits in float32: the head is applied to the positions that need it, and no others."""
    with autocast(batch.ids.device):
        hidden = model.base_model(input_ids=batch.ids, attention_mask=additive(batch.mask), position_ids=batch.positions,
                                  use_cache=False).last_hidden_state
        return model.get_output_embeddings()(hidden.flatten(0, 1)[batch.before]).float()


def learned_logps(model, batch):
    """(learned,) log-probabilities in nats of the learned tokens, each given its own path."""
    return -F.cross_entropy(learned_logits(model, batch), batch.target, reduction="none")


def segment_sum(batch, values):
    """(learned,) -> (segments,): sum over each learned segment's tokens."""
    return values.new_zeros(batch.segments).index_add_(0, batch.segment, values)


def like_lengths(lengths, max_tokens, fill=0.6):
    """Which rows go through the model together: lists of indices, of at most `max_tokens` tokens with padding each.

    Rows of like length stand together, the longest first, none shorter than `fill` times its list's longest: little is
    padded, and attention costs no more than each row's own length asks for. At least one row a list.
    """
    order, lists = sorted(range(len(lengths)), key=lambda i: -lengths[i]), []
    while order:
        longest, n = lengths[order[0]], 1
        while n < len(order) and (n + 1) * longest <= max_tokens and lengths[order[n]] >= fill * longest:
            n += 1
        lists.append(order[:n])
        order = order[n:]
    return lists


def fitting(lengths, max_tokens):
    """How many of the first rows, shortest first, fit into `max_tokens` tokens with padding; at least one."""
    n = 1
    while n < len(lengths) and (n + 1) * lengths[n] <= max_tokens:
        n += 1
    return n


@torch.no_grad()
def perplexities(model, tokenizer, samples, max_tokens=8192, progress=False):
    """(samples,) h = exp(-(1/n) sum_t log p(y_t | q, T, y_<t)) of each target under the policy (paper.md, 2a)."""
    model.eval()
    trees, found = [sample_tree(tokenizer, s) for s in samples], np.zeros(len(samples))

    def score(max_tokens):
        for part in tqdm(like_lengths(list(map(tree_tokens, trees)), max_tokens), desc="perplexity", disable=not progress,
                         leave=False):
            batch = lay_out([[trees[i]] for i in part], tokenizer.pad_token_id).to(model.device)
            logps = segment_sum(batch, learned_logps(model, batch))
            found[part] = [math.exp(min(50.0, -logp / len(trees[i][1][0]))) for i, logp in zip(part, logps.tolist())]
    within_memory(score, max_tokens)
    count_tokens("scored", sum(map(tree_tokens, trees)))
    return found


def split_too_long(tokenizer, samples, max_tokens):
    """(samples that fit the context, number of those that do not): nothing is truncated in silence."""
    kept = [s for s in samples if tree_tokens(sample_tree(tokenizer, s)) <= max_tokens]
    return kept, len(samples) - len(kept)


def context_length(model, limit):
    """Tokens that a prompt and its response may have: the model's context, or `limit` where that is less."""
    return min(limit, getattr(model.config, "max_position_embeddings", None) or limit)


# ---------------------------------------------------------------------------------------------
# The warm-up: SFT from easy to hard
# ---------------------------------------------------------------------------------------------


@dataclass
class SFTConfig:
    model: str = "base"              # path or hub name of a causal language model
    data: str = ""                   # JSON lines (ours) or JSON (ToolACE's); none: the simulated world's training set
    n: int = 1600                    # training samples to make when there is no --data
    out: str = "out/sft"             # folder for the adapter and the merged checkpoint
    curriculum: str = "easy-to-hard"  # the paper's order; or hard-to-easy, shuffled
    epochs: int = 1                  # passes over the data
    lr: float = 5e-4                 # of LoRA; the 8B model of the paper wants about 1e-4
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
    from_scratch: bool = False       # train the embedded base itself; the settings below are for that
    base_tokens: float = 50e6        # tokens to train on
    base_start: str = ""             # checkpoint of the same shape to begin with; none: nothing learned yet
    base_rate: float = 1.0           # share of the learning rates: a quarter is enough to go on from a checkpoint
    base_seed: int = 0


def cosine(step, steps, warmup):
    """Learning-rate factor: linear warm-up over a share `warmup` of the steps, then half a cosine to zero."""
    rise = max(1, round(warmup * steps))
    return (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def curriculum_updates(samples, trees, cfg, rng):
    """Updates (lists of trees of about `batch_tokens` in all) in the order of training: each level shuffled within
    itself, levels in the curriculum's order."""
    levels = {"easy-to-hard": ("easy", "medium", "hard"), "hard-to-easy": ("hard", "medium", "easy"), "shuffled": (None,)}
    if cfg.curriculum not in levels:
        raise ValueError(f"--curriculum is one of {', '.join(levels)} (got {cfg.curriculum})")
    updates, tokens = [], cfg.batch_tokens
    for _ in range(cfg.epochs):
        for level in levels[cfg.curriculum]:
            part = [tree for sample, tree in zip(samples, trees) if level in (None, sample.level)]
            rng.shuffle(part)
            for tree in part:
                if tokens >= cfg.batch_tokens:
                    updates, tokens = [*updates, []], 0
                updates[-1].append(tree)
                tokens += tree_tokens(tree)
    return updates


def warm_up(model, tokenizer, samples, cfg, progress=True):
    """SFT of the LoRA layers on the samples' responses. Returns the mean loss (nats a token) of each update.

    Raises TrainingError when the loss is no longer a number.
    """
    rng = random.Random(cfg.seed)
    trees, micro_tokens = [sample_tree(tokenizer, s) for s in samples], cfg.micro_tokens
    updates = curriculum_updates(samples, trees, cfg, rng)
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=cfg.lr, weight_decay=0.0)
    losses = []
    model.train()
    for step, update in enumerate(bar := tqdm(updates, desc="sft", disable=not progress, leave=False)):
        for group in optimizer.param_groups:
            group["lr"] = cfg.lr * cosine(step, len(updates), cfg.lr_warmup)

        def gradients(micro_tokens):
            optimizer.zero_grad(set_to_none=True)
            batches = [lay_out([[update[i]] for i in part], tokenizer.pad_token_id)
                       for part in like_lengths(list(map(tree_tokens, update)), micro_tokens)]
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
    """Clip the gradient and update; raises TrainingError instead when the loss is no longer a number."""
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} at step {step}: stopped before the update; try a lower learning rate")
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], max_norm)
    optimizer.step()


# ---------------------------------------------------------------------------------------------
# The embedded base, from scratch
# ---------------------------------------------------------------------------------------------

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CHAT_TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
                 "{% if add_generation_prompt %}<|assistant|>{% endif %}")
BASE_TOKENS, BASE_PIECES = 3072, 1500     # tokens an update; pieces of words in the vocabulary
BASE_EASY = 10_000                        # documents over which they grow harder, and after which they are longer
BASE_CHOOSING, BASE_WORKING = 0.25, 0.12  # shares of documents in which only the tool, or only the values are hard
BASE_LOOKING = 0.3                        # weight of where heads look
UPPER = "\u21e7"     # stands before a letter that was a capital


def make_tokenizer(words, pieces):
    """A tokenizer in which a word is one token wherever it stands, so that copying is a matter of pointing.

    Every word begins with a space, be it after a space, an underscore or a bracket (but not at the very start of a
    text), and is in small letters: " play it", "_play_it(" and "(playIt" share tokens. What differs is marked and
    undone in decoding: a capital by UPPER, a space behind anything but a word by a space of its own. A digit is a token.
    words: those that are whole; any other is cut into as few as can be of the most frequent `pieces` of two to four
    letters in them, and bytes: every token is a common one, since a token that training hardly shows cannot be copied.
    """
    counts = Counter(f" {word}"[i:i + n] for word in words for n in (2, 3, 4) for i in range(len(word) + 2 - n))
    # Viterbi takes the cut with the highest sum: few tokens, and of two cuts into as many, longer pieces
    scores = {token: 0.0 for token in SPECIAL} | {c: -2.0 for c in sorted(pre_tokenizers.ByteLevel.alphabet())}
    scores |= {c.replace(" ", "\u0120"): -1.2 - 0.1 * (5 - len(c)) for c, _ in counts.most_common(pieces)}
    scores |= {"\u0120" + word: -1.0 for word in words}
    marks = [UPPER, " " + UPPER, ", ", ": ", '="', '", "', '", ', '")', ")]", "), ", '")]', '"), ', '["', '"]', ". ", "? "]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    scores |= {byte_level.pre_tokenize_str(mark)[0][0]: -1.0 for mark in marks}
    tokenizer = Tokenizer(models.Unigram(list(scores.items()), unk_id=0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([
        *(normalizers.Replace(c, UPPER + c.lower()) for c in string.ascii_uppercase),
        normalizers.Replace(Regex(r"(?<=\P{L})(?<!\p{L} )(?=\p{L})"), " ")])
    split = Regex(rf" ?{UPPER}| ?\p{{L}}+|\p{{N}}|_|\n| |[^\p{{L}}\p{{N}} _\n{UPPER}]+(?: (?!\p{{L}}))?")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(split, "isolated"), byte_level])
    tokenizer.decoder = decoders.Sequence([
        decoders.ByteLevel(), decoders.Fuse(), decoders.Replace(Regex(r"(?<!\p{L}) (?=\p{L})"), ""),
        *(decoders.Replace(UPPER + c.lower(), c) for c in string.ascii_uppercase)])
    tokenizer.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1],
                                   additional_special_tokens=SPECIAL[2:], clean_up_tokenization_spaces=False,
                                   tool_style="compact")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def orthogonalize(update, steps=5):
    """Newton-Schulz iteration towards the nearest orthogonal matrices. update: (matrices, rows, columns)."""
    x = update / (update.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    wide = x.size(-2) <= x.size(-1)
    x = x if wide else x.mT
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal: learns more a token than AdamW (Jordan et al., 2024). Matrices only.

    torch.optim.Muon does this in bfloat16, which a laptop's CPU emulates; here it is float32, and all matrices of one
    shape are one batch.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for shape in {p.shape for p in group["params"]}:
                params, updates = [p for p in group["params"] if p.shape == shape], []
                for p in params:
                    momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))     # Nesterov's
                updates = orthogonalize(torch.stack(updates)) * max(1, shape[0] / shape[1]) ** 0.5
                for p, update in zip(params, updates):
                    p.add_(update, alpha=-group["lr"])


@torch.no_grad()
def keep_apart(embedding, least=0.6):
    """No token's vector shorter than `least`, about what it starts with. embedding: (vocabulary, size), in place.

    A token that is seldom a target is pushed away from all outputs, a little each time, and Adam makes whole steps of
    that: its vector shrinks, and what shrinks cannot be copied, however well attention points at it.
    """
    embedding *= (least / embedding.norm(dim=1, keepdim=True).clamp(min=1e-6)).clamp(min=1)


@torch.no_grad()
def start_with_copying(model, sharpness=2.5):
    """Initial weights that copy: heads that look a few tokens back in the first layer, induction heads in the next two.

    Copying names and values is most of a tool call, and a small model takes millions of tokens to find the two-layer
    circuit for it (induction heads: Olsson et al., arXiv 2209.11895). Here it is drawn in. In a first-layer head the
    biases of query and key, which RoPE turns with the position, match one to four places back; it writes a sketch of
    that token beside the current one. A head of the next layers looks for places where the token so many places back
    is the current one (to go on with a span) or the one before (to go from `name=` to what the query says after
    "name"), and copies the token there. A fifth group of heads, if there is one, is for choosing: see where_to_look. All
    is trained from then on; the rest starts as usual, with branches that add nothing yet (output matrices zero).
    """
    config = model.config
    width, groups = config.hidden_size, min(4, config.num_key_value_heads)
    each = config.num_attention_heads // config.num_key_value_heads
    size = model.model.layers[0].self_attn.head_dim
    half, fast, slow = size // 2, 5, size // 4       # fast dimensions tell neighbours apart, slow ones hardly turn
    frequency = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    orthogonal = lambda rows: torch.linalg.qr(torch.randn(width, rows))[0].T.to(model.device)
    look, write = orthogonal(2 * size), orthogonal(6 * size).reshape(3, 2 * size, width)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    attention = model.model.layers[0].self_attn
    for group in range(groups):      # two groups look one and two places back, two look three and four places back
        rows, part = slice(group * size, (group + 1) * size), slice(group % 2 * size, (group % 2 + 1) * size)
        attention.k_proj.weight[rows] *= 0.1
        attention.k_proj.bias[rows] = 6.0 * (torch.arange(size) < fast)
        attention.v_proj.weight[rows] = look[part]
        for n in range(each):
            back = 1 + n + 2 * (group // 2)
            head = slice((group * each + n) * size, (group * each + n + 1) * size)
            turn = torch.zeros(size)
            turn[:fast] = 6.0 * torch.cos(frequency[:fast] * back)
            turn[half:half + fast] = -6.0 * torch.sin(frequency[:fast] * back)
            attention.q_proj.weight[head] *= 0.1
            attention.q_proj.bias[head] = turn
            attention.o_proj.weight[:, head] = 0.06 * write[min(back, 3) - 1, part].T
    slots = torch.tensor([*range(slow, half), *range(half + slow, size)])
    queries, keys = [look, look, write[0], write[0]], [write[0], write[0], write[0], write[1]]
    for number, layer in enumerate(model.model.layers[1:3]):
        attention = layer.self_attn
        for group in range(groups):
            rows, value = slice(group * size, (group + 1) * size), orthogonal(size)
            sketch = group % 2 * size + number * len(slots) + torch.arange(len(slots))
            attention.k_proj.weight[rows] *= 0.3
            attention.k_proj.weight[group * size + slots] = sharpness * keys[group][sketch]
            attention.v_proj.weight[rows] = value
            for h in range(group * each, (group + 1) * each):
                attention.q_proj.weight[h * size:(h + 1) * size] *= 0.3
                attention.q_proj.weight[h * size + slots] = sharpness * queries[group][sketch]
                attention.o_proj.weight[:, h * size:(h + 1) * size] = (0.15 if group < 2 else 0.1) * value.T
    if config.num_key_value_heads > groups:      # what the heads for choosing hand on: a sketch of the tool's name
        name, to_word, to_answer = orthogonal(3 * size).reshape(3, size, width)
        for layer, value, out in zip(CHOOSING, (name, to_word, to_answer), (to_word, to_answer, name)):
            attention = model.model.layers[layer].self_attn
            attention.v_proj.weight[groups * size:] = value
            attention.o_proj.weight[:, groups * each * size:] = 0.15 * out.T.repeat(1, each)
        same, attention = sharpness * orthogonal(len(slots)), model.model.layers[CHOOSING[1]].self_attn
        attention.k_proj.weight[groups * size + slots] = same
        for h in range(groups * each, config.num_attention_heads):
            attention.q_proj.weight[h * size + slots] = same


CHOOSING = (1, 2, 3)     # the layers whose last group of heads, one after the other, chooses a tool


def token_marks(tokenizer):
    """Sets of token ids by what they do in a document: end a line, open brackets (behind a name), close them, go on to another
    call, begin a user's turn; and words of three letters or more that are not small ones."""
    tokens, small = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), {*synth.FILLERS, *synth.PREPOSITIONS}
    texts = [tokenizer.decode([i]) for i in range(len(tokens))]
    which = lambda rule: {i for i, text in enumerate(texts) if rule(text)}
    return {"line": which(lambda t: t == "\n"), "open": which(lambda t: t.startswith("(")), "close": which(lambda t: ")" in t),
            "next": which(lambda t: t.endswith("), ")), "user": which(lambda t: t == "<|user|>"),
            "word": {i for i, t in enumerate(tokens) if t[0] == "\u0120" and len(t) > 3 and t[1:].isalpha() and t[1:] not in small}}


def where_to_look(tree, marks, rng, others=60):
    """What heads for choosing should look at, in a document's tree: [(head, (segment, token), [(segment, token), ...]), ...].

    Head 0: a word of a tool's name or description looks at the name. Head 1: a word of the request looks at the same word
    there, and so learns of the name. Head 2: what is about to say a name, or its next token, looks at the request's words
    that this tool has and no other. So the tool is said that has the most telling words of the request. Heads 3 to 5
    are the same ones at `others` other places, where they look at the very first token, that is at nothing (an attention
    sink: Xiao et al., arXiv 2309.17453).
    """
    system, bags, links = tree[0][0], {}, []
    breaks = [i for i, token in enumerate(system) if token in marks["line"]]
    for start, end in zip(breaks, breaks[1:]):
        brackets = [i for i in range(start, end) if system[i] in marks["open"] or system[i] in marks["close"]]
        name = range(start + 1, brackets[0] if brackets else start)
        bag = bags.setdefault(tuple(system[i] for i in name), {})
        for i in (*name, *(range(brackets[-1] + 1, end) if brackets else ())):
            links.append((0, (0, i), [(0, j) for j in name if j <= i]))
            if system[i] in marks["word"]:
                bag.setdefault(system[i], []).append((0, i))
    for s, (ids, parent, learned) in enumerate(tree):
        if s and not learned and marks["user"] & {*ids}:
            for i, token in enumerate(ids):
                if same := [place for bag in bags.values() for place in bag.get(token, ())]:
                    links.append((1, (s, i), same))
        while learned and parent > 0 and (tree[parent][2] or not marks["user"] & {*tree[parent][0]}):
            parent = tree[parent][1]
        for start in range(1, len(ids) if learned else 0):
            if start == 1 or ids[start - 1] in marks["next"]:
                end = next((i for i in range(start, len(ids)) if ids[i] in marks["open"]), start)
                bag, request = bags.get(tuple(ids[start:end]), {}), tree[parent][0]
                said = [i for i, token in enumerate(request) if token in bag]
                said = [i for i in said if sum(request[i] in bag for bag in bags.values()) == 1] or said
                links += [(2, (s, i - 1), [(parent, j) for j in said]) for i in range(start, end) if said]
    sizes, taken = [len(ids) for ids, _, _ in tree], {link[:2] for link in links} | {(head, (0, 0)) for head in range(3)}
    for head in range(3):
        for _ in range(others):
            segment, = rng.choices(range(len(tree)), sizes)
            place = segment, rng.randrange(sizes[segment])
            if (head, place) not in taken:
                links.append((3 + head, place, [(0, 0)]))
    return links


def lay_out_links(trees, links, length):
    """Links of trees, each a row of a batch of that length -> for each head (rows, places, (links, length) bool: where to)."""
    packed = [[] for _ in range(6)]
    for row, (tree, found) in enumerate(zip(trees, links)):
        starts = np.cumsum([0, *(len(ids) for ids, _, _ in tree)])
        for head, (segment, token), places in found:
            packed[head].append((row, starts[segment] + token, [starts[s] + t for s, t in places]))
    for head, part in enumerate(packed):
        where = torch.zeros(len(part), length, dtype=torch.bool)
        for n, (_, _, places) in enumerate(part):
            where[n, places] = True
        packed[head] = *(torch.tensor([link[i] for link in part], dtype=torch.long) for i in (0, 1)), where
    return packed


def keep_read(model):
    """{layer: (attention, hidden, rope)} as log_attention takes them, of the layers that choose; renewed by each forward pass."""
    read = {}
    for n in CHOOSING:
        model.model.layers[n].self_attn.register_forward_pre_hook(lambda module, args, kwargs, n=n: read.update(
            {n: (module, kwargs["hidden_states"], kwargs["position_embeddings"])}), with_kwargs=True)
    return read


def log_attention(attention, hidden, rope, mask, rows, places, where):
    """(links, heads) log of the share of attention that an attention layer's last group of heads pays to `where`.

    hidden: (rows, length, width) what the layer reads; rope: (cosine, sine) of its positions; mask as in Batch; rows,
    places: (links,) who looks; where: (links, length) bool.
    """
    size, each = attention.head_dim, attention.num_key_value_groups
    turn = lambda x, cos, sin: x * cos + rotate_half(x) * sin
    key = F.linear(hidden, attention.k_proj.weight[-size:], attention.k_proj.bias[-size:])
    query = F.linear(hidden[rows, places], attention.q_proj.weight[-each * size:], attention.q_proj.bias[-each * size:])
    key, query = turn(key, *rope), turn(query.unflatten(-1, (each, size)), *(x[rows, places][:, None] for x in rope))
    found = hidden.new_zeros(len(rows), each)
    for row in rows.unique():
        part = rows == row
        scores = torch.einsum("qhs,ks->qhk", query[part], key[row]) * attention.scaling
        scores = scores.masked_fill(~mask[row, 0, places[part]][:, None], -torch.inf).log_softmax(-1)
        found[part] = scores.masked_fill(~where[part][:, None], -torch.inf).logsumexp(-1)
    return found


def base_row(document):
    """Tokens of a document: short ones first, since attention costs their square."""
    return 320 if document < BASE_EASY else 768


def base_trees(tokenizer, seed, start=0):
    """Documents of the base's world as trees of token ids, without end; branches beyond `base_row` are cut.

    Yields (number of the document, tree, where_to_look's links).
    """
    marks = token_marks(tokenizer)
    for i in itertools.count(start):
        rng = random.Random(f"{seed}-{i}")
        kind, hardest = rng.random(), 1 if seed == "val" else min(1, i / BASE_EASY)
        document = synth.choosing_document(rng) if kind < BASE_CHOOSING else \
            synth.working_document(rng) if kind < BASE_CHOOSING + BASE_WORKING * hardest else synth.base_document(rng, hardest)
        encoded = tokenizer([text for text, _, _ in document], add_special_tokens=False)["input_ids"]
        tree, number, total = [], {-1: -1}, 0
        for k, (ids, (_, parent, learned)) in enumerate(zip(encoded, document)):
            if parent in number and total + len(ids) <= base_row(i):
                number[k] = len(tree)
                tree.append((ids, number[parent], learned))
                total += len(ids)
        while tree and not tree[-1][2]:      # a question whose answer was cut teaches nothing
            tree.pop()
        if tree:
            yield i, tree, where_to_look(tree, marks, rng)


def base_batches(tokenizer, seed, start=0):
    """(index of the next document, Batch, lay_out_links' links) without end."""
    documents = base_trees(tokenizer, seed, start)
    while True:
        numbers, trees, links = zip(*itertools.islice(documents, 96))
        lists = like_lengths(list(map(tree_tokens, trees)), BASE_TOKENS)
        random.Random(numbers[-1]).shuffle(lists)
        for part in lists:
            batch = lay_out([[trees[i]] for i in part], tokenizer.pad_token_id)
            yield numbers[-1] + 1, batch, lay_out_links([trees[i] for i in part], [links[i] for i in part], batch.ids.shape[1])


@torch.no_grad()
def base_accuracy(model, batches):
    """Share of held-out responses whose every token the model predicts: what greedy decoding would get exactly right."""
    right = total = 0
    for batch in batches:
        wrong = (learned_logits(model, batch.to(model.device)).argmax(-1) != batch.target.to(model.device)).float()
        right += int((segment_sum(batch, wrong) == 0).sum())
        total += batch.segments
    return right / total


def train_base(cfg):
    """The embedded model: a Qwen2 of 5 million parameters that learns to read schemas, on tools that are none of the world's.

    Muon for the matrices, AdamW for embeddings and norms; learning rates fall linearly to zero. State is saved every few
    minutes; the same command goes on from there. Raises ModelError for a `base_start` of another shape.
    """
    out, device = Path(cfg.out), pick_device(cfg.device)
    state_file, tokens_seen, step = out / "state.safetensors", 0, 0
    document = BASE_EASY if cfg.base_start else 0      # a checkpoint has the easy documents behind it
    start, tokenizer = load_model(cfg.base_start, cfg.device) if cfg.base_start else (None, None)
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = tokenizer or make_tokenizer(synth.vocabulary(), BASE_PIECES)
        tokenizer.save_pretrained(out)
    torch.manual_seed(cfg.base_seed)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_attention_heads=10,
        num_key_value_heads=5, head_dim=32, tie_word_embeddings=True, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, initializer_range=0.04, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, attn_implementation="sdpa")).to(device)
    start_with_copying(model)
    if start:
        try:
            model.load_state_dict(start.state_dict())
        except RuntimeError as error:
            raise ModelError(f"{cfg.base_start}: not of the base's shape ({str(error).splitlines()[1].strip()})") from None
    named = dict(model.named_parameters())
    matrices = [p for name, p in named.items() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in named.items() if p.ndim != 2 or "embed" in name]
    muon = Muon(matrices, lr=0.004)
    adamw = torch.optim.AdamW(others, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    if state_file.exists():
        state = load_file(state_file)
        tokens_seen, step, document = (int(x) for x in state["progress"])
        for i, p in enumerate(matrices):
            muon.state[p]["momentum"] = state[f"muon.{i}"].to(device)
        for i, p in enumerate(others):
            adamw.state[p] = {key: state[f"adamw.{i}.{key}"].to(device if key != "step" else "cpu")
                              for key in ("step", "exp_avg", "exp_avg_sq")}
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(state[f"model.{name}"])
        print(f"{state_file}: going on after {tokens_seen / 1e6:.1f} million tokens")

    def save():
        state = {f"model.{name}": p.detach() for name, p in named.items()}
        state |= {f"muon.{i}": muon.state[p]["momentum"] for i, p in enumerate(matrices)}
        state |= {f"adamw.{i}.{key}": value for i, p in enumerate(others) for key, value in adamw.state[p].items()}
        state["progress"] = torch.tensor([tokens_seen, step, document])
        save_file(state, out / "state.tmp")
        os.replace(out / "state.tmp", state_file)

    grades = torch.tensor(synth.grade_ids(tokenizer)[1], device=device)
    validation = [batch for _, (_, batch, _) in zip(range(6), base_batches(tokenizer, "val"))]
    read = keep_read(model)
    stream = base_batches(tokenizer, f"train-{cfg.base_seed}" if cfg.base_seed else "train", document)
    bar, saved, losses = tqdm(total=int(cfg.base_tokens), initial=tokens_seen, unit="tok", unit_scale=True), time.time(), []
    while tokens_seen < cfg.base_tokens:
        factor = cfg.base_rate * min(1, (step + 1) / 100) * max(0.01, 1 - tokens_seen / cfg.base_tokens)
        for optimizer, lr in ((muon, 0.004), (adamw, 1e-3)):
            for group in optimizer.param_groups:
                group["lr"] = lr * factor
        muon.param_groups[0]["momentum"] = 0.85 + 0.1 * min(1, step / 300)
        document, batch, links = next(stream)
        batch, links = batch.to(device), [[x.to(device) for x in part] for part in links]
        logps = learned_logps(model, batch)
        weight = 1 + 3 * torch.isin(batch.target, grades).float()     # a grade is one token of many, and hard to learn
        weight += 2 * torch.isin(batch.before, links[2][0] * batch.ids.shape[1] + links[2][1]).float()    # so is a tool's name
        loss = -(weight * logps).sum() / weight.sum()
        looks = [-log_attention(*read[CHOOSING[head % 3]], batch.mask, *part).mean() for head, part in enumerate(links) if len(part[0])]
        total = loss + BASE_LOOKING * sum(looks)
        total.backward()
        if not math.isfinite(total.item()):
            raise TrainingError(f"the loss is {total.item()} at step {step}; {state_file} holds the last good state")
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adamw.step()
        keep_apart(model.get_input_embeddings().weight)
        model.zero_grad(set_to_none=True)
        tokens_seen, step, losses = tokens_seen + batch.tokens, step + 1, [*losses[-99:], loss.item()]
        bar.update(batch.tokens)
        bar.set_postfix(loss=f"{np.mean(losses):.3f}", looking=f"{sum(looks).item():.2f}")
        if step % 400 == 0:
            bar.write(f"{tokens_seen / 1e6:6.2f}M tokens  loss {np.mean(losses):.3f}  "
                      f"exact {base_accuracy(model, validation):.3f}")
        if time.time() - saved > 240:
            save()
            saved = time.time()
    bar.close()
    print(f"held-out responses exactly right: {base_accuracy(model, validation):.3f}")
    model.to(torch.bfloat16).save_pretrained(out)
    state_file.unlink(missing_ok=True)


def load_training_set(cfg, tokenizer, model):
    """Samples for training: the file's, or the simulated world's; those that do not fit the context are left out."""
    if cfg.data:
        samples, skipped = synth.read_samples(cfg.data, cfg.skip_bad)
        if skipped:
            print(f"{cfg.data}: {skipped} records left out")
    else:
        samples = synth.make_samples(cfg.n, "train", cfg.seed)
    limit = context_length(model, cfg.max_tokens)
    samples, too_long = split_too_long(tokenizer, samples, limit)
    if too_long:
        print(f"{too_long} samples left out: longer than {limit} tokens")
    if not samples:
        raise synth.DataError(f"{cfg.data or 'the simulated world'}: no sample is left to train on")
    return samples


def main(argv=None):
    cfg, = HfArgumentParser(SFTConfig).parse_args_into_dataclasses(argv)
    if cfg.from_scratch:
        return train_base(cfg)
    model, tokenizer = load_model(cfg.model, cfg.device)
    samples = load_training_set(cfg, tokenizer, model)
    torch.manual_seed(cfg.seed)
    add_lora(model, cfg.rank, cfg.alpha, cfg.dropout, cfg.targets)
    before = perplexities(model, tokenizer, samples[:200]).mean()
    losses = warm_up(model, tokenizer, samples, cfg)
    after = perplexities(model, tokenizer, samples[:200]).mean()
    save_lora(model, cfg.out)
    save_model(model, tokenizer, cfg.out)
    print(f"{cfg.out}: {len(samples)} samples, {len(losses)} updates, perplexity of targets {before:.2f} -> {after:.2f}")


def run(main):
    """Call a stage's main: a user's mistake ends with one line and status 1, Ctrl-C with status 130."""
    try:
        main()
    except (ModelError, TrainingError, synth.DataError, ValueError, OSError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        print(f"\n{Path(sys.argv[0]).name}: stopped; the same command goes on where a finished stage was saved")
        sys.exit(130)


if __name__ == "__main__":
    run(main)

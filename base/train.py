"""The embedded base, from scratch: tokenizer, initial weights, optimizer, and a loss on where its heads look.

    python sft.py --from_scratch --out base2      # train_base, with the settings of BaseConfig

docs/base.md says what each of these parts is for, and what else was tried.
"""

import itertools
import math
import os
import random
import string
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import rotate_half

import synth
from base import documents
from sft import (ModelError, TrainingError, filled, lay_out, learned_logits, learned_logps, load_model, make_folder, pick_device,
                 segment_sum, tree_tokens)

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
CHAT_TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
                 "{% if add_generation_prompt %}<|assistant|>{% endif %}")
BASE_TOKENS, BASE_PIECES = 3072, 1500     # tokens an update; pieces of words in the vocabulary
BASE_EASY = 10_000                        # documents over which difficulty rises; longer ones follow
BASE_LOOKING = 0.3                        # weight of the loss on where heads look
UPPER = "\u21e7"     # stands before a letter that was a capital


def make_tokenizer(words, pieces):
    """A tokenizer in which a word is one token wherever it stands, so that copying is a matter of pointing.

    Every word begins with a space, be it after a space, an underscore or a bracket (but not at the very start of a
    text), and is in lower case: " play it", "_play_it(" and "(playIt" share tokens. The differences are marked, and
    restored in decoding: a capital by UPPER, a space after anything but a word by a second space. A digit is a token.
    words: those kept whole; any other is cut into as few tokens as possible, bytes or the `pieces` most frequent strings
    of two to four letters in them: all tokens are common, since one that training hardly shows cannot be copied.
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
    """Rescale token vectors shorter than `least`, about the initial length. embedding: (vocabulary, size), in place.

    A token that is seldom a target is pushed away from all outputs, a little each time, and Adam turns that into full
    steps: its vector shrinks, and then it cannot be copied, however well attention points at it.
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
    """Sets of token ids by what they do in a document: end a line, open brackets (after a name), close them, go on to another
    call, begin a user's turn; and words of three letters or more that are not small ones."""
    tokens, small = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), {*documents.FILLERS, *documents.PREPOSITIONS}
    texts = [tokenizer.decode([i]) for i in range(len(tokens))]
    which = lambda rule: {i for i, text in enumerate(texts) if rule(text)}
    return {"line": which(lambda t: t == "\n"), "open": which(lambda t: t.startswith("(")), "close": which(lambda t: ")" in t),
            "next": which(lambda t: t.endswith("), ")), "user": which(lambda t: t == "<|user|>"),
            "word": {i for i, t in enumerate(tokens) if t[0] == "\u0120" and len(t) > 3 and t[1:].isalpha() and t[1:] not in small}}


def where_to_look(tree, marks, rng, others=60):
    """What heads for choosing should look at, in a document's tree: [(head, (segment, token), [(segment, token), ...]), ...].

    Head 0: a word of a tool's name or description looks at the name. Head 1: a word of the request looks at the same word
    there, and so learns the name. Head 2: the token before each token of a called name looks at the request's words that
    only this tool has. So the tool is named that has most of the request's telling words. Heads 3 to 5 are the
    same ones at `others` other places, where they look at the very first token, that is at nothing (an attention
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


def lay_out_links(trees, links):
    """Links of a batch's trees -> for each head (numbers of the trees, places in them, (links, longest tree) bool: where to)."""
    packed, length = [[] for _ in range(6)], max(map(tree_tokens, trees))
    for number, (tree, found) in enumerate(zip(trees, links)):
        starts = np.cumsum([0, *(len(ids) for ids, _, _ in tree)])
        for head, (segment, token), places in found:
            packed[head].append((number, starts[segment] + token, [starts[s] + t for s, t in places]))
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


def log_attention(attention, hidden, rope, batch, trees, places, where):
    """(links, heads) log of the share of attention that an attention layer's last group of heads pays to `where`.

    hidden: (1, tokens, width) what the layer reads; rope: (cosine, sine) of its positions; trees, places: (links,) who looks, the
    number of its tree in the batch and its place there; where: (links, longest tree) bool.
    """
    size, each = attention.head_dim, attention.num_key_value_groups
    turn = lambda x, cos, sin: x * cos + rotate_half(x) * sin
    key = F.linear(hidden, attention.k_proj.weight[-size:], attention.k_proj.bias[-size:])
    flat = batch.starts[trees] + places
    query = F.linear(hidden[0, flat], attention.q_proj.weight[-each * size:], attention.q_proj.bias[-each * size:])
    key, query = turn(key, *rope), turn(query.unflatten(-1, (each, size)), *(x[0, flat][:, None] for x in rope))
    found, starts = hidden.new_zeros(len(trees), each), batch.starts.tolist()
    for tree in trees.unique().tolist():
        part, mask, start = trees == tree, batch.masks[tree][0, 0], starts[tree]
        scores = torch.einsum("qhs,ks->qhk", query[part], key[0, start:start + len(mask)]) * attention.scaling
        scores = scores.masked_fill(~mask[places[part]][:, None], -torch.inf).log_softmax(-1)
        found[part] = scores.masked_fill(~where[part][:, None, :len(mask)], -torch.inf).logsumexp(-1)
    return found


def base_row(document):
    """Tokens of a document: short ones first, since attention costs their square."""
    return 320 if document < BASE_EASY else 768


def base_trees(tokenizer, seed, start=0, careless=False):
    """Documents of the base's world as trees of token ids, without end; branches beyond `base_row` are cut. careless: as in
    documents.base_document.

    Yields (number of the document, tree, where_to_look's links).
    """
    marks = token_marks(tokenizer)
    for i in itertools.count(start):
        rng = random.Random(f"{seed}-{i}")
        document = documents.training_document(rng, 1 if seed == "val" else min(1, i / BASE_EASY), careless)
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


def base_batches(tokenizer, seed, start=0, careless=False):
    """(index of the next document, Batch, lay_out_links' links) without end."""
    stream = base_trees(tokenizer, seed, start, careless)
    while True:
        numbers, trees, links = zip(*itertools.islice(stream, 96))
        for part in filled(list(map(tree_tokens, trees)), BASE_TOKENS):
            yield numbers[-1] + 1, lay_out([trees[i] for i in part]), lay_out_links([trees[i] for i in part], [links[i] for i in part])


@torch.no_grad()
def base_accuracy(model, batches):
    """Share of held-out responses whose every token the model predicts: what greedy decoding would get exactly right."""
    right = total = 0
    for batch in (batch.to(model.device) for batch in batches):
        wrong = (learned_logits(model, batch).argmax(-1) != batch.target).float()
        right += int((segment_sum(batch, wrong) == 0).sum())
        total += batch.segments
    return right / total


@dataclass
class BaseConfig:
    from_scratch: bool = True        # these are sft.py's settings with --from_scratch
    out: str = "out/base"            # folder for the checkpoint, and for the state while it is trained
    base_tokens: float = 50e6        # tokens to train on
    base_start: str = ""             # checkpoint of the same shape to begin with; none: nothing learned yet
    base_rate: float = 1.0           # share of the learning rates: a quarter is enough to go on from a checkpoint
    base_seed: int = 0               # of the weights and the documents: another one to go on from a checkpoint with new documents
    base_careless: bool = False      # documents whose writers leave values half done: a base with a habit to repair (docs/rounds.md)
    device: str = "auto"             # auto, cpu, cuda, mps


def train_base(cfg):
    """The embedded model: a Qwen2 of 5.6 million parameters that learns to read schemas, on tools that are none of the world's.

    Muon for the matrices, AdamW for embeddings and norms; learning rates fall linearly to zero. State is saved every few
    minutes; the same command resumes there, with the next 96 documents, so not bit for bit as without a stop. Raises
    ModelError for a `base_start` of another shape.
    """
    if not cfg.from_scratch:
        raise ValueError("leave --from_scratch out for a warm-up: sft.py then has other settings")
    if not cfg.base_tokens > 0 or not cfg.base_rate >= 0:
        raise ValueError(f"--base_tokens has to be above 0, --base_rate at least 0 (got {cfg.base_tokens:g}, {cfg.base_rate:g})")
    make_folder(cfg.out)
    out, device = Path(cfg.out), pick_device(cfg.device)
    state_file, tokens_seen, step = out / "state.safetensors", 0, 0
    document = BASE_EASY if cfg.base_start else 0      # a checkpoint is past the easy documents
    start, tokenizer = load_model(cfg.base_start, cfg.device) if cfg.base_start else (None, None)
    if (out / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    else:
        tokenizer = tokenizer or make_tokenizer(documents.vocabulary(), BASE_PIECES)
        tokenizer.save_pretrained(out)
    torch.manual_seed(cfg.base_seed)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=5, num_attention_heads=10,
        num_key_value_heads=5, head_dim=32, tie_word_embeddings=True, max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, initializer_range=0.04, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, attn_implementation="grouped")).to(device)
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
    validation = [batch for _, (_, batch, _) in zip(range(6), base_batches(tokenizer, "val", BASE_EASY, cfg.base_careless))]
    read = keep_read(model)
    stream = base_batches(tokenizer, f"train-{cfg.base_seed}" if cfg.base_seed else "train", document, cfg.base_careless)
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
        weight += 2 * torch.isin(batch.before, batch.starts[links[2][0]] + links[2][1]).float()    # so is a tool's name
        loss = -(weight * logps).sum() / weight.sum()
        looks = [-log_attention(*read[CHOOSING[head % 3]], batch, *part).mean() for head, part in enumerate(links) if len(part[0])]
        total = loss + BASE_LOOKING * sum(looks)
        total.backward()
        if not math.isfinite(total.item()):
            kept = f"; {state_file} holds the last good state" if state_file.exists() else ""
            raise TrainingError(f"the loss is {total.item()} at step {step}{kept}")
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

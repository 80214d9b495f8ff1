"""Decode and judge.

    python eval.py --model base                                               # the held-out test of the simulated world
    python eval.py --model base --bench bfcl --categories simple_python       # BFCL's questions (pip: bfcl-eval)
    python eval.py --bench bfcl --categories multiple --answers answers.jsonl # score answers made elsewhere, no model
    python eval.py --model base --samples 16                                  # also sample: pass@16, majority vote

Batched decoding with a cache that is filled once a prompt and shared by all its continuations (search uses the same),
the AST checker with BFCL's matching rules, and one kind of error for each wrong answer.
"""

import ast
import importlib.util
import itertools
import json
import math
import operator
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

import synth
from sft import (CACHE, additive, apply_head, autocast, check_at_least_one, check_numbers, context_length, count_tokens, filled, fitting,
                 lay_out, load_model, logits_at_once, read_batch, run, tree_tokens, within_memory)
from synth import Call


# ---------------------------------------------------------------------------------------------
# Decoding: after each prompt a token tree with its KV cache; all new tokens in one pass
# ---------------------------------------------------------------------------------------------


class PlacedLayer(CacheLayerMixin):
    """One layer's keys and values of a batch, (rows, heads, places, size): a new token's go where `row` and `place` say."""

    def __init__(self, keys, values):
        self.keys, self.values, self.is_initialized = keys, values, True
        self.row, self.place = None, None      # (new,) of each new token

    def lazy_initialization(self, *states):
        pass

    def update(self, keys, values, *args, **kwargs):
        """keys, values: (1, heads, new, size), the tokens of all rows -> all that there is, (rows, heads, places, size)."""
        for old, new in ((self.keys, keys), (self.values, values)):
            old[self.row, :, self.place] = new[0].transpose(0, 1)
        return self.keys, self.values

    def get_seq_length(self):
        return self.keys.shape[-2]

    get_max_length = get_max_cache_shape = get_seq_length     # the second is its name in earlier transformers

    def get_mask_sizes(self, query_length, *args):
        return self.keys.shape[-2], 0


class Written:
    """The continuations of a prompt as a trie (prefix tree) of tokens; the root is the prompt's last token."""

    def __init__(self, root):
        self.ids, self.above, self.depth = [root], [-1], [0]      # of each node: token, the node above it, how many are above
        self.sees = np.zeros((64, 64), dtype=bool)                # itself and the nodes above it
        self.sees[0, 0] = True
        self.next, self.first = {}, {}     # (node, token): that child; node: its first child
        self.pairs = {}                    # (token, token): the node where this bigram first ends
        self.drawn = {}                    # node: what was drawn there, see `sample_tokens`
        self.done = 0                      # number of nodes that the model has computed

    def follow(self, ids, at=0):
        """The nodes from `at` on along `ids` (token ids); those that are missing are added."""
        nodes = [at]
        for token in ids:
            n = self.next.setdefault((at, token), len(self.ids))
            if n == len(self.ids):
                if n == len(self.sees):
                    self.sees = np.pad(self.sees, (0, n))
                self.sees[n] = self.sees[at]
                self.sees[n, n] = True
                self.first.setdefault(at, n)
                self.pairs.setdefault((self.ids[at], token), n)
                self.ids.append(token)
                self.above.append(at)
                self.depth.append(self.depth[at] + 1)
            nodes.append(n)
            at = n
        return nodes

    def cut(self, n):
        """Forget all nodes but the first n."""
        del self.ids[n:], self.above[n:], self.depth[n:]
        self.done = min(self.done, n)
        self.next, self.first, self.pairs = ({key: node for key, node in those.items() if node < n}
                                             for those in (self.next, self.first, self.pairs))
        self.drawn = {node: draws for node, draws in self.drawn.items() if node < n}

    def draw(self, node, number):
        """(token, its log-probability) that a number draws after a node; None if only the model's head can tell."""
        return next(((token, logp) for low, high, token, logp in self.drawn.get(node, ()) if low <= number <= high), None)

    def guess(self, node, most):
        """Up to `most` draft tokens to follow a node: those that followed the first occurrence of its last two tokens
        (prompt lookup: Saxena, github.com/apoorvumang/prompt-lookup-decoding)."""
        twin, found = self.pairs[self.ids[self.above[node]], self.ids[node]], []
        while twin in self.first and len(found) < most:
            twin = self.first[twin]
            found.append(self.ids[twin])
        return found


class Prompts:
    """Prompts, their continuations, and the KV cache of both: a token goes through the model once, however many continuations
    share it, until it is forgotten."""

    @torch.inference_mode()
    def __init__(self, model, prompts, drafts=None, max_tokens=4096):
        """prompts: lists of token ids, each at least one long; max_tokens: tokens a forward pass, or one prompt.

        drafts: token ids that probably follow each prompt. They do not change what is decoded; they go through the model with the
        prompt, and each one that a continuation samples anyway saves it a pass (speculative decoding, Leviathan et al.,
        arXiv 2211.17192). Earlier samples serve as drafts, too.
        states: of each prompt and its draft, (keys, values) a layer; hidden: the last layer's of the prompt's
        last token and the draft.
        """
        self.model, self.last, self.lengths = model, [p[-1] for p in prompts], [len(p) - 1 for p in prompts]
        self.written, self.states, self.hidden = list(map(Written, self.last)), [None] * len(prompts), [None] * len(prompts)
        rows = [[*prompt, *draft[:-1]] for prompt, draft in zip(prompts, drafts or [[]] * len(prompts))]     # nothing follows a last token
        for group in filled(list(map(len, rows)), max_tokens):
            batch = lay_out([[(rows[i], -1, False)] for i in group]).to(model.device)
            count_tokens("scored", sum(self.lengths[i] for i in group))
            cache = DynamicCache()      # of all tokens: a model's own, if its attention slides, would forget the first prompts
            hidden = read_batch(model, batch, cache)
            for i, start in zip(group, batch.starts.tolist()):
                self.written[i].follow(rows[i][self.lengths[i] + 1:])
                place = slice(start, start + len(rows[i]))
                self.states[i] = [(layer.keys[0, :, place].clone(), layer.values[0, :, place].clone()) for layer in cache.layers]
                self.hidden[i] = hidden[0, start + self.lengths[i]:place.stop].clone()
        self.drafted = [len(w.ids) for w in self.written]
        for w in self.written:
            w.done = len(w.ids)

    def forget(self, i):
        """Drop all that follows prompt i except its draft."""
        self.written[i].cut(self.drafted[i])
        self.written[i].drawn = {}      # perhaps at another temperature


ROOM = 32              # nodes for which a batch has places, beyond those that there are
CALL_COSTS = 3000      # overhead of an attention call on a CPU, where a query costs 1 for each place that it may attend to, and reading a
                       # place 7 (measured). On other devices 100 times as much (a guess)


class Rows:
    """Some prompts in one batch, a row each, aligned so that each one's last token, node 0 of its tree, is at place `before`:
    node n is at before + n."""

    def __init__(self, prompts, index):
        """index: prompt of each row. What an earlier batch has written is forgotten."""
        self.prompts, self.index, self.model = prompts, list(index), prompts.model
        self.before = max(prompts.lengths[i] for i in index)
        nodes = max(prompts.drafted[i] for i in index) + ROOM
        zeros = lambda x, n: x.new_zeros(len(index), *x.shape[:-2], n, x.shape[-1])
        self.layers = [PlacedLayer(*(zeros(x, self.before + nodes) for x in layer)) for layer in prompts.states[index[0]]]
        self.hidden = zeros(prompts.hidden[index[0]], nodes)      # (rows, nodes, size)
        for row, i in enumerate(index):
            for layer, (keys, values) in zip(self.layers, prompts.states[i]):
                place = slice(self.before - prompts.lengths[i], self.before + prompts.drafted[i])
                layer.keys[row, :, place], layer.values[row, :, place] = keys, values
            self.hidden[row, :prompts.drafted[i]] = prompts.hidden[i]
            prompts.forget(i)

    def compute(self):
        """Run the nodes that have not gone through the model, those of all rows in one pass, side by side."""
        trees, device = [self.prompts.written[i] for i in self.index], self.model.device
        new, nodes = [len(w.ids) - w.done for w in trees], max(len(w.ids) for w in trees)
        if not any(new):
            return
        if (more := nodes - self.hidden.shape[1]) > 0:
            pad = (0, 0, 0, more + ROOM)
            for layer in self.layers:
                layer.keys, layer.values = F.pad(layer.keys, pad), F.pad(layer.values, pad)
            self.hidden = F.pad(self.hidden, pad)
        row, node, ids, position = torch.tensor(
            [(r, n, w.ids[n], self.prompts.lengths[i] + w.depth[n])
             for r, (w, i) in enumerate(zip(trees, self.index)) for n in range(w.done, len(w.ids))], device=device).T
        for layer in self.layers:
            layer.row, layer.place = row, self.before + node
        seen = torch.zeros(1, 1, len(ids), 1, device=device)     # never read: it carries `parts` to sft.grouped_attention
        seen.parts = self.parts(new)
        with autocast(self.model):
            hidden = self.model.base_model(input_ids=ids[None], attention_mask=seen, position_ids=position[None], use_cache=True,
                                           **{CACHE: Cache(layers=self.layers)}).last_hidden_state
        self.hidden[row, node] = hidden[0]
        for w in trees:
            w.done = len(w.ids)

    def parts(self, new):
        """For `sft.grouped_attention`: what the new nodes attend to, new[r] of row r. Adjacent rows share a padded call where that
        costs less than two calls."""
        groups, parts, first, overhead = [], [], np.cumsum([0, *new]), CALL_COSTS if self.model.device.type == "cpu" else 100 * CALL_COSTS
        cost = lambda start, stop, prompt, nodes, length: overhead + (stop - start) * (prompt + nodes) * (7 + length)
        for r, i in enumerate(self.index):
            alone = r, r + 1, self.prompts.lengths[i], len(self.prompts.written[i].ids), new[r]
            if groups and new[r]:
                joined = groups[-1][0], r + 1, *map(max, groups[-1][2:], alone[2:])
                if cost(*joined) <= cost(*groups[-1]) + cost(*alone):
                    groups[-1] = joined
                    continue
            groups += [alone] * bool(new[r])
        for start, stop, prompt, nodes, length in groups:
            taken, mask = np.full((stop - start, length), -1), np.ones((stop - start, 1, length, prompt + nodes), dtype=bool)
            for n, i in enumerate(self.index[start:stop]):
                written, queries = self.prompts.written[i], slice(new[start + n])
                if not new[start + n]:      # a row between two others, which has nothing to compute
                    continue
                taken[n, queries] = range(first[start + n], first[start + n + 1])
                mask[n, 0, queries] = False
                mask[n, 0, queries, prompt - self.prompts.lengths[i]:prompt] = True
                mask[n, 0, queries, prompt:prompt + len(written.ids)] = written.sees[written.done:len(written.ids), :len(written.ids)]
            parts.append((slice(start, stop), slice(self.before - prompt, self.before + nodes),
                          torch.from_numpy(taken).to(self.model.device), additive(torch.from_numpy(mask).to(self.model.device))))
        return parts

    def keep(self, rows):
        """Go on with some of the rows."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.hidden, self.index = self.hidden[rows], [self.index[row] for row in rows]


def chunks(prompts, index, widths, max_tokens):
    """Split rows so that no forward pass holds more than `max_tokens` tokens of cache; at least one row each.

    widths: tokens behind each row's prompt, with those to come.
    """
    start = 0
    while start < len(index):
        stop, before, width = start, 0, 0
        while stop < len(index):
            before, width = max(before, prompts.lengths[index[stop]]), max(width, widths[stop])
            if stop > start and (before + width) * (stop - start + 1) > max_tokens:
                break
            stop += 1
        yield slice(start, stop)
        start = stop


GUESSES = 6     # most tokens that go through the model with a sampled one, in the hope that they come next (docs/speed.md: 2, 4, 6, 8)


def sample_tokens(model, states, numbers, sizes, temperature):
    """Next tokens after hidden states (n, size): a list for each part, of sizes[j] states, with m draws for each state, each of them
    (low, high, token, log-probability in nats at temperature 1).

    numbers: (n, m) uniform in [0, 1), mapped to tokens by the inverse CDF: every number from low to high draws the token.
    temperature 0: the likeliest, by any number.
    """
    found, most = [], logits_at_once(model)
    for part, drawn in zip(states.split(most), numbers.split(most)):
        logits = apply_head(model, part)
        shares = torch.softmax(logits, -1)
        if temperature > 0:
            steps = (shares if temperature == 1 else torch.softmax(logits / temperature, -1)).cumsum(-1)
            chosen = torch.searchsorted(steps, drawn * steps[:, -1:]).clamp(max=logits.shape[-1] - 1)
            below, above = (steps.gather(-1, at.clamp(min=0)) / steps[:, -1:] for at in (chosen - 1, chosen))
            low, high = torch.minimum(drawn, below.where(chosen > 0, 0)), torch.maximum(drawn, above)     # rounding must not exclude it
        else:
            chosen, low, high = logits.argmax(-1, keepdim=True).expand_as(drawn), torch.zeros_like(drawn), torch.ones_like(drawn)
        check_numbers(logps := shares.gather(-1, chosen).log())
        found += map(list, map(zip, *(x.tolist() for x in (low, high, chosen, logps))))
    found = iter(found)
    return [list(itertools.islice(found, size)) for size in sizes]


class Ask(NamedTuple):
    """What a task asks about nodes that follow its prompt."""
    nodes: list
    numbers: torch.Tensor | None = None     # (nodes, copies), from 0 to 1: tokens are to be drawn by them (`sample_tokens`); None: logits


@torch.inference_mode()
def run_tasks(prompts, tasks, temperature=0.0):
    """Run tasks to their end, concurrently: the new tokens of all go through the model in one pass, whatever each is doing.

    tasks: list of (prompt's index, generator). A task adds nodes after its prompt, yields an `Ask` and is sent, for each node asked,
    its draws (`sample_tokens`) if it draws (the same number of copies in all tasks), else logits, (nodes, vocabulary). Returns what
    each task returns.
    """
    rows = Rows(prompts, list(dict.fromkeys(i for i, _ in tasks)))
    results, answers = [None] * len(tasks), dict.fromkeys(range(len(tasks)))     # None starts a generator
    while answers:
        asked = {}
        for n, answer in answers.items():
            try:
                asked[n] = tasks[n][1].send(answer)
            except StopIteration as end:
                results[n] = end.value
        working = {tasks[n][0] for n in asked}
        if working and len(working) <= 0.75 * len(rows.index):      # rows that are finished leave the batch
            rows.keep([row for row, i in enumerate(rows.index) if i in working])
        rows.compute()
        answers, row_of = {}, {i: row for row, i in enumerate(rows.index)}
        for drawing in (True, False):
            some = {n: ask for n, ask in asked.items() if (ask.numbers is not None) == drawing}
            if not some:
                continue
            row, node = torch.tensor([(row_of[tasks[n][0]], node) for n, ask in some.items() for node in ask.nodes]).T
            hidden, sizes = rows.hidden[row, node], [len(ask.nodes) for ask in some.values()]
            if drawing:
                numbers = torch.cat([ask.numbers for ask in some.values()]).to(hidden.device)
                found = sample_tokens(prompts.model, hidden, numbers, sizes, temperature)
            else:
                found = apply_head(prompts.model, hidden).split(sizes)
            answers |= dict(zip(some, found))
    return results


def decode_task(prompts, i, prefix, max_new, stop_id, copies=1, seed=None):
    """A task (`run_tasks`): continue a response to prompt i to its end, `copies` times.

    prefix: token ids of the response so far. max_new: tokens that a response may have, its prefix included; every prefix is shorter.
    seed: an integer; what is sampled depends on it alone, not on the batch, nor on earlier continuations of the prompt (up to
    rounding). None: for greedy decoding.

    Each pass computes the tokens sampled last and, after each, up to GUESSES guessed ones. Then each copy samples its way down
    the tree until it draws a token that is not in it, which the next pass computes. Logits, expensive with a large vocabulary, are
    rarely computed twice at a node: a number close to an earlier one draws the same token (`Written.draw`).
    Returns a list of (ids, logps), one a copy: the new tokens up to and with `stop_id`, or to `max_new` tokens in all, and the
    log-probability in nats of each under the policy itself (temperature 1).
    """
    tree, left = prompts.written[i], max_new - len(prefix)
    if len(tree.ids) - prompts.drafted[i] > 2 * max_new:
        prompts.forget(i)
    leaf, guessed = tree.follow(prefix)[-1], set()      # guessed: where no copy has come yet; at most one copy's tokens
    numbers = torch.zeros(left, copies) if seed is None else torch.rand(max_new, copies, generator=torch.Generator().manual_seed(seed))
    out, ready = [([], []) for _ in range(copies)], [(copy, leaf) for copy in range(copies)]
    depth, uniform = lambda node: tree.depth[node] - tree.depth[leaf], numbers.tolist()
    while True:
        waiting = []
        for copy, at in ready:     # down the tree as far as it goes, and one token more
            ids, logps = out[copy]
            while draw := tree.draw(at, uniform[depth(at)][copy]):
                ids.append(draw[0])
                logps.append(draw[1])
                if ids[-1] == stop_id or len(ids) == left:
                    break
                size, (*_, at) = len(tree.ids), tree.follow(ids[-1:], at)
                guessed.discard(at)
                if at == size:
                    guessed |= set(tree.follow(tree.guess(at, min(GUESSES, left - len(guessed), left - len(ids) - 1)), at)[1:])
            else:
                waiting.append((copy, at))
        if not (ready := waiting):
            break
        # what each copy draws where it is, and at all behind where nothing has been drawn
        here = {at for _, at in ready}
        below = np.flatnonzero(tree.sees[:len(tree.ids), sorted(here)].any(1)).tolist()
        nodes = [n for n in below if depth(n) < left and (n in here or n not in tree.drawn)]
        for node, draws in zip(nodes, (yield Ask(nodes, numbers[list(map(depth, nodes))]))):
            tree.drawn[node] = tree.drawn.get(node, []) + draws
    count_tokens("scored", 1 + len(prefix))
    count_tokens("decoded", sum(len(ids) for ids, _ in out))     # each, whether it went through the model alone or not
    return out


def score_task(prompts, i, tree, choices=()):
    """A task (`run_tasks`): log-probabilities of the learned segments of a tree after prompt i, and the probabilities of
    alternatives.

    tree: its root begins with the prompt's last token. Returns one (logps, probabilities) a learned segment: the log-probability
    in nats of each of its tokens, and the probabilities of `choices` (token ids) in place of its first, scaled to sum to one.
    The tree is then removed.
    """
    written, ends, learned = prompts.written[i], [], []      # learned: (nodes in front of its tokens, its tokens)
    before, parents = len(written.ids), {parent for _, parent, _ in tree}
    for n, (ids, parent, wanted) in enumerate(tree):
        ids, at = (ids, ends[parent]) if parent >= 0 else (ids[1:], 0)
        nodes = written.follow(ids if n in parents else ids[:-1], at)     # nothing follows a last token
        if wanted:
            learned.append((nodes[:len(ids)], ids))
        ends.append(nodes[-1])
    logits = yield Ask([node for nodes, _ in learned for node in nodes])
    written.cut(before)
    count_tokens("scored", tree_tokens(tree))
    results = []
    for (_, ids), part in zip(learned, logits.split([len(ids) for _, ids in learned])):
        logps = part.gather(1, torch.tensor(ids, device=part.device)[:, None])[:, 0] - part.logsumexp(-1)
        results.append((logps.tolist(), torch.softmax(part[0, list(choices)], -1).tolist()))
    return results


def decode(prompts, index, prefixes, max_new, stop_id, copies=1, temperature=0.0, seeds=None, max_tokens=65536):
    """`decode_task` for each of `index` (prompts), `prefixes` and `seeds`, as many at once as fit max_tokens cache slots."""
    results = []
    sizes = [prompts.drafted[i] + len(prefix) + (copies + 1) * (max_new - len(prefix)) for i, prefix in zip(index, prefixes)]
    for part in chunks(prompts, index, sizes, max_tokens):
        seeded = zip(index[part], prefixes[part], seeds[part] if temperature > 0 else [None] * len(prefixes[part]))
        results += run_tasks(prompts, [(i, decode_task(prompts, i, prefix, max_new, stop_id, copies, seed)) for i, prefix, seed in seeded],
                             temperature)
    return results


def score(prompts, index, trees, choices=(), max_tokens=8192):
    """`score_task` for each of `index` (prompts) and `trees`, as many at once as fit max_tokens cache slots."""
    results = []
    for part in chunks(prompts, index, [prompts.drafted[i] + tree_tokens(tree) for i, tree in zip(index, trees)], max_tokens):
        results += run_tasks(prompts, [(i, score_task(prompts, i, tree, choices)) for i, tree in zip(index[part], trees[part])])
    return results


def stop_token(tokenizer):
    """Id of the token that ends an assistant's turn."""
    return tokenizer(synth.end_of_turn(tokenizer), add_special_tokens=False)["input_ids"][0]


def response_text(tokenizer, ids, stop_id):
    """Token ids of a response -> text, without the end of the turn."""
    return tokenizer.decode(ids[:-1] if ids and ids[-1] == stop_id else ids)


# ---------------------------------------------------------------------------------------------
# The AST checker
# ---------------------------------------------------------------------------------------------

# From the farthest to the closest miss: where several calls miss one answer, the closest is reported.
ERROR_KINDS = ("unparseable", "call where none was due", "no call where one was due", "wrong number of calls",
               "wrong tool", "missing parameter", "unexpected parameter", "wrong type", "wrong value")

# ---- The rules of a right answer ----------------------------------------------------------------------------------
# BFCL's, for its Python categories. "Possible answers" are a list with one {name: {parameter: options}} for each call
# that is due; `options` lists the right values, and "" among them says that the parameter may be left out. In an
# option that is a dict each key has a list of options again. Odd corners are BFCL's own, and kept: scores must agree.

TYPES = {"string": str, "integer": int, "float": float, "boolean": bool, "array": list, "tuple": list, "dict": dict,
         "any": str}
FOLD = str.maketrans({mark: None for mark in " ,./-_*^"} | {"'": '"'})


def fold(value):
    """Strings are compared without case and these marks, so "April 1, 2024" equals "april 1 2024"; others as is."""
    return value.translate(FOLD).lower() if type(value) is str else value


def type_of(options):
    """The type that the options have: that of the first which is not "" (None where there is no other)."""
    return next((type(option) for option in options if option != ""), None)


def check_value(value, options, schema):
    """A parameter's value against its options and its JSON schema -> None, "wrong type" or "wrong value"."""
    declared = schema.get("type")
    expected = TYPES.get(declared)
    inner = TYPES.get(schema.get("items", {}).get("type")) if declared in ("array", "tuple") else None
    if declared == "tuple" and type(value) is tuple:
        value = list(value)  # JSON has no tuples, so the options hold lists
    if declared == "float" and type(value) is int and abs(value) < 1e308:
        value = float(value)

    # The declared type is the rule; where the options are of another (a variable's name, a null), values may be too.
    given = type_of(options)
    if type(value) is expected:
        as_declared = given in (None, expected)
        if inner and not any(type(option) is not list or all(type(item) in (inner, type_of(option)) for item in value)
                             for option in options):
            return "wrong type"
    elif given is not None and type(value) is given:
        as_declared = False
    else:
        return "wrong type"

    if not as_declared:
        right = value in options
    elif expected is dict:
        right = any(_fits(value, option) for option in options if option != "")
    elif expected is list and inner is dict:
        right = any(len(value) == len(option) and all(map(_fits, value, option)) for option in options)
    elif expected is list:
        right = [fold(item) for item in value] in [[fold(item) for item in option] for option in options]
    else:
        right = fold(value) in [fold(option) for option in options]
    return None if right else "wrong value"


def _fits(value, option):
    """Whether a dict has only keys of the option, each with one of its values, and lacks none that must be there."""
    return (type(value) is dict and type(option) is dict
            and all(key in option and fold(item) in map(fold, option[key]) for key, item in value.items())
            and all(key in value or "" in choices for key, choices in option.items()))


def check_call(call, wanted, tool):
    """One call against {parameter: options} and the tool that is due -> None or an error kind."""
    if call.name != tool["name"]:
        return "wrong tool"
    properties = tool["parameters"]["properties"]
    if any(name not in call.args for name in tool["parameters"].get("required", ())):
        return "missing parameter"
    for name, value in call.args.items():
        if name not in properties or name not in wanted:
            return "unexpected parameter"
        error = check_value(value, wanted[name], properties[name])
        if error:
            return error
    if any(name not in call.args and "" not in options for name, options in wanted.items()):
        return "missing parameter"
    return None


def check_calls(calls, answers, tools):
    """The calls of a response against the possible answers -> None when right, else one of ERROR_KINDS.

    calls: list of Call in any order; None for a response that could not be parsed. answers: BFCL's possible answers;
    None or [] where no call is due. tools: BFCL's layout. Raises ValueError when an answer's tool is not in `tools`.
    """
    if not answers:
        return "call where none was due" if calls else None
    if not calls:
        return "unparseable" if calls is None else "no call where one was due"
    if len(calls) != len(answers):
        return "wrong number of calls"
    left = list(calls)
    for answer in answers:  # each answer takes the first call that fits, as BFCL does, not the best assignment
        (name, wanted), = answer.items()
        tool = find_tool(name, tools)
        errors = [check_call(call, wanted, tool) for call in left]
        if None not in errors:
            return max(errors, key=ERROR_KINDS.index)
        del left[errors.index(None)]
    return None


def find_tool(name, tools):
    """The schema with this name. Raises ValueError when there is none."""
    for tool in tools:
        if tool["name"] == name:
            return tool
    raise ValueError(f"no tool named {name!r} in the toolset")


# ---- One target instead of possible answers -----------------------------------------------------------------------

def answers_from(calls, tools):
    """A target (list of Call) -> possible answers: its own values only. An optional parameter that it leaves out may
    be given as its default, and one that it gives as its default may be left out: the call is the same. (So "the same
    call" is an equivalence, and BFCL's greedy matching finds every right order.) Raises ValueError when a call is not
    one that its schema allows."""
    answers = []
    for call in calls:
        tool = find_tool(call.name, tools)
        properties, required = tool["parameters"]["properties"], tool["parameters"].get("required", ())
        wrong = [name for name in call.args if name not in properties] + [n for n in required if n not in call.args]
        if wrong:
            raise ValueError(f"target calls {call.name!r} with unknown, or without required, parameters: {wrong}")
        wanted = {name: [_as_option(value, properties[name])] for name, value in call.args.items()}
        for name, schema in properties.items():
            if "default" in schema and name not in required:
                default = _as_option(schema["default"], schema)
                if name not in wanted:
                    wanted[name] = ["", default]
                elif check_value(call.args[name], [default], schema) is None:
                    wanted[name].append("")
        answers.append({call.name: wanted})
    return answers


def _as_option(value, schema):
    """A value -> an option: where BFCL looks into dicts, each of their values becomes a list of one."""
    if schema.get("type") == "dict" and type(value) is dict:
        return {key: [item] for key, item in value.items()}
    if schema.get("type") in ("array", "tuple") and type(value) in (list, tuple):
        inner = schema.get("items", {})
        return [_as_option(item, inner) if inner.get("type") == "dict" else item for item in value]
    return value


def same_calls(calls, target, tools):
    """Are they written alike, but for their order and for optional parameters at their default? True is not 1, 1 is not 1.0."""
    def plain(call):
        parameters = next((tool["parameters"] for tool in tools if tool["name"] == call.name), {"properties": {}})
        usual = {name: repr(schema["default"]) for name, schema in parameters["properties"].items()
                 if "default" in schema and name not in parameters.get("required", ())}
        return call.name, sorted((name, text) for name, text in zip(call.args, map(repr, call.args.values())) if usual.get(name) != text)
    return sorted(map(plain, calls or ())) == sorted(map(plain, target or ()))


def score_fraction(calls, target, tools):
    """Share of a response that is right, in [0, 1]: partial credit to guide search; 1 only when all is right.

    One point for each target tool called and for each target parameter given correctly, divided by all possible points
    plus one for each superfluous name or parameter. calls: list of Call, or None (0 points).
    """
    answers = answers_from(target, tools)
    if same_calls(calls, target, tools) or check_calls(calls, answers, tools) is None:
        return 1.0
    if not calls or not target:
        return 0.0

    def compare(call, due, answer):
        """(points, points there are) of one predicted call for one that is due."""
        properties = find_tool(due.name, tools)["parameters"]["properties"]
        right = {name for name, options in answer[due.name].items()
                 if (check_value(call.args[name], options, properties[name]) is None if name in call.args
                     else "" in options)}
        too_much = call.args.keys() - due.args.keys() - right  # an optional parameter at its default is not
        return (call.name == due.name) + len(right & due.args.keys()), 1 + len(due.args) + len(too_much)

    pairs = [(*compare(call, due, answers[j]), i, j) for i, call in enumerate(calls) for j, due in enumerate(target)]
    calls_left, target_left = dict(enumerate(calls)), dict(enumerate(target))
    points = total = 0
    for right, possible, i, j in sorted(pairs, key=lambda pair: -pair[0] / pair[1]):  # greedy: the best pair first
        if i in calls_left and j in target_left:
            points, total = points + right, total + possible
            del calls_left[i], target_left[j]
    total += sum(1 + len(call.args) for call in [*calls_left.values(), *target_left.values()])
    return min(points, total - 0.5) / total  # under 1 whatever the greedy choice did: check_calls found a fault


# ---- BFCL's data and its reading of an answer ---------------------------------------------------------------------

BFCL_CATEGORIES = ("simple_python", "multiple", "parallel", "parallel_multiple", "irrelevance", "live_simple",
                   "live_multiple", "live_parallel", "live_parallel_multiple", "live_irrelevance", "live_relevance")


def load_bfcl(category, data_dir=None):
    """A single-turn category of BFCL -> list of {id, category, messages, tools, answers or None}.

    data_dir: a folder with BFCL's files (`BFCL_v4_*.json`, `possible_answer/`); by default that of the installed
    package bfcl-eval, which is found without importing it. Raises ValueError, one line, when something is missing or
    broken. The relevance categories have no answers: what counts there is whether a call is made.
    """
    if category not in BFCL_CATEGORIES:
        raise ValueError(f"no BFCL category {category!r}: choose from {', '.join(BFCL_CATEGORIES)}")
    if data_dir is None:
        package = importlib.util.find_spec("bfcl_eval")
        if package is None:
            raise ValueError("BFCL's data is missing: pip install --no-deps bfcl-eval==2026.3.23, or name its folder")
        data_dir = Path(package.submodule_search_locations[0]) / "data"
    path = Path(data_dir) / f"BFCL_v4_{category}.json"
    cases = _json_lines(path, lambda line: {"id": line["id"], "category": category, "messages": line["question"][0],
                                            "tools": line["function"], "answers": None})
    if "relevance" not in category:
        path = path.parent / "possible_answer" / path.name
        answers = dict(_json_lines(path, lambda line: (line["id"], line["ground_truth"])))
        for case in cases:
            if case["id"] not in answers:
                raise ValueError(f"{path}: no possible answer for {case['id']}")
            case["answers"] = answers[case["id"]]
    return cases


def _json_lines(path, pick):
    """pick(object) of each line of a file. Raises ValueError, with file and line, when that cannot be had."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the data folder of bfcl-eval==2026.3.23 has it")
    picked = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                picked.append(pick(json.loads(line)))
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{path}:{number}: not a line of BFCL's: {error!r:.100}") from None
    return picked


def score_bfcl(case, response):
    """A response (text) to a case of load_bfcl -> None when the leaderboard's runner would call it right, else one of
    ERROR_KINDS. Text that cannot be decoded makes no call: right for irrelevance, wrong elsewhere."""
    calls = decode_bfcl(response)
    if calls is None and not re.search(r"\w\(", response):
        calls = []  # prose: not even an attempt at a call
    if case["answers"] is not None or "irrelevance" in case["category"]:
        return check_calls(calls, case["answers"], case["tools"])
    if calls:
        return None  # live_relevance: any call will do
    return "unparseable" if calls is None else "no call where one was due"


def decode_bfcl(text):
    """A response -> list of Call as BFCL's decoder for prompted models reads it, or None when it cannot.

    It reads Python's grammar, so this does too (parsed, never evaluated), with its oddities: missing brackets are
    added, positional arguments dropped, bare words become strings, `+5` becomes -5, a parameter given twice has its
    last value. One thing is left out on purpose: BFCL evaluates an operator's operands whatever they are, calls and
    the names of its own module included; here they must be literals.
    """
    text = text.strip("`\n ")
    text = "[" * (not text.startswith("[")) + text + "]" * (not text.endswith("]"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of "\d"
            body = ast.parse(text, mode="eval").body
        nodes = [body] if isinstance(body, ast.Call) else getattr(body, "elts", None)
        if nodes is None or not all(isinstance(node, ast.Call) for node in nodes):
            return None
        return [_read_call(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _read_call(node):
    return Call(_dotted(node.func), {keyword.arg: _read_value(keyword.value) for keyword in node.keywords})


def _dotted(node):
    """`a.b.c` -> "a.b.c"; what is not a name counts for nothing, so that `f(1).b` -> "b"."""
    if isinstance(node, ast.Attribute):
        return ".".join(filter(None, (_dotted(node.value), node.attr)))
    return node.id if isinstance(node, ast.Name) else ""


def _read_value(node):
    match node:
        case ast.Constant(value=value):
            return "..." if value is ... else value
        case ast.UnaryOp(operand=ast.Constant(value=value)):  # whatever the operator
            return -value
        case ast.Name(id=name):
            return name
        case ast.List(elts=items):
            return [_read_value(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_read_value(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            return {_read_value(key): _read_value(value) for key, value in zip(keys, values)}
        case ast.BinOp():
            return _compute(node)
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            return dict([_read_call(node)])
        case ast.Subscript(value=value, slice=index):
            return f"{ast.unparse(value)}[{ast.unparse(index)}]"
    raise ValueError(f"not a value: {type(node).__name__}")


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
             ast.LShift: operator.lshift, ast.RShift: operator.rshift, ast.BitOr: operator.or_,
             ast.BitXor: operator.xor, ast.BitAnd: operator.and_, ast.USub: operator.neg, ast.UAdd: operator.pos,
             ast.Invert: operator.invert, ast.Not: operator.not_}


def _compute(node):
    """Operators between literals, as in `5 * 12` or `"a" + "b"`. Raises as Python does, or ValueError."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.List(elts=items):
            return [_compute(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_compute(item) for item in items)
        case ast.UnaryOp(op=op, operand=operand):
            return OPERATORS[type(op)](_compute(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            left, right = _compute(left), _compute(right)
            if isinstance(op, ast.Mod) and isinstance(left, (str, bytes)):
                raise ValueError("a format string")
            if _is_huge(op, left, right):
                return float("inf")  # as wrong as the true result, at once
            return OPERATORS[type(op)](left, right)
    raise ValueError(f"not a literal: {type(node).__name__}")


def _is_huge(op, left, right, limit=10 ** 6):
    """Whether a result would take more than `limit` bits or items, as in `9 ** 9 ** 9` or `"a" * 10 ** 12`."""
    whole = isinstance(left, int), isinstance(right, int)
    if isinstance(op, ast.Mult) and any(whole) and not all(whole):
        items, times = (right, left) if whole[0] else (left, right)
        return hasattr(items, "__len__") and len(items) * times > limit
    if isinstance(op, ast.Pow):
        return all(whole) and left.bit_length() * right > limit
    return isinstance(op, ast.LShift) and all(whole) and right > limit

# ---------------------------------------------------------------------------------------------
# Benchmarks
# ---------------------------------------------------------------------------------------------


def judge(sample, response):
    """A response (text) to one of our samples -> None when right, else one of ERROR_KINDS.

    Where the target is text, any text that calls nothing is right, as in BFCL's irrelevance, and like there a call without brackets is
    one: what it says is not judged. But a response that begins with [ has to be a list of calls. The target's own calls, and its own
    text, are right whatever BFCL's rules make of them.
    """
    response, target = response.strip(), sample.calls
    try:
        calls = synth.parse_calls(response) if response.startswith("[") else []
    except synth.CallSyntaxError:
        return "unparseable"
    if target is None:
        if response == sample.target.strip():
            return None
        names = "|".join(re.escape(tool["name"]) for tool in sample.tools)
        in_prose = rf'(?<!\w)({names})\(|"name"\s*:\s*"({names})"|{synth.OTHER_CALLS}'
        called = calls or decode_bfcl(response) or re.search(in_prose, response)
        unfinished = not response or "<think>" in response and "</think>" not in response
        return "call where none was due" if called else "unparseable" if unfinished else None
    if same_calls(calls, target, sample.tools):
        return None
    return check_calls(calls, answers_from(target, sample.tools), sample.tools)


def graded_outcome(sample, response):
    """O in [-1, 1] of a finished response: 1 only for a right one, else by the share of calls, names and values that are right."""
    if judge(sample, response) is None:
        return 1.0
    if sample.calls is None:
        return -1.0
    try:
        calls = synth.parse_calls(response.strip())
    except synth.CallSyntaxError:
        return -1.0
    return 2 * score_fraction(calls, sample.calls, sample.tools) - 1


MAX_NEW = 200     # tokens that a response may have when a model is scored


def response_limit(tokenizer, sample, max_new=0):
    """Tokens that a response to a sample may have: max_new; 0: MAX_NEW, or as many as the target where that is longer."""
    return max_new or max(MAX_NEW, len(synth.target_ids(tokenizer, sample)) if sample.target else 0)


def answer(model, tokenizer, samples, max_new=0, temperature=0.0, seed=0, copies=1, max_tokens=65536, progress=False):
    """Responses (text) to each sample: a list of `copies` of them each. max_new: see response_limit; max_tokens: of cache, in flight.

    A response ends with its turn; what follows another token that the checkpoint ends with (<|endoftext|>) is left out, too.
    """
    others = getattr(model.generation_config, "eos_token_id", None)
    others = set(others if isinstance(others, list) else [others])
    own = lambda ids: list(itertools.takewhile(lambda token: token not in others, ids))
    stop_id, texts = stop_token(tokenizer), [None] * len(samples)
    asked = [synth.prompt_ids(tokenizer, s) for s in samples]
    limits = [response_limit(tokenizer, s, max_new) for s in samples]
    drafts = [synth.target_ids(tokenizer, s)[:n] if s.target else [] for s, n in zip(samples, limits)]     # fewer passes, the same samples
    room = max(map(len, drafts), default=0) + (copies + 1) * max(limits, default=0)
    order = sorted(range(len(samples)), key=lambda i: len(asked[i]))
    bar = tqdm(total=len(samples), desc="eval", disable=not progress, leave=False)

    def next_group(max_tokens):
        group = order[:fitting([len(asked[i]) + room for i in order], max_tokens)]
        prompts = Prompts(model, [asked[i] for i in group], [drafts[i] for i in group])
        tasks = [(n, decode_task(prompts, n, [], limits[i], stop_id, copies, 1_000_003 * seed + i)) for n, i in enumerate(group)]
        for i, row in zip(group, run_tasks(prompts, tasks, temperature)):
            texts[i] = [response_text(tokenizer, own(ids), stop_id) for ids, _ in row]
        return len(group)

    while order:
        n, max_tokens = within_memory(next_group, max_tokens)
        order = order[n:]
        bar.update(n)
    bar.close()
    return texts


def evaluate(model, tokenizer, samples, max_new=0, progress=False):
    """Greedy decoding of every sample -> one record each: id, correct, error, response, level, scenario, forms, talk."""
    texts = answer(model, tokenizer, samples, max_new, progress=progress)
    records = []
    for sample, (text,) in zip(samples, texts):
        error = judge(sample, text)
        records.append({"id": sample.id, "correct": error is None, "error": error, "response": text,
                        "level": sample.level, "scenario": sample.scenario, "forms": sample.forms, "talk": sample.talk})
    return records


def interval(right, n, z=1.96):
    """Wilson's 95% interval of a share, in percent."""
    if not n:
        return 0.0, 0.0
    p, d = right / n, 1 + z * z / n
    middle, half = (p + z * z / (2 * n)) / d, z / d * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


def paired_interval(before, after, draws=2000, seed=0):
    """Bootstrap 95% interval of mean(after) - mean(before) over the same cases, in points."""
    difference = torch.tensor(after, dtype=torch.float) - torch.tensor(before, dtype=torch.float)
    generator = torch.Generator().manual_seed(seed)
    means = difference[torch.randint(len(difference), (draws, len(difference)), generator=generator)].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975])).tolist()
    return 100 * low, 100 * high


def share(records, **wanted):
    """Percent right of the records whose fields have these values; None where there are none."""
    part = [r["correct"] for r in records if all(r.get(key) == value for key, value in wanted.items())]
    return 100 * sum(part) / len(part) if part else None


def summarize(records):
    """What metrics.jsonl says of a scored model: accuracy in percent, over all and by level (`share`), and errors by kind."""
    errors = Counter(r["error"] for r in records if r["error"])
    return {"n": len(records), "accuracy": share(records),
            **{level: share(records, level=level) for level in synth.LEVELS},
            "errors": {kind: errors[kind] for kind in ERROR_KINDS if errors[kind]}}


def sampled_accuracy(cases, found, check):
    """(mean, vote, best), in percent: sampled answers that are right; cases right by majority vote, which is where a policy
    sharpened on its own samples would end up (self-consistency: Wang et al., arXiv 2203.11171); cases with at least one right
    answer, which a search may find (pass@k: Chen et al., arXiv 2107.03374).

    found: the sampled texts of each case; an empty list is wrong. check: (case, text) -> the kind of error, or None.
    """
    right = [[check(case, text) is None for text in texts] or [False] for case, texts in zip(cases, found)]
    votes = [row[texts.index(Counter(texts).most_common(1)[0][0])] if texts else False for row, texts in zip(right, found)]
    return tuple(100 * sum(shares) / len(right) for shares in ([sum(row) / len(row) for row in right], votes, map(any, right)))


def print_scores(records):
    """Accuracy with 95% intervals: overall, by level, by scenario or category, with small talk and without; then the error kinds."""
    def line(name, part):
        right = sum(r["correct"] for r in part)
        low, high = interval(right, len(part))
        print(f"{name:22s} {100 * right / len(part):5.1f}%   [{low:4.1f}, {high:5.1f}]   {right}/{len(part)}")
    line("overall", records)
    for field in ("level", "scenario", "category"):
        for value in dict.fromkeys(sorted(r[field] for r in records if r.get(field))):
            line(f"  {field[:1]}: {value}" if field != "level" else f"  {value}", [r for r in records if r.get(field) == value])
    for name, said in (("  with small talk", True), ("  without small talk", False)):
        part = [r for r in records if "talk" in r and bool(r["talk"]) == said]
        if 0 < len(part) < len(records):
            line(name, part)
    wrong = Counter(r["error"] for r in records if r["error"])
    for kind, n in wrong.most_common():
        print(f"    {kind:32s} {n:5d}  {100 * n / sum(wrong.values()):5.1f}% of the wrong answers")


def bfcl_sample(case):
    """A BFCL case as a sample of ours, to be shown to a model; it has no target."""
    tools = [synth.normalize_tool(tool) for tool in case["tools"]]
    return synth.Sample(case["id"], tools, case["messages"], "")


def read_answers(path):
    """{id: response} of a JSON lines file with `id` and `result`. Raises ValueError with file and line."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    found = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            found[str(record["id"])] = record["result"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ValueError(f"{path}, line {number}: not a JSON object with `id` and `result`") from None
        if not isinstance(record["result"], str):
            raise ValueError(f"{path}, line {number}: `result` is to be the model's text; calls that an API has parsed are not scored")
    return found


def expected_grade(shares):
    """C, from 0 (poor) to 1 (excellent): probabilities of synth.GRADES -> what they are worth."""
    return sum(p * value for p, value in zip(shares, synth.GRADE_VALUES))


def self_evaluation_auc(model, tokenizer, samples, wrong):
    """Area under the ROC curve of the policy's own grade C, right answers against the wrong ones beside them."""
    question, grades = synth.grade_ids(tokenizer)
    prompts, value = Prompts(model, [synth.prompt_ids(tokenizer, s) for s in samples]), []
    for answers in ([s.target for s in samples], wrong):
        encoded = tokenizer(answers, add_special_tokens=False)["input_ids"]
        trees = [[([last, *ids, *question], -1, False), (grades[:1], 0, True)] for last, ids in zip(prompts.last, encoded)]
        value.append(torch.tensor([expected_grade(shares) for (_, shares), in score(prompts, range(len(trees)), trees, grades)]))
    difference = value[0][:, None] - value[1][None]
    return ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item()


def base_skills(cfg):
    """What the embedded base was trained for, on fresh tools: exact calls with literal values, and its grades."""
    from base.documents import base_samples    # no other model needs that folder
    model, tokenizer = load_model(cfg.model, cfg.device)
    everything = []
    for written, sizes in ((False, [1]), (False, [4, 5, 6]), (True, [1]), (True, [4, 5, 6])):
        name = f"{'written' if written else 'random'}, {'one tool' if sizes == [1] else 'four to six tools'}"
        samples, wrong = base_samples(cfg.n // 4, sizes, cfg.seed, written)
        records = [{**r, "scenario": name} for r in evaluate(model, tokenizer, samples, cfg.max_new, progress=True)]
        print(f"{name:26s} self-evaluation AUC {self_evaluation_auc(model, tokenizer, samples, wrong):.3f}")
        everything += records
    return everything


@dataclass
class EvalConfig:
    model: str = ""                # path or hub name of a causal language model
    bench: str = "heldout"         # heldout: the simulated world's test (or --data); bfcl: BFCL's questions; base: the
                                   # embedded base on fresh tools, a quarter of --n for each kind
    categories: str = "simple_python,multiple,parallel,parallel_multiple,irrelevance"  # of BFCL, between commas
    data: str = ""                 # heldout: a file of samples; bfcl: the folder of its data, if not the package's
    split: str = "test"            # heldout without --data: test or val
    n: int = 1000                  # heldout without --data: number of samples
    seed: int = 0                  # of the simulated samples, and of what --samples draws
    answers: str = ""              # JSON lines of `id` and `result`: score these; no model is needed
    max_new: int = 0               # tokens a response may have; 0: 200, or as many as the target where that is longer
    samples: int = 0               # also sample this many answers a question: mean, majority vote, pass@k
    temperature: float = 1.0       # at which they are sampled
    max_tokens: int = 4096         # prompts that are longer, or leave no room for a response, count as wrong answers
    out: str = ""                  # JSON lines to write: id, correct, error, response of each case
    device: str = "auto"
    skip_bad: bool = False         # leave out records that cannot be used, and count them


def main(argv=None):
    cfg, = synth.read_flags(argv, EvalConfig)
    if bool(cfg.model) == bool(cfg.answers):
        raise ValueError("give either --model or --answers")
    check_at_least_one(cfg, "n")
    if cfg.max_new < 0:
        raise ValueError(f"--max_new is at least 0 (got {cfg.max_new})")
    if cfg.samples < 0 or cfg.temperature <= 0:
        raise ValueError(f"--samples is at least 0 and --temperature above it (got {cfg.samples}, {cfg.temperature})")
    if cfg.samples and (cfg.answers or cfg.bench == "base"):
        raise ValueError("--samples needs --model, and --bench heldout or bfcl")
    if cfg.split not in ("test", "val"):
        raise ValueError(f"--split is test or val (got {cfg.split})")
    synth.check_folder(cfg.out)
    if cfg.bench == "base":
        if not cfg.model:
            raise ValueError("--bench base needs --model")
        if cfg.n < 4:
            raise ValueError(f"--bench base asks four kinds of questions: --n is at least 4 (got {cfg.n})")
        records = base_skills(cfg)
        print_scores(records)
        return write_records(records, cfg.out)
    if cfg.bench == "bfcl":
        cases = [case for name in cfg.categories.split(",") for case in load_bfcl(name.strip(), cfg.data or None)]
        samples = [bfcl_sample(case) for case in cases]
    elif cfg.bench == "heldout":
        cases, skipped = synth.read_samples(cfg.data, cfg.skip_bad) if cfg.data else \
            (synth.make_samples(cfg.n, cfg.split, cfg.seed), 0)
        samples = cases
        if skipped:
            print(f"{cfg.data}: {skipped} records left out")
    else:
        raise ValueError(f"--bench is heldout, bfcl or base (got {cfg.bench})")
    if cfg.answers:
        given = read_answers(cfg.answers)
        missing = [case["id"] if isinstance(case, dict) else case.id for case in cases
                   if (case["id"] if isinstance(case, dict) else case.id) not in given]
        if missing:
            raise ValueError(f"{cfg.answers}: no answer for {len(missing)} of {len(cases)} cases, such as {missing[0]}")
        texts, fits = [given[sample.id] for sample in samples], [True] * len(samples)
    else:
        model, tokenizer = load_model(cfg.model, cfg.device)
        rooms = [context_length(model, cfg.max_tokens, room=response_limit(tokenizer, s, cfg.max_new)) for s in samples]
        fits = [len(synth.prompt_ids(tokenizer, s)) <= room for s, room in zip(samples, rooms)]
        if not all(fits):
            print(f"{fits.count(False)} prompts are longer than {max(rooms)} tokens: counted as wrong, not cut")
        found = iter(answer(model, tokenizer, [s for s, fit in zip(samples, fits) if fit], cfg.max_new, progress=True))
        texts = [next(found)[0] if fit else "" for fit in fits]
    check = score_bfcl if cfg.bench == "bfcl" else judge
    records = []
    for case, sample, text, fit in zip(cases, samples, texts, fits):
        error = check(case, text) if fit else "unparseable"
        records.append({"id": sample.id, "correct": error is None, "error": error, "response": text,
                        **({"category": case["category"]} if cfg.bench == "bfcl" else
                           {"level": sample.level, "scenario": sample.scenario, "talk": sample.talk})})
    print_scores(records)
    if cfg.samples:
        some = iter(answer(model, tokenizer, [s for s, fit in zip(samples, fits) if fit], cfg.max_new, cfg.temperature, cfg.seed,
                           cfg.samples, progress=True))
        found = [next(some) if fit else [] for fit in fits]
        mean, vote, best = sampled_accuracy(cases, found, check)
        print(f"{cfg.samples} samples a question at temperature {cfg.temperature}: {mean:.1f}% of them right, {vote:.1f}% of the questions "
              f"by majority vote, {best:.1f}% with at least one right")
        records = [{**record, "sampled": texts} for record, texts in zip(records, found)]
    write_records(records, cfg.out)


def write_records(records, path):
    """One JSON line a case, if there is a path to write to."""
    if path:
        Path(path).write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")


if __name__ == "__main__":
    run(main)

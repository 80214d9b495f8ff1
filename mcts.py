"""Search: one tree a sample, all trees in one batch, then preference pairs.

    python mcts.py --model out/warmup --n 64 --seed 1 --out trees.jsonl          # search and save
    python mcts.py --show 2 --trees trees.jsonl                                  # look at trees

docs/method.md, 2b and 2c. A state is the prompt plus the response so far; an action is a *step*: a function's name
with its bracket, or one `param=value` with its delimiter. Each simulation selects a leaf by PUCT, expands it (k steps
sampled, rolled out to the end of the response), evaluates its children and backs up (`grow`). A forward pass serves all
trees, whatever each is at (`eval.run_tasks`).
Nodes keep the token ids that the policy produced; nothing is tokenized again between search and training.
"""

import functools
import json
import math
from dataclasses import asdict, dataclass, field

from tqdm import tqdm

import synth
from eval import Prompts, decode_task, expected_grade, graded_outcome, judge, response_text, run_tasks, score_task, stop_token
from sft import check_at_least_one, context_length, fitting, load_model, run, split_too_long, within_memory


OUTCOMES = ("graded", "exact", "none")
UNFINISHED = -1.0     # O of a response that has not ended within max_new tokens, as of one that is all wrong


@dataclass
class PairConfig:
    """What makes the pairs of a tree (preference_pairs)."""
    outcome: str = "graded"          # O of a finished response: graded, exact (+1, -1), or none: R = C alone
    min_gap: float = 0.1             # pairs with a smaller gap in Q, which is in units of O, are dropped (released script)
    min_chosen: float = -0.3         # pairs whose preferred Q is lower are dropped (released script)
    near: float = 0.6                # above 0: the likeliest of the worse steps is rejected, where its prior is at least this
                                     # share of the chosen one's; 0: the step with the lowest Q, however unlikely (the paper)
    across: bool = False             # pairs of a call and a text, too (the paper)


@dataclass
class SearchConfig(PairConfig):
    """What makes a tree; and its pairs, which `show` marks."""
    simulations: int = 6             # a tree; the released script: 5, the ancestor: 64
    k: int = 3                       # steps sampled at a node, as in the released script
    temperature: float = 1.0         # of the sampled steps and rollouts; the released script: 1.5
    depth: int = 12                  # steps; at this depth the rest of the response is one step (the released script: 3)
    c_puct: float = 1.0              # weight of the prior against Q in the selection
    length_power: float = 1.25       # prior = exp(sum log p / length^power), the ancestor's
    discount: float = 1.0            # gamma, of V in the backup
    self_eval: float = 0.5           # weight of C, the policy's own grade, in R = O + C (the paper: 1); 0: none
    target_step: bool = True         # on the target's path, its next step is a candidate too, with one right rollout
    max_new: int = 128               # tokens a response may have
    max_tokens_in_flight: int = 98304  # cache slots: as many trees as fit are searched together


@dataclass
class Node:
    """A step a from its parent's state s, and the state s' that it leads to. Node 0 is the empty response."""
    parent: int                      # index in the tree's list; -1 for the root
    ids: list                        # token ids of the step
    text: str
    prior: float = 1.0               # p(a|s), normalized by length; -1 until `evaluate_children` has asked for it
    visits: int = 0                  # N(s,a) = N(s')
    q: float = 0.0                   # Q(s,a) = r + gamma * V(s')
    r: float = 0.0                   # r(s,a) = R(s') - R(s), the step's reward
    reward: float = 0.0              # R(s') = O + C
    outcome: float = 0.0             # O: of the finished response, or the mean of its rollouts
    sampled: int = 0                 # rollouts that the policy has sampled, the target's own not among them
    grade: float = 0.0               # C: self-evaluation, times its weight
    value: float = 0.0               # V(s') = sum N Q / sum N over its children
    final: bool = False              # the response ends here
    closed: bool = False             # nothing below is left to expand
    expanded: bool = False
    children: list = field(default_factory=list)


@dataclass
class Tree:
    sample: synth.Sample
    prompt: list                     # token ids
    nodes: list
    right: list = field(default_factory=list)     # token ids of one right response: sampled, or the target's; if any
    samples: int = 0                 # whole responses sampled, from the root
    hits: int = 0                    # of them right
    finished: list = field(default_factory=list)  # [text, is it right?] of every response that was sampled

    def path(self, node):
        """Indices from the first step to `node`; the root is left out."""
        out = []
        while node > 0:
            out.append(node)
            node = self.nodes[node].parent
        return out[::-1]

    def so_far(self, node):
        """Token ids of the response up to and with `node`."""
        return [token for n in self.path(node) for token in self.nodes[n].ids]


# ---------------------------------------------------------------------------------------------
# Steps
# ---------------------------------------------------------------------------------------------


def step_ends(text):
    """Yield the index just after each step of a response.

    A step ends after the bracket that opens a call's parameters, after the comma that follows a parameter, and after
    the bracket that closes a call and its delimiter; never inside a string or a nested value. A response that
    is not a list of calls is one step.
    """
    depth, quote, escaped, closing = 0, "", False, False
    if not text.lstrip().startswith("["):
        return
    for i, c in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == quote:
                quote = ""
            continue
        if closing and c not in " ":
            closing = False
            if c == ",":                       # `), ` ends the call's last step
                yield i + 1
                continue
            if c == "]":                       # `)]` ends the response
                yield i + 1
        if c in "\"'" and depth >= 2 and not text[i - 1].isalnum():      # user's=1 is a name
            quote = c
        elif c in "([{":
            depth += 1
            if depth == 2 and c == "(":
                yield i + 1
        elif c in ")]}":
            depth -= 1
            closing = depth == 1 and c == ")"
        elif c == "," and depth == 2:
            yield i + 1


@functools.cache
def may_end_step(tokenizer, token):
    return any(mark in tokenizer.decode([token]) for mark in "(),]")


def cut_steps(tokenizer, ids, stop_id):
    """Token ids of a response -> list of steps (lists of ids). A step ends with the token that holds its boundary."""
    body = ids[:-1] if ids and ids[-1] == stop_id else ids
    marks = [n for n, token in enumerate(body) if may_end_step(tokenizer, token)]
    lengths = [len(tokenizer.decode(body[:n + 1])) for n in marks]
    steps, start = [], 0
    for end in step_ends(tokenizer.decode(body)):
        cut = next(n for n, length in zip(marks, lengths) if length >= end)
        if cut >= start:     # else the token that ended the last step, such as `(), `, holds this end too
            steps.append(ids[start:cut + 1])
            start = cut + 1
    if start < len(body) or not steps:
        steps.append(ids[start:])
    else:
        steps[-1] = steps[-1] + ids[start:]     # the end of the turn belongs to the last step
    return steps


# ---------------------------------------------------------------------------------------------
# The search
# ---------------------------------------------------------------------------------------------


def puct(tree, parent, child, c_puct):
    """Q(s,a) + c_puct * p(a|s) * sqrt(N(s)) / (1 + N(s,a))."""
    return child.q + c_puct * child.prior * math.sqrt(tree.nodes[parent].visits) / (1 + child.visits)


def select(tree, c_puct):
    """Index of the leaf that PUCT leads to, through children that are not closed."""
    node = 0
    while tree.nodes[node].expanded:
        node = max((c for c in tree.nodes[node].children if not tree.nodes[c].closed),
                   key=lambda c: puct(tree, node, tree.nodes[c], c_puct))
    return node


def backup(tree, node, gamma):
    """Leaf to root: N(s) += 1; V(s) = sum N Q / sum N over its children; Q(s,a) = r(s,a) + gamma * V(s')."""
    while node >= 0:
        this = tree.nodes[node]
        this.visits += 1
        children = [tree.nodes[c] for c in this.children]
        if children:
            this.value = sum(c.visits * c.q for c in children) / sum(c.visits for c in children)
            this.closed = all(c.closed for c in children)
        this.q = this.r + gamma * this.value
        node = this.parent


def check_search(cfg):
    """Raises ValueError for a setting that no search can have."""
    check_at_least_one(cfg, "simulations", "k", "depth", "max_new")
    if cfg.temperature < 0:
        raise ValueError(f"--temperature is at least 0 (got {cfg.temperature})")
    if not 0 <= cfg.length_power <= 10:
        raise ValueError(f"--length_power is from 0 to 10 (got {cfg.length_power})")
    check_pairs(cfg)


def check_pairs(cfg):
    """Raises ValueError for a setting that no pairs can be made with."""
    if not 0 <= cfg.near <= 1:
        raise ValueError(f"--near is a share from 0 to 1 (got {cfg.near})")
    if cfg.outcome not in OUTCOMES:
        raise ValueError(f"--outcome is one of {', '.join(OUTCOMES)} (got {cfg.outcome})")


def search(model, tokenizer, samples, cfg, seed=0, progress=True):
    """One finished tree a sample (docs/method.md, 2b), in the order of the samples.

    A response ends with its turn's token alone (`eval.answer` also ends it where the checkpoint has others). As many trees are in
    flight as `max_tokens_in_flight` allows, grouped by prompt length. What a tree samples depends only on the seed and its index,
    not on the trees searched with it (up to rounding).
    """
    check_search(cfg)
    prompts = [synth.prompt_ids(tokenizer, s) for s in samples]
    order, sizes = sorted(range(len(samples)), key=lambda i: len(prompts[i])), [tokens_in_flight(p, tokenizer, cfg) for p in prompts]
    bar = tqdm(total=len(samples) * cfg.simulations, desc="search", disable=not progress, leave=False)
    check_room(samples, sizes, cfg)

    def next_trees(max_tokens):
        n, bar.n = fitting([sizes[i] for i in order], max_tokens), len(found) * cfg.simulations
        trees = {i: Tree(samples[i], prompts[i], [Node(-1, [], "")]) for i in order[:n]}
        targets = [synth.target_ids(tokenizer, tree.sample) for tree in trees.values()]
        drafts = [ids[:cfg.max_new] for ids in targets]      # fewer passes, the same samples
        known = Prompts(model, [tree.prompt for tree in trees.values()], drafts)
        run_tasks(known, [(place, grow(tree, known, place, targets[place], tokenizer, cfg, (seed, i), bar))
                          for place, (i, tree) in enumerate(trees.items())], cfg.temperature)
        return trees

    found, max_tokens = {}, cfg.max_tokens_in_flight
    while order:
        trees, max_tokens = within_memory(next_trees, max_tokens)
        found |= trees
        order = order[len(trees):]
    bar.close()
    return [found[i] for i in range(len(samples))]


def check_room(samples, sizes, cfg):
    """Raises ValueError where `max_tokens_in_flight` is too little for a sample. sizes: `tokens_in_flight` of each."""
    if samples and (room := max(sizes)) > cfg.max_tokens_in_flight:
        raise ValueError(f"--max_tokens_in_flight {cfg.max_tokens_in_flight} is too little for the sample "
                         f"{samples[sizes.index(room)].id}, whose search needs {room}")


def check_samples(tokenizer, samples, cfg):
    """`check_room` of samples that a search may get; says how many have a target that is longer than a response may be."""
    check_room(samples, [tokens_in_flight(synth.prompt_ids(tokenizer, sample), tokenizer, cfg) for sample in samples], cfg)
    if n := sum(len(synth.target_ids(tokenizer, sample)) > cfg.max_new for sample in samples):
        print(f"{n} of {len(samples)} samples have a target of more than {cfg.max_new} tokens: no response sampled for them can be right "
              "(see --max_new)")


def room_for(tokenizer, cfg):
    """Tokens behind a prompt at most: a response and the question that asks for its grade."""
    return cfg.max_new + len(synth.grade_ids(tokenizer)[0]) + 1


def tokens_in_flight(prompt, tokenizer, cfg):
    """Most cache slots that a tree takes: the prompt, the target, earlier samples that are kept (up to two responses),
    k continuations, guesses (up to one response), and the grading questions."""
    return len(prompt) + (cfg.k + 4) * cfg.max_new + (cfg.k + 1) * len(synth.grade_ids(tokenizer)[0])


def grow(tree, prompts, place, target, tokenizer, cfg, seed, bar):
    """One tree's simulations, as a generator: it yields model queries (`decode_task`: sample k continuations; `score_task`: probabilities of
    given tokens), and `eval.run_tasks` answers those of all trees in one pass. place: its prompt's index; target: token ids;
    seed: integers."""
    stop_id, grading = stop_token(tokenizer), synth.grade_ids(tokenizer)
    due = cut_steps(tokenizer, target, stop_id)
    for simulation in range(cfg.simulations):
        if not tree.nodes[0].closed:
            leaf = select(tree, cfg.c_puct)
            draws = hash((*seed, simulation)) % 2 ** 63     # a seed: not negative; integers hash alike in every process
            responses = yield from decode_task(prompts, place, tree.so_far(leaf), cfg.max_new, stop_id, cfg.k, draws)
            children = expand(tree, leaf, responses, due, tokenizer, cfg, stop_id)
            yield from evaluate_children(tree, leaf, children, prompts, place, grading, cfg, stop_id)
            backup(tree, leaf, cfg.discount)
        bar.update()


def expand(tree, leaf, responses, due, tokenizer, cfg, stop_id):
    """Children of a leaf from k continuations sampled to their end: the first step of each is a child, the rest its
    rollout; alike steps are one child with several rollouts. responses: (ids, logps) of each continuation; due: the target's steps. Returns
    the children's indices.
    """
    before, path, found = tree.so_far(leaf), tree.path(leaf), {}
    for ids, logps in responses:
        steps = cut_steps(tokenizer, before + ids, stop_id)[len(path):] or [ids]     # an end of turn alone closes the last step
        step = ids if len(path) + 1 >= cfg.depth else steps[0]
        text, ended = response_text(tokenizer, before + ids, stop_id), ids[-1] == stop_id
        outcome, right = outcome_of(tree.sample, text, ended, cfg)
        tree.finished.append([text, right])
        tree.samples += leaf == 0
        tree.hits += leaf == 0 and right
        tree.right = tree.right or (before + ids if right else [])
        found.setdefault(tuple(step), []).append((outcome, sum(logps[:len(step)])))
    on_target = [tree.nodes[c].ids for c in path] == due[:len(path)] and len(path) < len(due)
    if cfg.target_step and on_target:
        step = due[len(path)] if len(path) + 1 < cfg.depth else [t for s in due[len(path):] for t in s]
        # what follows the target's own steps is the target
        found.setdefault(tuple(step), []).append((outcome_of(tree.sample, tree.sample.target, True, cfg)[0], None))
        tree.right = tree.right or [t for s in due for t in s]
    for step, rollouts in found.items():
        outcome = sum(o for o, _ in rollouts) / len(rollouts)
        logp = next((p for _, p in rollouts if p is not None), None)
        node = Node(leaf, list(step), response_text(tokenizer, list(step), stop_id), outcome=outcome,
                    sampled=sum(p is not None for _, p in rollouts), final=step[-1] == stop_id or len(before) + len(step) >= cfg.max_new)
        node.closed = node.final
        node.prior = -1.0 if logp is None else math.exp(logp / len(step) ** cfg.length_power)
        tree.nodes.append(node)
        tree.nodes[leaf].children.append(len(tree.nodes) - 1)
    tree.nodes[leaf].expanded = True
    tree.nodes[leaf].closed = not found
    return tree.nodes[leaf].children


def outcome_of(sample, text, ended, cfg):
    """(O of a response, is it right?). ended: whether its turn ends. Another reward goes here, or into `graded_outcome`; the checker
    still decides what is right."""
    right = ended and judge(sample, text) is None
    if cfg.outcome == "graded":
        return graded_outcome(sample, text) if ended else UNFINISHED, right
    return {"exact": 1.0 if right else -1.0, "none": 0.0}[cfg.outcome], right


def evaluate_children(tree, leaf, children, prompts, place, grading, cfg, stop_id):
    """A task (`eval.run_tasks`): R(s) = O(s) + C(s) of a leaf's new children, their r (difference to the leaf's R), and priors that
    sampling did not give.

    C is the expected grade from 0 (poor) to 1 (excellent) that the policy gives the response so far, times its weight.
    All children are scored in one token tree: a shared path, then each child's step and the question. grading: `synth.grade_ids`.
    """
    question, grade_ids = grading
    asked, learned = [([prompts.last[place], *tree.so_far(leaf)], -1, False)], []
    for node in map(tree.nodes.__getitem__, children):
        if node.prior < 0 or cfg.self_eval:
            asked.append((node.ids, 0, node.prior < 0))
            learned += [(node, "prior")] * (node.prior < 0)
        if cfg.self_eval:
            ended = node.ids[-1] == stop_id and stop_id in question      # the question begins with the end of the turn
            asked.append((question[question.index(stop_id) + 1 if ended else 0:], len(asked) - 1, False))
            asked.append((grade_ids[:1], len(asked) - 1, True))
            learned.append((node, "grade"))
    found = (yield from score_task(prompts, place, asked, grade_ids)) if learned else ()
    for (node, what), (logps, shares) in zip(learned, found):
        if what == "prior":
            node.prior = math.exp(sum(logps) / len(node.ids) ** cfg.length_power)
        else:
            node.grade = cfg.self_eval * expected_grade(shares)
    for node in map(tree.nodes.__getitem__, children):
        node.reward = node.outcome + node.grade
        node.r = node.reward - tree.nodes[leaf].reward
        node.q, node.visits = node.r, 1      # a child's evaluation is its first visit


# ---------------------------------------------------------------------------------------------
# Pairs
# ---------------------------------------------------------------------------------------------


def preference_pairs(tree, cfg):
    """(chosen, rejected) node indices: at each node the child with the highest Q and a likely worse one (docs/method.md, 2c).

    Calls are compared only with calls, and text only with text, unless `across` is set: preferring calls to text in
    one sample teaches the policy not to ask back, and not to refuse, in others (docs/rounds.md).
    The rejected step is the one with the lowest Q or, with `near`, the likeliest of the worse ones.
    Dropped: pairs with a Q gap under min_gap, with a chosen Q under min_chosen, or whose chosen fragment did not lead
    to better outcomes (if outcomes count). The released script also drops fragments that overlap by more than 95%;
    ours stay, since a single wrong digit in a date is exactly what the method should repair.
    """
    pairs, at = [], tree.nodes.__getitem__

    def worse(c, best):
        return at(best).q - at(c).q >= cfg.min_gap and (cfg.outcome == "none" or at(best).outcome > at(c).outcome)

    for node in tree.nodes:
        calling = [c for c in node.children if at(c).text.lstrip().startswith("[")]     # first steps alone
        for group in [node.children] if cfg.across else [calling, [c for c in node.children if c not in calling]]:
            if len(group) < 2:
                continue
            best, worst = max(group, key=lambda c: at(c).q), min(group, key=lambda c: at(c).q)
            if cfg.near:
                likely = [c for c in group if worse(c, best) and at(c).prior >= cfg.near * at(best).prior]
                worst = max(likely, key=lambda c: at(c).prior, default=best)
            if worst != best and worse(worst, best) and at(best).q >= cfg.min_chosen:
                pairs.append((best, worst))
    return pairs


def show(tree, cfg):
    """The tree as indented text: visits, prior, Q, and the fragments; the chosen of a pair with +, the rejected with -."""
    pairs = preference_pairs(tree, cfg)
    chosen, rejected = {c for c, _ in pairs}, {r for _, r in pairs}
    lines = [f"{tree.sample.messages[-1]['content']}", f"  target {tree.sample.target}",
             f"  {tree.hits} of {tree.samples} whole responses right, {len(pairs)} pairs"]

    def walk(n, indent):
        node = tree.nodes[n]
        if n:
            mark = "+" if n in chosen else "-" if n in rejected else " "
            lines.append(f"{mark} N {node.visits:3d}  p {node.prior:.2f}  Q {node.q:+.2f}  O {node.outcome:+.2f}  "
                         f"C {node.grade:.2f}  {'  ' * indent}{node.text}")
        for c in sorted(node.children, key=lambda c: -tree.nodes[c].q):
            walk(c, indent + 1)
    walk(0, -1)
    return "\n".join(lines)


def write_trees(trees, path):
    """One JSON object a tree."""
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(asdict(tree), ensure_ascii=False) + "\n" for tree in trees)


def read_trees(path):
    """Trees that `write_trees` wrote. Raises ValueError with file and line."""
    trees = []
    with open(path, encoding="utf-8-sig", errors="replace") as f:
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
                if not record["nodes"]:
                    raise ValueError("it has no nodes")
                trees.append(Tree(**{**record, "sample": synth.Sample(**record["sample"]),
                                     "nodes": [Node(**n) for n in record["nodes"]]}))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f"{path}, line {number}: not a tree ({error})") from None
    return trees


@dataclass
class MCTSConfig:
    model: str = "base"          # path or hub name of a causal language model
    data: str = ""               # samples to search on; none: the simulated world's training set
    n: int = 64                  # samples to search on, at most
    out: str = ""                # JSON lines file for the trees
    trees: str = ""              # trees to show instead of searching
    show: int = 1                # trees to print
    max_tokens: int = 4096       # longer samples are left out, and counted
    seed: int = 0
    device: str = "auto"
    skip_bad: bool = False


def main(argv=None):
    cfg, search_cfg = synth.read_flags(argv, MCTSConfig, SearchConfig)
    check_search(search_cfg)
    check_at_least_one(cfg, "n")
    if cfg.trees:
        trees = read_trees(cfg.trees)
    else:
        synth.check_folder(cfg.out)
        model, tokenizer = load_model(cfg.model, cfg.device)
        samples, skipped = (synth.read_samples(cfg.data, cfg.skip_bad) if cfg.data
                            else (synth.make_samples(cfg.n, "train", cfg.seed), 0))
        if skipped:
            print(f"{cfg.data}: {skipped} records left out")
        limit = context_length(model, cfg.max_tokens, room=room_for(tokenizer, search_cfg))
        samples, too_long = split_too_long(tokenizer, samples[:cfg.n], limit)
        if too_long:
            print(f"{too_long} samples left out: longer than {limit} tokens")
        if not samples:
            raise synth.DataError("no sample is left to search on")
        check_samples(tokenizer, samples, search_cfg)
        trees = search(model, tokenizer, samples, search_cfg, cfg.seed)
    for tree in trees[:cfg.show]:
        print(show(tree, search_cfg))
    pairs = [preference_pairs(tree, search_cfg) for tree in trees]
    print(f"{len(trees)} trees, {sum(len(t.nodes) for t in trees)} nodes, {sum(map(len, pairs))} pairs in "
          f"{sum(map(bool, pairs))} trees, {100 * sum(t.hits for t in trees) / max(1, sum(t.samples for t in trees)):.0f}% "
          "of whole responses right")
    if cfg.out:
        write_trees(trees, cfg.out)
        usual, used = asdict(PairConfig()), asdict(search_cfg)
        flags = " ".join(f"--{key} {used[key]}" for key in usual if used[key] != usual[key])
        print(f"{cfg.out}: for the same pairs give dpo.py {flags}, too" if flags else cfg.out)


if __name__ == "__main__":
    run(main)

"""The paper's claims, measured: the loop, what it is compared with, and the tables and figures of docs/results.md.

    python -m docs.experiments --quick                # one small seed of everything, in out/quick: minutes
    python -m docs.experiments --tune                 # settings of each method, tried on the validation split
    python -m docs.experiments                        # every experiment, 5 seeds: many hours on a CPU
    python -m docs.experiments --only 4 --seeds 0,1   # some of it
    python -m docs.experiments --arms "loop;same data"          # runs by name
    python -m docs.experiments --draw --results docs  # the tables and figures of docs/results.md again, from their lines alone

Run it in the repository's root. Flags that are not the runner's own are loop.py's, for all runs: --model, --n,
--device, ... Each run appends one line to out/experiments/results.jsonl, from which results.md is drawn beside it; a command that was
stopped resumes where it was. Runs that have a line are not repeated. docs/results.jsonl has the lines of docs/results.md; a folder without
lines starts with the settings tried there, if the model is the same. docs/earlier has the results of earlier settings.

What makes the comparisons fair. All runs of a seed share its data and its warm-up (made by the first, `loop`), and the
seed is that of data, search and training. `cost` is the policy's computation, without the scoring of the held-out set.
The loop runs first; the runs of experiment 4 continue until they have cost at least as much, and the loop's variants
in experiment 5 add rounds while that brings them nearer to its cost. Each method has three settings (TRIES), compared
on the validation split with a seed of their own (--tune): the first within a standard error of the best is taken;
results.md names the methods not tuned. The defaults of everything else were chosen by hand on the same
validation samples, the loop's with more tries than SFT's (docs/rounds.md). Each model is scored on the test set once.
"""

import importlib.util
import json
import math
import os
import random
import re
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

import loop
import synth
from docs.tables import KINDS, SCENARIOS, best_try, cost, draw, names
from dpo import DPOConfig, paired_tree, segment_logps
from eval import BFCL_CATEGORIES, MAX_NEW, answer, bfcl_sample, evaluate, judge, load_bfcl, response_text, score_bfcl, stop_token
from mcts import Node, SearchConfig, cut_steps, preference_pairs, read_trees, room_for, search
from sft import (TOKENS, add_lora, context_length, fingerprint, load_lora, load_model, merge_lora, run, sample_tree,
                 save_lora, split_too_long, tree_tokens, unmerge_lora, warm_up)


SHIPPED = Path(__file__).with_name("results.jsonl")


@dataclass
class Settings:
    only: str = ""                   # experiments to run, between commas; none: all of 1 to 9
    arms: str = ""                   # runs by name, between semicolons: of those experiments no others
    seeds: str = "0,1,2,3,4"         # between commas
    tune: bool = False               # instead of the experiments: try the settings in TRIES
    tune_seed: int = 100             # of data and training while settings are tried: no experiment's
    draw: bool = False               # run nothing, only draw
    quick: bool = False              # one small seed of everything, in a folder of its own
    out: str = "out/experiments"     # folder of the runs
    results: str = ""                # folder of results.jsonl, results.md and the figures; none: --out
    sweep: str = "4,8,16,32"         # experiment 5: simulations a tree
    many_rounds: int = 10            # experiment 7
    bfcl_cases: int = 0              # experiment 8: of each category; 0: all


# The same number for each method. Each names all that it sets, since a method starts from the best settings of the warm-up and of the
# loop, which are tuned first. Without tries the first is taken; {}: loop.py's defaults.
PREFERENCE = [{"pref_lr": lr, "beta": beta} for lr, beta in ((2e-4, 1.0), (4e-4, 1.0), (2e-4, 0.3))]
SFT = [{"lr": lr} for lr in (1e-3, 5e-4, 2e-3)]
TRIES = {
    "warm-up": [{}, {"lr": 5e-4}, {"lr": 2e-3}],
    **dict.fromkeys(("loop", "whole responses", "steps, no tree, no C"), PREFERENCE),
    **dict.fromkeys(("same data", "unseen data", "picked targets", "fresh data", "RFT", "own right responses"), SFT),
    # SimPO and IPO average over a fragment's tokens, some seven: SimPO's slope at beta 7 is DPO's at beta 1, and IPO's target at 1.5
    # is what DPO has moved by after a round, a third of a nat a token. Each list begins with its authors' setting or loop.py's.
    "SimPO": [{"pref_lr": 2e-4, "beta": beta, "margin": margin} for beta, margin in ((2.5, 0.5), (7.5, 0.5), (7.5, 2.0))],
    "IPO": [{"pref_lr": 2e-4, "beta": beta} for beta in (1.0, 3.0, 0.3)],
    "ORPO": [{"pref_lr": 2e-4, "beta": beta} for beta in (0.1, 0.3, 1.0)],
}


def spent(before):
    """Tokens since the counts in `before`."""
    return {kind: TOKENS[kind] - before[kind] for kind in KINDS}


# ---------------------------------------------------------------------------------------------
# A run: its folder, its settings, its line
# ---------------------------------------------------------------------------------------------


@dataclass
class Arm:
    name: str
    experiments: str                 # those that it belongs to, by number
    go: callable                     # Run -> {model's name: folder with its scores and responses}, extra results
    change: dict = field(default_factory=dict)     # what differs from the loop's settings
    runner: dict = field(default_factory=dict)     # the runner's own settings that it depends on, where not the defaults


def loop_settings(flags):
    return synth.read_flags(flags, loop.LoopConfig, SearchConfig, DPOConfig)


@dataclass
class Run:
    settings: Settings
    folder: Path                     # its own
    warm: Path                       # the loop's of the same seed: data, base, warmup, and rounds
    flags: list                      # loop.py's
    budget: float                    # what the loop has cost, from the warm-up on; 0 while that is not known

    @property
    def configs(self):
        return loop_settings(self.flags)

    def load(self, adapter=""):
        """(model, tokenizer): the base, or the policy that `adapter` makes of it."""
        cfg = self.configs[0]
        model, tokenizer = load_model(cfg.model, cfg.device)
        return (load_lora(model, adapter) if adapter else model), tokenizer

    def samples(self, name):
        return loop.read_data(self.warm, name)


def as_flags(settings):
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]


def read_lines(path):
    """What was written; a line that a kill left unfinished is not among it."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] if path.exists() else []


def write_lines(lines, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".tmp").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(path.with_suffix(".tmp"), path)


def tuned(lines, method):
    """The settings of the method's best try (`best_try`); without tries, the first."""
    return TRIES.get(method, [{}])[best_try(lines, method)]


def perform(arm, seed, number, settings, flags, lines, weights):
    """Run an arm with a seed and its `number`-th settings of TRIES (None: the best), unless results.jsonl has the line."""
    path, split = Path(settings.results, "results.jsonl"), "test" if number is None else "val"
    tried = tuned(lines, arm.name) if number is None else TRIES[arm.name][number]
    first = {} if arm.name == "warm-up" else tuned(lines, "warm-up")
    first |= {} if arm.name in ("warm-up", "loop") else tuned(lines, "loop")
    differ = {**first, **tried, **arm.change, "seed": seed, "eval_split": split}
    done = next((line for line in lines if (line["arm"], line["seed"], line["try"]) == (arm.name, seed, number)), None)
    if done:
        before, now = ((one["settings"], one["flags"], one["runner"]) for one in (
            {"runner": {}, **done}, {"settings": differ, "flags": flags, "runner": arm.runner}))
        if before != now:
            raise ValueError(f"{path}: {arm.name}, seed {seed}, was run with {before}, not {now}: take its line out, or give other "
                             "--results and --out")
        return
    home = Path(settings.out, f"{split}{seed}")
    loops = [line for line in lines if (line["arm"], line["seed"], line["try"] is None) == ("loop", seed, number is None)]
    budget = max((line["cost"] for line in loops), default=0)      # while tuning: what its most expensive try has cost
    if arm.name not in ("loop", "warm-up"):      # all others begin with the loop's warm-up
        if not loops:
            raise ValueError(f"{arm.name}, seed {seed}, begins with the loop's warm-up and is compared with it: run loop, too")
        if loops[0]["flags"] != flags:
            raise ValueError(f"{path}: loop, seed {seed}, was run with {loops[0]['flags']}, not {flags}: give the same, or other --results "
                             "and --out")
        if not (home / "loop" / "warmup").exists():
            raise ValueError(f"{home / 'loop'} is not there, and {arm.name}, seed {seed}, begins with it: give --out, the folder of the runs "
                             f"in {path}, or begin anew with another --results")
    folder = home / re.sub(r"\W+", "_", f"{arm.name}{number or ''}")
    one = Run(settings, folder, home / "loop", [*flags, *as_flags(differ)], budget)
    print(f"--- {arm.name}: {differ}", flush=True)
    started, before = time.time(), Counter(TOKENS)
    models, extra = arm.go(one)
    line = {"arm": arm.name, "experiments": arm.experiments, "seed": seed, "try": number, "tried": tried, "settings": differ,
            "flags": flags, "runner": arm.runner, "weights": weights, "models": [], "correct": {}}
    for name, folder in models.items():
        line["models"].append({**json.loads((folder / "scores.json").read_text(encoding="utf-8")), "model": name})
        records = [json.loads(text) for text in (folder / "responses.jsonl").read_text(encoding="utf-8").splitlines()]
        line["correct"][name] = "".join(str(int(r["correct"])) for r in records)
        line["levels"] = "".join(r["level"][0] for r in records)
        line["requests"] = "".join(SCENARIOS[r["scenario"]].upper() if r["talk"] else SCENARIOS[r["scenario"]] for r in records)
    work = [row["tokens"] for row in line["models"] if row["model"] not in ("base", "warm-up")] or [spent(before)]
    line["tokens"] = {kind: sum(tokens[kind] for tokens in work) for kind in KINDS}
    line["cost"] = cost(line["tokens"])
    line |= {**extra, "budget": budget, "seconds": round(time.time() - started, 1)}
    lines[:] = [*read_lines(path), line]      # another process may have written there meanwhile
    write_lines(lines, path)
    for folder in home.glob("*/final"):      # a whole checkpoint each; the adapters stay
        shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------
# How runs go: rounds of the loop
# ---------------------------------------------------------------------------------------------


def rounds(run, short=math.inf, extend=False, say=False, **parts):
    """loop.py itself from the seed's warm-up. short: rounds are added until at most this share of the last one's cost is left of the
    budget: 0 spends at least the budget, 0.5 comes as close to it as whole rounds can. extend: start from the loop's own
    rounds and add to them. say: measure the diversity after each. parts: what loop.main is given instead of
    its own search or hardness.
    """
    taken = ("data", "base", "warmup", *(sorted(p.name for p in run.warm.glob("iter?")) if extend else ()))
    for part in taken:
        if (run.warm / part).exists() and not (run.folder / part).exists():
            with loop.stage(run.folder / part) as folder:
                shutil.copytree(run.warm / part, folder, dirs_exist_ok=True)
    iters = run.configs[0].iters
    while True:
        loop.main([*run.flags, "--iters", str(iters), "--out", str(run.folder)], prepared=True, **parts)
        models = {f"round {i}": run.folder / f"iter{i}" for i in range(1, iters + 1)}
        rows = [json.loads((folder / "scores.json").read_text(encoding="utf-8")) for folder in models.values()]
        costs = [cost(row["tokens"]) for row in rows]
        if run.budget - sum(costs) <= short * costs[-1]:
            break
        iters += 1
    models = {"warm-up": run.folder / "warmup", **models}
    if run.folder == run.warm:
        models = {"base": run.folder / "base", **models}
    return models, {"diversity": {name: diversity(run, folder) for name, folder in models.items()}} if say else {}


def one_round(run):
    """All the loop's compute in one round: more samples are picked, until it costs as much as the loop; once all are picked, the
    trees get more simulations, which cost less than samples do."""
    (cfg, search_cfg, _), attempts = run.configs, []
    times = 1.15 * cfg.iters     # what as many rounds pick, and more: they score their buffer again and again, this one once
    while True:
        most = cfg.pick * times
        share = {"pick": min(1, most), "buffer": min(1, cfg.buffer * max(1, most)), "iters": 1,
                 "simulations": math.ceil(search_cfg.simulations * max(1, cfg.buffer * most) ** 2)}
        attempt = replace(run, folder=Path(f"{run.folder}-{times:.2f}"), flags=[*run.flags, *as_flags(share)])
        models, _ = rounds(attempt)
        row = json.loads((models["round 1"] / "scores.json").read_text(encoding="utf-8"))
        found = cost(row["tokens"])
        attempts.append({**share, "cost": found, "accuracy": row["accuracy"], "hard": row["hard"]})
        if found >= run.budget:
            return models, {"shares": share, "attempts": attempts}
        times *= max(1.05, (1.05 * run.budget / found) ** (1.5 if most > 1 else 1))      # more simulations of a tree cost less each


def whole(run):
    """Independent whole responses, as many as the tree samples, and pairs of them: a tree that is one step deep."""
    _, search_cfg, _ = run.configs
    flags = as_flags({"depth": 1, "simulations": 1, "k": search_cfg.simulations * search_cfg.k})
    return rounds(replace(run, flags=[*run.flags, *flags]), short=0)


def independent(model, tokenizer, samples, cfg, seed=0, progress=True):
    """In place of `search`: as many responses a sample, all sampled from the prompt, cut into steps and merged where they
    share a prefix. The target is one of them if the tree would have its steps (`target_step`)."""
    flat = replace(cfg, depth=1, simulations=1, k=cfg.simulations * cfg.k, self_eval=0.0)
    return [joined(tree, tokenizer, cfg.length_power) for tree in search(model, tokenizer, samples, flat, seed, progress)]


def joined(flat, tokenizer, length_power):
    """A tree of whole responses -> the same responses as a tree of steps. Q is the mean outcome of the responses through a
    step minus that of its parent, like r in the search; nothing is backed up. A step's prior is its share among its
    siblings, with the length normalization of the search."""
    tree = replace(flat, nodes=[Node(-1, [], "")])
    stop_id, place = stop_token(tokenizer), {(): 0}
    for response in flat.nodes[1:]:
        path, weight = (), max(1, response.sampled)      # the target counts once where it was not sampled
        for step in cut_steps(tokenizer, response.ids, stop_id):
            parent, path = place[path], (*path, *step)
            if path not in place:
                place[path] = len(tree.nodes)
                tree.nodes[parent].children.append(len(tree.nodes))
                tree.nodes.append(Node(parent, step, response_text(tokenizer, step, stop_id), final=step[-1] == stop_id))
            node = tree.nodes[place[path]]
            node.visits += weight
            node.outcome += weight / node.visits * (response.outcome - node.outcome)     # a running mean
    for node in tree.nodes[1:]:
        node.q = node.r = node.outcome - tree.nodes[node.parent].outcome
        share = node.visits / sum(tree.nodes[c].visits for c in tree.nodes[node.parent].children)
        node.prior = share ** (1 / len(node.ids) ** length_power)
    return tree


def random_pick(model, tokenizer, samples, progress=True):
    return torch.rand(len(samples)).numpy()      # from the seed of the round


def failure_rates(model, tokenizer, samples, cfg, progress=True, copies=6):
    """ReverseGen's idea: the share of wrong answers among a few sampled ones; ties stay in the buffer's order."""
    texts = answer(model, tokenizer, samples, cfg.max_new, cfg.temperature, torch.initial_seed(), copies)
    return np.array([np.mean([judge(sample, text) is not None for text in found]) for sample, found in zip(samples, texts)])


def picked_by_failure(run):
    return rounds(run, 0.5, hardness=partial(failure_rates, cfg=run.configs[1]))


def diversity(run, adapter, n=64, copies=8):
    """Of a policy's samples for validation queries: distinct responses of eight, and percent right."""
    model, tokenizer = run.load(adapter)
    merge_lora(model)
    cfg, limit = run.configs[0], context_length(model, run.configs[0].max_tokens, room=MAX_NEW)
    samples, _ = split_too_long(tokenizer, synth.make_samples(min(n, cfg.n_test), "val", 1, cfg.talk), limit)
    texts = answer(model, tokenizer, samples, run.configs[1].max_new, run.configs[1].temperature, 0, copies)
    return {"distinct": float(np.mean([len(set(found)) for found in texts])),
            "right": 100 * float(np.mean([judge(s, text) is None for s, found in zip(samples, texts) for text in found]))}


# ---------------------------------------------------------------------------------------------
# How runs go: supervised
# ---------------------------------------------------------------------------------------------


def taught(run, model, tokenizer, samples, cfg, before):
    """Train the adapter on `samples` with the warm-up's own function, and score it. before: token counts at the start."""
    started = time.time()
    with loop.stage(run.folder / "sft") as folder:
        warm_up(model, tokenizer, samples, cfg)
        save_lora(model, folder)
        loop.score(model, tokenizer, run.samples("test"), folder, run.folder.name, started, before)
    return {"sft": run.folder / "sft"}, {}


def plain(run, share=1.0):
    """SFT from the base on a share of the training set, with the warm-up's settings: experiments 1 and 3."""
    cfg, search_cfg, _ = run.configs
    model, tokenizer = run.load()
    if not (run.warm / "data").exists():     # the first of all runs
        with loop.stage(run.warm / "data") as folder:
            loop.make_data(cfg, model, tokenizer, folder, room=max(MAX_NEW, room_for(tokenizer, search_cfg)))
    torch.manual_seed(cfg.seed)
    add_lora(model, cfg.rank, cfg.alpha, cfg.dropout, cfg.targets)
    train = run.samples("train")
    return taught(run, model, tokenizer, train[:max(1, round(share * len(train)))], cfg, Counter(TOKENS))


def more(run, data):
    """SFT from the warm-up on what `data` gives, over and over until it has cost what the loop has."""
    cfg, before = run.configs[0], Counter(TOKENS)
    torch.manual_seed(cfg.seed)
    model, tokenizer = run.load(run.warm / "warmup")
    samples = data(run, model, tokenizer)
    left, rng, taken = (run.budget - cost(spent(before))) / 3, random.Random(cfg.seed), []
    sizes = [tree_tokens(sample_tree(tokenizer, sample)) for sample in samples]
    while left > 0 or not taken:
        for i in rng.sample(range(len(samples)), len(samples)):     # whole passes, the last one up to the budget
            if left > 0 or not taken:
                taken.append(samples[i])
                left -= sizes[i]
    return taught(run, model, tokenizer, taken, replace(cfg, curriculum="shuffled", epochs=1), before)


def same(run, model, tokenizer):
    """All that the loop has: what the warm-up was trained on, and what it has left to the rounds."""
    return run.samples("train") + run.samples("unseen")


def unseen(run, model, tokenizer):
    """What the rounds pick from, without what the warm-up was trained on: like `fresh` in kind, but no more requests than the loop has."""
    return run.samples("unseen") or run.samples("train")


def picked(run, model, tokenizer):
    """The samples of all the loop's rounds. Finding them was free here: the loop has paid for it."""
    return [sample for path in sorted(run.warm.glob("iter*/picked.jsonl")) for sample in synth.read_samples(path)[0]]


def fresh(run, model, tokenizer):
    """New samples of the rounds' kind, each seen once; labels without end, as only a simulated world has them."""
    train, limit = run.samples("train"), context_length(model, run.configs[0].max_tokens)
    size = np.mean([tree_tokens(sample_tree(tokenizer, sample)) for sample in train])
    samples = synth.make_samples(16 + int(1.2 * run.budget / 3 / size), "train", 10_000 + run.configs[0].seed,
                                 run.configs[0].unseen_talk)
    return [sample for sample in samples if tree_tokens(sample_tree(tokenizer, sample)) <= limit]


def right_responses(run, model, tokenizer):
    """[(training sample, right responses that were sampled to it), ...], until half the budget is spent on sampling them."""
    cfg, search_cfg, _ = run.configs
    train, found, before = same(run, model, tokenizer), [], Counter(TOKENS)
    queries = random.Random(cfg.seed).sample(train, len(train))
    merge_lora(model)
    for start in range(0, len(queries), 32):
        if cost(spent(before)) >= run.budget / 2:
            break
        part = queries[start:start + 32]
        texts = answer(model, tokenizer, part, search_cfg.max_new, search_cfg.temperature, 1000 * cfg.seed + start,
                       search_cfg.simulations * search_cfg.k)
        found += [(sample, [text for text in answers if judge(sample, text) is None]) for sample, answers in zip(part, texts)]
    unmerge_lora(model)
    return found


def rejection_sampled(run, model, tokenizer):
    """RFT: the training set plus distinct right responses (Yuan et al., arXiv 2308.01825). Most requests here have only one right
    response, the target. Those answered in text are left out: any text that calls nothing counts as right."""
    new = [replace(sample, target=text.strip()) for sample, texts in right_responses(run, model, tokenizer) if sample.calls is not None
           for text in dict.fromkeys([sample.target, *texts]) if text != sample.target]
    print(f"RFT: {len(new)} new right responses")
    return same(run, model, tokenizer) + new


def own(run, model, tokenizer):
    """The policy's own right responses, distinct ones, and nothing else: of text, the most frequent one."""
    found = [(sample, [text for text, _ in Counter(texts).most_common(None if sample.calls is not None else 1)])
             for sample, texts in right_responses(run, model, tokenizer)]
    mine = [replace(sample, target=text.strip()) for sample, texts in found for text in texts if text.strip()]
    print(f"own right responses: {len(mine)} to {sum(bool(texts) for _, texts in found)} of {len(found)} queries")
    return mine or same(run, model, tokenizer)      # a policy that is never right has nothing else to learn from


# ---------------------------------------------------------------------------------------------
# What is measured of models that the loop has made: experiments 4, 6, 8, 9
# ---------------------------------------------------------------------------------------------


def found_by_search(run):
    """Experiment 6: the tree against independent samples of at least as many decoded tokens, on the first round's picked
    samples with the policy that searched them. Nothing is given away: no step is taken from the target."""
    cfg, search_cfg, _ = run.configs
    model, tokenizer = run.load(run.warm / "warmup")
    merge_lora(model)
    samples, search_cfg = synth.read_samples(run.warm / "iter1" / "picked.jsonl")[0], replace(search_cfg, target_step=False)

    def measured(trees, pairs):
        texts, found = [dict(tree.finished) for tree in trees], [len(preference_pairs(tree, search_cfg)) for tree in pairs]
        bigrams = [{pair for text in one for words in [text.split()] for pair in zip(words, words[1:])} for one in texts]
        return {"right": [sum(one.values()) for one in texts], "wrong": [len(one) - sum(one.values()) for one in texts],
                "distinct": list(map(len, texts)), "bigrams": list(map(len, bigrams)), "usable": [100 * bool(n) for n in found],
                "pairs": found, "decoded": TOKENS["decoded"] - before["decoded"]}

    before = Counter(TOKENS)
    trees = search(model, tokenizer, samples, search_cfg, cfg.seed)
    results = {"tree": measured(trees, trees)}
    copies = search_cfg.k      # raised only as far as needed: a tree whose leaves are all closed decodes nothing more
    while True:
        before = Counter(TOKENS)
        flat = search(model, tokenizer, samples, replace(search_cfg, depth=1, simulations=1, k=copies, self_eval=0.0), cfg.seed)
        if (decoded := TOKENS["decoded"] - before["decoded"]) >= results["tree"]["decoded"]:
            break
        copies = max(copies + 1, math.ceil(copies * results["tree"]["decoded"] / decoded))
    results["independent, whole responses"] = measured(flat, flat)
    results["independent, cut into steps"] = measured(flat, [joined(tree, tokenizer, search_cfg.length_power) for tree in flat])
    return {}, {"found": results, "copies": copies}


def preferred(model, trees):
    """Of PairedTrees: how many pairs, in what percent of them the chosen fragment is the likelier one, and the median, in nats,
    of how much likelier."""
    logps, _ = segment_logps(model, trees, DPOConfig.pref_micro_tokens)
    gaps = torch.cat([logps[id(tree)][tree.chosen] - logps[id(tree)][tree.rejected] for tree in trees]).tolist()
    return {"pairs": len(gaps), "preferred": 100 * float(np.mean(np.array(gaps) > 0)), "nats": float(np.median(gaps))}


def request(sample):
    """A training sample's words, digits alike and without small talk: the near-duplicates of `synth.make_samples` have the same."""
    words, phrasing = " ".join(m["content"] for m in sample.messages), synth.PHRASINGS["train"]
    for sentence in (*phrasing.ahead, *phrasing.behind):
        words = words.replace(sentence, "")
    return re.sub(r"\d", "0", " ".join(words.split()).lower())


def what_carries_over(run):
    """Each run of experiment 4 on new samples of the training set's own tools, beside the held-out ones that it was scored on;
    and what the first round's pairs have taught, on themselves and on the pairs of as many new samples."""
    cfg, search_cfg, _ = run.configs
    model, tokenizer = run.load(run.warm / "warmup")
    known = set(map(request, same(run, model, tokenizer) + fresh(run, model, tokenizer)))
    limit = context_length(model, cfg.max_tokens, room=max(MAX_NEW, room_for(tokenizer, search_cfg)))
    drawn, _ = split_too_long(tokenizer, synth.make_samples(cfg.n_test, "train", 30_000 + cfg.seed, cfg.unseen_talk), limit)
    new = [s for s in drawn if request(s) not in known]
    home, correct = run.warm.parent, {}

    def last(name):
        folder = home / re.sub(r"\W+", "_", name)
        adapters = [*folder.glob("sft"), *folder.glob("iter*[0-9]")]
        if not adapters:
            raise ValueError(f"{folder} is not there: run experiment 4 with the --out of its runs, or take their lines out of results.jsonl")
        return max(adapters, key=lambda path: (len(path.name), path.name))
    lines = read_lines(Path(run.settings.results, "results.jsonl"))
    done = {name: last(name) for name in names([line for line in lines if line["seed"] == cfg.seed], "4")}
    rounds = {f"round {i}": run.warm / f"iter{i}" for i in range(1, cfg.iters + 1)}
    for name, adapter in {"warm-up": run.warm / "warmup", **rounds, **done}.items():
        model, tokenizer = run.load(adapter)
        merge_lora(model)
        correct[name] = "".join(str(int(r["correct"])) for r in evaluate(model, tokenizer, new))

    model, tokenizer = run.load(run.warm / "warmup")
    merge_lora(model)
    trees = {"the round's own": read_trees(run.warm / "iter1" / "trees.jsonl")}
    trees["of new samples"] = search(model, tokenizer, new[:len(trees["the round's own"])], search_cfg, cfg.seed)
    pairs = {name: [paired_tree(tree, found, False) for tree in grown if (found := preference_pairs(tree, search_cfg))]
             for name, grown in trees.items()}
    after, _ = run.load(run.warm / "iter1")
    merge_lora(after)
    return {}, {"correct": correct, "pairs": {name: {"before": preferred(model, found), "after": preferred(after, found)}
                                              for name, found in pairs.items() if found}}


def policies(run):
    """(name, model with the adapter merged, tokenizer) of the base, the warm-up and each of the loop's rounds."""
    yield "base", *run.load()
    for i, folder in enumerate([run.warm / "warmup", *(run.warm / f"iter{i}" for i in range(1, run.configs[0].iters + 1))]):
        model, tokenizer = run.load(folder)
        merge_lora(model)
        yield f"round {i}" if i else "warm-up", model, tokenizer


def transfer(run):
    """Experiment 8: BFCL's questions, scored as `eval.py --bench bfcl` does; what the context cannot hold is wrong."""
    correct = {}
    cases = {name: load_bfcl(name)[:run.settings.bfcl_cases or None] for name in BFCL_CATEGORIES[:5]}
    for policy, model, tokenizer in policies(run):
        limit = context_length(model, run.configs[0].max_tokens, room=MAX_NEW)
        for category, part in cases.items():
            samples = [bfcl_sample(case) for case in part]
            fits = [i for i, sample in enumerate(samples) if len(synth.prompt_ids(tokenizer, sample)) <= limit]
            texts = dict(zip(fits, answer(model, tokenizer, [samples[i] for i in fits])))
            correct[f"{policy}: {category}"] = "".join(str(int(i in texts and score_bfcl(case, texts[i][0]) is None))
                                                      for i, case in enumerate(part))
    return {}, {"correct": correct}


def renamed(sample, rng):
    """Every parameter under another name, in the tools, the target and the calls of the conversation alike."""
    names = {(tool["name"], key): rng.choice(["{}_value", "given_{}", "{}_arg", "the_{}"]).format(key)
             for tool in sample.tools for key in tool["parameters"]["properties"]}

    def calls(text):
        try:
            found = synth.parse_calls(text)
        except synth.CallSyntaxError:
            return text
        return synth.format_calls([call._replace(args={names.get((call.name, key), key): value for key, value in call.args.items()})
                                   for call in found])
    tools = []
    for tool in sample.tools:
        rename = lambda key: names[tool["name"], key]
        parameters = {**tool["parameters"], "required": [rename(key) for key in tool["parameters"]["required"]],
                      "properties": {rename(key): schema for key, schema in tool["parameters"]["properties"].items()}}
        tools.append({**tool, "parameters": parameters})
    messages = [{**m, "content": calls(m["content"])} if m["role"] == "assistant" else m for m in sample.messages]
    return replace(sample, tools=tools, messages=messages, target=calls(sample.target))


def typos(sample, rng):
    """Two inner letters swapped in a fifth of the words, but not in words that the target copies: its value would change."""
    def swap(word):
        if not word.isalpha() or len(word) < 4 or word.lower() in sample.target.lower() or rng.random() > 0.2:
            return word
        i = rng.randrange(1, len(word) - 2)
        return word[:i] + word[i + 1] + word[i] + word[i + 2:]
    return synth.last_query(sample, lambda text: " ".join(map(swap, text.split(" "))))


def distracted(sample, rng):
    """Three more tools, from the validation split: no test query asks for one, and training has shown none of them."""
    pool = [tool.schema() for tool in synth.TOOLS.values() if tool.split == "val"]
    taken = {tool["name"] for tool in sample.tools}
    extra = rng.sample([tool for tool in pool if tool["name"] not in taken], 3)
    return replace(sample, tools=rng.sample([*sample.tools, *extra], len(sample.tools) + 3))


PERTURBATIONS = {
    "unchanged": lambda sample, rng: sample,
    "tools shuffled": lambda sample, rng: replace(sample, tools=rng.sample(sample.tools, len(sample.tools))),
    "distractor tools": distracted,
    "parameters renamed": renamed,
    "typos": typos,
    "politeness": lambda sample, rng: synth.last_query(sample, lambda text: f"Hello! I hope you are well. {text} Thank you so much."),
}


def robustness(run):
    """Experiment 9: the held-out samples, each perturbed in one way, before and after the loop; what the context cannot hold is wrong."""
    test, correct, after = run.samples("test"), {}, f"round {run.configs[0].iters}"
    for policy, model, tokenizer in policies(run):
        limit = context_length(model, run.configs[0].max_tokens, room=MAX_NEW)
        for name, change in PERTURBATIONS.items() if policy in ("warm-up", after) else ():
            samples = [change(sample, random.Random(f"{name} {i}")) for i, sample in enumerate(test)]
            fits = [len(synth.prompt_ids(tokenizer, sample)) <= limit for sample in samples]
            records = iter(evaluate(model, tokenizer, [sample for sample, fit in zip(samples, fits) if fit]))
            correct[f"{policy}: {name}"] = "".join(str(int(fit and next(records)["correct"])) for fit in fits)
    return {}, {"correct": correct, "levels": "".join(sample.level[0] for sample in test)}


# ---------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------


def all_arms(settings):
    """In the order in which a seed runs them: the loop first, since the others need its warm-up and its cost."""
    simulations = [Arm(f"{n} simulations", "5", rounds, {"simulations": int(n)}) for n in settings.sweep.split(",") if n]
    variant = partial(rounds, short=0.5)
    many = {"iters": settings.many_rounds}
    other = lambda name: {name: getattr(settings, name)} if getattr(settings, name) != getattr(Settings, name) else {}
    return [
        Arm("loop", "1 2 3 4 5 6 7 8 9", rounds),
        *(Arm(f"1/{d} of the data", "1 2", partial(plain, share=1 / d)) for d in (16, 8, 4, 2)),
        Arm("shuffled", "3", plain, {"curriculum": "shuffled"}),
        Arm("hard to easy", "3", plain, {"curriculum": "hard-to-easy"}),
        Arm("same data", "4", partial(more, data=same)),
        Arm("unseen data", "4", partial(more, data=unseen)),
        Arm("picked targets", "4", partial(more, data=picked)),
        Arm("fresh data", "4", partial(more, data=fresh)),
        Arm("RFT", "4", partial(more, data=rejection_sampled)),
        Arm("own right responses", "4", partial(more, data=own)),
        Arm("whole responses", "4 5", whole),
        Arm("steps, no tree, no C", "4", partial(rounds, short=0, search=independent)),
        Arm("what carries over", "4", what_carries_over),
        Arm("no self-evaluation", "5", variant, {"self_eval": 0.0}),
        Arm("no outcome reward", "5", variant, {"outcome": "none"}),
        Arm("no target step", "5", variant, {"target_step": False}),
        Arm("pairs of a call and a text, too", "5", variant, {"across": True}),
        Arm("lowest Q rejected", "5", variant, {"near": 0.0}),
        Arm("a round's own pairs alone", "5", variant, {"remember": 0}),
        Arm("an SFT term", "5", variant, {"sft_weight": 1.0}),
        Arm("an SFT term and replay", "5", variant, {"sft_weight": 1.0, "replay": 1.0}),
        Arm("one round", "5", one_round),
        Arm("perplexity pick, however far", "5", variant, {"reach": 0.0}),
        Arm("random pick", "5", partial(variant, hardness=random_pick)),
        Arm("failure-rate pick", "5", picked_by_failure),
        *(Arm(name, "5", variant, {"loss": name.lower()}) for name in ("SimPO", "IPO", "ORPO")),
        *simulations,
        *(Arm(f"temperature {t}", "5", variant, {"temperature": t}) for t in (0.7, 1.5)),
        Arm("found", "6", found_by_search),
        Arm("many rounds", "7", partial(rounds, extend=True, say=True), many, other("many_rounds")),
        Arm("many rounds, an SFT term", "7", partial(rounds, say=True), {**many, "sft_weight": 1.0}, other("many_rounds")),
        Arm("many rounds, an SFT term and replay", "7", partial(rounds, say=True), {**many, "sft_weight": 1.0, "replay": 1.0}, other("many_rounds")),
        Arm("many rounds, nothing original", "7", partial(rounds, say=True), {**many, "target_step": False}, other("many_rounds")),
        Arm("BFCL", "8", transfer, runner=other("bfcl_cases")),
        Arm("robustness", "9", robustness),
    ]


QUICK = {"n": 32, "n_test": 12, "iters": 2, "simulations": 3, "max_new": 48, "pref_epochs": 1}


def main(argv=None):
    settings, flags = synth.read_flags(argv, Settings, rest=True)
    if settings.quick:
        flags = [*as_flags(QUICK), *flags]
        settings = replace(settings, seeds="0", out="out/quick" if settings.out == Settings.out else settings.out,
                           sweep="2,4", many_rounds=3, bfcl_cases=4)
    settings = replace(settings, results=settings.results or settings.out)
    given = {flag.split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}
    tried = {f"__{key}" for tries in TRIES.values() for one in tries for key in one}
    if {"__data", "__eval_split", "__seed"} & given:
        raise ValueError("--data, --eval_split and --seed are the runner's: experiments need the simulated world, and have --seeds")
    if tried & given:
        raise ValueError(f"--{min(tried & given)[2:]} is what each method's tries set: change TRIES in docs/experiments.py")
    path = Path(settings.results, "results.jsonl")
    lines = read_lines(path)
    if settings.draw and not lines:
        raise ValueError(f"{path} has no run to draw (those of docs/results.md: --results docs)")
    arms = {"warm-up": Arm("warm-up", "", plain), **{arm.name: arm for arm in all_arms(settings)}}
    known = TRIES if settings.tune else [name for name in arms if name != "warm-up"]
    chosen = settings.arms.split(";") if settings.arms else known
    if unknown := set(chosen) - set(known):
        raise ValueError(f"--arms knows no {min(unknown)!r}; there are {'; '.join(known)}")
    wanted = set(settings.only.split(",")) if settings.only else set("123456789")
    if not wanted <= set("123456789"):
        raise ValueError(f"--only names experiments from 1 to 9 (got {settings.only})")
    if "8" in wanted and "BFCL" in chosen and importlib.util.find_spec("bfcl_eval") is None:
        print("experiment 8 is left out: pip install --no-deps bfcl-eval==2026.3.23")
        wanted -= {"8"}
    weights = "" if settings.draw else fingerprint(load_model(loop_settings(flags)[0].model, "cpu")[0])
    if not settings.draw and any(line["weights"] != weights for line in lines):
        raise ValueError(f"{path} has runs of other weights than those of {loop_settings(flags)[0].model}: begin anew with another --out")
    if not (lines or settings.tune or settings.draw or settings.quick):
        lines = [line for line in read_lines(SHIPPED) if line["try"] is not None and line["weights"] == weights]
        write_lines(lines, path)
    if settings.tune and not settings.draw:
        for method in (method for method in TRIES if method in chosen):
            for number in range(len(TRIES[method])):
                perform(arms[method], settings.tune_seed, number, settings, flags, lines, weights)
    for seed in map(int, settings.seeds.split(",") if not (settings.tune or settings.draw) else ()):
        for name, arm in arms.items():
            if name in chosen and wanted & set(arm.experiments.split()):
                perform(arm, seed, None, settings, flags, lines, weights)
    draw(lines, Path(settings.results), settings.quick, list(arms.values()))


if __name__ == "__main__":
    run(main)

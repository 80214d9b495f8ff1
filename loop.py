"""iTool, the whole method: warm-up, then rounds of pick, search, pair, optimize, score.

    python loop.py --iters 3                                       # the embedded model and the simulated world
    python loop.py --iters 3 --model Qwen/Qwen2.5-0.5B-Instruct --data my_calls.jsonl --lr 1e-4 --pref_lr 1e-6 \
        --batch_tokens 16384 --out out/mine

The stages of docs/method.md in the order in which they happen; each is explained in its own file. Everything goes to `--out`:
config.json, data/, base/ (its scores), warmup/, iter1/, iter2/, ..., metrics.jsonl, report.html and final/ (a checkpoint that transformers
loads). A stage writes into a temporary folder that is renamed once complete: a folder that exists is finished, so the
same command resumes an interrupted run, and it ends with the same numbers.
"""

import hashlib
import html
import json
import os
import random
import re
import shutil
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import synth
from dpo import DPOConfig, check_preference, optimize, paired_tree, segment_logps, trend
from eval import ERROR_KINDS, MAX_NEW, evaluate, interval, paired_interval, summarize
from mcts import Node, SearchConfig, Tree, check_samples, check_search, preference_pairs, read_trees, room_for, search, show, write_trees
from sft import (TOKENS, SFTConfig, add_lora, check_at_least_one, check_training, context_length, fingerprint, load_lora, load_model,
                 load_training_set, merge_lora, perplexities, run, save_lora, save_model, split_too_long, unmerge_lora, warm_up)

PARAMETER_ERRORS = ("wrong value", "wrong type", "missing parameter", "unexpected parameter")


@dataclass
class LoopConfig(SFTConfig):
    out: str = "out/run"             # the run's folder
    iters: int = 3                   # rounds of the second stage
    n: int = 1600                    # training samples to make when there is no --data
    unseen: float | None = None      # share of training samples withheld from the warm-up; the rounds then pick only from these (paper:
                                     # 0); default 0.5 in the simulated world, 0 with --data
    buffer: float = 1.0              # share of the rounds' samples that is in the replay buffer (the paper: 0.5)
    pick: float = 0.25               # share of the buffer picked in a round (the paper: 0.1, the released script: 0.3)
    reach: float | None = None       # samples whose target calls are less probable are picked last; 0: off (the paper); default
                                     # 0.05 in the simulated world, 0 with --data: long targets are improbable anyway
    remember: int = 2                # earlier rounds whose pairs each round trains on again (the paper: none)
    settled: float = 0.0             # an earlier round's pair is left out once the policy prefers its chosen step by more nats; 0: never
    replay: float = 0.0              # training samples per tree whose targets are trained on beside the trees, with --sft_weight; not
                                     # the replay buffer, which is --buffer
    n_test: int = 1000               # held-out samples to score every model on
    eval_split: str = "test"         # test, or val to try settings out
    test_share: float = 0.2          # with --data: share of its samples that is held out for scoring

    def __post_init__(self):
        self.unseen = (0.0 if self.data else 0.5) if self.unseen is None else self.unseen
        self.reach = (0.0 if self.data else 0.05) if self.reach is None else self.reach

    @property
    def unseen_talk(self):
        """Small talk in the samples that the rounds pick from: as often as in held-out requests; the warm-up's have little."""
        return synth.OFTEN if self.talk and self.unseen else self.talk


# ---------------------------------------------------------------------------------------------
# The second stage's parts
# ---------------------------------------------------------------------------------------------


def complexity(model, tokenizer, samples, reach=0.0, progress=True):
    """(samples,) score to pick the highest of: the perplexity of the target under the policy (docs/method.md, 2a).

    reach: samples whose target calls are less probable than this come last, the least probable at the very end: search
    would hardly find a right response there, and preferences cannot teach what the policy never does. 0: the paper's
    rule, for a model that is right on most samples. Text targets are exempt: many texts are right.
    """
    h = perplexities(model, tokenizer, samples, progress=progress)
    if not reach:
        return h
    logp = -np.log(h) * [len(synth.target_ids(tokenizer, sample)) for sample in samples]
    called = np.array([sample.calls is not None for sample in samples])
    return np.where(called & (logp < np.log(reach)), logp, h)     # logp is at most 0, h at least 1


def pick_complex(model, tokenizer, buffer, share, hardness=complexity):
    """The most complex samples (docs/method.md, 2a), hardest first.

    As in the released script, the share is taken separately among samples with and without a call, at least one of each,
    so that neither kind vanishes. hardness: the score to pick by.
    """
    h, picked = hardness(model, tokenizer, buffer, progress=True), []
    for with_call in (True, False):
        part = [i for i, sample in enumerate(buffer) if (sample.calls is not None) == with_call]
        picked += sorted(part, key=lambda i: -h[i])[:max(1, round(share * len(part)))]
    return [buffer[i] for i in sorted(picked, key=lambda i: -h[i])]


def pair_up(trees, search_cfg, pref_cfg, keep=None):
    """(each tree's pairs, `PairedTree`s to train on: of trees with a pair or, with `sft_weight`, a right response).

    keep: (trees, their pairs) -> the pairs to train on; none: all.
    """
    pairs = [preference_pairs(tree, search_cfg) for tree in trees]
    pairs = keep(trees, pairs) if keep else pairs
    paired = [paired_tree(tree, found, bool(pref_cfg.sft_weight)) for tree, found in zip(trees, pairs)]
    return pairs, [tree for tree in paired if tree]


def unsettled(model, settled, micro_tokens, trees, pairs):
    """Of each tree's pairs those whose chosen step the policy prefers by at most `settled` nats. The others would be as new as any to DPO,
    whose reference is the policy as it is now."""
    paired = [paired_tree(tree, found, sft=False) for tree, found in zip(trees, pairs)]      # None where there is no pair
    logps, _ = segment_logps(model, list(filter(None, paired)), micro_tokens)
    gaps = [(logps[id(one)][one.chosen] - logps[id(one)][one.rejected]).tolist() if one else [] for one in paired]
    return [[pair for pair, gap in zip(found, those) if gap <= settled] for found, those in zip(pairs, gaps)]


def original(tokenizer, sample):
    """A sample as `optimize` takes it: a tree of only the prompt and its target."""
    return paired_tree(Tree(sample, synth.prompt_ids(tokenizer, sample), [Node(-1, [], "")], synth.target_ids(tokenizer, sample)), [])


def score(model, tokenizer, test, folder, name, started, before):
    """Greedy accuracy on the held-out set, written to `folder`: responses, and the row for metrics.jsonl.

    started, before: time and token counts when the stage began. The row's seconds include the scoring, its tokens
    do not.
    """
    tokens = {kind: TOKENS[kind] - before[kind] for kind in ("trained", "decoded", "scored")}
    merge_lora(model)
    records = evaluate(model, tokenizer, test, progress=True)
    unmerge_lora(model)
    row = {"model": name, **summarize(records), "tokens": tokens, "seconds": round(time.time() - started, 1)}
    (folder / "responses.jsonl").write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    (folder / "scores.json").write_text(json.dumps(row) + "\n", encoding="utf-8")
    print(f"{name}: {row['accuracy']:.1f}% of {row['n']} held-out samples right "
          f"({', '.join(f'{level} {percent_text(row[level])}' for level in synth.LEVELS)})")


def percent_text(share):
    """A percentage as text; of no samples a dash."""
    return "-" if share is None else f"{share:.1f}"


# ---------------------------------------------------------------------------------------------
# Folders
# ---------------------------------------------------------------------------------------------


@contextmanager
def stage(folder):
    """A folder to write a stage into, renamed to `folder` once it is complete."""
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


MAY_CHANGE = ("out", "iters", "device", "micro_tokens", "pref_micro_tokens", "max_tokens_in_flight")     # from start to start


def check_settings(out, configs, weights, template="", prepared=False):
    """The settings of a run; compared with config.json where the folder has one. Raises ValueError with what differs.

    weights: fingerprint of the base; template: its chat template. Settings in MAY_CHANGE (where, how fast, how many
    rounds) may differ: a finished run can be extended. So may the code; finished stages are kept, with a notice.
    """
    files = (Path(__file__).with_name(f"{name}.py") for name in ("synth", "sft", "eval", "mcts", "dpo", "loop"))
    code = made_by = digest(b"".join(path.read_bytes() for path in files))
    settings = {key: value for cfg in configs for key, value in asdict(cfg).items() if key not in MAY_CHANGE}
    settings |= {"weights": weights, "template_hash": digest(template.encode())}
    if configs[0].data:
        try:
            settings["data_hash"] = digest(Path(configs[0].data).read_bytes())
        except OSError as error:
            raise synth.DataError(f"{configs[0].data}: cannot be read ({error.strerror})") from None
    ours = rf"(data|base|warmup|iter\d+)(\.tmp){'?' * prepared}|config\.tmp|\..*"      # without config.json, no stage is finished
    others = [p.name for p in out.glob("*") if not re.fullmatch(ours, p.name)]
    if not (out / "config.json").exists():
        if others:
            raise ValueError(f"{out} has other things in it, such as {others[0]}: give a new folder as --out")
    else:
        before = json.loads((out / "config.json").read_text(encoding="utf-8"))
        made_by = before.pop("code", "")
        changed = [f"{key} {before.get(key)} -> {settings.get(key)}" for key in before | settings if before.get(key) != settings.get(key)]
        if changed:
            raise ValueError(f"{out} was made with other settings ({', '.join(changed)}): give another --out, or remove it")
        if finished := [part for part in ("base", "warmup", *(f"iter{i}" for i in range(1, rounds_in(out) + 1))) if (out / part).exists()]:
            print(f"{out} has {', '.join(finished)}: the run goes on from there" + (
                "; the code has changed since, what it has made stays (another --out makes all anew)" if made_by != code else ""))
    return {**settings, "code": made_by}


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def rounds_in(out):
    """How many rounds a run has finished."""
    return max((int(p.name[4:]) for p in out.glob("iter*") if p.name[4:].isdigit()), default=0)


def check_sizes(cfg, search_cfg, pref_cfg):
    """Raises ValueError for a setting that no run can have."""
    check_training(cfg)
    check_search(search_cfg)
    check_preference(pref_cfg)
    check_at_least_one(cfg, "iters", "n_test")
    for name, value in (("buffer", cfg.buffer), ("pick", cfg.pick), ("test_share", cfg.test_share)):
        if not 0 < value <= 1:
            raise ValueError(f"--{name} has to be above 0 and at most 1 (got {value})")
    if not 0 <= cfg.unseen < 1:
        raise ValueError(f"--unseen has to be at least 0 and below 1 (got {cfg.unseen})")
    if not 0 <= cfg.reach <= 1:
        raise ValueError(f"--reach is a probability (got {cfg.reach})")
    if search_cfg.temperature <= 0:
        raise ValueError(f"--temperature has to be above 0: pairs need different samples (got {search_cfg.temperature})")
    if cfg.remember < 0:
        raise ValueError(f"--remember is a number of rounds, at least 0 (got {cfg.remember})")
    if cfg.settled < 0:
        raise ValueError(f"--settled has to be at least 0 (got {cfg.settled})")
    if cfg.replay < 0 or cfg.replay and not pref_cfg.sft_weight:
        raise ValueError("--replay has to be at least 0" if cfg.replay < 0 else f"--replay {cfg.replay:g} needs --sft_weight above 0")
    if cfg.eval_split not in ("test", "val"):
        raise ValueError(f"--eval_split is test or val (got {cfg.eval_split})")
    if cfg.data and cfg.eval_split == "val":
        raise ValueError("--eval_split val is of the simulated world: to try settings out on --data, keep a part of it in a file of its own")


def make_data(cfg, model, tokenizer, folder, room=0):
    """Write train.jsonl, unseen.jsonl (if any) and test.jsonl: the simulated world's, or --data with a share of it held out.

    Samples of one conversation stay in one file: a later one's prompt contains the earlier answers. room: tokens of the context
    to keep free for responses.
    """
    train = load_training_set(cfg, tokenizer, model, room)
    if cfg.data:
        conversations = {}
        for sample in train:
            opening = next((m for m in sample.messages if m["role"] == "user"), sample.messages[0])
            conversations.setdefault(json.dumps([sample.tools, opening]), []).append(sample)
        conversations, test, most = list(conversations.values()), [], min(cfg.n_test, cfg.test_share * len(train))
        random.Random(cfg.seed).shuffle(conversations)
        conversations.sort(key=lambda one: -(len(one) > max(1, most)))     # those too long to be held out stand first
        while len(conversations) > 1 and len(test) + len(conversations[-1]) <= max(1, most):
            test += conversations.pop()
        train = [sample for one in conversations for sample in one]
        if not test:
            raise synth.DataError(f"{cfg.data}: too few conversations: one to train on and another, no longer, to score on")
    else:
        test = synth.make_samples(cfg.n_test, cfg.eval_split, 0, cfg.talk)
        test, too_long = split_too_long(tokenizer, test, context_length(model, cfg.max_tokens, room))
        if too_long:
            print(f"{too_long} held-out samples left out: longer than the model's context")
        if not test:
            raise synth.DataError("no held-out sample is left to score on: raise --max_tokens, or give a model with a longer context")
    seen = max(1, round((1 - cfg.unseen) * len(train)))
    if cfg.data and seen < len(train):     # at the end of a conversation
        ends = np.cumsum([len(one) for one in conversations])
        seen = int(ends[np.abs(ends - seen).argmin()])
    train, unseen = train[:seen], train[seen:]
    if unseen and not cfg.data:     # the same requests, with `unseen_talk`
        numbers = {sample.id for sample in unseen}
        unseen = [sample for sample in synth.make_samples(cfg.n, "train", cfg.seed, cfg.unseen_talk) if sample.id in numbers]
        unseen, _ = split_too_long(tokenizer, unseen, context_length(model, cfg.max_tokens, room))
    for name, samples in (("train", train), ("unseen", unseen), ("test", test)):
        if samples:
            synth.write_samples(samples, folder / f"{name}.jsonl")


def read_data(out, name):
    """Samples of a run's train, unseen or test; none where make_data had none to write."""
    path = out / "data" / f"{name}.jsonl"
    return synth.read_samples(path)[0] if path.exists() else []


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------


def read_rows(out, iters):
    """The score rows of all finished models, in order."""
    folders = ["base", "warmup", *(f"iter{i}" for i in range(1, iters + 1))]
    return [json.loads((out / f / "scores.json").read_text(encoding="utf-8")) for f in folders if (out / f).exists()]


def read_correct(out, folder, level=None):
    with open(out / folder / "responses.jsonl", encoding="utf-8") as f:
        return [r["correct"] for r in map(json.loads, f) if level in (None, r["level"])]


def gain(out, iters, level=None):
    """The last round minus the warm-up on the same samples, with a paired 95% interval, as text; none where there are no samples."""
    before, after = read_correct(out, "warmup", level), read_correct(out, f"iter{iters}", level)
    if not before:
        return ""
    low, high = paired_interval(before, after)
    return (f"{level or 'overall'}: {100 * (np.mean(after) - np.mean(before)):+.1f} points, 95% interval [{low:+.1f}, {high:+.1f}] "
            "(samples alone: one seed)")


def print_table(out, iters):
    """One row a model; then what the rounds brought."""
    rows = read_rows(out, iters)
    print(f"\n{'model':10s} {'overall':>8s} {'95% interval':>15s} {'easy':>6s} {'medium':>7s} {'hard':>6s} "
          f"{'parameter errors':>17s} {'minutes':>8s}")
    for row in rows:
        low, high = interval(round(row["accuracy"] * row["n"] / 100), row["n"])
        errors = sum(row["errors"].get(kind, 0) for kind in PARAMETER_ERRORS)
        print(f"{row['model']:10s} {row['accuracy']:7.1f}% {f'[{low:.1f}, {high:.1f}]':>15s} {percent_text(row['easy']):>6s} "
              f"{percent_text(row['medium']):>7s} {percent_text(row['hard']):>6s} {errors:17d} {row['seconds'] / 60:8.1f}")
    for text in filter(None, (gain(out, iters, level) for level in (None, "hard"))):
        print(f"rounds over warm-up, {text}")


def write_report(out, iters, trees):
    """report.html: one file with the curve, the error kinds of each model, and some trees to unfold."""
    rows = read_rows(out, iters)
    x = [80 + 560 * i / max(1, len(rows) - 1) for i in range(len(rows))]
    colors = {"accuracy": "#111", "easy": "#2a9d8f", "medium": "#e9a13b", "hard": "#d1495b"}
    colors = {key: color for key, color in colors.items() if rows[0][key] is not None}
    curves = "".join(
        f'<polyline fill="none" stroke="{color}" stroke-width="2" points="'
        + " ".join(f"{a:.0f},{260 - 2.3 * row[key]:.0f}" for a, row in zip(x, rows)) + '"/>'
        + "".join(f'<circle cx="{a:.0f}" cy="{260 - 2.3 * row[key]:.0f}" r="3.5" fill="{color}"><title>{row["model"]} {key} '
                  f'{row[key]:.1f}%</title></circle>' for a, row in zip(x, rows))
        for key, color in colors.items())
    low = 300.0
    for key in sorted(colors, key=lambda key: rows[-1][key]):     # names of the curves, apart where these meet
        low = min(low - 16, 264 - 2.3 * rows[-1][key])
        curves += (f'<text x="{x[-1] + 12:.0f}" y="{low:.0f}" fill="{colors[key]}">'
                   f'{"overall" if key == "accuracy" else key} {rows[-1][key]:.1f}</text>')
    grid = "".join(f'<line x1="80" x2="640" y1="{260 - 2.3 * y}" y2="{260 - 2.3 * y}" stroke="#ddd"/>'
                   f'<text x="72" y="{264 - 2.3 * y}" text-anchor="end">{y}%</text>' for y in range(0, 101, 20))
    names = "".join(f'<text x="{a:.0f}" y="284" text-anchor="middle">{html.escape(row["model"])}</text>' for a, row in zip(x, rows))
    kinds = [kind for kind in ERROR_KINDS if any(kind in row["errors"] for row in rows)]
    table = "<tr><th>wrong answers by kind</th>" + "".join(f"<th>{html.escape(r['model'])}</th>" for r in rows) + "</tr>" + "".join(
        f"<tr><td>{kind}</td>" + "".join(f"<td>{row['errors'].get(kind, 0)}</td>" for row in rows) + "</tr>" for kind in kinds)
    unfold = "".join(f"<details><summary>round {i}: {html.escape(text.splitlines()[0])}</summary><pre>{html.escape(text)}</pre></details>"
                     for i, text in trees)
    gains = "".join(f"<p>Rounds over warm-up, {text}.</p>" for text in (gain(out, iters, level) for level in (None, "hard")) if text)
    (out / "report.html").write_text(f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>iTool: {html.escape(str(out))}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:860px;margin:2em auto;padding:0 1em;color:#111}}
svg text{{font:13px system-ui,sans-serif}} table{{border-collapse:collapse}} td,th{{padding:.2em .9em;text-align:right;border-bottom:1px solid #ddd}}
td:first-child,th:first-child{{text-align:left}} pre{{overflow-x:auto;font-size:13px;background:#f6f6f6;padding:1em}} summary{{cursor:pointer;padding:.3em 0}}</style>
<h1>iTool, {iters} rounds</h1><p>Share of {rows[0]["n"]} held-out samples answered exactly right, by greedy decoding.</p>
<svg viewBox="0 0 760 300" width="100%" role="img" aria-label="accuracy by model">{grid}{names}{curves}</svg>{gains}
<h2>What is wrong</h2><table>{table}</table>
<h2>Trees</h2><p>N visits, p prior, Q value, O outcome, C self-evaluation; + and - mark the fragments of preference pairs.</p>{unfold}
</html>""", encoding="utf-8")


# ---------------------------------------------------------------------------------------------
# The method
# ---------------------------------------------------------------------------------------------


def main(argv=None, hardness=None, search=search, prepared=False):
    """The method. hardness, search: other ways to pick samples and to grow trees, to compare it with; prepared: --out may have stages
    that another run has made."""
    cfg, search_cfg, pref_cfg = synth.read_flags(argv, LoopConfig, SearchConfig, DPOConfig)
    check_sizes(cfg, search_cfg, pref_cfg)
    out = Path(cfg.out)
    model, tokenizer = load_model(cfg.model, cfg.device)
    settings = check_settings(out, (cfg, search_cfg, pref_cfg), fingerprint(model), str(tokenizer.chat_template), prepared)
    iters = max(cfg.iters, rounds_in(out))
    torch.manual_seed(cfg.seed)
    add_lora(model, cfg.rank, cfg.alpha, cfg.dropout, cfg.targets)     # B is zero: the policy is the base

    if not (out / "data").exists():
        with stage(out / "data") as folder:
            make_data(cfg, model, tokenizer, folder, room=max(MAX_NEW, room_for(tokenizer, search_cfg)))
    (out / "config.tmp").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    os.replace(out / "config.tmp", out / "config.json")
    train, unseen, test = (read_data(out, name) for name in ("train", "unseen", "test"))
    print(f"{len(train)} training samples" + f", {len(unseen)} more for the rounds alone" * bool(unseen) + f", {len(test)} held out")
    pool = unseen or train
    check_samples(tokenizer, pool, search_cfg)

    if not (out / "base").exists():
        with stage(out / "base") as folder:
            score(model, tokenizer, test, folder, "base", time.time(), Counter(TOKENS))

    # Stage 1: warm-up SFT, easy to hard
    if not (out / "warmup").exists():
        with stage(out / "warmup") as folder:
            started, before = time.time(), Counter(TOKENS)
            losses = warm_up(model, tokenizer, train, cfg)
            print(f"warm-up: {len(train)} samples, {len(losses)} updates, {time.time() - started:.0f} s")
            save_lora(model, folder)
            score(model, tokenizer, test, folder, "warm-up", started, before)
    load_lora(model, out / "warmup")

    # Stage 2: a replay buffer, then rounds
    buffer = random.Random(cfg.seed).sample(pool, max(1, round(cfg.buffer * len(pool))))
    for i in range(1, iters + 1):
        if not (out / f"iter{i}").exists():
            with stage(out / f"iter{i}") as folder:
                started, before = time.time(), Counter(TOKENS)
                torch.manual_seed(1000 * cfg.seed + i)
                merge_lora(model)      # fewer products a token while nothing is trained
                picked = pick_complex(model, tokenizer, buffer, cfg.pick, hardness or partial(complexity, reach=cfg.reach))
                seconds = {"pick": time.time() - started}

                begun = time.time()
                trees = search(model, tokenizer, picked, search_cfg, seed=1000 * cfg.seed + i)
                unmerge_lora(model)
                seconds["search"] = time.time() - begun

                pairs, paired = pair_up(trees, search_cfg, pref_cfg)
                rollouts = max(1, sum(tree.samples for tree in trees))
                print(f"round {i}: {len(picked)} samples picked, {100 * sum(tree.hits for tree in trees) / rollouts:.0f}% of "
                      f"responses to them right at temperature {search_cfg.temperature}; {len(trees)} trees, "
                      f"{sum(map(len, pairs))} pairs in {sum(map(bool, pairs))} of them")
                synth.write_samples(picked, folder / "picked.jsonl")
                write_trees(trees, folder / "trees.jsonl")
                with open(folder / "pairs.jsonl", "w", encoding="utf-8") as f:
                    for tree, found in zip(trees, pairs):
                        f.writelines(json.dumps({"sample": tree.sample.id, "chosen": c, "rejected": r}) + "\n" for c, r in found)

                replayed = random.Random(1000 * cfg.seed + i).sample(train, min(len(train), round(cfg.replay * len(trees))))
                paired += [original(tokenizer, sample) for sample in replayed]
                begun = time.time()
                keep = partial(unsettled, model, cfg.settled, pref_cfg.pref_micro_tokens) if cfg.settled else None
                for earlier in range(max(1, i - cfg.remember), i):
                    paired += pair_up(read_trees(out / f"iter{earlier}" / "trees.jsonl"), search_cfg, pref_cfg, keep)[1]
                if not any(pairs):
                    print(f"round {i}: the search found no pair" + ", the policy stays as it is" * (not pref_cfg.sft_weight))
                if any(pairs) or paired and pref_cfg.sft_weight:
                    log = optimize(model, paired, pref_cfg, seed=1000 * cfg.seed + i)
                    (folder / "optimize.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log), encoding="utf-8")
                    print(f"round {i}: {len(log)} updates, {trend(log)}")
                seconds["optimize"] = time.time() - begun

                save_lora(model, folder)
                begun = time.time()
                score(model, tokenizer, test, folder, f"round {i}", started, before)
                seconds["score"] = time.time() - begun
                print(f"round {i}: " + ", ".join(f"{part} {s:.0f} s" for part, s in seconds.items()))
        load_lora(model, out / f"iter{i}")     # where the round was there already, in a run that goes on

    # What came of it
    with stage(out / "final") as folder:      # anew: a finished run may have been taken further
        save_model(model, tokenizer, folder)
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in read_rows(out, iters)), encoding="utf-8")
    write_report(out, iters, sample_trees(out, iters, search_cfg))
    print_table(out, iters)
    print(f"{out}/final is the last policy, {out}/report.html the report")


def sample_trees(out, iters, search_cfg, each=3):
    """(round, text) of the trees with the most pairs in the first and the last round."""
    shown = []
    for i in sorted({1, iters}):
        trees = read_trees(out / f"iter{i}" / "trees.jsonl")
        trees.sort(key=lambda tree: -len(preference_pairs(tree, search_cfg)))
        shown += [(i, show(tree, search_cfg)) for tree in trees[:each]]
    return shown


if __name__ == "__main__":
    run(main)

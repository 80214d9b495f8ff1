"""Speed against what people use today: search, preference training, SFT, decoding, the machine's own limit.

    python tests/bench.py                                          # all but `loop`, with the embedded model
    python tests/bench.py --parts loop --before 784eec7            # the default loop.py, and as it was at a commit
    python tests/bench.py --parts mfu,sft --config 0.5b            # random weights in a real model's shape
    python tests/bench.py --scaling --out scaling.jsonl            # how cost and memory grow; docs/speed.png

`ours` and the baseline are two processes, so that each has a peak memory of its own, and take turns: ours, baseline,
ours, baseline. Both have the same weights, dtype (sft.autocast), threads, samples, LoRA rank and targets. Only work on
prepared token ids is timed: of trl's trainers the reference's log-probabilities and `train()`, not the construction of
the trainer. A baseline with a batch size to choose tries all of `--batch_sizes` first and keeps the fastest.

The columns: units of work a second (median of the runs); `ratio`, the median over the turns; tokens that went through
the model a second; the peak of the process's memory during the work (CUDA: of allocated memory); and the matrix
products that this many tokens need, as a share of what the machine reaches on large square matrices.
Needs requirements-dev.txt for trl and peft; matplotlib only for the plot.
"""

import gc
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKED = 512     # tokens of a row into which trl packs samples, or of the longest where that is more
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")     # no bars, neither ours nor the trainers'
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.trainer_callback import PrinterCallback

import dpo
import eval as evaluation
import mcts
import reference_search
import sft
import synth
from eval import Prompts, answer, decode, response_text, stop_token


@dataclass
class BenchConfig:
    parts: str = "search,preference,sft,vocabulary,decode,mfu"  # and loop, which takes minutes
    scaling: bool = False            # instead of the parts: how cost and memory grow
    model: str = str(ROOT / "base")  # path of a causal language model; none but its tokenizer is used with --config
    config: str = ""                 # random weights in the shape of Qwen2 0.5b or 1.5b, or of Llama 8b
    device: str = "auto"
    threads: int = 0                 # of both sides; 0: torch's own choice
    repeats: int = 3                 # turns that count
    warmup: int = 1                  # turns before these, not counted
    trees: int = 64                  # search: trees of ours; preference: trees that are searched for pairs
    baseline_trees: int = 16         # search: trees of the baseline, spread over the same samples
    max_new: int = 0                 # search: tokens a response may have, 0 for the default
    n: int = 256                     # sft and decode: samples
    batch: int = 64                  # decode: rows
    batch_sizes: str = "1,2,4,16,64"  # tried for each of trl's trainers
    rank: int = 16                   # LoRA on every linear layer but the head, alpha twice that
    before: str = ""                 # loop: a commit whose loop.py is the baseline
    loop_flags: str = ""             # loop: flags of loop.py for both, between blanks, so that both do the same amount
    our_flags: str = ""              # loop: more flags for ours, for settings that the baseline lacks or defaults differently
    tree_counts: str = "16,64,256,1024"            # scaling
    prompt_lengths: str = "200,500,1000,2000,4000"  # scaling
    pair_counts: str = "1,2,4,8,16"                # scaling
    out: str = ""                    # JSON lines: the machine, every run, every row of the table
    plot: str = str(ROOT / "docs" / "speed.png")   # scaling


# ---------------------------------------------------------------------------------------------
# Models and what their matrix products cost
# ---------------------------------------------------------------------------------------------

REAL = {
    "0.5b": lambda: Qwen2Config(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
                                max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "1.5b": lambda: Qwen2Config(vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
                                num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True,
                                max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6}),
    "8b": lambda: LlamaConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
                              num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=False,
                              max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 5e5}),
}


def load(cfg, shape=""):
    """(model, tokenizer): --model itself, or random weights in the shape that --config or `shape` names.

    `embedded`: --model's own shape with a longer context; `vocabulary`: that with 150,000 tokens. Random weights hardly
    ever end a response, so that every one is as long as it may be.
    """
    shape = shape or cfg.config
    if not shape:
        return sft.load_model(cfg.model, cfg.device)
    if shape not in (*REAL, "embedded", "vocabulary"):
        raise ValueError(f"--config is one of {', '.join(REAL)} (got {shape})")
    device, tokenizer = sft.pick_device(cfg.device), sft.load_model(cfg.model, "cpu")[1]
    config = REAL[shape]() if shape in REAL else AutoConfig.from_pretrained(cfg.model)
    if shape not in REAL:
        config.max_position_embeddings = 8192
    if shape == "vocabulary":
        config.vocab_size = 150_000
    config.bos_token_id, config.eos_token_id, config.pad_token_id = None, tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type != "cpu" or sft.bfloat16_pays(config, device) else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="grouped", dtype=dtype)
    return model.eval(), tokenizer


def sizes(model):
    """Weights in matrix products: of the body a token, of the head a logit, of LoRA; and attention's a layer."""
    head = model.get_output_embeddings()
    body = sum(m.weight.numel() for m in model.modules() if isinstance(m, (torch.nn.Linear, sft.Conv1D)) and m is not head)
    c = model.config
    width = c.num_attention_heads * (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
    return {"body": body, "head": head.weight.numel(), "lora": sum(p.numel() for p in sft.lora_parameters(model)),
            "attention": c.num_hidden_layers * width}


def needed_flops(size, scored=0, decoded=0, trained=0, learned=0, attended=0):
    """Floating-point operations that tokens need: 2 a weight and token forward; backward the same again, since the frozen
    weights have no gradient of their own, and twice that for LoRA's. learned: trained logits; attended: pairs of tokens
    that see each other, counted where attention is to be included (4 forward, 8 backward a layer's width), in training.
    """
    return (2 * size["body"] * (scored + decoded + 2 * trained) + 2 * size["head"] * (decoded + 2 * learned)
            + 6 * size["lora"] * trained + 12 * size["attention"] * attended)


def attended(tree):
    """Pairs (token, token that it attends to) in a tree of segments, itself included."""
    total, ends = 0, []
    for ids, parent, _ in tree:
        before = ends[parent] if parent >= 0 else 0
        total += len(ids) * before + len(ids) * (len(ids) + 1) // 2
        ends.append(before + len(ids))
    return total


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def once(work, device):
    sync(device)
    started = time.perf_counter()
    work()
    sync(device)
    return time.perf_counter() - started


def matmul_rate(device, dtype, longest=0.5):
    """FLOP a second of the machine's best product of two square matrices; sizes grow until one takes `longest` s."""
    best, n = 0.0, 256
    while n <= 8192:
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        seconds = min(once(lambda: a @ b, device) for _ in range(4))
        best = max(best, 2 * n ** 3 / seconds)
        if 8 * seconds > longest and device.type == "cpu":     # the next size takes eight times as long
            break
        n *= 2
    return best


def copy_rate(device, size=2 ** 28):
    """Bytes a second, read and written, of copying a large tensor."""
    a = torch.ones(size, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size / min(once(lambda: b.copy_(a), device) for _ in range(5))


def compute_dtype(model):
    return torch.float32 if isinstance(sft.autocast(model), sft.nullcontext) else torch.bfloat16


# ---------------------------------------------------------------------------------------------
# What is timed. A side is a generator: its first next() prepares; then the clock starts at one next() and stops at the
# following, which yields what was done: `units`, and `head` (learned logits). Tokens are what sft.TOKENS counted.
# ---------------------------------------------------------------------------------------------


def search_config(cfg, **changes):
    default = mcts.SearchConfig(**changes)
    return replace(default, max_new=cfg.max_new) if cfg.max_new else default


def search_samples(cfg, tokenizer, n, length=0):
    samples = synth.make_samples(n, "train", 0)
    if not length:
        return samples
    spare = [tool for other in synth.make_samples(200, "train", 1) for tool in other.tools]
    return [lengthen(tokenizer, sample, length, spare) for sample in samples]


def lengthen(tokenizer, sample, length, spare):
    """The sample with spare tools in its schema, under new names, until the prompt has `length` tokens or a few more."""
    tools, n = list(sample.tools), 0
    size = lambda tools: len(synth.prompt_ids(tokenizer, replace(sample, tools=tools)))
    now = size(tools)
    while now < length:     # in steps of about half of what is missing
        each = max(1, (now - 50) // len(tools))
        for _ in range(max(1, (length - now) // each // 2)):
            tools.append({**spare[n % len(spare)], "name": f"{spare[n % len(spare)]['name']}_{n + 2}"})
            n += 1
        now = size(tools)
    return replace(sample, tools=tools)


def search_ours(cfg, n, of=0, length=0, shape=""):
    """n trees at once; of: one such search after the other, until so many samples are searched."""
    model, tokenizer = load(cfg, shape)
    samples, settings = search_samples(cfg, tokenizer, of or n, length), search_config(cfg)
    mcts.search(model, tokenizer, samples[:1], settings, progress=False)
    while True:
        yield
        trees = [tree for i in range(0, len(samples), n) for tree in mcts.search(model, tokenizer, samples[i:i + n], settings, progress=False)]
        yield {"units": sum(t.nodes[0].visits for t in trees), "trees": len(trees),
               "prompt": sum(len(t.prompt) for t in trees) / len(trees)}


def search_baseline(cfg, n, of, length=0, shape=""):
    """reference_search on n of the samples, evenly spread."""
    model, tokenizer = load(cfg, shape)
    samples, settings = search_samples(cfg, tokenizer, of, length)[::max(1, of // n)][:n], search_config(cfg)
    reference_search.search(model, tokenizer, samples[:1], replace(settings, simulations=1))
    torch.manual_seed(0)
    while True:
        yield
        trees = reference_search.search(model, tokenizer, samples, settings)
        yield {"units": sum(t.nodes[0].visits for t in trees), "trees": n,
               "prompt": sum(len(t.prompt) for t in trees) / n}


def search_pairs(cfg, path):
    """Not measured: search with --model itself, and keep the trees in a file for both sides of `preference`."""
    model, tokenizer = sft.load_model(cfg.model, cfg.device)
    yield
    trees = mcts.search(model, tokenizer, synth.make_samples(cfg.trees, "train", 0), search_config(cfg), progress=False)
    mcts.write_trees(trees, path)
    yield {"units": sum(len(mcts.preference_pairs(t, mcts.SearchConfig())) for t in trees)}


def trees_and_pairs(path, most):
    """[(tree, at most `most` of its pairs)] of a file of trees, without those that have none."""
    found = [(t, mcts.preference_pairs(t, mcts.SearchConfig())[:most or None]) for t in mcts.read_trees(path)]
    return [(t, pairs) for t, pairs in found if pairs]


def grown_trees(tokenizer, n, pairs, step=8):
    """n search trees of random steps with that many pairs each; prompts are the world's."""
    rng, out = random.Random(0), []
    for sample in synth.make_samples(n, "train", 0):
        tree, open_nodes, found = mcts.Tree(sample, synth.prompt_ids(tokenizer, sample), [mcts.Node(-1, [], "")]), [0], []
        for _ in range(pairs):
            parent = open_nodes.pop(rng.randrange(len(open_nodes)))
            for _ in range(2):
                tree.nodes.append(mcts.Node(parent, [rng.randrange(6, len(tokenizer)) for _ in range(step)], "", visits=1))
                open_nodes.append(len(tree.nodes) - 1)
            found.append((open_nodes[-1], open_nodes[-2]))
        out.append((tree, found))
    return out


def with_lora(cfg, shape=""):
    model, tokenizer = load(cfg, shape)
    torch.manual_seed(0)
    return sft.add_lora(model, cfg.rank, 2 * cfg.rank), tokenizer


def preference_ours(cfg, path="", most=0, grown=0, shape=""):
    model, tokenizer = with_lora(cfg, shape)
    chosen = grown_trees(tokenizer, cfg.trees, grown) if grown else trees_and_pairs(path, most)
    trees = [dpo.paired_tree(tree, pairs, sft=False) for tree, pairs in chosen]
    settings = dpo.DPOConfig(sft_weight=0.0)
    learned = settings.pref_epochs * sum(len(ids) for t in trees for ids, _, learned in t.segments if learned)
    dpo.optimize(model, trees[:4], settings, progress=False)
    while True:
        sft.reset_lora(model)
        yield
        dpo.optimize(model, list(trees), settings, progress=False)
        yield {"units": settings.pref_epochs * sum(len(t.chosen) for t in trees), "head": learned, "trees": len(trees)}


def pair_rows(chosen):
    """Token ids of each pair as trl takes them: what both fragments follow, and the fragments."""
    rows = []
    for tree, pairs in chosen:
        for w, l in pairs:
            before = tree.prompt + tree.so_far(tree.nodes[w].parent)
            rows.append({"prompt_ids": before, "chosen_ids": tree.nodes[w].ids, "rejected_ids": tree.nodes[l].ids,
                         "length": len(before) + max(len(tree.nodes[w].ids), len(tree.nodes[l].ids))})
    return rows


def trainer_settings(model, batch, lr, warmup, epochs, folder):
    """What trl's trainers share: our optimizer and schedule, no saving or logging, batches of like length, no
    recomputation of activations (trl's default, which saves memory and costs time)."""
    return dict(output_dir=folder, per_device_train_batch_size=batch, num_train_epochs=epochs, learning_rate=lr,
                lr_scheduler_type="cosine", warmup_steps=warmup, weight_decay=0.0, max_grad_norm=1.0, report_to="none",
                save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
                bf16=compute_dtype(model) == torch.bfloat16, use_cpu=model.device.type == "cpu", max_length=None,
                dataloader_pin_memory=model.device.type == "cuda", train_sampling_strategy="group_by_length")


def peft_config(cfg):
    import peft
    return peft.LoraConfig(r=cfg.rank, lora_alpha=2 * cfg.rank, lora_dropout=0.0, target_modules="all-linear",
                           task_type="CAUSAL_LM")


def preference_baseline(cfg, batch, path="", most=0, limit=0, shape=""):
    """trl's DPOTrainer with peft's LoRA on the same token ids; trl's DPO has no packing. limit: pairs, for a trial."""
    import datasets
    import trl

    class Trainer(trl.DPOTrainer):
        ready = False

        def _prepare_dataset(self, dataset, *args):     # it would tokenize text; ours are token ids
            return dataset

        def _precompute_ref_logps(self, dataset, *args):     # not while the trainer is made, but when the clock runs
            return super()._precompute_ref_logps(dataset, *args) if self.ready else dataset

    device, settings, run = sft.pick_device(cfg.device), dpo.DPOConfig(), 0
    rows = pair_rows(trees_and_pairs(path, most))
    rows = rows[:max(limit, batch)] if limit else rows
    epochs = 1 if limit else settings.pref_epochs
    both = lambda row: [len(row["prompt_ids"]) + len(row[key]) for key in ("chosen_ids", "rejected_ids")]
    tokens = sum(sum(both(row)) for row in rows)
    learned = epochs * sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        while True:
            model, tokenizer = load(cfg, shape)
            run += 1     # in the data, or the second run would find the first one's reference log-probabilities cached
            trainer = Trainer(
                model, args=trl.DPOConfig(
                    **trainer_settings(model, batch, settings.pref_lr, settings.pref_warmup, epochs, folder),
                    beta=settings.beta, precompute_ref_log_probs=True, remove_unused_columns=False),
                train_dataset=datasets.Dataset.from_list([{**row, "run": run} for row in rows]),
                processing_class=tokenizer, peft_config=peft_config(cfg))
            trainer.ready = True
            trainer.remove_callback(PrinterCallback)
            yield
            trainer.train_dataset = trainer._precompute_ref_logps(trainer.train_dataset, "train", batch)
            trainer.train()
            sft.count_tokens("scored", tokens)
            sft.count_tokens("trained", epochs * tokens)
            yield {"units": epochs * len(rows), "head": learned}
            del model, trainer
            free(device)


def free(device):
    """Release unused memory, so that it does not count for the next run, or against the other side."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def sft_ours(cfg, shape=""):
    model, tokenizer = with_lora(cfg, shape)
    samples, settings = synth.make_samples(cfg.n, "train", 0), sft.SFTConfig(epochs=1)
    learned = sum(len(synth.target_ids(tokenizer, s)) for s in samples)
    if not shape:
        sft.warm_up(model, tokenizer, samples[:4], settings, progress=False)
    while True:
        sft.reset_lora(model)
        yield
        sft.warm_up(model, tokenizer, samples, settings, progress=False)
        yield {"units": learned, "head": learned}


def sft_baseline(cfg, batch, packing, limit=0, shape=""):
    """trl's SFTTrainer with peft's LoRA, loss on the response. packing: rows of our length, instead of padding."""
    import datasets
    import trl

    device, settings = sft.pick_device(cfg.device), sft.SFTConfig(epochs=1)
    samples = synth.make_samples(cfg.n, "train", 0)
    samples = samples[:max(limit, batch)] if limit else samples
    with tempfile.TemporaryDirectory() as folder:
        while True:
            model, tokenizer = load(cfg, shape)
            rows, learned, tokens = [], 0, 0
            for sample in samples:
                prompt, target = synth.prompt_ids(tokenizer, sample), synth.target_ids(tokenizer, sample)
                rows.append({"input_ids": prompt + target, "completion_mask": [0] * len(prompt) + [1] * len(target)})
                learned, tokens = learned + len(target), tokens + len(prompt + target)
            shared = trainer_settings(model, batch, settings.lr, settings.lr_warmup, settings.epochs, folder)
            if packing:     # no sample is cut
                shared["max_length"] = max(PACKED, *(len(row["input_ids"]) for row in rows))
            trainer = trl.SFTTrainer(
                model, args=trl.SFTConfig(**shared, completion_only_loss=True, packing=packing),
                train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer, peft_config=peft_config(cfg))
            trainer.remove_callback(PrinterCallback)
            yield
            trainer.train()
            sft.count_tokens("trained", tokens)
            yield {"units": learned, "head": learned}
            del model, trainer
            free(device)


def decode_groups(cfg, tokenizer):
    """Held-out samples in groups of --batch, those with prompts of like length together."""
    samples = sorted(synth.make_samples(cfg.n, "test", 0), key=lambda s: len(synth.prompt_ids(tokenizer, s)))
    return [samples[i:i + cfg.batch] for i in range(0, len(samples), cfg.batch)]


def decode_ours(cfg, max_new=200):
    model, tokenizer = load(cfg)
    groups = [[replace(sample, target="") for sample in group] for group in decode_groups(cfg, tokenizer)]     # a target would be a draft
    answer(model, tokenizer, groups[0][:2], max_new=4)
    while True:
        yield
        texts = [text for group in groups for text, in answer(model, tokenizer, group, max_new, max_tokens=2 ** 40)]
        yield {"units": sft.TOKENS["decoded"], "texts": texts}


@torch.no_grad()
def generate_batch(model, tokenizer, prompts, max_new, stop_id):
    """transformers' greedy generate on one left-padded batch -> new ids of each row, up to and with `stop_id`."""
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    with sft.autocast(model):
        out = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=max_new, do_sample=False,
                             eos_token_id=stop_id, pad_token_id=pad)[:, width:].tolist()
    return [row[:row.index(stop_id) + 1] if stop_id in row else row for row in out]


def decode_baseline(cfg, max_new=200):
    model, tokenizer = load(cfg)
    groups, stop_id = decode_groups(cfg, tokenizer), stop_token(tokenizer)
    generate_batch(model, tokenizer, [synth.prompt_ids(tokenizer, s) for s in groups[0][:2]], 4, stop_id)
    while True:
        yield
        texts = []
        for group in groups:
            prompts = [synth.prompt_ids(tokenizer, s) for s in group]
            rows = generate_batch(model, tokenizer, prompts, max_new, stop_id)
            texts += [response_text(tokenizer, row, stop_id) for row in rows]
            sft.count_tokens("scored", sum(map(len, prompts)))
            sft.count_tokens("decoded", sum(map(len, rows)))
        yield {"units": sft.TOKENS["decoded"], "texts": texts}


def limit_sft(cfg):
    """`mfu`: an SFT pass, with the operations it needs, attention included."""
    model, tokenizer = with_lora(cfg)
    samples, settings = synth.make_samples(cfg.n, "train", 0), sft.SFTConfig(epochs=1)
    trees = [sft.sample_tree(tokenizer, s) for s in samples]
    learned, size = sum(len(tree[1][0]) for tree in trees), sizes(model)
    sft.warm_up(model, tokenizer, samples[:4], settings, progress=False)
    while True:
        sft.reset_lora(model)
        yield
        sft.warm_up(model, tokenizer, samples, settings, progress=False)
        tokens = sft.TOKENS["trained"]
        pairs = sum(map(attended, trees))
        yield {"units": learned, "flops": needed_flops(size, trained=tokens, learned=learned, attended=pairs),
               "flops_6n": 6 * (size["body"] * tokens + size["head"] * learned) + 12 * size["attention"] * pairs}


def limit_preference(cfg, path):
    """`mfu`: a pass of preference training, its reference included."""
    model, tokenizer = with_lora(cfg)
    trees, settings = [dpo.paired_tree(*tp, sft=False) for tp in trees_and_pairs(path, 0)], dpo.DPOConfig(sft_weight=0.0)
    learned, size = sum(len(ids) for t in trees for ids, _, learned in t.segments if learned), sizes(model)
    pairs, epochs = sum(attended(t.segments) for t in trees), settings.pref_epochs
    dpo.optimize(model, trees[:4], settings, progress=False)
    while True:
        sft.reset_lora(model)
        yield
        dpo.optimize(model, list(trees), settings, progress=False)
        scored, trained = sft.TOKENS["scored"], sft.TOKENS["trained"]
        reference = 2 * size["head"] * learned + 4 * size["attention"] * pairs
        yield {"units": epochs * sum(len(t.chosen) for t in trees),
               "flops": reference + needed_flops(size, scored, 0, trained, epochs * learned, epochs * pairs),
               "flops_6n": reference + 2 * size["body"] * scored + epochs * 12 * size["attention"] * pairs
               + 6 * (size["body"] * trained + size["head"] * epochs * learned)}


def limit_decode(cfg, new=64):
    """`mfu`: greedy decoding at --batch after the prompts are in the cache; bytes are the weights and the cache, read once a step.
    A step is one token of each row: no guesses."""
    evaluation.GUESSES = 0
    model, tokenizer = load(cfg)
    prompts = Prompts(model, [synth.prompt_ids(tokenizer, s) for s in synth.make_samples(cfg.batch, "test", 0)])

    def run(n):
        for i in range(cfg.batch):
            prompts.forget(i)
        decode(prompts, range(cfg.batch), [[]] * cfg.batch, n, -1, max_tokens=2 ** 40)     # none ends
    size, c = sizes(model), model.config
    weights = (size["body"] + size["head"]) * next(model.parameters()).element_size()
    a_token = 2 * c.num_hidden_layers * prompts.states[0][0][0].shape[0] * prompts.states[0][0][0].shape[-1] \
        * prompts.states[0][0][0].element_size()
    cache = a_token * sum(prompts.lengths[i] + 1 + new / 2 for i in range(cfg.batch))
    run(2)
    while True:
        started = time.perf_counter()
        run(1)     # what comes before the first step: the cache is laid out
        sync(model.device)
        first = time.perf_counter() - started
        yield
        run(new + 1)
        yield {"units": cfg.batch * new, "bytes": new * (weights + cache), "without": first}


def limit_machine(cfg):
    """What the machine reaches: matrix products and copying."""
    device = sft.pick_device(cfg.device)
    while True:
        yield
        yield {"units": 1, "float32": matmul_rate(device, torch.float32), "bfloat16": matmul_rate(device, torch.bfloat16),
               "copy": copy_rate(device), "dtype": str(compute_dtype(load(cfg)[0])).removeprefix("torch.")}


SIDES = {f.__name__: f for f in (search_ours, search_baseline, search_pairs, preference_ours, preference_baseline, sft_ours,
                                 sft_baseline, decode_ours, decode_baseline, limit_sft, limit_preference, limit_decode,
                                 limit_machine)}


# ---------------------------------------------------------------------------------------------
# Processes that take turns
# ---------------------------------------------------------------------------------------------


def reset_peak(device):
    """Reset the peak, to exclude the preparation; where the system cannot, it stays as it is."""
    free(device)
    if device.type == "cuda":
        return torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak_memory(device):
    """Bytes: CUDA's allocated memory, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:     # getrusage would begin with the peak of the process that started this one
        return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(side, device):
    """One run of a side -> what it did, seconds, tokens by kind, peak memory in bytes."""
    next(side)
    sft.TOKENS.clear()
    reset_peak(device)
    sync(device)
    started = time.perf_counter()
    done = next(side)
    sync(device)
    seconds = time.perf_counter() - started - done.pop("without", 0.0)
    run = {**done, "seconds": seconds, "tokens": dict(sft.TOKENS), "memory": peak_memory(device)}
    free(device)
    return run


def work(pipe, name, cfg, options):
    """A process of its own: makes ready, and runs once for each message until one is None."""
    try:
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        side = SIDES[name](cfg, **options)
        while pipe.recv():
            pipe.send(measure(side, sft.pick_device(cfg.device)))
    except (EOFError, KeyboardInterrupt):
        pass
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")


class Worker:
    """A side in a process of its own. Raises TrainingError when it fails or dies, as for want of memory."""

    def __init__(self, name, cfg, **options):
        context = multiprocessing.get_context("spawn")
        self.name, (self.pipe, other) = name, context.Pipe()
        self.process = context.Process(target=work, args=(other, name, cfg, options), daemon=True)
        self.process.start()
        other.close()

    def answer(self):
        try:
            found = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise sft.TrainingError(f"{self.name}: the process died ({self.process.exitcode})") from None
        if isinstance(found, str):
            raise sft.TrainingError(f"{self.name}: {found}")
        return found

    def run(self):
        self.pipe.send(True)
        return self.answer()

    def close(self):
        try:
            self.pipe.send(None)
        except OSError:
            pass
        self.process.join(10)
        self.process.terminate()


@contextmanager
def workers(cfg, *wanted):
    """Workers for (name, options), closed at the end."""
    started = []
    try:
        for name, options in wanted:
            started.append(Worker(name, cfg, **options))
        yield started
    finally:
        for worker in started:
            worker.close()


def alone(cfg, name, **options):
    """One run of a side in a fresh process."""
    with workers(cfg, (name, options)) as (worker,):
        return worker.run()


def fastest(cfg, log, part, name, choices, **options):
    """The choice of options with which a baseline does most a second, each tried in a process of its own."""
    best, best_rate = None, 0.0
    for choice in choices:
        try:
            run = alone(cfg, name, limit=64, **choice, **options)
        except RuntimeError as error:
            print(f"  {part}, {choice}: left out, {error}", flush=True)
            continue
        log({"part": part, "side": name, "trial": choice, **run})
        rate = run["units"] / run["seconds"]
        print(f"  {part}, {choice}: {rate:,.1f} a second, {run['memory'] / 2 ** 30:.2f} GiB", flush=True)
        if rate > best_rate:
            best, best_rate = choice, rate
    if best is None:
        raise RuntimeError(f"{part}: no choice of the baseline ran")
    return best


def take_turns(cfg, log, part, unit, ours, baseline, note=""):
    """Ours and the baseline in turn -> a row of the table. ours, baseline: (name of a side, options)."""
    runs = {"ours": [], "baseline": []}
    with workers(cfg, ours, *([baseline] if baseline else [])) as sides:
        for turn in range(cfg.warmup + cfg.repeats):
            for side, worker in zip(runs, sides):
                run = worker.run()
                log({"part": part, "side": side, "turn": turn - cfg.warmup, **{k: v for k, v in run.items() if k != "texts"}})
                if turn >= cfg.warmup:
                    runs[side].append(run)
    row = {"part": part, "unit": unit, "note": note, "sides": {}}
    for side, found in runs.items():
        if found:
            middle = lambda f: statistics.median(map(f, found))
            row["sides"][side] = {
                "rate": middle(lambda r: r["units"] / r["seconds"]), "seconds": middle(lambda r: r["seconds"]),
                "tokens_a_second": middle(lambda r: sum(r["tokens"].values()) / r["seconds"]),
                "memory": max(r["memory"] for r in found)}
    if baseline:
        row["ratio"] = statistics.median(o["units"] / o["seconds"] * b["seconds"] / b["units"]
                                         for o, b in zip(runs["ours"], runs["baseline"]))
    return row, runs


# ---------------------------------------------------------------------------------------------
# The parts: rows of the table
# ---------------------------------------------------------------------------------------------


def part_search(bench):
    cfg = bench.cfg
    row, runs = bench.compare("search", "simulations", ("search_ours", {"n": cfg.trees}),
                              ("search_baseline", {"n": min(cfg.baseline_trees, cfg.trees), "of": cfg.trees}))
    row["note"] = f"{cfg.trees} trees, baseline {min(cfg.baseline_trees, cfg.trees)}"
    yield row


def part_preference(bench):
    for most, name in ((0, "preference, all pairs"), (1, "preference, one pair a tree")):
        options = {"path": bench.trees(), "most": most}
        choice = fastest(bench.cfg, bench.log, name, "preference_baseline", [{"batch": b} for b in bench.batch_sizes], **options)
        row, runs = bench.compare(name, "pairs", ("preference_ours", options), ("preference_baseline", {**choice, **options}))
        pairs, trees = runs["ours"][0]["units"] / dpo.DPOConfig().pref_epochs, runs["ours"][0]["trees"]
        row["note"] = f"{pairs / trees:.1f} pairs a tree; trl's batch {choice['batch']}"
        yield row


def part_sft(bench):
    choices = [{"batch": b, "packing": p} for p in (True, False) for b in bench.batch_sizes]
    choice = fastest(bench.cfg, bench.log, "sft", "sft_baseline", choices)
    row, _ = bench.compare("sft", "response tokens", ("sft_ours", {}), ("sft_baseline", choice))
    row["note"] = f"trl's batch {choice['batch']}, packing {'on' if choice['packing'] else 'off'}"
    yield row


def part_vocabulary(bench):
    """SFT with a vocabulary of 150,000, for its memory: as many tokens a forward pass on both sides."""
    settings = sft.SFTConfig(epochs=1)
    same = {"batch": max(1, min(settings.batch_tokens, settings.micro_tokens) // PACKED), "packing": True}
    bench_cfg = replace(bench.cfg, n=min(bench.cfg.n, 64), repeats=1, warmup=0)
    row, _ = take_turns(bench_cfg, bench.log, "sft, vocabulary 150,000", "response tokens",
                        ("sft_ours", {"shape": "vocabulary"}), ("sft_baseline", {**same, "shape": "vocabulary"}))
    memory = {side: figures["memory"] for side, figures in row["sides"].items()}
    row["note"] = f"for its memory: {memory['ours'] / memory['baseline']:.2f} of the baseline's; packing on, batch {same['batch']}"
    yield row


def part_decode(bench):
    row, runs = bench.compare("decode", "tokens", ("decode_ours", {}), ("decode_baseline", {}))
    ours, theirs = (runs[side][0]["texts"] for side in ("ours", "baseline"))
    row["note"] = f"batch {bench.cfg.batch}; {sum(map(str.__eq__, ours, theirs))} of {len(ours)} responses the same"
    yield row


def part_mfu(bench):
    bench.machine()
    measured = [(name, *bench.compare(f"limit, {name.removeprefix('limit_')}", "", (name, options), None))
                for name, options in (("limit_sft", {}), ("limit_preference", {"path": bench.trees()}), ("limit_decode", {}))]
    machine = bench.machine(again=True)
    for name, row, runs in measured:
        middle = lambda key: statistics.median(r[key] / r["seconds"] for r in runs["ours"])
        if name == "limit_decode":
            row["note"] = f"{100 * middle('bytes') / machine['copy']:.0f}% of the copy bandwidth ({machine['copy'] / 1e9:.0f} GB/s)"
            row["unit"] = "tokens"
        else:
            row["share"] = {"ours": middle("flops") / machine[machine["dtype"]]}
            row["share_6n"] = middle("flops_6n") / machine[machine["dtype"]]
            row["unit"] = "response tokens" if name == "limit_sft" else "pairs"
            row["note"] = f"with attention; {100 * row['share_6n']:.0f}% counted as 6 N a token"
        yield row


def part_loop(bench):
    """The default run, and with --before the same of that commit; each once."""
    row = {"part": "loop", "unit": "runs", "note": "", "sides": {}}
    with tempfile.TemporaryDirectory() as folder:
        places = {"ours": ROOT}
        if bench.cfg.before:
            places["baseline"] = Path(folder, "before")
            places["baseline"].mkdir()
            archive = subprocess.run(["git", "archive", bench.cfg.before], cwd=ROOT, capture_output=True)
            if archive.returncode:
                raise ValueError(f"--before {bench.cfg.before}: {archive.stderr.decode().strip()}")
            subprocess.run(["tar", "-x"], cwd=places["baseline"], input=archive.stdout, check=True)
        for side, place in places.items():
            command = [sys.executable, "loop.py", "--iters", "3", "--out", str(Path(folder, side)), "--device", bench.cfg.device,
                       *bench.cfg.loop_flags.split(), *(bench.cfg.our_flags.split() if side == "ours" else ())]
            environment = {**os.environ, **({"OMP_NUM_THREADS": str(bench.cfg.threads)} if bench.cfg.threads else {})}
            started = time.perf_counter()
            process = subprocess.Popen(command, cwd=place, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise RuntimeError(f"loop.py in {place} ended with status {process.returncode}")
            seconds, memory = time.perf_counter() - started, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
            bench.log({"part": "loop", "side": side, "turn": 0, "units": 1, "seconds": seconds, "memory": memory})
            row["sides"][side] = {"rate": 1 / seconds, "seconds": seconds, "tokens_a_second": 0.0, "memory": memory}
    found = row["sides"]
    row["note"] = ", ".join(f"{side} {figures['seconds'] / 60:.1f} minutes" for side, figures in found.items())
    if "baseline" in found:
        row["ratio"] = found["baseline"]["seconds"] / found["ours"]["seconds"]
    yield row


PARTS = {"search": part_search, "preference": part_preference, "sft": part_sft, "vocabulary": part_vocabulary, "decode": part_decode,
         "mfu": part_mfu, "loop": part_loop}
NEEDS_TRL = ("preference", "sft", "vocabulary")


class Bench:
    """What the parts share: settings, the log, the machine's limits and a file of trees, made when first asked for."""

    def __init__(self, cfg, folder):
        self.cfg, self.folder, self.limits = cfg, folder, None
        self.batch_sizes = numbers(cfg.batch_sizes)
        if cfg.out:
            Path(cfg.out).write_text("", encoding="utf-8")

    def log(self, record):
        if self.cfg.out:
            with open(self.cfg.out, "a", encoding="utf-8") as f:
                f.write(json.dumps(record) + "\n")

    def machine(self, again=False):
        """What the machine reaches; again: the best of this and earlier measurements, as a neighbour may have been busy then."""
        if again or self.limits is None:
            found = alone(self.cfg, "limit_machine")
            self.limits = {**found, **{key: max(found[key], (self.limits or found)[key]) for key in ("float32", "bfloat16", "copy")}}
            self.log({"part": "machine", **self.limits})
        return self.limits

    def trees(self):
        path = Path(self.folder, "trees.jsonl")
        if not path.exists():
            if not alone(self.cfg, "search_pairs", path=str(path))["units"]:
                raise RuntimeError("the search found no pair to train on")
        return str(path)

    def compare(self, *what):
        """take_turns, and both sides' share of the machine's rate of matrix products with the weights."""
        row, runs = take_turns(self.cfg, self.log, *what)
        machine = self.machine()
        with torch.device("meta"):
            size = sizes(model_shape(self.cfg))
        row["share"] = {}
        for side, found in runs.items():
            if found:
                row["share"][side] = statistics.median(
                    needed_flops(size, **{k: v for k, v in r["tokens"].items() if k in ("scored", "decoded", "trained")},
                                 learned=r.get("head", 0)) / r["seconds"] for r in found) / machine[machine["dtype"]]
        return row, runs


def model_shape(cfg):
    """The model without weights, for its sizes."""
    config = REAL[cfg.config]() if cfg.config in REAL else AutoConfig.from_pretrained(cfg.model)
    return AutoModelForCausalLM.from_config(config)


def numbers(text):
    try:
        return [int(n) for n in text.split(",")]
    except ValueError:
        raise ValueError(f"expected whole numbers between commas, got {text!r}") from None


# ---------------------------------------------------------------------------------------------
# How it grows
# ---------------------------------------------------------------------------------------------


def scaling(bench):
    """{curve: [{x, seconds a unit, memory}]}: each point a fresh process."""
    cfg, curves = bench.cfg, {"trees": [], "prompt": [], "prompt, baseline": [], "pairs": []}

    def point(curve, x, name, per, **options):
        run = alone(cfg, name, **options)
        found = {"x": run["prompt"] if curve.startswith("prompt") else x, "seconds": run["seconds"] / run[per],
                 "memory": run["memory"], "tokens": run["tokens"]}
        curves[curve].append(found)
        bench.log({"scaling": curve, "side": name, **options, **found})
        print(f"  {curve:18s} {found['x']:7.0f}  {1000 * found['seconds']:10.2f} ms each  {found['memory'] / 2 ** 30:6.2f} GiB",
              flush=True)

    print("cost a tree as trees grow")
    for n in numbers(cfg.tree_counts):     # each time the same samples, n at once: some take twice as long as others
        point("trees", n, "search_ours", "trees", n=n, of=max(numbers(cfg.tree_counts)))
    print("cost a simulation as the prompt grows (random weights: responses of the same length at every prompt)")
    few = {"n": min(16, cfg.trees), "shape": cfg.config or "embedded"}
    for length in numbers(cfg.prompt_lengths):
        point("prompt", length, "search_ours", "units", length=length, **few)
        point("prompt, baseline", length, "search_baseline", "units", of=few["n"], length=length, **{**few, "n": 1})
    print("cost a pair as pairs a tree grow (grown trees with random steps)")
    for pairs in numbers(cfg.pair_counts):
        point("pairs", pairs, "preference_ours", "units", grown=pairs)
    return curves


def plot(curves, path):
    """Cost above, memory below, against trees, prompt and pairs."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker
    figure, axes = pyplot.subplots(2, 3, figsize=(9, 4.6), sharex="col", layout="constrained")
    for column, (curve, title, label) in enumerate((
            ("trees", "ms a tree", "trees"), ("prompt", "ms a simulation", "tokens of the prompt"),
            ("pairs", "ms a pair", "pairs a tree"))):
        for name, style in ((curve, "o-"), (f"{curve}, baseline", "s--")):
            points = curves.get(name) or []
            for row, values in enumerate(([1000 * p["seconds"] for p in points], [p["memory"] / 2 ** 30 for p in points])):
                if points:
                    axes[row][column].plot([p["x"] for p in points], values, style, ms=4, label=name)
        axes[0][column].set_title(title, fontsize=10)
        axes[1][column].set(xlabel=label, ylim=(0, None))
        axes[0][column].set(xscale="log", **({"yscale": "log"} if curve == "prompt" else {"ylim": (0, None)}))
        at = [round(p["x"]) for p in curves.get(curve) or []]
        axes[1][column].set_xticks(at, at)
        axes[1][column].xaxis.set_minor_locator(ticker.NullLocator())
    axes[0][1].yaxis.set(major_locator=ticker.LogLocator(2), major_formatter="{x:.0f}", minor_locator=ticker.NullLocator())
    axes[0][1].legend(fontsize=8)
    axes[1][0].set_ylabel("GiB")
    figure.savefig(path, dpi=90)


# ---------------------------------------------------------------------------------------------


def describe():
    """What the figures were measured on."""
    try:
        cpu = next(line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    versions = {name: importlib.import_module(name).__version__ for name in ("torch", "transformers")}
    for name in ("trl", "peft"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "threads": torch.get_num_threads(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "system": platform.platform(terse=True), "python": platform.python_version(), "commit": commit, **versions}


def cell(value, form):
    return format(value, form) if value is not None else ""


HEADER = ("work", "unit", "ours/s", "baseline/s", "ratio", "tokens/s ours", "baseline", "GiB ours", "baseline", "share ours",
          "baseline", "")


def table_line(row):
    side = lambda key: [row["sides"].get(s, {}).get(key) for s in ("ours", "baseline")]
    rates, tokens, memory = side("rate"), side("tokens_a_second"), side("memory")
    share = [row.get("share", {}).get(s) for s in ("ours", "baseline")]
    return (row["part"], row["unit"], *(cell(r, ",.4g" if r and r < 1000 else ",.0f") for r in rates), cell(row.get("ratio"), ".2f"),
            *(cell(t or None, ",.0f") for t in tokens), *(cell(m and m / 2 ** 30, ".2f") for m in memory),
            *(cell(s, ".1%") for s in share), row["note"])


def print_table(rows):
    """In Markdown, for docs/speed.md."""
    lines = [HEADER, *map(table_line, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    show = lambda line: "| " + " | ".join(text.ljust(w) if i in (0, 1, len(widths) - 1) else text.rjust(w)
                                          for i, (text, w) in enumerate(zip(line, widths))) + " |"
    print(show(lines[0]))
    print("|" + "|".join("-" * (w + 2) for w in widths) + "|")
    for line in lines[1:]:
        print(show(line))


def main(argv=None):
    cfg, = synth.read_flags(argv, BenchConfig)
    parts = [part.strip() for part in cfg.parts.split(",") if part.strip()]
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--parts are some of {', '.join(PARTS)} (got {', '.join(unknown)})")
    if cfg.config and cfg.config not in REAL:
        raise ValueError(f"--config is one of {', '.join(REAL)} (got {cfg.config})")
    sft.check_at_least_one(cfg, "repeats", "trees", "baseline_trees", "n", "batch", "rank")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    machine = describe()
    print(", ".join(f"{key} {value}" for key, value in machine.items() if value))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(cfg, folder)
        bench.log({"machine": machine, "settings": asdict(cfg)})
        if cfg.scaling:
            curves = scaling(bench)
            if importlib.util.find_spec("matplotlib"):
                plot(curves, cfg.plot)
                print(f"{cfg.plot} shows the curves")
            else:
                print("no plot: it needs matplotlib (pip install matplotlib)")
            return
        rows = []
        for part in parts:
            missing = [name for name in ("trl", "peft", "datasets") if not importlib.util.find_spec(name)]
            if part in NEEDS_TRL and missing:
                print(f"{part} left out: it needs {', '.join(missing)} (pip install -r requirements-dev.txt)")
                continue
            print(f"{part} ...", flush=True)
            for row in PARTS[part](bench):
                bench.log({"row": row})
                rows.append(row)
                print("  " + "  ".join(filter(None, table_line(row))), flush=True)
        print()
        print_table(rows)


if __name__ == "__main__":
    sft.run(main)

"""The benchmark compares like with like: the slow search finds the same trees, the baselines get the same tokens."""

import json
from dataclasses import replace

import pytest
import torch

import bench
import mcts
import reference_search
import sft
import synth
from conftest import save_tiny
from eval import Prompts, decode, stop_token
from mcts import SearchConfig


@pytest.mark.parametrize("changes", [{}, {"depth": 2, "self_eval": 0.0, "max_tokens_in_flight": 1},
                                     {"target_step": False, "outcome": "exact"}])
def test_the_search_one_node_at_a_time_finds_the_same_trees(model, tokenizer, samples, changes):
    """Greedy, so that both see the same continuations: nodes, parents, visits alike, and numbers to 1e-4."""
    cfg = SearchConfig(**{"simulations": 4, "k": 2, "max_new": 14, "temperature": 0.0, **changes})
    if cfg.max_tokens_in_flight == 1:     # one tree a wave
        cfg = replace(cfg, max_tokens_in_flight=max(mcts.tokens_in_flight(synth.prompt_ids(tokenizer, s), tokenizer, cfg) for s in samples[:3]))
    ours = mcts.search(model, tokenizer, samples[:3], cfg, progress=False)
    slow = reference_search.search(model, tokenizer, samples[:3], cfg)
    assert sum(len(tree.nodes) for tree in ours) >= 6
    for a, b in zip(ours, slow, strict=True):
        assert (a.right, a.samples, a.hits) == (b.right, b.samples, b.hits)
        assert [(n.ids, n.parent, n.children, n.visits, n.final, n.closed, n.expanded) for n in a.nodes] == [
            (n.ids, n.parent, n.children, n.visits, n.final, n.closed, n.expanded) for n in b.nodes]
        for x, y in zip(a.nodes, b.nodes):
            for key in ("prior", "q", "r", "reward", "outcome", "grade", "value"):
                assert getattr(x, key) == pytest.approx(getattr(y, key), abs=1e-4), key


def test_the_slow_search_stops_a_step_at_its_end(tokenizer):
    text = '[set_alarm(time="07:30", days=["Monday", "Friday"]), stop_playing()]'
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stops = [n for n in range(1, len(ids) + 1)
             if reference_search.StepEnd(tokenizer, 0)(torch.tensor([ids[:n]]), None).item()]
    ends, steps = [], mcts.cut_steps(tokenizer, ids, stop_token(tokenizer))
    for step in steps:
        ends.append(len(step) + (ends[-1] if ends else 0))
    assert stops == ends and len(steps) >= 4


def test_generate_and_decode_give_the_same_tokens(model, tokenizer, samples):
    prompts = [synth.prompt_ids(tokenizer, s) for s in samples[:6]]
    stop_id = stop_token(tokenizer)
    ours = decode(Prompts(model, prompts), range(6), [[]] * 6, 12, stop_id)
    assert bench.generate_batch(model, tokenizer, prompts, 12, stop_id) == [row[0][0] for row in ours]


def test_pairs_go_to_trl_as_they_are_in_the_tree(qwen2, tokenizer, samples):
    """Prompt and path, then the fragments; grown trees have the pairs that were asked for."""
    trees = mcts.search(qwen2, tokenizer, samples[:6], SearchConfig(simulations=4, k=2, max_new=14), progress=False)
    chosen = [(t, mcts.preference_pairs(t, SearchConfig())) for t in trees] + bench.grown_trees(tokenizer, 2, 5)
    rows = iter(bench.pair_rows(chosen))
    for tree, pairs in chosen:
        for w, l in pairs:
            row = next(rows)
            assert row["prompt_ids"] + row["chosen_ids"] == tree.prompt + tree.so_far(w)
            assert row["prompt_ids"] + row["rejected_ids"] == tree.prompt + tree.so_far(l)
    assert next(rows, None) is None and [len(pairs) for _, pairs in chosen[-2:]] == [5, 5]


def test_what_is_counted(qwen2, tokenizer, samples):
    """Pairs of tokens as the mask has them; operations as torch counts them in a forward pass of the body."""
    tree = [([1, 2, 3], -1, False), ([4, 5], 0, True), ([6], 1, True), ([7, 8], 0, True)]
    assert bench.attended(tree) == int(sft.lay_out([tree]).masks[0].sum())
    from torch.utils.flop_counter import FlopCounterMode
    size, ids = bench.sizes(qwen2), torch.ones(1, 10, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        qwen2.base_model(ids, use_cache=False)
    products = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in products.items() if str(op) in ("aten.mm", "aten.addmm"))
    assert products == bench.needed_flops(size, scored=10)
    assert size["head"] == qwen2.get_output_embeddings().weight.numel() and size["attention"] == 2 * 32


def test_prompts_grow_to_a_length(tokenizer, samples):
    for length in (400, 1200):
        longer = bench.search_samples(bench.BenchConfig(), tokenizer, 2, length)
        for sample in longer:
            assert length <= len(synth.prompt_ids(tokenizer, sample)) < length + 200
            assert len({tool["name"] for tool in sample.tools}) == len(sample.tools)


@pytest.fixture(scope="module")
def saved(tokenizer, tmp_path_factory):
    """Folder of one tiny model; one architecture is enough here."""
    return save_tiny("qwen2", tokenizer, tmp_path_factory.mktemp("bench"))


def config(checkpoint, **changes):
    return bench.BenchConfig(**{"model": str(checkpoint), "device": "cpu", "trees": 3, "baseline_trees": 2, "max_new": 12,
                                "n": 4, "batch": 2, **changes})


def run(name, cfg, **options):
    return bench.measure(bench.SIDES[name](cfg, **options), torch.device("cpu"))


def test_random_weights_attend_as_loaded_ones_do(saved):
    """Else a shape's decoding would copy its cache at every step, and be timed with that."""
    cfg = bench.BenchConfig(model=str(saved), device="cpu")
    assert len({bench.load(cfg, shape)[0].config._attn_implementation for shape in ("", "embedded", "vocabulary")}) == 1


def test_every_side_of_ours_and_the_slow_search_run(saved, tmp_path):
    cfg, path = config(saved), str(tmp_path / "trees.jsonl")
    assert run("search_pairs", cfg, path=path)["units"] > 0
    for name, options in (("search_ours", {"n": 2}), ("search_baseline", {"n": 1, "of": 2}), ("preference_ours", {"path": path}),
                          ("preference_ours", {"grown": 3}), ("sft_ours", {}), ("decode_ours", {"max_new": 8}),
                          ("decode_baseline", {"max_new": 8}), ("limit_sft", {}), ("limit_preference", {"path": path}),
                          ("limit_decode", {"new": 4})):
        found = run(name, cfg, **options)
        assert found["units"] > 0 and found["seconds"] > 0 and found["memory"] > 2 ** 20 and found["tokens"], name
    one = run("preference_ours", cfg, path=path, most=1)
    assert one["units"] == bench.dpo.DPOConfig().pref_epochs * one["trees"]


@pytest.mark.filterwarnings("ignore")
def test_trls_trainers_do_the_same_work(saved, tmp_path, monkeypatch):
    """By what their losses are given: the tokens that they learn, and those that they only read."""
    trl = pytest.importorskip("trl", reason="trl is the baseline: pip install -r requirements-dev.txt")
    learned, read = [], []

    def watch(trainer, mask):
        original = trainer.compute_loss

        def compute_loss(self, model, inputs, *args, **kwargs):
            learned.append(int(mask(inputs).sum()))
            read.append(int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else inputs["input_ids"].numel())
            return original(self, model, inputs, *args, **kwargs)
        monkeypatch.setattr(trainer, "compute_loss", compute_loss)
    watch(trl.SFTTrainer, lambda inputs: inputs["labels"] != -100)
    watch(trl.DPOTrainer, lambda inputs: inputs["completion_mask"])
    cfg, path = config(saved), str(tmp_path / "trees.jsonl")
    run("search_pairs", cfg, path=path)
    ours, theirs = run("preference_ours", cfg, path=path), run("preference_baseline", cfg, batch=4, path=path)
    assert ours["units"] == theirs["units"] and theirs["tokens"]["trained"] >= ours["tokens"]["trained"]
    assert sum(learned) == theirs["head"] > 0 and sum(read) == theirs["tokens"]["trained"]
    ours = run("sft_ours", cfg)
    for packing in (True, False):
        learned.clear(), read.clear()
        theirs = run("sft_baseline", cfg, batch=4, packing=packing)
        assert ours["units"] == theirs["units"] and theirs["tokens"]["trained"] == ours["tokens"]["trained"]
        assert sum(learned) == ours["units"] and sum(read) == ours["tokens"]["trained"]


def test_the_command_prints_a_table_and_writes_what_it_measured(saved, tmp_path, capsys):
    out = tmp_path / "bench.jsonl"
    bench.main(["--parts", "decode", "--model", str(saved), "--device", "cpu", "--n", "4", "--batch", "2",
                "--repeats", "1", "--warmup", "0", "--out", str(out)])
    text = capsys.readouterr().out
    assert "| decode" in text and "of 4 responses the same" in text
    records = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert "torch" in records[0]["machine"] and records[-1]["row"]["ratio"] > 0
    assert {r["side"] for r in records if "turn" in r} == {"ours", "baseline"}


def test_a_mistake_is_one_line():
    for argv, text in ((["--parts", "speed"], "--parts are some of"), (["--config", "3b"], "--config is one of")):
        with pytest.raises(ValueError, match=text):
            bench.main(argv)

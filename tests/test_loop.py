"""A whole miniature run: it goes through, says what happened, can be killed and taken up, and tells mistakes in a line."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import loop
import mcts
import sft
import synth
from conftest import save_tiny, tiny

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--n", "16", "--n_test", "10", "--iters", "2", "--simulations", "2", "--k", "2", "--max_new", "24", "--rank", "2",
         "--pref_epochs", "1", "--lr", "1e-3", "--across", "True", "--sft_weight", "1", "--replay", "1", "--device", "cpu"]


def arguments(checkpoint, out, *more):
    return ["--model", str(checkpoint), "--out", str(out), *SMALL, *more]


def rows(out):
    """metrics.jsonl without what a clock says."""
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in found]


@pytest.fixture(scope="module")
def finished(tokenizer, tmp_path_factory):
    """(checkpoint, finished run) of a tiny model."""
    folder = tmp_path_factory.mktemp("loop")
    save_tiny("llama", tokenizer, folder / "model")
    loop.main(arguments(folder / "model", folder / "run"))
    return folder / "model", folder / "run"


def test_a_run_leaves_everything_it_promises(finished):
    _, out = finished
    assert [row["model"] for row in rows(out)] == ["base", "warm-up", "round 1", "round 2"]
    for row in rows(out):
        assert {"model", "n", "accuracy", "easy", "medium", "hard", "errors"} <= set(row) and row["n"] == 10
        assert sum(row["errors"].values()) == round(row["n"] * (1 - row["accuracy"] / 100))
    for name in ("config.json", "data/train.jsonl", "data/test.jsonl", "warmup/adapter.safetensors", "iter2/trees.jsonl",
                 "iter2/pairs.jsonl", "iter2/picked.jsonl", "iter2/adapter.safetensors", "report.html"):
        assert (out / name).exists(), name
    assert not list(out.glob("*.tmp")) and not list(out.rglob("*.pkl")) and not list(out.rglob("*.bin"))


def test_final_is_the_last_policy_as_a_plain_checkpoint(finished):
    checkpoint, out = finished
    final = AutoModelForCausalLM.from_pretrained(out / "final", dtype=torch.float32).eval()
    policy, _ = sft.load_model(checkpoint, "cpu")
    sft.load_lora(policy, out / "iter2")
    ids = torch.randint(10, 500, (2, 20))
    torch.testing.assert_close(final(ids).logits, policy(ids).logits, atol=1e-4, rtol=1e-4)
    assert AutoTokenizer.from_pretrained(out / "final")("[f(x=1)]")["input_ids"] \
        == AutoTokenizer.from_pretrained(checkpoint)("[f(x=1)]")["input_ids"]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_run_in_bfloat16(tokenizer, tmp_path, monkeypatch, stored):
    """As on a wide model, on a CPU with matrix units for it: every stage runs, and `final` has the dtype that the base had."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(sft, "WIDE", 0)
    tiny("llama", len(tokenizer)).to(stored).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    loop.main(arguments(tmp_path / "model", tmp_path / "run", "--iters", "1"))
    assert [row["model"] for row in rows(tmp_path / "run")] == ["base", "warm-up", "round 1"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final", dtype="auto").dtype == stored
    assert (tmp_path / "run" / "iter1" / "pairs.jsonl").read_text()


def test_the_report_shows_every_model_and_escapes_what_a_model_wrote(finished):
    page = (finished[1] / "report.html").read_text(encoding="utf-8")
    assert all(f">{name}<" in page for name in ("base", "warm-up", "round 1", "round 2")) and "<details>" in page
    assert "<|user|>" not in page and "<script" not in page


@pytest.mark.parametrize("stop_in", ["evaluate", "run_tasks", "optimize", "warm_up"])
def test_a_killed_run_goes_on_and_ends_with_the_same_numbers(finished, tmp_path, monkeypatch, stop_in):
    checkpoint, reference = finished
    module, calls = mcts if stop_in == "run_tasks" else loop, []
    original = getattr(module, stop_in)

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == {"evaluate": 3, "run_tasks": 2, "optimize": 1, "warm_up": 1}[stop_in]:
            raise KeyboardInterrupt
        return original(*args, **kwargs)
    monkeypatch.setattr(module, stop_in, interrupted)
    try:
        loop.main(arguments(checkpoint, tmp_path / "run"))
    except KeyboardInterrupt:
        pass
    loop.main(arguments(checkpoint, tmp_path / "run"))
    assert rows(tmp_path / "run") == rows(reference)


def test_picked_are_the_most_complex_that_the_policy_can_reach(monkeypatch, tokenizer):
    samples = synth.make_samples(12, "train", 0)
    lengths = [len(synth.target_ids(tokenizer, s)) for s in samples]
    probability = [0.9, 0.001, 0.5, 0.06, 0.04, 0.2, 0.99, 1e-6, 0.3, 0.07, 0.01, 0.1]
    h = torch.tensor(probability).double().numpy() ** (-1 / torch.tensor(lengths).double().numpy())
    monkeypatch.setattr(loop, "perplexities", lambda *args, **kwargs: h)
    order = lambda reach: sorted(range(12), key=lambda i: -loop.complexity(None, tokenizer, samples, reach)[i])
    assert order(0.0) == sorted(range(12), key=lambda i: -h[i])
    near, far = [i for i in range(12) if probability[i] >= 0.05], [4, 10, 1, 7]
    assert order(0.05) == sorted(near, key=lambda i: -h[i]) + far       # beyond reach, the nearest first
    picked = loop.pick_complex(None, tokenizer, samples, 0.25, partial(loop.complexity, reach=0.05))
    assert all(samples.index(s) in near for s in picked) and 2 <= len(picked) <= 4


def test_rounds_pick_from_what_the_warm_up_has_not_seen(finished, tmp_path):
    checkpoint, out = finished
    lines = lambda path: set(path.read_text().splitlines()) if path.exists() else set()
    train, unseen = (lines(out / "data" / f"{name}.jsonl") for name in ("train", "unseen"))
    assert len(train) == len(unseen) == 8 and not train & unseen
    assert all(lines(out / f"iter{i}" / "picked.jsonl") <= unseen for i in (1, 2))
    talks = {name: sum(s.talk > 0 for s in synth.read_samples(out / "data" / f"{name}.jsonl")[0]) for name in ("train", "unseen")}
    assert talks["train"] <= 3 < talks["unseen"]     # the warm-up's samples are tidy
    loop.main(arguments(checkpoint, tmp_path / "run", "--unseen", "0", "--iters", "1"))
    assert train < lines(tmp_path / "run" / "data" / "train.jsonl") and not (tmp_path / "run" / "data" / "unseen.jsonl").exists()
    assert lines(tmp_path / "run" / "iter1" / "picked.jsonl") <= lines(tmp_path / "run" / "data" / "train.jsonl")


def test_a_search_without_pairs_is_scored_and_the_loop_goes_on(finished, tmp_path, capsys):
    checkpoint, _ = finished
    loop.main(arguments(checkpoint, tmp_path / "run", "--min_gap", "100"))
    out = capsys.readouterr().out
    assert "no pair\nround 1: " in out and "updates" in out and len(rows(tmp_path / "run")) == 4     # right responses are trained on
    loop.main(arguments(checkpoint, tmp_path / "still", "--min_gap", "100", "--sft_weight", "0", "--replay", "0"))
    assert "no pair, the policy stays as it is" in capsys.readouterr().out
    last = lambda folder: (tmp_path / "still" / folder / "adapter.safetensors").read_bytes()
    assert last("iter2") == last("warmup")


def test_a_round_trains_on_the_pairs_of_as_many_rounds_before_as_it_remembers(finished, tmp_path, monkeypatch):
    optimize, trained = loop.optimize, []

    def counted(model, trees, *rest, **named):
        trained.append(sum(len(tree.chosen) for tree in trees))
        return optimize(model, trees, *rest, **named)
    monkeypatch.setattr(loop, "optimize", counted)
    loop.main(arguments(finished[0], tmp_path / "run", "--iters", "3", "--remember", "1", "--replay", "0"))
    found = [len((tmp_path / "run" / f"iter{i}" / "pairs.jsonl").read_text().splitlines()) for i in (1, 2, 3)]
    assert min(found) > 0 and trained == [found[0], found[0] + found[1], found[1] + found[2]]


def test_fewer_rounds_than_there_are_leave_the_last_policy_as_it_is(finished, capsys):
    checkpoint, out = finished
    before = [(out / name).read_bytes() for name in ("final/model.safetensors", "metrics.jsonl", "report.html")]
    loop.main(arguments(checkpoint, out, "--iters", "1"))
    assert before == [(out / name).read_bytes() for name in ("final/model.safetensors", "metrics.jsonl", "report.html")]
    assert f"{out} has base, warmup, iter1, iter2: the run goes on from there\n" in capsys.readouterr().out


def test_a_change_of_the_code_is_told(finished, tmp_path, capsys):
    checkpoint, out = finished
    shutil.copytree(out, tmp_path / "run")
    config = json.loads((out / "config.json").read_text()) | {"code": "another"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for _ in range(2):     # as long as what it has made is there
        loop.main(arguments(checkpoint, tmp_path / "run"))
        assert "the code has changed since, what it has made stays (another --out makes all anew)" in capsys.readouterr().out


def test_a_level_without_samples_is_a_dash(finished, tmp_path, capsys):
    checkpoint, _ = finished
    samples = [s for s in synth.make_samples(60, "train", 5) if s.level == "medium"][:16]
    synth.write_samples(samples, tmp_path / "mine.jsonl")
    loop.main(arguments(checkpoint, tmp_path / "run", "--data", str(tmp_path / "mine.jsonl"), "--iters", "1"))
    said = capsys.readouterr().out
    assert rows(tmp_path / "run")[-1]["hard"] is None and rows(tmp_path / "run")[-1]["medium"] is not None
    assert re.search(r"\(easy -, medium [\d.]+, hard -\)", said) and "rounds over warm-up, overall: " in said
    assert "warm-up, hard" not in said + (tmp_path / "run" / "report.html").read_text()


def test_few_samples_are_picked_all_the_same():
    samples = synth.make_samples(60, "train", 0)
    calls, words = ([s for s in samples if (s.calls is not None) == called] for called in (True, False))
    some = [*calls[:20], words[0]]
    picked = loop.pick_complex(None, None, some, 0.1, lambda model, tokenizer, samples, progress: np.arange(len(samples), dtype=float))
    assert [s.id for s in picked] == [words[0].id, calls[19].id, calls[18].id]


def test_a_search_that_does_not_fit_is_told_before_the_warm_up(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="--max_tokens_in_flight 500 is too little for the sample"):
        loop.main(arguments(checkpoint, tmp_path / "run", "--max_tokens_in_flight", "500"))
    assert not (tmp_path / "run" / "base").exists()
    loop.main(arguments(checkpoint, tmp_path / "run", "--iters", "1"))     # and nothing is in the way


def test_other_settings_in_the_same_folder_are_refused_by_name(finished):
    checkpoint, out = finished
    with pytest.raises(ValueError, match=r"seed 0 -> 7"):
        loop.main(arguments(checkpoint, out, "--seed", "7"))
    loop.main(arguments(checkpoint, out, "--pref_micro_tokens", "4096", "--max_tokens_in_flight", "8192"))     # how fast, not what


def test_other_weights_under_the_same_name_are_refused(finished, tmp_path):
    checkpoint, out = finished
    shutil.copytree(checkpoint, tmp_path / "model")
    shutil.copytree(out, tmp_path / "run")
    model = ["--model", str(tmp_path / "model")]
    (tmp_path / "run" / "config.json").write_text((out / "config.json").read_text().replace(str(checkpoint), model[1]))
    loop.main(arguments(checkpoint, tmp_path / "run", *model))
    tiny("llama", sft.load_model(checkpoint, "cpu")[0].config.vocab_size, seed=1).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="weights [0-9a-f]+ -> [0-9a-f]+"):
        loop.main(arguments(checkpoint, tmp_path / "run", *model))
    shutil.copytree(checkpoint, tmp_path / "model", dirs_exist_ok=True)
    path = tmp_path / "model" / "chat_template.jinja"
    path.write_text(path.read_text() + "{# another #}")
    with pytest.raises(ValueError, match="other settings .template_hash [0-9a-f]+ -> [0-9a-f]+"):
        loop.main(arguments(checkpoint, tmp_path / "run", *model))


@pytest.mark.parametrize("flag, value", [("--iters", "0"), ("--n", "-3"), ("--k", "0"), ("--pick", "0"), ("--temperature", "0"),
                                         ("--rank", "0"), ("--reach", "2"), ("--eval_split", "train"), ("--loss", "simp"),
                                         ("--outcome", "x"), ("--curriculum", "x"), ("--pref_lr", "-0.001"), ("--beta", "nan"),
                                         ("--c_puct", "inf"), ("--length_power", "-500"), ("--remember", "-1"), ("--unseen", "1")])
def test_impossible_sizes_are_refused_before_a_folder_is_made(checkpoint, tmp_path, flag, value):
    with pytest.raises(ValueError, match=flag):
        loop.main(arguments(checkpoint, tmp_path / "run", flag, value))
    assert not (tmp_path / "run").exists()


def test_a_mistake_leaves_nothing_that_would_be_in_the_way(finished, tmp_path):
    checkpoint, _ = finished
    for mistake in (["--data", str(tmp_path / "typo.jsonl")], ["--targets", "("]):
        with pytest.raises(ValueError):
            loop.main(arguments(checkpoint, tmp_path / "run", *mistake))
        assert not (tmp_path / "run" / "config.json").exists()
    loop.check_settings(tmp_path / "run", (loop.LoopConfig(),), "any")


def test_a_folder_with_other_things_in_it_is_left_alone(finished, tmp_path):
    checkpoint, _ = finished
    (tmp_path / "run" / "final").mkdir(parents=True)
    (tmp_path / "run" / "final" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="has other things in it, such as final"):
        loop.main(arguments(checkpoint, tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").rglob("*")] == ["final", "thesis.txt"]


@pytest.mark.parametrize("name", ["data", "base", "warmup", "iter1"])
def test_a_folder_of_ones_own_is_not_taken_for_a_finished_stage(finished, tmp_path, name):
    checkpoint, _ = finished
    (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / name / "test.jsonl").write_text("mine")
    with pytest.raises(ValueError, match=f"has other things in it, such as {name}"):
        loop.main(arguments(checkpoint, tmp_path / "run"))
    assert [p.name for p in (tmp_path / "run").rglob("*")] == [name, "test.jsonl"]


def test_pairs_that_the_policy_has_settled_are_left_out(finished):
    """Those of earlier rounds whose chosen step it prefers by more than so many nats, by the plain log-probabilities."""
    checkpoint, run = finished
    model, tokenizer = sft.load_model(checkpoint, "cpu")
    sft.load_lora(model, run / "iter1")
    trees = mcts.read_trees(run / "iter1" / "trees.jsonl")
    _, search_cfg, pref_cfg = synth.read_flags(arguments(checkpoint, run), loop.LoopConfig, mcts.SearchConfig, loop.DPOConfig)
    pairs, _ = loop.pair_up(trees, search_cfg, pref_cfg)

    def logp(tree, n):
        ids, step = [*tree.prompt, *tree.so_far(n)], tree.nodes[n].ids
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1 - len(step):-1].float(), -1)
        return logps.gather(1, torch.tensor(step)[:, None]).sum().item()
    gaps = {(id(tree), pair): logp(tree, pair[0]) - logp(tree, pair[1]) for tree, found in zip(trees, pairs) for pair in found}
    middle = sorted(gaps.values())[len(gaps) // 2] + 1e-4
    left = loop.unsettled(model, middle, 256, trees, pairs)
    assert len(gaps) > 2 and [[pair for pair in found if gaps[id(tree), pair] <= middle] for tree, found in zip(trees, pairs)] == left
    pairs_left, paired = loop.pair_up(trees, search_cfg, pref_cfg, lambda trees, pairs: left)
    assert pairs_left == left and sum(len(tree.chosen) for tree in paired) == len(sum(left, []))


def test_where_no_pair_is_settled_nothing_changes(finished, tmp_path):
    checkpoint, run = finished
    loop.main(arguments(checkpoint, tmp_path / "run", "--settled", "1000"))
    assert (tmp_path / "run" / "iter2" / "adapter.safetensors").read_bytes() == (run / "iter2" / "adapter.safetensors").read_bytes()


def test_another_file_under_the_same_name_is_another_setting(tmp_path):
    (tmp_path / "my.jsonl").write_text("one")
    cfg = loop.LoopConfig(data=str(tmp_path / "my.jsonl"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(loop.check_settings(tmp_path / "run", (cfg,), "any")))
    loop.check_settings(tmp_path / "run", (cfg,), "any")
    (tmp_path / "my.jsonl").write_text("two")
    with pytest.raises(ValueError, match="data_hash"):
        loop.check_settings(tmp_path / "run", (cfg,), "any")


def test_long_conversations_are_not_held_out_and_reach_is_for_calls_of_the_world(tmp_path, tokenizer, monkeypatch):
    samples = synth.make_samples(12, "train", 0)
    opening = [{"role": "user", "content": "hello"}]
    long = [synth.Sample(f"l{i}", samples[0].tools, opening, "Hi.") for i in range(40)]
    synth.write_samples([*long, *samples], tmp_path / "my.jsonl")
    for seed in range(4):
        cfg = loop.LoopConfig(data=str(tmp_path / "my.jsonl"), n_test=20, seed=seed)
        loop.make_data(cfg, tiny("llama", len(tokenizer)), tokenizer, tmp_path)
        test = synth.read_samples(tmp_path / "test.jsonl")[0]
        assert 5 <= len(test) <= 10 and not any(s.id.startswith("l") for s in test)
    called, said = (next(s for s in samples + long if (s.calls is None) == text) for text in (False, True))
    monkeypatch.setattr(loop, "perplexities", lambda model, tokenizer, samples, progress: np.full(len(samples), 9.0))
    assert (loop.complexity(None, tokenizer, [called, said], reach=0.05) > 0).tolist() == [False, True]
    assert (loop.complexity(None, tokenizer, [called, said], reach=0.0) == 9).all()


def test_answers_of_one_conversation_are_all_trained_on_or_all_held_out(finished, tmp_path):
    """Else a held-out answer would stand in the prompt of a later one."""
    checkpoint, _ = finished
    talks = []
    for sample in (s for s in synth.make_samples(60, "train", 3) if len(s.messages) == 1):
        turns = [("user", sample.messages[0]["content"]), ("assistant", sample.target), ("user", "Once more."), ("assistant", sample.target)]
        talks.append({"system": json.dumps(sample.tools), "conversations": [{"from": who, "value": text} for who, text in turns]})
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    model, tokenizer = sft.load_model(checkpoint, "cpu")
    cfg = loop.LoopConfig(data=str(tmp_path / "talks.json"), n_test=1000)
    loop.make_data(cfg, model, tokenizer, tmp_path)
    train, test = (synth.read_samples(tmp_path / f"{name}.jsonl")[0] for name in ("train", "test"))
    first = lambda samples: {s.messages[0]["content"] for s in samples}
    assert not first(train) & first(test) and len(train) + len(test) == 2 * len(talks)
    assert 0.15 < len(test) / (len(train) + len(test)) <= 0.2
    (tmp_path / "apart").mkdir()
    loop.make_data(replace(cfg, unseen=0.36), model, tokenizer, tmp_path / "apart")
    train, unseen = (synth.read_samples(tmp_path / "apart" / f"{name}.jsonl")[0] for name in ("train", "unseen"))
    assert not first(train) & first(unseen) and 0.3 < len(unseen) / (len(train) + len(unseen)) < 0.44


def test_a_sample_leaves_room_for_a_response(finished, tmp_path):
    checkpoint, _ = finished
    model, tokenizer = sft.load_model(checkpoint, "cpu")
    kept = {}
    for room in (0, 1800):
        folder = tmp_path / str(room)
        folder.mkdir()
        loop.make_data(loop.LoopConfig(n=30, n_test=30), model, tokenizer, folder, room)
        kept[room] = [len(synth.prompt_ids(tokenizer, s)) for s in synth.read_samples(folder / "test.jsonl")[0]]
    assert len(kept[1800]) < len(kept[0]) == 30 and max(kept[1800]) <= model.config.max_position_embeddings - 1800


def test_held_out_samples_that_are_all_too_long_are_told_at_once(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "split_too_long", lambda tokenizer, samples, limit: ([], samples))
    with pytest.raises(synth.DataError, match="no held-out sample is left to score on: raise --max_tokens"):
        loop.main(arguments(finished[0], tmp_path / "run", "--unseen", "0"))
    assert not (tmp_path / "run" / "data").exists()


def test_a_loss_that_is_no_number_keeps_the_last_good_model(finished, tmp_path, monkeypatch):
    checkpoint, _ = finished
    monkeypatch.setattr(loop, "optimize", lambda *args, **kwargs: (_ for _ in ()).throw(sft.TrainingError("the loss is nan at step 0")))
    with pytest.raises(sft.TrainingError):
        loop.main(arguments(checkpoint, tmp_path / "run"))
    assert (tmp_path / "run" / "warmup" / "adapter.safetensors").exists() and not (tmp_path / "run" / "iter1").exists()


def test_own_data_is_split_and_scored(finished, tmp_path):
    checkpoint, _ = finished
    synth.write_samples(synth.make_samples(20, "train", 5), tmp_path / "mine.jsonl")
    loop.main(arguments(checkpoint, tmp_path / "run", "--data", str(tmp_path / "mine.jsonl"), "--iters", "1"))
    assert rows(tmp_path / "run")[0]["n"] == 4
    train, test = ({line for line in (tmp_path / "run" / "data" / f"{name}.jsonl").read_text().splitlines()} for name in ("train", "test"))
    assert len(train) == 16 and not train & test


@pytest.mark.parametrize("more, says", [
    (["--model", "nowhere/at-all"], "no model could be loaded"),
    (["--data", "missing.jsonl"], "missing.jsonl"),
    (["--iters", "0"], "--iters has to be at least 1"),
    (["--data", "x.jsonl", "--eval_split", "val"], "--eval_split val is of the simulated world"),
    (["--replay", "1", "--sft_weight", "0"], "--replay 1 needs --sft_weight above 0"),
    (["--iter", "3"], "there is no setting --iter, but --iters"),
    (["--learning_rate", "3"], "there is no setting --learning_rate (--help lists them)")])
def test_a_mistake_on_the_command_line_is_one_line_and_a_status(finished, tmp_path, more, says):
    result = subprocess.run([sys.executable, ROOT / "loop.py", *arguments(finished[0], tmp_path / "run", *more)],
                            capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 1 and says in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_the_readmes_examples_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    line = re.search(r'```\n(\{"tools".*?)```', readme, re.S)[1]
    (tmp_path / "mine.jsonl").write_text(line.replace("\n", "") + "\n", encoding="utf-8")
    sample, = synth.read_samples(tmp_path / "mine.jsonl")[0]
    assert sample.calls == [synth.Call("move", {"steps": 3})]
    exec(re.search(r"```python\n(.*?)```", readme, re.S)[1].replace("out/run/final", "base"), {})
    assert 'get_weather(city="Rome")' in capsys.readouterr().out

"""The runner of docs/results.md, in miniature: every arm runs, goes on after a kill, and spends what it has to."""

import importlib.util
import json
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

import loop
import synth
from conftest import save_tiny
from docs import choosing, experiments, tables
from docs.tables import cost
from eval import judge, paired_interval
from loop import LoopConfig
from mcts import Node, SearchConfig, Tree, preference_pairs
from sft import TOKENS

MINIATURE = ["--n", "12", "--n_test", "6", "--iters", "2", "--simulations", "2", "--k", "2", "--max_new", "8", "--rank", "2",
             "--buffer", "0.5", "--pick", "0.34", "--across", "True", "--pref_epochs", "1", "--min_gap", "0.01", "--device", "cpu"]


@pytest.fixture(scope="module")
def flags(tokenizer, tmp_path_factory):
    return ["--model", str(save_tiny("llama", tokenizer, tmp_path_factory.mktemp("model"))), *MINIATURE]


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    """A random model never ends its answer: scoring stops it early."""
    patch = pytest.MonkeyPatch()
    for module in (loop, experiments):
        full = module.evaluate
        patch.setattr(module, "evaluate", lambda *args, full=full, **kwargs: full(*args, max_new=6, **kwargs))
    full_answer = experiments.answer
    patch.setattr(experiments, "answer", lambda model, tokenizer, samples, max_new=6, *args, **kwargs:
                  full_answer(model, tokenizer, samples, min(6, max_new), *args, **kwargs))
    yield
    patch.undo()


def here(folder, *more):
    return ["--quick", "--out", str(folder / "runs"), "--results", str(folder), *more]


def read(folder):
    return experiments.read_lines(folder / "results.jsonl")


@pytest.fixture(scope="module")
def everything(flags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("everything")
    experiments.main([*here(folder), *flags])
    return folder


def test_every_arm_has_a_line(everything):
    lines = read(everything)
    expected = {arm.name for arm in experiments.all_arms(replace(experiments.Settings(), sweep="2,4"))}
    assert expected - {line["arm"] for line in lines} <= {"BFCL"} and len(lines) == len({line["arm"] for line in lines})
    for line in lines:
        assert line["cost"] == cost(line["tokens"]) > 0
        for name in (row["model"] for row in line["models"]):
            assert len(line["correct"][name]) == len(line["levels"]) == len(line["requests"]) == 6
            assert set(line["requests"].lower()) <= set(tables.REQUESTS.values())
    assert not list(everything.rglob("*.tmp")) and not list(everything.rglob("final"))


def test_equal_compute_holds(everything):
    lines = {line["arm"]: line for line in read(everything)}
    loop_cost = lines["loop"]["cost"]
    assert loop_cost == sum(cost(row["tokens"]) for row in lines["loop"]["models"][2:])
    for arm in ("same data", "unseen data", "picked targets", "fresh data", "RFT", "own right responses", "whole responses",
                "steps, no tree, no C", "one round"):
        assert lines[arm]["cost"] >= loop_cost and lines[arm]["budget"] == loop_cost, arm
    for arm in ("same data", "unseen data", "picked targets", "fresh data"):      # and not much more: one sample at the end
        assert lines[arm]["cost"] < loop_cost + 3 * 1000, arm
    found = lines["found"]["found"]
    assert found["independent, whole responses"]["decoded"] >= found["tree"]["decoded"]


def test_the_arms_are_what_they_say(everything):
    lines = {line["arm"]: line for line in read(everything)}
    runs = everything / "runs" / "test0"
    assert (runs / "many_rounds" / "iter2" / "adapter.safetensors").read_bytes() \
        == (runs / "loop" / "iter2" / "adapter.safetensors").read_bytes()      # the loop's own rounds, taken over
    assert lines["many rounds"]["models"][-1]["model"] == "round 3" and len(lines["many rounds"]["diversity"]) == 4
    assert all((runs / arm / "warmup" / "adapter.safetensors").read_bytes() == (runs / "loop" / "warmup" / "adapter.safetensors").read_bytes()
               for arm in ("whole_responses", "random_pick", "ORPO"))
    tree = json.loads((runs / "whole_responses" / "iter1" / "trees.jsonl").read_text().splitlines()[0])
    assert all(node["parent"] == 0 for node in tree["nodes"][1:])
    assert lines["one round"]["models"][-1]["model"] == "round 1" and lines["one round"]["shares"]["pick"] > 0.34
    assert lines["1/4 of the data"]["tokens"]["trained"] < lines["1/2 of the data"]["tokens"]["trained"]
    assert lines["shuffled"]["tokens"] == lines["hard to easy"]["tokens"]
    adapter = lambda *path: runs.joinpath(*path, "adapter.safetensors").read_bytes()
    assert len({adapter("loop", "warmup"), adapter("shuffled", "sft"), adapter("hard_to_easy", "sft")}) == 3     # three orders
    assert lines["random pick"]["tokens"]["scored"] < lines["loop"]["tokens"]["scored"]
    assert lines["failure-rate pick"]["tokens"]["decoded"] > lines["loop"]["tokens"]["decoded"]


def test_variants_differ_in_what_their_name_says(everything):
    lines = {line["arm"]: line for line in read(everything)}
    same = lines["loop"]["settings"]
    changes = {arm: {key: value for key, value in line["settings"].items() if same.get(key) != value}
               for arm, line in lines.items() if line["models"]}
    assert changes == {
        **dict.fromkeys(("loop", "1/16 of the data", "1/8 of the data", "1/4 of the data", "1/2 of the data", "whole responses", "one round",
                         "steps, no tree, no C", "random pick", "failure-rate pick"), {}),
        **dict.fromkeys(("same data", "unseen data", "picked targets", "fresh data", "RFT", "own right responses"), {"lr": 1e-3}),
        "shuffled": {"curriculum": "shuffled"}, "hard to easy": {"curriculum": "hard-to-easy"},
        "no self-evaluation": {"self_eval": 0.0}, "no outcome reward": {"outcome": "none"}, "no target step": {"target_step": False},
        "lowest Q rejected": {"near": 0.0}, "a round's own pairs alone": {"remember": 0},
        "pairs of a call and a text, too": {"across": True}, "an SFT term": {"sft_weight": 1.0},
        "an SFT term and replay": {"sft_weight": 1.0, "replay": 1.0}, "perplexity pick, however far": {"reach": 0.0},
        "SimPO": {"loss": "simpo", "beta": 2.5, "margin": 0.5}, "IPO": {"loss": "ipo"}, "ORPO": {"loss": "orpo", "beta": 0.1},
        "2 simulations": {"simulations": 2}, "4 simulations": {"simulations": 4},
        "temperature 0.7": {"temperature": 0.7}, "temperature 1.5": {"temperature": 1.5},
        "many rounds": {"iters": 3}, "many rounds, an SFT term": {"iters": 3, "sft_weight": 1.0},
        "many rounds, an SFT term and replay": {"iters": 3, "sft_weight": 1.0, "replay": 1.0},
        "many rounds, nothing original": {"iters": 3, "target_step": False}}
    cheap = [arm for arm in changes if "5" in lines[arm]["experiments"].split() and not arm.endswith("simulations")]
    assert len(cheap) == 19
    for arm in cheap:      # no round more would bring it nearer to the loop's cost
        missing, last = lines["loop"]["cost"] - lines[arm]["cost"], cost(lines[arm]["models"][-1]["tokens"])
        assert missing <= (0 if arm in ("one round", "whole responses") else last / 2), arm


def test_one_round_takes_more_simulations_where_no_samples_are_left(tmp_path, monkeypatch):
    def rounds(run):
        cfg, search_cfg, _ = run.configs
        run.folder.mkdir()
        tokens = {"trained": 0, "decoded": int(100 * cfg.pick * cfg.buffer * search_cfg.simulations), "scored": 0}
        (run.folder / "scores.json").write_text(json.dumps({"tokens": tokens, "accuracy": 50.0, "hard": 40.0}))
        return {"round 1": run.folder}, {}
    monkeypatch.setattr(experiments, "rounds", rounds)
    flags = ["--pick", "0.5", "--simulations", "4", "--iters", "3"]
    _, extra = experiments.one_round(experiments.Run(experiments.Settings(), tmp_path / "one", tmp_path, flags, 950))
    assert extra["shares"] == {"pick": 1, "buffer": 1, "iters": 1, "simulations": 12}      # all samples, and (0.5 x 3.45) ** 2 times 4
    assert len(extra["attempts"]) == 1 and extra["attempts"][0]["cost"] == 1200
    few = ["--pick", "0.1", "--simulations", "4", "--iters", "3"]
    _, extra = experiments.one_round(experiments.Run(experiments.Settings(), tmp_path / "few", tmp_path, few, 200))
    assert extra["shares"]["pick"] == pytest.approx(0.1 * 3.45 * 1.05 * 200 / 138) and extra["shares"]["simulations"] == 4


def test_what_is_sampled_right_is_what_is_trained_on(tmp_path, monkeypatch):
    train = synth.make_samples(80, "train", 5)
    (tmp_path / "data").mkdir()
    synth.write_samples(train, tmp_path / "data" / "train.jsonl")
    for part in ("merge_lora", "unmerge_lora"):
        monkeypatch.setattr(experiments, part, lambda model: None)
    text = "None of the tools fits."
    monkeypatch.setattr(experiments, "answer", lambda model, tokenizer, samples, *args: [
        [s.target, "[nothing()]", text, s.target.replace("=", " = "), text, text] for s in samples])
    run = experiments.Run(experiments.Settings(), tmp_path / "own", tmp_path, [], 1e9)
    calls, words = ([s for s in train if (s.calls is not None) == called] for called in (True, False))
    spaced = [s for s in calls if "=" in s.target]
    found = experiments.own(run, None, None)
    assert all(judge(s, s.target) is None for s in found) and {s.id for s in found} == {s.id for s in train}
    assert sum(s.target == text for s in found) == len(words) > 3 and len(found) == len(calls) + len(spaced) + len(words)
    found = experiments.rejection_sampled(run, None, None)
    assert found[:80] == train and sorted(s.target for s in found[80:]) == sorted(s.target.replace("=", " = ") for s in spaced)


def test_what_carries_over_is_measured_of_every_run_of_experiment_4(everything):
    lines = {line["arm"]: line for line in read(everything)}
    measured = lines["what carries over"]
    runs = ["same data", "unseen data", "picked targets", "fresh data", "RFT", "own right responses", "whole responses",
            "steps, no tree, no C"]
    assert list(measured["correct"]) == ["warm-up", "round 1", "round 2", *runs]
    assert len({len(text) for text in measured["correct"].values()}) == 1 and measured["cost"] > 0
    for found in measured["pairs"].values():
        assert found["before"]["pairs"] == found["after"]["pairs"] > 0
        assert all(0 <= one["preferred"] <= 100 for one in found.values())
    own = (everything / "runs" / "test0" / "loop" / "iter1" / "pairs.jsonl").read_text().splitlines()
    assert measured["pairs"]["the round's own"]["before"]["pairs"] == len(own)


def test_a_finished_set_runs_nothing_and_other_settings_are_refused(everything, flags, monkeypatch):
    before = (everything / "results.jsonl").read_bytes()
    monkeypatch.setattr(loop, "main", None)
    experiments.main([*here(everything), "--only", "4", *flags])
    assert (everything / "results.jsonl").read_bytes() == before
    with pytest.raises(ValueError, match="loop, seed 0, was run with"):
        experiments.main([*here(everything), "--only", "4", *flags, "--pick", "0.5"])
    monkeypatch.setattr(experiments, "fingerprint", lambda model: "others")
    with pytest.raises(ValueError, match="has runs of other weights"):
        experiments.main([*here(everything), "--only", "4", *flags])


def test_runs_by_name(everything, flags, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(experiments, "perform", lambda arm, seed, number, *rest: ran.append((arm.name, seed, number)))
    monkeypatch.setattr(experiments, "draw", lambda *args: None)
    experiments.main([*here(tmp_path), "--arms", "same data;loop", *flags])
    assert ran == [("loop", 0, None), ("same data", 0, None)]      # the loop first, however they are named
    experiments.main([*here(tmp_path), "--arms", "warm-up;steps, no tree, no C", "--tune", "True", *flags])
    assert ran[2:] == [(name, 100, number) for name in ("warm-up", "steps, no tree, no C") for number in range(3)]


def test_a_run_without_the_loop_or_with_other_flags_than_its_is_refused(everything, flags, tmp_path):
    with pytest.raises(ValueError, match="same data, seed 0, begins with the loop's warm-up .* run loop, too"):
        experiments.main([*here(tmp_path), "--arms", "same data", *flags])
    lines = [line for line in read(everything) if line["arm"] == "loop"]
    experiments.write_lines(lines, tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match="loop, seed 0, was run with .*: give the same"):
        experiments.main([*here(tmp_path), "--arms", "same data", *flags, "--k", "3"])
    assert read(tmp_path) == lines


def test_processes_may_share_a_file_of_results(tmp_path):
    def go(run):
        experiments.write_lines([{"arm": "another's"}], tmp_path / "results.jsonl")
        return {}, {}
    settings, lines = replace(experiments.Settings(), results=str(tmp_path), out=str(tmp_path / "out")), []
    experiments.perform(experiments.Arm("warm-up", "", go), 0, None, settings, [], lines, "")
    assert [line["arm"] for line in read(tmp_path)] == [line["arm"] for line in lines] == ["another's", "warm-up"]


def test_settings_that_were_chosen_hold_where_none_were_tried(flags, tmp_path, monkeypatch):
    weights = experiments.fingerprint(experiments.load_model(flags[flags.index("--model") + 1], "cpu")[0])
    line = lambda arm, number, weights: {"arm": arm, "seed": 100, "try": number, "weights": weights, "correct": {"end": "01"[number] * 9},
                                         "models": [{"model": "end"}]}
    shipped = [line("RFT", 0, weights), line("RFT", 1, weights), line("SimPO", 1, "another's"), {**line("loop", 1, weights), "try": None}]
    experiments.write_lines(shipped, tmp_path / "shipped.jsonl")
    monkeypatch.setattr(experiments, "SHIPPED", tmp_path / "shipped.jsonl")
    monkeypatch.setattr(experiments, "draw", lambda *_: None)
    taken = []
    monkeypatch.setattr(experiments, "perform", lambda arm, seed, number, settings, flags, lines, weights:
                        taken.append((arm.name, experiments.tuned(lines, arm.name))))
    command = ["--only", "4,5", "--arms", "RFT;SimPO", "--seeds", "7", "--out", str(tmp_path / "new"), *flags]
    with pytest.raises(ValueError, match="new.results.jsonl has no run to draw"):
        experiments.main([*command, "--draw"])
    experiments.main(command)
    assert taken == [("RFT", experiments.TRIES["RFT"][1]), ("SimPO", experiments.TRIES["SimPO"][0])]
    assert read(tmp_path / "new") == shipped[:2]
    experiments.main(command)      # nothing is added twice
    assert read(tmp_path / "new") == shipped[:2]


def test_commands_name_what_was_run():
    arms = experiments.all_arms(experiments.Settings())
    line = lambda arm, seed, experiments, number=None, **runner: {"arm": arm, "seed": seed, "experiments": experiments, "try": number,
                                                                 "flags": ["--n", "9"], "runner": runner}
    lines = [*(line(arm, seed, "4") for seed in (1, 0) for arm in ("loop", "same data")), line("RFT", 1, "4"), line("loop", 100, "4", 0),
             line("loop", 1, "8"), line("BFCL", 1, "8", bfcl_cases=5)]
    start = "python -m docs.experiments"
    assert tables.commands(lines, ["4"], arms, False) == [f'{start} --only 4 --arms "loop;same data" --seeds 0,1 --n 9',
                                                          f'{start} --only 4 --arms "loop;RFT" --seeds 1 --n 9']
    assert tables.commands(lines, ["8"], arms, False) == [f"{start} --only 8 --seeds 1 --bfcl_cases 5 --n 9"]      # all of 8's
    assert tables.commands(lines, [], arms, False) == [f'{start} --tune --arms "loop" --n 9']
    assert tables.commands(lines, ["8"], arms, True) == [f"{start} --only 8 --quick"]


def test_a_table_compares_the_same_seeds(everything, tmp_path):
    lines = read(everything)
    another = [{**line, "seed": 1, "correct": {k: "1" * len(v) for k, v in line["correct"].items()}} for line in lines if line["arm"] == "loop"]
    tables.draw(lines + another, tmp_path, arms=experiments.all_arms(experiments.Settings()))
    text = (tmp_path / "results.md").read_text()
    unchanged = next(row for row in text.splitlines() if row.startswith("| unchanged"))
    assert "±" not in unchanged and "±" in next(row for row in text.splitlines() if row.startswith("| loop |"))


def test_a_run_whose_warm_up_is_gone_says_so(everything, flags, tmp_path):
    lines = [line for line in read(everything) if line["arm"] == "loop"]
    experiments.write_lines(lines, tmp_path / "results.jsonl")
    with pytest.raises(ValueError, match="loop is not there, and found, seed 0, begins with it"):
        experiments.main([*here(tmp_path), "--only", "6", *flags])
    assert read(tmp_path) == lines


def test_a_killed_set_goes_on_and_ends_with_the_same_lines(everything, flags, tmp_path, monkeypatch):
    searched, original = [], loop.score

    def interrupted(*args, **kwargs):
        searched.append(1)
        if len(searched) in (3, 6):      # in the loop's first round, and in SFT
            raise KeyboardInterrupt
        return original(*args, **kwargs)
    monkeypatch.setattr(loop, "score", interrupted)
    for _ in range(3):
        try:
            experiments.main([*here(tmp_path), "--only", "1", *flags])
        except KeyboardInterrupt:
            with open(tmp_path / "results.jsonl", "a") as f:
                f.write('{"arm": "half a li')
    strip = lambda line: {key: [{**row, "seconds": 0} for row in value] if key == "models" else value
                          for key, value in line.items() if key != "seconds"}
    wanted = {line["arm"]: strip(line) for line in read(everything)}
    lines = read(tmp_path)
    assert len(lines) == 5 and all(strip(line) == wanted[line["arm"]] for line in lines)


def test_tables_come_from_the_lines_alone_and_keep_what_a_person_wrote(everything, tmp_path):
    (tmp_path / "results.jsonl").write_bytes((everything / "results.jsonl").read_bytes())
    arguments = [*here(tmp_path), "--draw"]
    experiments.main(arguments)
    page = (tmp_path / "results.md").read_text()
    absent = {"tune"} | ({"8"} if importlib.util.find_spec("bfcl_eval") is None else set())
    assert {name for name, (title, *_) in tables.SECTIONS.items() if f"## {title}\n\n<!-- begin {name} -->" in page} == tables.SECTIONS.keys() - absent
    assert not re.search(r"\bnan\b", page) and "without `--tune`: warm-up, loop, same data" in page
    for picture in re.findall(r"\]\((\w+\.png)\)", page):
        assert (tmp_path / picture).stat().st_size > 1000
    (tmp_path / "results.md").write_text(page.replace("## 3. Curriculum", "## 3. Curriculum\n\nOrder hardly matters."))
    experiments.main(arguments)
    assert (tmp_path / "results.md").read_text().replace("\n\nOrder hardly matters.", "") == page
    begin, end = page.index("\n## 3. Curriculum"), page.index("\n## 4. ")      # a new section gets its place
    (tmp_path / "results.md").write_text(page[:begin] + page[end:])
    experiments.main(arguments)
    assert (tmp_path / "results.md").read_text() == page


def test_tries_are_made_on_validation_and_listed(flags, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "TRIES", {"warm-up": [{}, {"lr": 1e-3}], "loop": [{}, {"beta": 0.1}],
                                               "same data": [{"lr": 1e-3}, {"lr": 1e-4}]})
    experiments.main([*here(tmp_path), "--tune", *flags])
    lines = read(tmp_path)
    assert [(line["arm"], line["try"]) for line in lines] == [(m, i) for m in ("warm-up", "loop", "same data") for i in (0, 1)]
    assert all(line["settings"]["eval_split"] == "val" and line["seed"] == 100 for line in lines)
    assert "Settings tried" in (tmp_path / "results.md").read_text()
    assert experiments.tuned([], "warm-up") == {}


def test_a_try_is_taken_that_is_better_by_more_than_a_standard_error():
    def taken(*tried):
        return tables.best_try([{**hand_made("SFT", "4", 100, 1, {"sft": text}), "try": n} for n, text in enumerate(tried)], "SFT")
    half = "01" * 50
    assert taken(half, half) == 0
    assert taken(half, "1111" + half[4:]) == 1                       # two points, error 1.4
    assert taken(half, "111100" + half[6:]) == 0                     # one point, error 1.7
    assert taken(half, "1111111100000000000" + half[19:]) == 0       # one point worse
    assert taken(half, "11111111110000" + half[14:]) == 1            # three points, error 2.6
    assert taken(half, "1" * 20 + half[20:], "1" * 20 + "111100" + half[26:]) == 1     # of the two that the set does not tell apart
    assert taken("1" * 20 + half[20:], half, "0" * 100) == 0


def test_every_method_has_as_many_tries():
    assert {len(tries) for tries in experiments.TRIES.values()} == {3}
    names = {arm.name for arm in experiments.all_arms(experiments.Settings())}
    assert experiments.TRIES.keys() - names == {"warm-up"}
    usual = asdict(LoopConfig())
    assert len({{**usual, **tried}["lr"] for tried in experiments.TRIES["warm-up"]}) == 3
    for best in experiments.TRIES["loop"]:     # whatever the loop's best is, which the others start from
        for method in experiments.TRIES.keys() - {"warm-up", "loop"}:
            assert len({json.dumps({**best, **tried}, sort_keys=True) for tried in experiments.TRIES[method]}) == 3, (method, best)
    fourth = {arm.name for arm in experiments.all_arms(experiments.Settings()) if "4" in arm.experiments.split()}
    assert fourth - experiments.TRIES.keys() == {"what carries over"}      # makes no model


def test_the_interval_is_over_seeds_and_cases():
    rng = np.random.default_rng(1)
    before = {seed: (rng.random(400) < 0.5).astype(float) for seed in range(5)}
    after = {seed: np.maximum(array, rng.random(400) < 0.2) for seed, array in before.items()}
    points, low, high = tables.difference(before, after)
    assert points == pytest.approx(np.mean([after[s] - before[s] for s in before])) and 0 < low < points < high < 0.2
    swapped = {seed: after[seed] if seed % 2 else before[seed] for seed in before}     # seeds that disagree widen it
    _, low2, high2 = tables.difference(before, swapped)
    assert high2 - low2 > high - low
    assert tables.difference(before, before) == (0, 0, 0)
    points, low, high = tables.difference({0: before[0]}, {0: after[0]})     # of one seed what is left is the cases
    assert (100 * low, 100 * high) == pytest.approx(paired_interval(before[0], after[0]), abs=0.7) and high - low > 0.04
    theirs = {0: (np.zeros(300), np.tile([0.0, 1.0], 150)), 1: (np.zeros(100), np.tile([0.0, 1.0], 50))}     # cases of each seed's own
    points, low, high = tables.difference(*({seed: pair[i] for seed, pair in theirs.items()} for i in (0, 1)), own=True)
    assert points == 0.5 and 0.4 < low < 0.48 and 0.52 < high < 0.6
    alike = {seed: np.tile([0.0, 1.0], 200) for seed in range(5)}     # seeds that do not differ: the error is that of 2,000 cases
    _, low, high = tables.difference({seed: np.zeros(400) for seed in alike}, alike, own=True)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 2000 ** 0.5, rel=0.1)


def hand_made(arm, experiments, seed, trained, correct):
    """A line with known answers: strings of 0 and 1; the first half of the samples easy, the second hard."""
    size = len(next(iter(correct.values())))
    tokens = {"trained": trained, "decoded": 0, "scored": 0}
    models = [{"model": name, "tokens": tokens} for name in correct]
    return {"arm": arm, "experiments": experiments, "seed": seed, "try": None, "tokens": tokens, "cost": 3 * trained, "flags": [], "models": models,
            "levels": "e" * (size // 2) + "h" * (size - size // 2), "correct": correct}


def test_the_cells_of_a_table_are_the_lines_numbers(tmp_path):
    lines = [line for seed in (0, 1) for line in (
        hand_made("loop", "1 2 3 4", seed, 1_000_000, {"warm-up": "11000000", "round 1": "11101000"}),
        hand_made("shuffled", "3", seed, 500_000, {"sft": "10000000"}),
        hand_made("same data", "4", seed, 2_000_000, {"sft": "11110010" if seed else "11110000"}))]
    cells = lambda text, first: next([cell.strip() for cell in row.strip("|").split("|")] for row in text.splitlines()
                                     if row.startswith(f"| {first} |"))
    row = cells(tables.arms_against(lines, tmp_path, number="3", reference=("loop", "warm-up")), "shuffled")
    assert row[1:3] == ["1.500", "0.500"] and row[5:7] == ["12.5 ± 0.0", "0.0 ± 0.0"]
    assert row[7].startswith("-12.5 [") and row[8] == "+0.0 [+0.0, +0.0]" and row[9] == "2"
    text = tables.equal_compute(lines, tmp_path)
    row = cells(text, "same data")
    assert cells(text, "loop")[5:7] == ["50.0 ± 0.0", "25.0 ± 0.0"] and row[5:7] == ["56.2 ± 8.8", "12.5 ± 17.7"]
    assert row[7].startswith("-6.2 [") and row[8].startswith("+12.5 [")      # the loop over it, not it over the loop


def test_a_row_of_some_seeds_is_beside_the_same_seeds_of_the_loop(tmp_path):
    lines = [hand_made("loop", "4", seed, 1, {"warm-up": "0000", "round 1": text}) for seed, text in ((0, "0000"), (1, "1100"))]
    lines += [hand_made("same data", "4", 1, 1, {"sft": "1110"})]
    row = next([cell.strip() for cell in row.strip("|").split("|")] for row in tables.equal_compute(lines, tmp_path).splitlines()
               if row.startswith("| same data |"))
    assert row[5:] == ["75.0", "50.0", "50.0", "-25.0", "-50.0", "1"]      # overall, hard, the loop there, over it: one seed, no interval


def test_what_is_right_by_kind_of_request(tmp_path):
    kinds = {"requests": "cTsS"}
    lines = [hand_made("loop", "4", seed, 1, {"warm-up": "1000", "round 1": "1110"}) | kinds for seed in (0, 1)]
    lines += [hand_made("same data", "4", seed, 1, {"sft": "1001"}) | kinds for seed in (0, 1)]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in tables.by_request(lines, tmp_path).splitlines()]
    assert rows[0][1:8] == ["one call", "a later turn", "several calls", "no tool fits", "a value is missing", "with small talk", "without"]
    assert rows[2][1:8] == ["1", "1", "2", "0", "0", "2", "2"]
    assert rows[4][:8] == ["loop", "100.0 ± 0.0", "100.0 ± 0.0", "50.0 ± 0.0", "", "", "50.0 ± 0.0", "100.0 ± 0.0"]
    assert rows[5][3] == "50.0 ± 0.0" and rows[5][6] == "50.0 ± 0.0" and rows[5][8].startswith("+0.0 [") and rows[5][9] == ""


@pytest.fixture(scope="module")
def test_samples():
    return synth.make_samples(150, "test", 3)


@pytest.mark.parametrize("name", experiments.PERTURBATIONS)
def test_perturbed_samples_are_sound_and_still_have_their_answer(test_samples, name):
    import random
    changed = 0
    for i, sample in enumerate(test_samples):
        before = json.dumps(asdict(sample))
        other = experiments.PERTURBATIONS[name](sample, random.Random(i))
        assert json.dumps(asdict(sample)) == before
        synth.check_sample(other)
        assert judge(other, other.target) is None
        changed += (other.tools, other.messages, other.target) != (sample.tools, sample.messages, sample.target)
        assert (other.target == sample.target) or name == "parameters renamed"
    assert changed > 0.3 * len(test_samples) or name == "unchanged" and changed == 0


def test_typos_spare_what_the_target_copies():
    import random
    tool = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]}}
    sample = synth.Sample("x", [tool], [{"role": "user", "content": "please travel towards Rotterdam " * 20}], '[f(city="Rotterdam")]')
    text = experiments.typos(sample, random.Random(0)).messages[0]["content"]
    assert text.count("Rotterdam") == 20 and text.count("travel") < 20


def test_independent_responses_become_a_tree_of_steps(tokenizer):
    """Two responses that share a call's name part at its value; the better value is chosen, the names are no pair."""
    encode = lambda text: tokenizer(text + "<|end|>", add_special_tokens=False)["input_ids"]
    texts = {'[f(a=1)]': 1.0, '[f(a=2)]': 0.0, '[g(a=2)]': -1.0}      # the first is sampled twice
    nodes = [Node(-1, [], "", children=[1, 2, 3])] + [Node(0, encode(text), text, outcome=o, sampled=1 + (o == 1), final=True) for text, o in texts.items()]
    sample = synth.Sample("x", [], [], "")
    flat = Tree(sample, [1, 2], nodes)
    tree, steps = experiments.joined(flat, tokenizer, 1.25), lambda node: len(node.ids) ** 1.25
    shared = [n for n, node in enumerate(tree.nodes) if len(node.children) == 2]
    pairs = {(tree.nodes[c].text, tree.nodes[r].text) for c, r in preference_pairs(tree, SearchConfig(near=0))}
    assert len(shared) == 2 and any("1" in c and "2" in r for c, r in pairs)
    shares = lambda node: [tree.nodes[c].prior ** steps(tree.nodes[c]) for c in node.children]      # as the search has priors
    assert all(sum(shares(node)) == pytest.approx(1) for node in tree.nodes if node.children)
    assert any(node.outcome == pytest.approx(2 / 3) and node.visits == 3 for node in tree.nodes)      # f(: twice 1, once 0
    assert {tuple(tree.so_far(n)) for n, node in enumerate(tree.nodes) if node.final} == {tuple(encode(text)) for text in texts}


@pytest.mark.parametrize("more, says", [(["--only", "12"], "--only names experiments"), (["--data", "x.jsonl"], "simulated world"), (["--data=x.jsonl"], "simulated world"),
                                        (["--pref-lr", "1e-6"], "--pref_lr is what each method's tries set"), (["--seed=7"], "--seeds"),
                                        (["--arms", "warm-up"], "--arms knows no 'warm-up'"),
                                        (["--arms", "loop;sane data"], "--arms knows no 'sane data'; there are loop; "),
                                        (["--tune", "True", "--arms", "BFCL"], "--arms knows no 'BFCL'; there are warm-up; loop; ")])
def test_mistakes_get_a_line(tmp_path, more, says):
    with pytest.raises(ValueError, match=says):
        experiments.main([*here(tmp_path), *more])


def test_a_request_is_known_again_with_other_small_talk():
    """What carries over is measured on requests that training had not, whatever is said around them."""
    plain, talked = (synth.make_samples(200, "train", 5, talk) for talk in (False, synth.OFTEN))
    assert sum(a.messages != b.messages for a, b in zip(plain, talked)) > 100
    assert list(map(experiments.request, plain)) == list(map(experiments.request, talked))
    assert len(set(map(experiments.request, plain))) == 200


def test_cost_counts_backward_twice():
    assert cost({"trained": 10, "decoded": 5, "scored": 7}) == 42 and set(tables.KINDS) >= set(TOKENS)


def test_how_often_the_right_tool_is_chosen(flags, capsys, monkeypatch):
    """A model that always calls the first tool is right where there is one, and by chance among more."""
    first = lambda model, tokenizer, samples: [{"response": f"[{s.tools[0]['name']}(", "correct": False} for s in samples]
    monkeypatch.setattr(choosing, "evaluate", first)
    choosing.main(["--model", flags[1], "--n", "40", "--device", "cpu"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["1", "2", "4", "6"] and all(row[1] == "0% of 40" for row in rows)
    right = [int(row[2].split("%")[0]) for row in rows]
    assert right[0] == 100 and 30 <= right[1] <= 70 and right[3] <= 40
    assert all(sum(int(cell.split()[-1]) for cell in row[3:] if cell != "none") == 40 for row in rows)
    with pytest.raises(ValueError, match="--n has to be at least 1"):
        choosing.main(["--model", flags[1], "--n", "0"])

"""Samples: what the world draws is right, runs, and keeps its splits apart; files and prompts say what they should."""

import copy
import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import synth
from base.documents import base_document, choosing_document, working_document
from docs.experiments import PERTURBATIONS
from dpo import DPOConfig
from eval import judge
from loop import LoopConfig
from mcts import SearchConfig
from synth import (BASE_ONLY, PHRASINGS, POOLS, SPLIT, TOOLS, Call, DataError, World, chat_text, check_sample,
                   end_of_turn, format_calls, grade_ids, level_of, make_samples, parse_calls, prompt_ids, read_samples,
                   system_message, target_ids, tool_style, turn, write_samples)

ROOT = Path(synth.__file__).parent
SCHEMA_TYPES = {"string", "integer", "float", "boolean", "array", "dict"}


@pytest.fixture(scope="module")
def drawn():
    """1,000 samples of each split, without small talk."""
    return {split: make_samples(1000, split, talk=False) for split in PHRASINGS}


@pytest.fixture(scope="module")
def talked():
    """The same with small talk."""
    return {split: make_samples(1000, split) for split in PHRASINGS}


@pytest.fixture(scope="module")
def base_texts():
    """300 of the base's documents, then 100 of those in which only the tool, or only the values are hard, each as one text."""
    return ["".join(text for text, _, _ in make(random.Random(f"test-{i}")))
            for make, n in ((base_document, 300), (choosing_document, 50), (working_document, 50)) for i in range(n)]


def plain(text):
    """Words of a text between single spaces, to look word sequences up in."""
    return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "


def queries(samples):
    return [plain(m["content"]) for s in samples for m in s.messages if m["role"] == "user"]


def strings(value):
    """All strings in a value, nested ones too."""
    if isinstance(value, dict):
        value = list(value.values())
    return [s for item in value for s in strings(item)] if isinstance(value, list) else \
        [value] if isinstance(value, str) else []


# ---- The tools ----------------------------------------------------------------------------------------------------

def test_enough_tools_in_enough_domains():
    assert len(TOOLS) >= 80 and len({tool.domain for tool in TOOLS.values()}) >= 12


@pytest.mark.parametrize("name", TOOLS)
def test_schema_is_in_bfcls_layout_and_the_tool_runs(name):
    tool = TOOLS[name]
    schema = json.loads(json.dumps(tool.schema()))
    assert set(schema) == {"name", "description", "parameters"} and schema["name"] == name and schema["description"]
    properties, required = schema["parameters"]["properties"], schema["parameters"]["required"]
    assert schema["parameters"]["type"] == "dict" and set(required) <= set(properties)
    for key, p in properties.items():
        assert p["type"] in SCHEMA_TYPES and p["description"] and (key in required) != ("default" in p)
        assert "items" in p if p["type"] == "array" else "properties" in p if p["type"] == "dict" else True
        assert "enum" not in p or "default" not in p or p["default"] in p["enum"]
    rng = random.Random(name)
    for _ in range(20):  # some draws are refused, such as a flight from a city to itself
        world = World()
        draw = lambda kind: synth.world_string(rng, world, [], tool.split, tool.domain, synth.returned_ids(), kind)
        try:
            args = {p.name: synth.draw(rng, p, "literal", draw, (2026, 1, 1))[0] for p in tool.params}
            result = tool.run(world, **args)
        except synth.ToolError:
            continue
        assert json.dumps(result) and parse_calls(format_calls([Call(name, args)])) == [Call(name, args)]
        return
    pytest.fail("refused 20 times")


def test_a_world_is_deterministic_and_refuses_what_it_does_not_know():
    ids = [World().add("flight", price=3)["flight_id"] for _ in range(2)]
    assert ids[0] == ids[1]
    with pytest.raises(synth.ToolError, match="no such flight: F1"):
        World().get("flight", "F1")


# ---- The splits ---------------------------------------------------------------------------------------------------

def test_every_tool_has_one_split_and_no_value_or_wording_is_in_two():
    assert set(SPLIT) <= set(TOOLS) and {tool.split for tool in TOOLS.values()} == set(PHRASINGS)
    for other, split in (("train", "val"), ("train", "test"), ("val", "test")):
        values = [{v.lower() for pool in POOLS.values() for v in pool[s]} for s in (split, other)]
        assert not values[0] & values[1]
        for parts in (("frames",), ("joiners",), ("cues",), ("same",), ("usual",), ("again",), ("ahead", "behind")):
            a, b = ({t.lower().strip() for part in parts for t in getattr(PHRASINGS[s], part)} for s in (split, other))
            assert not a & b, parts
    assert all(set(pool) == set(PHRASINGS) for pool in POOLS.values())


def test_tools_and_values_of_other_splits_are_never_drawn(drawn):
    for split, samples in drawn.items():
        tools = {tool["name"] for s in samples for tool in s.tools}
        assert {TOOLS[name].split for name in tools} == {split}
        assert {c.name for s in samples for c in s.calls or ()} <= tools
        values = {v.lower() for s in samples for c in s.calls or () for v in strings(c.args)}
        foreign = {v.lower() for pool in POOLS.values() for s in PHRASINGS if s != split for v in pool[s]}
        options = {o for tool in TOOLS.values() if tool.split == split for p in tool.params for o in p.options or ()}
        assert not (values & foreign) - options  # "short" may be an option here and a word there


def pieces(templates):
    """Word sequences, of two words or more, between the placeholders of templates."""
    found = {plain(piece) for template in templates for piece in re.split(r"\{\w+\}", template)}
    return {piece for piece in found if len(piece.split()) > 1}


def test_wording_of_a_split_is_in_no_other(talked):
    texts = {split: queries(samples) for split, samples in talked.items()}
    for split, phrasing in PHRASINGS.items():
        for templates in list(vars(phrasing).values())[:8]:
            for piece in pieces(templates):
                where = {s for s in PHRASINGS if any(piece in text for text in texts[s])}
                assert where == {split}, piece


def test_wording_and_tools_of_the_world_are_new_to_the_base(base_texts):
    """No frame's words follow each other in the base's world, except that two meet by chance now and then."""
    texts = [plain(document) for document in base_texts]
    for phrasing in PHRASINGS.values():
        for piece in pieces(phrasing.frames):
            seen = sum(piece in text for text in texts)
            assert seen <= (0.02 * len(texts) if len(piece.split()) == 2 else 0), piece
    assert not [name for name in TOOLS if any(re.search(rf"(?<![\w.]){re.escape(name)}\(", document) for document in base_texts)]





def test_the_bases_toolsets_are_as_large_as_the_worlds(drawn, base_texts):
    """A model of 5 million parameters reads no prompt much longer than those of its training."""
    world = sorted(len(synth.system_message(s, "compact")) for s in drawn["train"])
    base = sorted(len(document.split("<|end|>")[0]) for document in base_texts[:300])
    for share in (0.5, 0.75, 0.9):
        assert base[int(share * len(base))] >= 0.8 * world[int(share * len(world))]


def test_small_talk_is_seldom_in_training_and_changes_nothing_but_the_last_request(drawn, talked):
    for split, phrasing in PHRASINGS.items():
        for talk, weight in enumerate(phrasing.talk):
            assert abs(sum(s.talk == talk for s in talked[split]) / 1000 - weight) < 0.05
        for before, after in zip(drawn[split], talked[split]):
            assert before.talk == 0 and replace(after, messages=before.messages, talk=0) == before
            *_, last = (i for i, m in enumerate(before.messages) if m["role"] == "user")
            assert [m for i, m in enumerate(after.messages) if i != last] == [m for i, m in enumerate(before.messages) if i != last]
            ahead, behind = after.messages[last]["content"].split(before.messages[last]["content"])
            said = [one for one in phrasing.ahead if f"{one} " in ahead] + [one for one in phrasing.behind if f" {one}" in behind]
            assert len(said) == after.talk and len(ahead + behind) == sum(len(one) + 1 for one in said)
    few, many = (sum(s.talk > 0 for s in talked[split]) for split in ("train", "test"))
    assert 50 < few < 200 and many > 600


def test_small_talk_as_often_as_one_says(drawn):
    often = make_samples(300, "train", talk=synth.OFTEN)
    assert 0.65 < sum(s.talk > 0 for s in often) / 300 < 0.85
    assert [replace(s, messages=[], talk=0) for s in often] == [replace(s, messages=[]) for s in drawn["train"][:300]]
    assert all(before.messages[-1]["content"] in after.messages[-1]["content"] for before, after in zip(drawn["train"], often))


def test_the_politeness_of_experiment_9_is_no_small_talk_of_training():
    said = PERTURBATIONS["politeness"](make_samples(1, "test")[0], None).messages[-1]["content"]
    assert not [one for one in PHRASINGS["train"].ahead + PHRASINGS["train"].behind if one in said]


def test_forms_kept_for_the_base_and_the_test(drawn):
    in_train = {form for s in make_samples(3000, "train", seed=1) for form in s.forms}
    in_test = {form for s in drawn["test"] for form in s.forms}
    assert not in_train & set(BASE_ONLY) and set(BASE_ONLY) <= in_test
    assert {"literal", "words", "unit", "half", "long", "ordinal", "relative", "ampm", "paraphrase"} <= in_train & in_test
    texts = " ".join(queries(make_samples(3000, "train", seed=1)))
    assert not re.search(r"\b(dozen|twice|double|two times \d|(quarter|half) past|days after)\b", texts)


def test_no_default_is_another_splits_value():
    for t in TOOLS.values():
        others = {value for p in t.params for split, pool in POOLS.get(p.kind, {}).items() if split != t.split for value in pool}
        assert not others & {p.default for p in t.params if isinstance(p.default, str)}, t.name


@pytest.mark.parametrize("form, example", [("twice", r"\b(twice|double|two times) \d"), ("dozen", r"\bdozen\b"),
                                           ("after", r"\bdays after [A-Z]"), ("spoken", r"\b(quarter|half) past \w+ in the")])
def test_the_base_is_taught_the_forms_that_only_the_test_asks_for(base_texts, form, example):
    assert form in BASE_ONLY
    assert sum(bool(re.search(example, document)) for document in base_texts) >= 10


# ---- Each sample --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("split", PHRASINGS)
def test_every_sample_is_right(drawn, split):
    """Its target is one that its tools allow, and runs in the world that its setup makes, with the ids it mentions."""
    for s in drawn[split]:
        check_sample(s)
        assert s.level == level_of(s.tools, s.calls) and s.messages[-1]["role"] in ("user", "tool")
        world, results = World(), []
        for text in s.setup:
            call, = parse_calls(text)
            results.append(TOOLS[call.name].run(world, **call.args))
        for m in s.messages:  # what a tool has said is what it says again
            if m["role"] == "tool":
                assert json.loads(m["content"]) == json.loads(json.dumps(results[-1]))
        if s.calls is None:
            assert s.target == synth.NO_TOOL or s.target.startswith("Please tell me the ")
            continue
        assert s.calls and format_calls(parse_calls(s.target)) == s.target
        for call in s.calls:
            TOOLS[call.name].run(world, **call.args)  # an id that is not there raises ToolError


def test_samples_of_each_level_and_scenario_are_drawn(drawn):
    for samples in drawn.values():
        for level in ("easy", "medium", "hard"):
            assert sum(s.level == level for s in samples) >= 100
        assert {s.scenario for s in samples} == set(synth.SCENARIOS)


def test_no_sample_comes_twice(drawn):
    everything = [s for samples in drawn.values() for s in samples]
    assert len({json.dumps([s.messages, s.target]) for s in everything}) == len(everything)
    assert len({" ".join(m["content"] for m in s.messages) for s in everything}) == len(everything)
    assert len({s.id for s in everything}) == len(everything)


def test_the_same_seed_gives_the_same_bytes_in_any_process(tmp_path):
    path = tmp_path / "train.jsonl"
    synth.main(["--n", "300", "--out", str(path), "--seed", "5"])
    code = ("import random, synth, sys; synth.write_samples(synth.make_samples(300, 'train', 5), sys.argv[1]); "
            "from base.documents import base_document; print(base_document(random.Random('5-0')))")
    for hash_seed in ("1", "2"):
        other = tmp_path / f"{hash_seed}.jsonl"
        done = subprocess.run([sys.executable, "-c", code, str(other)], cwd=ROOT, check=True, capture_output=True,
                              text=True, env={**os.environ, "PYTHONHASHSEED": hash_seed})
        assert other.read_bytes() == path.read_bytes()
        assert done.stdout == f"{base_document(random.Random('5-0'))}\n"
    assert [s.target for s in make_samples(20, "train", 6)] != [s.target for s in make_samples(20, "train", 5)]


def test_ten_thousand_samples_take_less_than_20_seconds():
    start = time.process_time()
    assert len(make_samples(10_000, "train", seed=2)) == 10_000
    assert time.process_time() - start < 20


# ---- Levels -------------------------------------------------------------------------------------------------------

def toolset(n, length):
    """n tools whose JSON has `length` characters."""
    tools = [{"name": f"tool_{i}", "description": ""} for i in range(n)]
    tools[0]["description"] = "x" * (length - len(json.dumps(tools)))
    assert len(json.dumps(tools)) == length
    return tools


@pytest.mark.parametrize("n_tools, length, n_calls, level", [
    (1, 500, 1, "easy"), (1, 500, None, "easy"), (1, 999, 1, "easy"), (1, 1000, 1, "medium"), (1, 500, 2, "medium"),
    (2, 500, 1, "medium"), (3, 500, 3, "medium"), (1, 2000, 1, "medium"), (1, 2001, 1, "hard"), (4, 500, 1, "hard"),
    (4, 500, None, "hard"), (1, 500, 4, "hard"),
])
def test_levels_follow_the_papers_rule(n_tools, length, n_calls, level):
    calls = None if n_calls is None else [Call("tool_0", {})] * n_calls
    assert level_of(toolset(n_tools, length), calls) == level


# ---- Files --------------------------------------------------------------------------------------------------------

TOOLACE = {
    "system": "You are an expert. Here is a list of functions in JSON format:\n" + json.dumps([
        {"name": "Get Time", "description": "The time.", "parameters": {"zone": {"type": "string", "description": "z"}}},
        {"type": "function", "function": {"name": "add", "parameters": {
            "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}}]) + "\nBe brief.",
    "conversations": [{"from": "user", "value": "What time is it in Rome?"},
                      {"from": "assistant", "value": "[Get Time(zone=\"Rome\")]"},
                      {"from": "tool", "value": "12:00"}, {"from": "assistant", "value": "Noon."},
                      {"from": "human", "value": "Add one"}, {"from": "gpt", "value": " [add(a=1)]\n"}]}
OURS = {"tools": [{"name": "f", "parameters": {"type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]}}],
        "messages": [{"role": "user", "content": "?"}], "target": "[f(a=1)]"}


def write_lines(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


def test_what_is_written_is_read(tmp_path, drawn):
    odd = copy.deepcopy(drawn["test"][0])
    odd.messages[0]["content"] = "line\u2028separators\x85 and\x1e such, \u65e5\u672c\n\"quoted\""
    samples = [*drawn["test"][:200], odd]
    write_samples(samples, tmp_path / "a.jsonl")
    assert read_samples(tmp_path / "a.jsonl") == (samples, 0)
    (tmp_path / "a.json").write_text(json.dumps([asdict(s) for s in samples]), encoding="utf-8")
    assert read_samples(tmp_path / "a.json") == (samples, 0)


def test_our_layout_needs_three_fields_only(tmp_path):
    sample, = read_samples(write_lines(tmp_path / "a.jsonl", OURS))[0]
    assert sample.level == "easy" and sample.calls == [Call("f", {"a": 1})] and sample.today == ""


def test_toolaces_layout(tmp_path):
    for name, text in (("a.json", json.dumps([TOOLACE], indent=1)), ("a.jsonl", json.dumps(TOOLACE))):
        (tmp_path / name).write_text(text)
        samples, skipped = read_samples(tmp_path / name)
        assert skipped == 0 and [s.target for s in samples] == ['[Get Time(zone="Rome")]', "Noon.", "[add(a=1)]"]
        assert [len(s.messages) for s in samples] == [1, 3, 5] and len({s.id for s in samples}) == 3
        assert [m["role"] for m in samples[2].messages] == ["user", "assistant", "tool", "assistant", "user"]
        assert [c and c[0].name for c in (s.calls for s in samples)] == ["Get Time", None, "add"]
        assert samples[0].tools[0]["parameters"]["properties"]["zone"]["type"] == "string"
        assert samples[0].tools[1] == {"name": "add", "description": "", "parameters": {
            "type": "dict", "properties": {"a": {"type": "integer"}}, "required": ["a"]}} and samples[0].today == ""


def test_every_flag_says_what_it_means(capsys):
    with pytest.raises(SystemExit):
        synth.read_flags(["--help"], LoopConfig, SearchConfig, DPOConfig)
    said = " ".join(capsys.readouterr().out.split())
    assert "--near NEAR above 0: the likeliest of the worse steps is rejected, where its prior is at least this share" in said
    names = {f.name for config in (LoopConfig, SearchConfig, DPOConfig) for f in fields(config)}
    assert said.count("(default: ") >= len(names) > 50


def test_what_is_no_flag_is_left_or_refused():
    cfg, rest = synth.read_flags(["--n", "5", "--pick", "1"], synth.SynthConfig, rest=True)
    assert cfg.n == 5 and rest == ["--pick", "1"]
    with pytest.raises(ValueError, match="there is no setting --splits, but --split"):
        synth.read_flags(["--splits", "val"], synth.SynthConfig)


def openai_layout():
    call = lambda name, **arguments: {"id": "call_0", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
    tool = lambda name, kind: {"type": "function", "function": {"name": name, "parameters": {
        "type": "object", "properties": {"a": {"type": kind}}, "required": ["a"]}}}
    return {"tools": [tool("f", "integer"), tool("g", "string")], "messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None, "tool_calls": [call("f", a=1), call("g", a='say "x"')]},
        {"role": "tool", "tool_call_id": "call_0", "content": "7"}, {"role": "assistant", "content": "Seven."},
        {"role": "user", "content": "Again"}, {"role": "assistant", "content": "", "tool_calls": [call("f", a=2)]}]}


def test_openais_layout(tmp_path):
    """Calls beside the text become call syntax, in the conversation and as the target; each answer is a sample."""
    samples, skipped = read_samples(write_lines(tmp_path / "a.jsonl", openai_layout()))
    assert skipped == 0 and [s.target for s in samples] == [r'[f(a=1), g(a="say \"x\"")]', "Seven.", "[f(a=2)]"]
    assert samples[0].messages == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert [m["content"] for m in samples[2].messages[2:]] == [samples[0].target, "7", "Seven.", "Again"]
    assert len({s.id for s in samples}) == 3 and samples[0].calls[1] == Call("g", {"a": 'say "x"'})
    with_target = {**openai_layout(), "messages": openai_layout()["messages"][:2], "target": "[f(a=1)]", "id": 7, "level": None}
    sample, = read_samples(write_lines(tmp_path / "b.jsonl", with_target))[0]
    assert sample.id == "7" and sample.level == "medium" and sample.messages == samples[0].messages


def test_openais_answers_that_are_not_to_be_learned(tmp_path):
    """Those with the weight 0 stay in the conversation; what was said before a call belongs to it."""
    record = openai_layout()
    record["messages"][4]["weight"] = 0
    record["messages"].insert(2, {"role": "assistant", "content": "Let me see."})
    record["messages"][-1]["tool_calls"][0]["function"]["arguments"] = '{"a": 2}'
    record["messages"].append({"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "g", "arguments": '{"a": "y"}'}}]})
    samples, skipped = read_samples(write_lines(tmp_path / "a.jsonl", record))
    assert [s.target for s in samples] == [r'[f(a=1), g(a="say \"x\"")]', '[f(a=2), g(a="y")]'] and skipped == 0
    assert [m["content"] for m in samples[1].messages[2:]] == [samples[0].target, "7", "Seven.", "Again"]
    record["tools"][0]["function"]["parameters"]["required"] = []
    record["messages"] = [record["messages"][1], {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": ""}}]}]
    assert read_samples(write_lines(tmp_path / "b.jsonl", record))[0][0].target == "[f()]"


@pytest.mark.parametrize("target", ["f(a=1)", "f(a=1), f(a=2)", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
                                    '{"name": "f", "arguments": {"a": 1}}', "[1] says so."])
def test_a_call_in_another_syntax_is_not_taken_as_text(tmp_path, target):
    """Any text without a call would be right in its place, and the call wrong. In others' layouts it is left out, and counted."""
    with pytest.raises(DataError, match="line 1: the answer is not in call syntax"):
        read_samples(write_lines(tmp_path / "a.jsonl", {**OURS, "target": target}))
    answered = {"tools": OURS["tools"], "messages": [*OURS["messages"], {"role": "assistant", "content": target}]}
    samples, skipped = read_samples(write_lines(tmp_path / "b.jsonl", OURS, answered))
    assert len(samples) == 1 and skipped == 1


def test_a_text_that_tells_of_a_call_is_text(tmp_path):
    sample, = read_samples(write_lines(tmp_path / "a.jsonl", {**OURS, "target": "I used f(a=1) for you."}))[0]
    assert sample.calls is None and judge(sample, sample.target) is None and judge(sample, "So f(a=1).") == "call where none was due"


def test_an_end_that_is_no_token_of_its_own_is_not_learned(chatml):
    """Its first piece would cut responses that hold it."""
    odd = copy.deepcopy(chatml)
    odd.chat_template = odd.chat_template.replace("<|im_end|>", " < end >")
    assert synth.end_of_turn(odd) == odd.eos_token


def test_tools_as_published_files_have_them():
    """As JSON in a text; with definitions and unions, as pydantic writes them."""
    schema = {"name": "book", "parameters": {
        "type": "object", "required": ["address"], "$defs": {"Address": {"type": "object", "properties": {"street": {"type": "string"}}}},
        "properties": {"address": {"$ref": "#/$defs/Address", "description": "where"},
                       "city": {"anyOf": [{"type": "null"}, {"type": "string"}], "default": None},
                       "stops": {"type": "array", "items": {"$ref": "#/$defs/Address"}}}}}
    tool, = synth.normalize_tools(json.dumps([schema]))
    properties = tool["parameters"]["properties"]
    assert properties["address"] == {"type": "dict", "properties": {"street": {"type": "string"}}, "description": "where"}
    assert properties["city"] == {"type": "string", "default": None} and properties["stops"]["items"]["properties"] == {"street": {"type": "string"}}
    assert synth.signature(tool).startswith("book(address: {street} where, city: str?, stops: list[dict]?)")
    assert synth.normalize_tools([{"name": "f", "parameters": json.dumps(schema["parameters"])}])[0]["parameters"] == tool["parameters"]
    named = {"name": "f", "parameters": {"type": {"type": "string", "description": "a parameter of that name"}, "title": "no parameter"}}
    assert list(synth.normalize_tool(named)["parameters"]["properties"]) == ["type"]


def test_toolaces_date_is_kept(tmp_path):
    dated = {**TOOLACE, "system": "The current time is 2025-03-11 15:18:56. " + TOOLACE["system"] + " 1999-01-01"}
    samples, _ = read_samples(write_lines(tmp_path / "a.jsonl", dated))
    assert {s.today for s in samples} == {"2025-03-11"}
    behind = {**TOOLACE, "system": TOOLACE["system"] + "\nThe current time is 2024-05-01 10:00."}
    assert {s.today for s in read_samples(write_lines(tmp_path / "b.jsonl", behind))[0]} == {"2024-05-01"}
    with pytest.raises(synth.DataError, match="a.jsonl, line 1: .*today is a date"):
        read_samples(write_lines(tmp_path / "a.jsonl", {**dated, "system": dated["system"].replace("03-11", "13-11")}))


def test_public_toolace_data_is_read_as_it_is(shared_data):
    """322 records, 7 of them with answers that were broken where the data was made: no --skip_bad needed."""
    samples, skipped = read_samples(shared_data / "real/toolace_format.json")
    assert len(samples) == 315 and skipped == 7
    for s in samples:
        check_sample(s)
        assert s.calls and parse_calls(format_calls(s.calls)) == s.calls


@pytest.mark.parametrize("record, message", [
    ('{"tools": [', "Expecting value"),
    ("[1, 2]", "not an object"),
    ({"query": "?", "answers": []}, "neither our layout .* nor ToolACE's"),
    ({**OURS, "target": "[f(a=1"}, r"not in call syntax: .* at character"),
    ({**OURS, "target": " "}, "the target is empty"),
    ({**OURS, "target": "[f(a=1, b=2)]"}, "a parameter 'b' that it does not have"),
    ({**OURS, "target": "[f()]"}, "leaves out 'a', which 'f' requires"),
    ({**OURS, "target": "[g(a=1)]"}, "calls 'g', which is not among the tools"),
    ({**OURS, "tools": []}, "without tools"),
    ({**OURS, "tools": [{"parameters": {}}]}, "a tool without a name"),
    ({**OURS, "messages": []}, "must end with a user's or a tool's message"),
    ({**OURS, "messages": [{"role": "assistant", "content": "!"}]}, "must end with a user's or a tool's message"),
    ({**OURS, "target": 5}, "the target is text"),
    ({**OURS, "id": [5]}, "id and scenario are text"),
    ({**OURS, "target": None}, "no answer of the assistant"),
    ({**OURS, "tools": None}, r"tools is a list of schemas .got None"),
    ({**OURS, "tools": "[{"}, "Expecting"),
    ({**OURS, "tools": [{"name": "f", "parameters": {"properties": {"a": "integer"}}}]}, "a parameter's schema is an object with a type .got 'integer'"),
    ({**OURS, "tools": [{"name": "f", "parameters": {"properties": {"a": {"$ref": "#/$defs/A"}}}}]}, "schema #/.defs/A is not among the tool's"),
    ({**OURS, "tools": [{"name": "f", "parameters": {"properties": {"a": {"$ref": "#/$defs/A"}}, "$defs": {"A": {"$ref": "#/$defs/A"}}}}]},
     "refers to itself without end"),
    ({**OURS, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a message has a part that is not text"),
    ({**OURS, "messages": [{"role": "judge", "content": "!"}]}, "a message is the system's, a user's, .*got 'judge'"),
    ({**OURS, "today": "20260314"}, "today is a date such as 2026-03-14"),
    ({**OURS, "messages": [{"role": "user", "content": "\ud83d"}]}, "half a character"),
    ({**OURS, "tools": [{"name": "f", "parameters": {"properties": {}, "required": True}}]}, "required, of the tool 'f', is a list"),
    ({**TOOLACE, "system": "No tools."}, "no list of tools in the system text"),
    ({**TOOLACE, "conversations": TOOLACE["conversations"][:1]}, "no answer of the assistant"),
    ({**TOOLACE, "conversations": [{"from": "nobody", "value": ""}]}, "a message is the system's, a user's, .*got 'nobody'"),
])
def test_a_bad_record_is_named_by_file_and_line_or_counted(tmp_path, record, message):
    path = write_lines(tmp_path / "bad.jsonl", OURS, "", record, OURS)
    with pytest.raises(DataError, match=rf"bad\.jsonl, line 3: .*{message}") as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)
    samples, skipped = read_samples(path, skip_bad=True)
    assert len(samples) == 2 and skipped == 1


def test_a_bad_record_of_a_list_is_named_by_its_number(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([OURS, {"a": 1}]))
    with pytest.raises(DataError, match=r"bad\.json: record 2: neither our layout"):
        read_samples(path)
    path.write_text(json.dumps([OURS], indent=1)[:-3])
    with pytest.raises(DataError, match=r"bad\.json, line \d+: not JSON"):
        read_samples(path)


def test_marks_and_blanks_around_what_is_meant_change_nothing(tmp_path):
    plain, _ = read_samples(write_lines(tmp_path / "a.jsonl", OURS, OURS))
    spaced = "".join(json.dumps({**OURS, "target": f"\n {OURS['target']} "}) + "\r\n" for _ in plain)
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + spaced.encode())
    assert read_samples(tmp_path / "b.jsonl") == (plain, 0) and plain[0].calls
    (tmp_path / "c.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="lists within lists"):
        read_samples(tmp_path / "c.json")


def test_a_broken_answer_in_published_data_is_counted(tmp_path):
    broken = copy.deepcopy(TOOLACE)
    broken["conversations"][1]["value"] = "[Get Time(zone=\"Ro"
    samples, skipped = read_samples(write_lines(tmp_path / "a.jsonl", TOOLACE, broken))
    assert len(samples) == 3 and skipped == 1


@pytest.mark.parametrize("content, message", [
    (None, "cannot be read"), (b"", "no usable sample"), (b"\n \n", "no usable sample"), (b"[]", "no usable sample"),
    (b"\xff\xfe\xfa", "cannot be read .not UTF-8 text")])
def test_files_without_samples_say_so_in_one_line(tmp_path, content, message):
    path = tmp_path / "a.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.jsonl: {message}") as caught:
        read_samples(path)
    assert "\n" not in str(caught.value)


def test_the_command_refuses_settings_that_mean_nothing(tmp_path):
    for arguments in (["--out", str(tmp_path / "none" / "x.jsonl")], ["--split", "base", "--out", str(tmp_path / "x.jsonl")]):
        with pytest.raises(ValueError, match="--out"):
            synth.main(arguments)
    for arguments in (["--split", "tests"], ["--n", "0"]):
        with pytest.raises(ValueError, match="--split is train, val, test or base"):
            synth.main([*arguments, "--out", str(tmp_path / "x")])
    assert not list(tmp_path.iterdir())


def test_show_prints_samples_and_documents(capsys):
    synth.main(["--show", "2", "--split", "test"])
    assert capsys.readouterr().out.count("--- test-") == 2
    synth.main(["--show", "1", "--split", "base"])
    assert "learn" in capsys.readouterr().out


# ---- Prompts ------------------------------------------------------------------------------------------------------

def test_the_chat_template_writes_what_the_base_was_trained_on(tokenizer, drawn):
    """Token for token: a conversation through the template, and the same turns as base_document writes them."""
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    for s in drawn["test"][:100]:
        today = [int(x) for x in s.today.split("-")]
        parts = [turn("system", synth.system_text(s.tools, today))]  # tokenized apart, as segments of a document are
        for m in s.messages:
            parts.append(turn(m["role"], m["content"]))
        parts[-1] += synth.OPEN
        assert chat_text(tokenizer, [{"role": "system", "content": system_message(s, "compact")}, *s.messages]) == "".join(parts)
        assert prompt_ids(tokenizer, s) == [i for part in parts for i in encode(part)]
        assert target_ids(tokenizer, s) == encode(s.target + synth.END)
        assert tokenizer.decode(target_ids(tokenizer, s)) == s.target + synth.END


def test_compact_signatures():
    schema = {"name": "f", "description": "Do it.", "parameters": {"type": "dict", "required": ["a", "day"], "properties": {
        "a": {"type": "integer", "description": "how many"}, "day": {"type": "string", "format": "date"},
        "size": {"type": "string", "enum": ["small", "large"], "default": "small"},
        "rooms": {"type": "array", "items": {"type": "string"}, "description": "which"},
        "spot": {"type": "dict", "properties": {"x": {}, "y": {}}}}}}
    assert synth.signature(schema) == ('f(a: int how many, day: date, size: small|large = "small", rooms: list[str] which?, '
                                       "spot: {x, y}?) Do it.")


def test_other_models_get_json(chatml, drawn):
    s = drawn["train"][0]
    text = chatml.decode(prompt_ids(chatml, s))
    assert tool_style(chatml) == "json"
    assert text.startswith("<|im_start|>system\nYou are an expert") and text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert json.dumps(s.tools, ensure_ascii=False) in text and f"Today is {s.today}." in text
    assert f"<|im_start|>user\n{s.messages[0]['content']}<|im_end|>" in text
    assert chatml.decode(target_ids(chatml, s)) == s.target + "<|im_end|>"


def test_the_style_of_the_embedded_model_is_saved_with_its_tokenizer(checkpoint):
    loaded = AutoTokenizer.from_pretrained(checkpoint)
    assert tool_style(loaded) == "compact" and end_of_turn(loaded) == synth.END


def test_end_of_turn(tokenizer, chatml):
    assert end_of_turn(tokenizer) == "<|end|>" and end_of_turn(chatml) == "<|im_end|>"
    bare = copy.deepcopy(chatml)
    bare.chat_template = None
    assert end_of_turn(bare) == bare.eos_token
    assert chat_text(bare, [{"role": "user", "content": "?"}]).endswith("assistant: ")


@pytest.mark.parametrize("kind", ["tokenizer", "chatml"])
def test_the_question_for_a_grade(request, kind):
    """It ends the answer, asks, and opens a turn; the four grades differ in their first token."""
    tokenizer = request.getfixturevalue(kind)
    question, grades = grade_ids(tokenizer)
    text = tokenizer.decode(question)
    assert text.startswith(end_of_turn(tokenizer)) and synth.GRADE_PROMPT in text and "ANSWER" not in text
    assert len(set(grades)) == 4
    for grade, first in zip(synth.GRADES, grades):
        assert tokenizer(grade, add_special_tokens=False)["input_ids"][0] == first


def test_grades_are_asked_for_as_the_base_learned_it(tokenizer, base_texts):
    question = tokenizer.decode(grade_ids(tokenizer)[0])
    assert sum(question in document for document in base_texts) > 100


@pytest.mark.parametrize("message", ["hello", {"content": "hello"}, {"role": "user"}, {"role": "user", "content": None}])
def test_a_broken_message_is_told_with_its_line(tmp_path, message):
    sample = synth.make_samples(1, "train", 0)[0]
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps({"tools": sample.tools, "messages": [message], "target": sample.target}) + "\n")
    with pytest.raises(synth.DataError, match="line 1.*a message has to be"):
        synth.read_samples(path)


@pytest.mark.parametrize("given, taken", [("integer", "integer"), (["null", "string"], "string"), ([], "any"), ({"a": 1}, "any")])
def test_a_property_of_several_types_gets_one(given, taken):
    tool = synth.normalize_tool({"name": "f", "parameters": {"x": {"type": given, "description": "d"}}})
    assert tool["parameters"]["properties"]["x"]["type"] == taken
    assert synth.signature(tool).startswith("f(x: ")


@pytest.mark.parametrize("given, taken, items", [
    ("str, optional", "string", None), ("int", "integer", None), ("List[int]", "array", {"type": "integer"}), ("Optional[bool]", "boolean", None),
    ("List[List[float]], optional", "array", {"type": "array", "items": {"type": "float"}}), ("Tuple[float, float]", "tuple", None),
    ("Dict[str, int]", "dict", None), ("List", "array", None), ("String", "string", None), ("Callable[[float], float]",) * 2 + (None,)])
def test_pythons_types_become_bfcls(given, taken, items):
    """ToolACE has them in more than half of its parameters."""
    tool = synth.normalize_tool({"name": "f", "parameters": {"x": {"type": given, "description": "d"}}})
    assert tool["parameters"]["properties"]["x"] == {"type": taken, "description": "d"} | ({"items": items} if items else {})


def test_a_python_string_is_compared_as_bfcl_compares_strings():
    [sample] = synth.from_record({"tools": [{"name": "f", "parameters": {"x": {"type": "str"}, "y": {"type": "float, optional"}}}],
                                  "messages": [{"role": "user", "content": "?"}], "target": '[f(x="New York", y=5.0)]'}, "0")
    assert judge(sample, '[f(x="new york", y=5)]') is None and judge(sample, '[f(x="Newark", y=5)]') == "wrong value"


def test_openais_types_become_bfcls_within_arrays_and_objects_too():
    """So 5 is a right 5.0, and an object's strings are compared as BFCL compares them."""
    schema = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "required": ["x"], "properties": {
        "x": {"type": "number"}, "o": {"type": "object", "properties": {"c": {"type": ["null", "string"]}}},
        "l": {"type": "array", "items": {"type": ["string", "null"]}}, "n": {"type": "array", "items": None}}}}}
    [sample] = synth.from_record({"tools": [schema], "messages": [{"role": "user", "content": "?"}],
                                  "target": '[f(x=5, o={"c": "New York"}, l=["a"], n=[1])]'}, "0")
    properties = sample.tools[0]["parameters"]["properties"]
    assert [p["type"] for p in properties.values()] == ["float", "dict", "array", "array"]
    assert properties["l"]["items"]["type"] == properties["o"]["properties"]["c"]["type"] == "string"
    assert synth.signature(sample.tools[0]).startswith("f(x: float, o: {c}?, l: list[str]?, n: list[any]?)")
    for response in (sample.target, '[f(x=5.0, o={"c": "new york"}, l=["A"], n=[1])]'):
        assert judge(sample, response) is None
    assert judge(sample, '[f(x=6, o={"c": "New York"}, l=["a"], n=[1])]') == "wrong value"
    other = {"name": "f", "parameters": {"y": {"type": "string"}}}
    assert synth.normalize_tools([schema, other]) == sample.tools       # of two tools of one name the first

@pytest.mark.parametrize("fields, message", [({"level": "Easy"}, "level is easy, medium or hard"), ({"today": "2026-05"}, "today is a date"),
                                             ({"today": 2026}, "today is a date")])
def test_a_field_that_means_nothing_is_told_with_its_line(tmp_path, fields, message):
    record = asdict(synth.make_samples(1, "train", 0)[0]) | fields
    (tmp_path / "samples.jsonl").write_text(json.dumps(record) + "\n")
    with pytest.raises(synth.DataError, match=f"line 1.*{message}"):
        synth.read_samples(tmp_path / "samples.jsonl")


def test_templates_that_say_less_or_more_than_usual(chatml, drawn):
    sample, odd = drawn["train"][0], copy.deepcopy(chatml)
    odd.chat_template = {"default": chatml.chat_template, "rag": "no"}      # several by name
    assert prompt_ids(odd, sample) == prompt_ids(chatml, sample) and synth.end_of_turn(odd) == "<|im_end|>"
    odd.chat_template = "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match="leaves out what the assistant says"):
        synth.end_of_turn(odd)
    odd.chat_template, odd.eos_token = "{% for m in messages %}{{ m.content }}{% endfor %}", None
    with pytest.raises(DataError, match="has a token that ends an answer"):
        synth.end_of_turn(odd)
    two = replace(sample, messages=[{"role": "system", "content": "Be brief."}, *sample.messages])
    text = chatml.decode(prompt_ids(chatml, two))
    assert text.count("<|im_start|>system") == 1 and "Be brief.<|im_end|>" in text


def test_a_template_without_a_system_role_gets_the_tools_with_the_first_message(chatml, drawn):
    sample, plain = drawn["train"][0], copy.deepcopy(chatml)
    plain.chat_template = "{% for m in messages if m.role not in ['user', 'assistant'] %}{{ raise_exception('no ' + m.role) }}{% endfor %}" \
        + chatml.chat_template
    text = plain.decode(prompt_ids(plain, sample))
    assert text.startswith("<|im_start|>user\nYou are an expert") and sample.messages[0]["content"] in text and "system" not in text[:30]
    with pytest.raises(DataError, match="chat template does not take the roles user, judge .*no judge"):
        chat_text(plain, [{"role": "user", "content": "?"}, {"role": "judge", "content": "!"}])


@pytest.mark.parametrize("template", [
    "{% for m in messages if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",     # Phi's
    "{% if messages[-1].role == 'user' %}{{ messages[0].content }}{% endif %}"                                        # Mistral's
    "{% for m in messages[1:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"])
def test_a_template_that_leaves_a_message_out_is_asked_in_another_way(chatml, drawn, template):
    quiet = copy.deepcopy(chatml)
    quiet.chat_template = template
    sample = next(s for s in drawn["train"] if s.messages[-1]["role"] == "tool")
    text = quiet.decode(prompt_ids(quiet, sample))
    assert all(m["content"] in text for m in sample.messages) and sample.tools[0]["name"] in text
    quiet.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(DataError, match="does not take the roles system, user, .*leaves out what the system says"):
        prompt_ids(quiet, sample)


def test_what_json_says_of_a_message_is_the_message(chatml):
    """Llama's template writes a tool's result as JSON."""
    quoting = copy.deepcopy(chatml)
    quoting.chat_template = chatml.chat_template.replace("{{ m['content'] }}", "{{ m['content'] | tojson }}")
    assert r'\"Äpfel\"' in chat_text(quoting, [{"role": "user", "content": '"Äpfel"'}])


def test_a_model_that_thinks_is_told_not_to(chatml):
    thinking = copy.deepcopy(chatml)
    thinking.chat_template = chatml.chat_template.replace("assistant\n{% endif %}", "assistant\n{% if enable_thinking is defined and not "
                                                          "enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}")
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "<think>hm</think>\n\nYes."}, {"role": "user", "content": "!"}]
    assert chat_text(thinking, messages).endswith("assistant\n<think>\n\n</think>\n\n")
    always = copy.deepcopy(chatml)
    always.chat_template = chatml.chat_template.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    assert chat_text(always, messages).endswith("assistant\n<think>\n\n</think>\n\n")
    always.chat_template = always.chat_template.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")     # Qwen3's
    assert "hm" not in chat_text(always, messages) and "Yes." in chat_text(always, messages)


def test_a_template_of_users_and_assistants_in_turn_takes_every_sample(chatml, drawn):
    strict = copy.deepcopy(chatml)
    strict.chat_template = ("{% for m in messages %}{% if m.role != ['user', 'assistant'][loop.index0 % 2] %}"
                            "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + chatml.chat_template)
    for sample in drawn["train"]:
        text = strict.decode(prompt_ids(strict, sample))
        assert all(m["content"] in text for m in sample.messages) and "<|im_start|>tool" not in text
    assert any(m["role"] == "tool" for sample in drawn["train"] for m in sample.messages)


def test_a_template_that_writes_the_date_gets_the_samples_or_always_the_same(chatml, drawn):
    dated = copy.deepcopy(chatml)
    dated.chat_template = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" \
        "Today: {{ date_string }}." + chatml.chat_template
    sample = replace(drawn["train"][0], today="2026-03-04")
    assert dated.decode(prompt_ids(dated, sample)).startswith("Today: 04 Mar 2026.")
    assert dated.decode(prompt_ids(dated, replace(sample, today=""))).startswith("Today: 01 Jan 2025.")
    dated.chat_template = "{%- set today = strftime_now('%d %B %Y') -%}Today: {{ today }}." + chatml.chat_template      # asks nobody
    assert dated.decode(prompt_ids(dated, sample)) == f"Today: 04 Mar 2026.{chatml.decode(prompt_ids(chatml, sample))}"


def test_without_a_template_a_text_begins_as_the_tokenizer_begins_it(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template, bare.bos_token = None, bare.eos_token
    assert chat_text(bare, [{"role": "user", "content": "?"}]).startswith("user: ?")      # this one begins with nothing of its own
    bare._tokenizer.post_processor = TemplateProcessing(single=f"{bare.bos_token} $A", special_tokens=[(bare.bos_token, bare.bos_token_id)])
    assert chat_text(bare, [{"role": "user", "content": "?"}]).startswith(bare.bos_token + "user: ?")

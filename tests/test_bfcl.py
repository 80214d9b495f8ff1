"""eval.py's BFCL against the official one (bfcl-eval's runner and checker): right or wrong, answer by answer."""

import importlib
import importlib.util
import json
import os
import random
import sys
import tempfile
import types
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval import (BFCL_CATEGORIES, ERROR_KINDS, answers_from, check_calls, decode_bfcl, load_bfcl, score_bfcl,
                  score_fraction)
from synth import Call, format_calls, parse_calls

needs_bfcl = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None,
                                reason="bfcl-eval is not installed: pip install --no-deps bfcl-eval==2026.3.23")


@pytest.fixture(scope="module")
def official():
    """(case, response) -> whether the official runner, for a prompted model, calls it right.

    Its table of models and the client SDKs that are not installed are replaced while it is imported.
    """
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {"prompted": types.SimpleNamespace(underscore_to_dot=False)}
    sys.modules[table.__name__], stubs = table, []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("BFCL_PROJECT_ROOT", folder)  # it makes folders for results when imported
        while True:
            try:
                runner = importlib.import_module("bfcl_eval.eval_checker.eval_runner")
                utils = importlib.import_module("bfcl_eval.model_handler.utils")
                break
            except ModuleNotFoundError as error:
                assert not error.name.startswith("bfcl_eval")
                stubs.append(error.name)
                sys.modules[error.name] = MagicMock()
        for name in stubs:
            del sys.modules[name]
    handler = types.SimpleNamespace(decode_ast=utils.default_decode_ast_prompting)
    language, python = runner.Language.PYTHON, runner.ReturnFormat.PYTHON

    def judge(case, response):
        entry = {"function": case["tools"]}
        try:
            if case["answers"] is None:
                result = runner._evaluate_single_relevance_entry(
                    handler, case["id"], response, entry, "prompted", case["category"])
            else:
                result = runner._evaluate_single_ast_entry(handler, case["id"], response, case["answers"], entry,
                                                           "prompted", case["category"], language, python)
        except Exception:  # its checker stumbles over some values of a wrong type: not a right answer
            return False
        return result["valid"]
    return judge


# ---- Answers, right and wrong -------------------------------------------------------------------------------------

def choose(option, rng):
    """A value that an option allows: in dicts each key has options of its own."""
    if isinstance(option, dict):
        chosen = {key: choose(rng.choice(choices), rng) if isinstance(choices, list) and choices else choices
                  for key, choices in option.items()}
        return {key: value for key, value in chosen.items() if value != ""}
    if isinstance(option, list) and any(isinstance(item, dict) for item in option):
        return [choose(item, rng) for item in option]
    return option


def reference(case, rng, full):
    """Calls that the possible answers allow: with the first options, or with any."""
    calls = []
    for answer in case["answers"]:
        (name, wanted), = answer.items()
        args = {}
        for key, options in wanted.items():
            options = [option for option in options if option != ""] if full else options
            if options and (option := options[0] if full else rng.choice(options)) != "":
                args[key] = choose(option, rng)
        calls.append(Call(name, args))
    return calls


def other(value, rng):
    """A value like `value`, but of another type, form or content."""
    forms = ["", 0, 1, -1, 2.5, True, None, [], {}, (), [value], (value,), {"a": value}, [[value]], str(value),
             repr(value)]
    if isinstance(value, str):
        forms += [value.upper(), value.lower(), value + "x", value[1:], value.replace(" ", ""),
                  value.replace(",", " -."), f" {value}.", value.replace("'", '"'), value.replace(" ", "_")]
    if isinstance(value, (int, float)):
        forms += [value + 1, -value, float(value), int(value), value * 1.0, value + 0.5, bool(value)]
    if isinstance(value, (list, tuple)):
        forms += [value[1:], value[::-1], list(value) * 2, tuple(value), [other(item, rng) for item in value],
                  [*value[:-1], *(other(item, rng) for item in value[-1:])], [str(item) for item in value],
                  [*value, ""], *([value[0]] if value else []), ["", *value]]
    if isinstance(value, dict):
        forms += [dict(list(value.items())[1:]), value | {"extra": 1}, {key: [item] for key, item in value.items()},
                  {f"{key}_": item for key, item in value.items()}, {key: other(value[key], rng) for key in value},
                  *([{**value, key: other(value[key], rng)} for key in list(value)[:1]])]
    return rng.choice(forms)


def change_calls(calls, case, rng):
    """One change of a list of calls: values, parameters, names, their number and order."""
    calls = [Call(call.name, dict(call.args)) for call in calls]
    if not calls:
        return calls
    i = rng.randrange(len(calls))
    name, args = calls[i]
    key = rng.choice(list(args)) if args else None
    tool = rng.choice(case["tools"] or [{"name": "g", "parameters": {"properties": {}}}])  # some have no tools
    match rng.choice(["value"] * 6 + ["drop arg", "optional", "extra", "rename arg", "rename", "tool", "drop",
                                      "double", "order", "swap args"]):
        case "value" if key:
            args[key] = other(args[key], rng)
        case "drop arg" if key:
            del args[key]
        case "optional":  # some other parameter that the schema has
            for extra, schema in tool["parameters"]["properties"].items():
                args.setdefault(extra, schema.get("default", rng.choice(["", 1, "x", None])))
        case "extra":
            args["unheard_of"] = 1
        case "rename arg" if key:
            args[key + "_"] = args.pop(key)
        case "rename":
            calls[i] = Call(rng.choice([name.replace(".", "_"), name.split(".")[-1], name + "x", "a." + name]), args)
        case "tool":
            calls[i] = Call(tool["name"], args)
        case "drop":
            del calls[i]
        case "double":
            calls.insert(rng.randrange(len(calls) + 1), Call(name, dict(args)))
        case "order":
            rng.shuffle(calls)
        case "swap args":
            calls[i] = Call(name, dict(sorted(args.items(), reverse=True)))
    return calls


def change_text(text, rng):
    """One change of an answer's text: its frame, its quotes, its expressions, or any few characters of it."""
    at, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))

    def replace(old, *new):
        return text.replace(old, rng.choice(new), rng.choice([1, -1]))
    return rng.choice([
        lambda: text[:at], lambda: text[at:], lambda: text[:at] + text[end:],
        lambda: text[:at] + text[at:end] * 2 + text[end:],
        lambda: text[:at] + rng.choice("()[]{},='\"\\\n #*.-+_`x0\t:;@%") + text[at:],
        lambda: text[:at] + rng.choice("()[]{},='\"\\\n #*.-+_`x0\t:;@%") + text[at + 1:],
        lambda: f"```python\n{text}\n```", lambda: f"```\n{text}\n```", lambda: f"`{text}`", lambda: f"\n {text} \n",
        lambda: f"\t{text}", lambda: f"'{text}'", lambda: f"I will call {text}", lambda: f"{text} Done.",
        lambda: text[1:-1], lambda: text[1:], lambda: text[:-1], lambda: text + text, lambda: f"[{text}]",
        lambda: f"({text})", lambda: f"{text},",
        lambda: f"{text}#]", lambda: text[1:-1].replace("), ", ")\n"), lambda: f"{text}.append(a=1)#]",
        lambda: replace('"', "'", '"""', "", '\\"', '" "', "“"),
        lambda: replace('="', '=f"', '=r"', '=b"', '="a" "', '="a" + "'),
        lambda: replace("=", "=+", "=-", "=- -", "=not ", "=~", "=2 * ", "=1 + ", "=*", "==", ":", "=\\\n"),
        lambda: replace("=", "=lambda: ", "=0x", "=a.", "=a:=", "=(", "=await "),
        lambda: replace(", ", ",", ",,", " + ", " ", "; ", " * ", " if 1 else ", ", *a, ", ", **a, ", ", 1, "),
        lambda: replace("(", "(**{'a': 1}, ", "(*[1], ", "(7, ", "()(", "[0](", ".x(", "(a:=1, ", "((", "({", " ("),
        lambda: replace(")", "))", "].x)", ")()", ").y(a=1)", "),", "", " for a in b)", " or 1)", "[0])", "[1:2])"),
        lambda: replace("[", "(", "{", "[[", "[*", "dict(", "g(a=", "list(", "-["),
        lambda: replace("True", "true", '"True"', "1", "not True"), lambda: replace("False", "false", "0", "-False"),
        lambda: replace("None", "null", "...", "Null", "-None"),
        lambda: replace("0", "0_0", "0.", "0e0", "0j", "0 / 1", "0 // 2"),  # no **: the official decoder hangs
        lambda: replace("1", "1_0", "01", "1.", "1e0", "0b1", "(1)", "(1,)", "-1", "+1"),
        lambda: replace("1", "2 - 1", "1 << 0", "3 % 2", "1 / 0", "1 | 0", "2 & 3"),
        lambda: replace(".", "_", "..", ". ", "/"), lambda: text.lower(), lambda: text.replace("\\", ""),
    ])()


def responses(case, rng, count):
    """Responses to a case: its reference answers, then `count` changed ones."""
    texts, starts = [], []
    if case["answers"] is None:
        for tool in case["tools"][:2]:
            args = {key: rng.choice(["x", 1, [1.5], True]) for key in tool["parameters"]["properties"]}
            starts.append([Call(tool["name"], args)])
        starts.append([Call("f", {"a": 1})])
        texts += rng.sample(["", "[]", "[ ]", "[[]]", "[{}]", "No tool fits.", "I need (more) details.", "[None]",
                             "f()", "sorry(a=1)", "```\n[]\n```", "]", "[", "Call f(x=1)", "a, b()", "[f(1)]", "[()]",
                             "f(**a)", "...", "None"], 5)
    else:
        starts += [reference(case, rng, True), reference(case, rng, False), reference(case, rng, False)]
    for calls in starts:
        texts.append(write(calls))
    for _ in range(count):
        calls = rng.choice(starts)
        for _ in range(rng.choice([0, 0, 1, 1, 1, 2])):
            calls = change_calls(calls, case, rng)
        text = write(calls)
        if calls in starts or rng.random() < 0.25:
            for _ in range(rng.choice([1, 1, 1, 2])):
                text = change_text(text, rng)
        texts.append(text)
    return texts


def write(calls):
    """format_calls, but for lists of what it refuses to write as well."""
    try:
        return format_calls(calls)
    except ValueError:
        return "[" + ", ".join(f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.args.items())})" for c in calls) + "]"


@needs_bfcl
@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("category", BFCL_CATEGORIES)
def test_verdicts_agree_with_the_official_runner(category, official):
    cases = load_bfcl(category)
    # Changed answers a case; more of them, and others, by the environment: BFCL_CHANGES=60 BFCL_SEED=1.
    count = int(os.environ.get("BFCL_CHANGES", 2 if len(cases) > 800 else 4 if len(cases) > 100 else 40))
    rng, wrong, compared, right = random.Random(f"{category} {os.environ.get('BFCL_SEED', 0)}"), [], 0, 0
    for case in cases:
        for response in responses(case, rng, count):
            error, due = score_bfcl(case, response), official(case, response)
            assert error is None or error in ERROR_KINDS
            compared += 1
            right += due
            if (error is None) != due:
                wrong.append((case["id"], response, error))
    print(f"{category}: {compared} answers to {len(cases)} cases, {right} right, {len(wrong)} disagreements")
    assert not wrong, wrong[:5]
    assert 0.1 * compared < right < 0.95 * compared  # both verdicts are put to the test


@needs_bfcl
def test_reference_answers_are_right():
    """The first options, in all but a few cases: those whose reference breaks its own schema or is not Python."""
    for category in BFCL_CATEGORIES:
        cases = [case for case in load_bfcl(category) if case["answers"]]
        broken = [case["id"] for case in cases if score_bfcl(case, write(reference(case, random.Random(0), True)))]
        assert len(broken) <= 0.02 * len(cases), broken


# ---- The rules, one by one ----------------------------------------------------------------------------------------

TOOLS = [
    {"name": "set.alarm", "description": "", "parameters": {"type": "dict", "required": ["hour"], "properties": {
        "hour": {"type": "integer"}, "volume": {"type": "float", "default": 0.5}, "label": {"type": "string"},
        "days": {"type": "array", "items": {"type": "string"}}, "loud": {"type": "boolean"},
        "spot": {"type": "tuple", "items": {"type": "float"}}, "place": {"type": "dict"},
        "songs": {"type": "array", "items": {"type": "dict"}}}}},
    {"name": "Get Time", "description": "", "parameters": {"type": "dict", "required": [], "properties": {}}},
]


def alarm(**args):
    return Call("set.alarm", {"hour": 7} | args)


TARGET = [alarm(label="Wake up, Ann", days=["Mon", "Tue"], place={"room": "Den", "floor": 1}, spot=[1.0, 2.0],
                songs=[{"title": "Hey-Jude"}]), Call("Get Time", {})]


@pytest.mark.parametrize("change, error", [
    ({}, None),
    ({"label": "wake UP ann."}, None),  # case and some marks do not count
    ({"label": "Wake up Anne"}, "wrong value"),
    ({"label": ["Wake up, Ann"]}, "wrong type"),
    ({"hour": 7.0}, "wrong type"),
    ({"hour": True}, "wrong type"),
    ({"hour": "7"}, "wrong type"),
    ({"volume": 0.5}, None),  # left out by the target, so free to be given as its default
    ({"volume": 0.6}, "wrong value"),
    ({"volume": "0.5"}, "wrong type"),
    ({"loud": False}, "unexpected parameter"),  # left out by the target, and no default
    ({"colour": 1}, "unexpected parameter"),
    ({"days": ["mon", "tue."]}, None),
    ({"days": ["Tue", "Mon"]}, "wrong value"),
    ({"days": ("Mon", "Tue")}, "wrong type"),
    ({"days": ["Mon", 2]}, "wrong type"),
    ({"spot": (1.0, 2.0)}, None),
    ({"spot": [1, 2]}, "wrong type"),  # an integer counts as a float only on its own
    ({"place": {"floor": 1, "room": "den"}}, None),
    ({"place": {"room": "Den"}}, "wrong value"),
    ({"place": {"room": "Den", "floor": 1, "bed": 2}}, "wrong value"),
    ({"songs": [{"title": "hey jude"}]}, None),
    ({"songs": [{"title": "Yesterday"}]}, "wrong value"),
    ({"songs": ["Hey-Jude"]}, "wrong type"),
])
def test_a_value_is_right_by_bfcls_rules(change, error):
    calls = [TARGET[0]._replace(args=TARGET[0].args | change), TARGET[1]]
    answers = answers_from(TARGET, TOOLS)
    assert check_calls(calls, answers, TOOLS) == check_calls(calls[::-1], answers, TOOLS) == error
    assert (score_fraction(calls, TARGET, TOOLS) == 1) == (error is None)


@pytest.mark.parametrize("calls, target, error", [
    (None, [alarm()], "unparseable"),
    (None, [], None),
    ([], [], None),
    ([alarm()], [], "call where none was due"),
    ([], [alarm()], "no call where one was due"),
    ([alarm(), alarm()], [alarm()], "wrong number of calls"),
    ([Call("set_alarm", {"hour": 7})], [alarm()], "wrong tool"),
    ([Call("set.alarm", {})], [alarm()], "missing parameter"),
    ([alarm()], [alarm(label="x")], "missing parameter"),
    ([alarm()], [alarm(volume=0.5)], None),  # the default, left out
    ([alarm(label="y"), alarm(label="x")], [alarm(label="x"), alarm(label="y")], None),
    # The closest of the calls that are left says what is wrong.
    ([Call("Get Time", {}), alarm(label="z")], [alarm(label="x"), Call("Get Time", {})], "wrong value"),
])
def test_each_wrong_call_has_its_error_kind(calls, target, error):
    assert check_calls(calls, answers_from(target, TOOLS), TOOLS) == error
    assert (score_fraction(calls, target, TOOLS) == 1) == (error is None)


def test_fraction_counts_names_and_values():
    target = [alarm(label="x"), Call("Get Time", {})]  # 4 points: two names, two values

    def fraction(*calls):
        return score_fraction(list(calls), target, TOOLS)
    assert fraction(Call("Get Time", {}), alarm(label="x")) == 1
    assert fraction(alarm(label="y"), Call("Get Time", {})) == 3 / 4
    assert fraction(alarm(), Call("Get Time", {})) == 3 / 4
    assert fraction(alarm(label="x", volume=0.5), Call("Get Time", {})) == 1  # the default, no extra
    assert fraction(alarm(label="x", volume=0.9), Call("Get Time", {})) == 4 / 5
    assert fraction(alarm(label="x"), Call("Get Time", {}), Call("Get Time", {})) == 4 / 5
    assert fraction(alarm(label="x")) == 3 / 4
    assert fraction(Call("set_alarm", {"hour": 7, "label": "x"}), Call("Get Time", {})) == 3 / 4
    assert fraction() == score_fraction(None, target, TOOLS) == 0
    assert score_fraction([alarm()], [], TOOLS) == 0


parameters = {"volume": st.sampled_from([0.5, 0.7, 1]), "label": st.sampled_from(["a", "A.", "b"]),
              "days": st.lists(st.sampled_from(["Mon", "Tue"]), max_size=2), "loud": st.booleans(),
              "place": st.dictionaries(st.sampled_from(["room", "floor"]), st.integers(0, 1)),
              "songs": st.lists(st.fixed_dictionaries({"title": st.sampled_from(["a", "b"])}), max_size=2)}
valid_calls = st.lists(st.builds(Call, st.just("set.alarm"), st.fixed_dictionaries(
    {"hour": st.integers(6, 7)}, optional=parameters)) | st.just(Call("Get Time", {})), max_size=4)


@given(valid_calls, valid_calls, st.randoms(use_true_random=False))
def test_a_target_is_right_in_any_order_and_the_fraction_is_one_only_then(target, calls, rng):
    answers = answers_from(target, TOOLS)
    json.dumps(answers)
    shuffled = rng.sample(target, len(target))
    assert check_calls(parse_calls(format_calls(shuffled)), answers, TOOLS) is None
    fraction = score_fraction(calls, target, TOOLS)
    assert 0 <= fraction <= 1 and (fraction == 1) == (check_calls(calls, answers, TOOLS) is None)


def test_targets_that_their_schema_forbids_are_refused():
    for call in (Call("unknown", {}), Call("set.alarm", {"hour": 7, "colour": 1}), Call("set.alarm", {})):
        with pytest.raises(ValueError, match="unknown|required"):
            answers_from([call], TOOLS)


# ---- Reading answers and files ------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, calls", [
    ("[f(a=1)]", [("f", {"a": 1})]),
    ("```\n[a.b(x='y' \"z\")]\n```", [("a.b", {"x": "yz"})]),
    ("f(a=1), g()", [("f", {"a": 1}), ("g", {})]),
    ("", []),
    ("[f(1, a=+5, b=x, c=(1,), d=[...], e=2 * 3 + -1, f='a' + 'b')]",
     [("f", {"a": -5, "b": "x", "c": (1,), "d": ["..."], "e": 5, "f": "ab"})]),
    ("[f(a=g(), b=g(x=1), c=d[0], e=1_000, a=2)]", [("f", {"a": 2, "b": {"g": {"x": 1}}, "c": "d[0]", "e": 1000})]),
    ("[f().g(a=1)]", [("g", {"a": 1})]),
    ("[f(a=9 ** 9 ** 9 ** 9)]", [("f", {"a": float("inf")})]),  # the official decoder would not come back
    ("[f(a='x' * 10 ** 12)]", [("f", {"a": float("inf")})]),
    ("[f(a=1 << 10 ** 9)]", [("f", {"a": float("inf")})]),
    ("[f(a=len('abc') + 1)]", None),  # the official decoder runs this; ours runs nothing
    ("[f(a=__import__('os').getcwd() + '')]", None),
    ("[f(a=b.c)]", None), ("[f(a={1, 2})]", None), ("[f(a=f'x')]", None), ("[f(a=-x)]", None), ("[f(a=1 / 0)]", None),
    ("[f(a={[]: 1})]", None), ("[f(a=1]", None), ("[Get Time()]", None), ("I cannot (yet)", None), ("[1]", None),
    ("[f(a=" + "[" * 10_000, None), ("[f(a=" + "-" * 100_000 + "1)]", None), ("[f(a=" + "9" * 5000 + ")]", None),
    ("[f(a='\x00')]", None), ("[f(a='\ud800')]", None), ("[f(a=" + "1+" * 20_000 + "1)]", None),
])
def test_answers_are_read_as_bfcl_reads_them(text, calls):
    decoded = decode_bfcl(text)
    assert repr(decoded) == repr(calls and [Call(*call) for call in calls] if calls is not None else None)


@given(st.text() | st.text("[]()f=a1,'\"\\ \n+-*.", max_size=30))
def test_any_text_can_be_decoded_or_not(text):
    assert isinstance(decode_bfcl(text), (list, type(None)))


def test_error_kinds_of_responses():
    due = {"category": "live_relevance", "answers": None, "tools": TOOLS}
    none_due = due | {"category": "irrelevance"}
    one_due = due | {"category": "simple_python", "answers": answers_from([alarm()], TOOLS)}
    for case, right, prose, broken in ((due, None, "no call where one was due", "unparseable"),
                                       (none_due, "call where none was due", None, None),
                                       (one_due, None, "no call where one was due", "unparseable")):
        assert score_bfcl(case, "[set.alarm(hour=7)]") == right
        assert score_bfcl(case, "No tool fits.") == score_bfcl(case, "[]") == score_bfcl(case, "") == prose
        assert score_bfcl(case, "[set.alarm(hour=7") == broken


def test_missing_and_broken_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no BFCL category 'java'"):
        load_bfcl("java")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps bfcl-eval"):
        load_bfcl("multiple")
    with pytest.raises(ValueError, match="BFCL_v4_multiple.json: no such file"):
        load_bfcl("multiple", tmp_path)
    questions, answers = tmp_path / "BFCL_v4_multiple.json", tmp_path / "possible_answer/BFCL_v4_multiple.json"
    good = {"id": "multiple_0", "question": [[{"role": "user", "content": "?"}]], "function": TOOLS}
    for line in ("{", "[1]", "3", '{"id": 1}', json.dumps(good | {"question": []}), "\udcff"):
        questions.write_bytes((json.dumps(good) + "\n" + line).encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"BFCL_v4_multiple.json:2: "):
            load_bfcl("multiple", tmp_path)
    questions.write_text(json.dumps(good))
    answers.parent.mkdir()
    answers.write_text('{"id": "multiple_1", "ground_truth": []}')
    with pytest.raises(ValueError, match="no possible answer for multiple_0"):
        load_bfcl("multiple", str(tmp_path))
    answers.write_text('{"id": "multiple_0", "ground_truth": [{"Get Time": {}}]}')
    assert load_bfcl("multiple", tmp_path) == [{
        "id": "multiple_0", "category": "multiple", "messages": [{"role": "user", "content": "?"}], "tools": TOOLS,
        "answers": [{"Get Time": {}}]}]


@needs_bfcl
def test_the_benchmark_is_whole():
    sizes = [len(load_bfcl(category)) for category in BFCL_CATEGORIES]
    assert sizes == [400, 200, 200, 200, 240, 258, 1053, 16, 24, 884, 16]
    with pytest.raises(ValueError, match="not in|no tool"):
        check_calls([alarm()], [{"unknown": {}}], TOOLS)

"""Samples: make them, read them, write them, show them to a model. No torch in here.

    python synth.py --n 3000 --split train --out train.jsonl    # samples of the simulated world
    python synth.py --show 5 --split test                       # look at a few
    python synth.py --show 2 --split base                       # what the embedded base is trained on

A sample is a toolset, a conversation and the right answer to it: calls, written `[name(param=value, ...), ...]`, or
plain text where no tool fits or a value is missing (iTool's task, the format of ToolACE and of BFCL's prompting mode).
A simulated world makes them: 96 Python functions in 16 domains that really run, half of them for training, the
rest for validation and test; the splits share no tool, no value from a list and no sentence template. (The embedded base is
trained on tools of its own, none of the world's: base/documents.py.) Values are given literally or in a form that must be
worked out ("half past three in the afternoon"); some of the forms in the test occur only in the base's training
(BASE_ONLY), never in the warm-up. Small talk surrounds requests, seldom in training, often in the test.
"""

import difflib
import functools
import inspect
import itertools
import json
import math
import os
import random
import re
import sys
import zlib
from dataclasses import asdict, dataclass, field, replace
from datetime import date as day
from statistics import mean, median
from typing import Callable, NamedTuple

# ---------------------------------------------------------------------------------------------
# Call syntax, both ways
# ---------------------------------------------------------------------------------------------

class Call(NamedTuple):
    """One call of a tool. `args`: parameter names to None, bool, int, float, str, or lists, tuples, dicts of these."""
    name: str
    args: dict


class CallSyntaxError(ValueError):
    """Text that is not a list of calls. `position` is the character (from 0) at which reading failed."""

    def __init__(self, message, position):
        super().__init__(f"{message} at character {position}")
        self.position = position


MAX_DEPTH = 50  # nesting of values; real tools stay under 10, and no text can exhaust Python's stack
NAME = re.compile(r'[^()\[\]{}=,"\n\r]+')  # all but the syntax's own marks: dots, spaces, "Today's Quiz"
NUMBER = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}  # JSON's words too
PLAIN = {quote: re.compile(rf"[^{quote}\\\n\r]*") for quote in "\"'"}  # the part of a string up to a quote or escape
ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{1,3})|(\r\n|[^xuUN]))", re.S)
ESCAPED = dict(zip("\\'\"abfnrtv", "\\'\"\a\b\f\n\r\t\v")) | {"\n": "", "\r": "", "\r\n": ""}  # a line's end: joined
UNSAFE = {chr(i): f"\\x{i:02x}" for i in [*range(32), 127]} | {c: "\\" + e for c, e in zip('"\\\n\t\r', '"\\ntr')}


def format_calls(calls):
    """Calls -> text that `parse_calls` turns back into equal calls, with one spelling for each list of calls.

    Raises ValueError for what the syntax cannot say: nan, infinity, a name with one of `()[]{}=,"` or a line break,
    other types, values nested deeper than MAX_DEPTH.
    """
    return "[" + ", ".join(
        f"{_checked(name)}({', '.join(f'{_checked(key)}={format_value(value)}' for key, value in args.items())})"
        for name, args in calls) + "]"


def _checked(name):
    if not isinstance(name, str) or name != name.strip() or not NAME.fullmatch(name):
        raise ValueError(f"a name that a call cannot be written with: {name!r}")
    return name


def format_value(value, depth=0):
    """One value -> text (see format_calls). Non-ASCII characters stay, control characters are escaped."""
    if depth > MAX_DEPTH:
        raise ValueError(f"values nested deeper than {MAX_DEPTH}")
    if isinstance(value, str):
        return '"' + "".join(UNSAFE.get(char, char) for char in value) + '"'
    if value is None or isinstance(value, (bool, int)) or isinstance(value, float) and math.isfinite(value):
        return repr(value)
    if isinstance(value, (list, tuple)):
        items = ", ".join(format_value(item, depth + 1) for item in value)
        return f"[{items}]" if isinstance(value, list) else f"({items}{',' * (len(value) == 1)})"
    if isinstance(value, dict) and not any(isinstance(key, tuple) for key in value):
        items = (f"{format_value(key, depth + 1)}: {format_value(item, depth + 1)}" for key, item in value.items())
        return "{" + ", ".join(items) + "}"
    raise ValueError(f"a value that a call cannot be written with: {value!r:.80}")


def parse_calls(text):
    """Text -> list of Call; `[]` is no call. Time is linear in the text, and nothing is ever evaluated.

    Values are Python's literals (JSON's true, false, null too): decimal numbers, strings in either quote with Python's
    escapes, lists, tuples, dicts with scalar keys. Stricter than Python where a reader would be left to guess:
    a parameter or key given twice, a value without its parameter's name, bare words and `\\ud83d` are errors; so are Python's rarer
    forms (0x1f, 1_000, +5, triple quotes, strings side by side).
    Raises CallSyntaxError, and nothing else, for any other text.
    """
    reader = _Reader(text)
    reader.expect("[")
    calls, _ = reader.series("]", reader.call)
    reader.skip()
    if reader.at < len(text):
        reader.fail("text after the calls")
    return calls


class _Reader:
    """A recursive descent over the characters of `text`; `at` is the position of the next one."""

    def __init__(self, text):
        self.text, self.at = text, 0

    def fail(self, message, at=None):
        raise CallSyntaxError(message, self.at if at is None else at)

    def skip(self):
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def take(self, mark):
        """Step over `mark` if it comes next, spaces aside; say whether it did."""
        self.skip()
        found = self.text.startswith(mark, self.at)
        self.at += len(mark) * found
        return found

    def expect(self, mark):
        if not self.take(mark):
            self.fail(f"expected {mark}")

    def series(self, close, item):
        """Items between commas up to `close` -> (list of items, whether a comma came last, as in `(1,)`)."""
        items, comma = [], True
        while not self.take(close):
            if not comma:
                self.fail(f"expected , or {close}")
            items.append(item())
            comma = self.take(",")
        return items, comma and bool(items)

    def name(self, mark):
        """A tool's or parameter's name with the mark behind it."""
        self.skip()
        found = NAME.match(self.text, self.at)
        if not found:
            self.fail("expected a name")
        self.at = found.end()
        self.expect(mark)
        return found[0].rstrip()

    def unique(self, pairs, what):
        result = {}
        for at, key, value in pairs:
            if key in result:
                self.fail(f"{what} {key!r} given twice", at)
            result[key] = value
        return result

    def call(self):
        name = self.name("(")
        args, _ = self.series(")", lambda: (self.at, self.name("="), self.value(0)))
        return Call(name, self.unique(args, "parameter"))

    def value(self, depth):
        self.skip()
        if depth > MAX_DEPTH:
            self.fail(f"values nested deeper than {MAX_DEPTH}")
        mark = self.text[self.at:self.at + 1]
        if mark in ("'", '"'):
            return self.string(mark)
        if mark and mark in "[({":
            self.at += 1
            if mark == "{":
                pairs, _ = self.series("}", lambda: self.pair(depth + 1))
                return self.unique(pairs, "key")
            items, comma = self.series("]" if mark == "[" else ")", lambda: self.value(depth + 1))
            if mark == "[":
                return items
            return items[0] if len(items) == 1 and not comma else tuple(items)  # (1) is 1, (1,) a tuple
        return self.scalar()

    def pair(self, depth):
        at, key = self.at, self.value(depth)
        if isinstance(key, (list, dict, tuple)):
            self.fail("a key that is a list, tuple or dict", at)
        self.expect(":")
        return at, key, self.value(depth)

    def scalar(self):
        number = NUMBER.match(self.text, self.at)
        if number:
            try:
                result = float(number[0]) if set(number[0]) & set(".eE") else int(number[0])
            except ValueError:  # Python refuses to read integers of more than 4,300 digits
                self.fail("a number too long")
            if isinstance(result, float) and math.isinf(result):
                self.fail("a number too large")
            self.at = number.end()
            return result
        start = self.at
        while self.at < len(self.text) and (self.text[self.at].isalnum() or self.text[self.at] == "_"):
            self.at += 1
        word = self.text[start:self.at]
        if word not in WORDS:
            self.fail(f"expected a value, found {word[:40]!r}" if word else "expected a value", start)
        return WORDS[word]

    def string(self, quote):
        start, parts = self.at, []
        self.at += 1
        while True:
            plain = PLAIN[quote].match(self.text, self.at)
            parts.append(plain[0])
            self.at = plain.end()
            if self.text.startswith(quote, self.at):
                self.at += 1
                return "".join(parts)
            if not self.text.startswith("\\", self.at):  # a line break or the text's end
                self.fail("a string that does not end", start)
            escape = ESCAPE.match(self.text, self.at)
            if not escape:
                self.fail("a bad escape")
            *codes, octal, char = escape.groups()
            if char is not None:  # Python keeps the backslash of an escape it does not know, as in "\d"
                parts.append(ESCAPED.get(char, "\\" + char))
            else:
                code = int(octal, 8) if octal else int(next(filter(None, codes)), 16)
                if code > 0x10FFFF or 0xD800 <= code < 0xE000:  # half of a pair cannot be written as UTF-8
                    self.fail("an escape that is no character")
                parts.append(chr(code))
            self.at = escape.end()

# ---------------------------------------------------------------------------------------------
# Tools and their schemas
# ---------------------------------------------------------------------------------------------

UNITS = {"minutes": ("hour", 60), "seconds": ("minute", 60), "days": ("week", 7), "months": ("year", 12),
         "meters": ("kilometer", 1000), "grams": ("kilogram", 1000), "milliliters": ("liter", 1000),
         "cents": ("dollar", 100), "pieces": ("dozen", 12)}  # kind -> (the larger unit, how many make one)

PARAPHRASES = {  # enum option -> how people say it without the word
    "cheap": "low-cost|inexpensive", "fast": "quick|rapid", "slow": "unhurried|leisurely", "large": "big|huge",
    "small": "little|tiny", "loud": "noisy|booming", "quiet": "silent|hushed", "hot": "boiling|scorching",
    "cold": "chilly|freezing", "bright": "brilliant|glowing", "dark": "dim|shadowy", "urgent": "pressing|top-priority",
    "private": "confidential|just for me", "public": "open to everyone|visible to all", "weekly": "once a week|every week",
    "daily": "once a day|every day", "monthly": "once a month|every month", "yearly": "once a year|every year",
    "morning": "before noon|early in the day", "evening": "after sunset|late in the day",
    "beginner": "novice|first-timer", "expert": "veteran|seasoned", "ascending": "lowest first|going up",
    "descending": "highest first|going down", "full": "complete|entire", "empty": "blank|with nothing in it",
    "short": "brief|concise", "long": "lengthy|extended", "strong": "powerful|intense", "weak": "faint|feeble",
    "sweet": "sugary|honeyed", "spicy": "fiery|peppery", "indoor": "inside|under a roof",
    "outdoor": "outside|in the open air", "solo": "alone|by myself", "group": "together|with others"}
PARAPHRASES = {word: phrases.split("|") for word, phrases in PARAPHRASES.items()}


@dataclass
class Param:
    """One parameter. `kind` says which values it takes and how queries say them: int, float, money, bool, date, time, a key of UNITS or
    POOLS, enum(a,b), list(kind), id(thing), object(key=kind,...). `cue` places a value (~)."""
    name: str
    kind: str
    description: str
    cue: str | None               # or several, cue|cue; None: always placed as the phrasing says
    required: bool = True
    default: object = None

    @property
    def options(self):
        return self.kind[5:-1].split(",") if self.kind.startswith("enum(") else None

    @property
    def fields(self):
        """Of an object: [(key, string kind)]."""
        return [tuple(pair.split("=")) for pair in self.kind[7:-1].split(",")] if self.kind.startswith("object(") else None

    def schema(self):
        kind, extra = self.kind, {}
        if self.options:
            json_type, extra = "string", {"enum": self.options}
        elif kind.startswith("list("):
            json_type, extra = "array", {"items": {"type": "integer" if kind == "list(int)" else "string"}}
        elif self.fields:
            json_type, extra = "dict", {"properties": {key: {"type": "string"} for key, _ in self.fields}}
        elif kind == "int" or kind in UNITS:
            json_type = "integer"
        elif kind in ("float", "money"):
            json_type = "float"
        elif kind == "bool":
            json_type = "boolean"
        else:
            json_type, extra = "string", {"format": kind} if kind in ("date", "time") else {}
        out = {"type": json_type, "description": self.description, **extra}
        if not self.required and self.default is not None:
            out["default"] = self.default
        return out


@dataclass
class Tool:
    name: str
    description: str
    params: list
    intents: list
    domain: str = ""
    split: str = ""       # train, val or test
    run: Callable = None
    returns: str = ""     # of the base's documents: key of the id in its result (of the world: `returned_ids`)

    def schema(self):
        """The tool in BFCL's layout."""
        return {"name": self.name, "description": self.description, "parameters": {
            "type": "dict", "properties": {p.name: p.schema() for p in self.params},
            "required": [p.name for p in self.params if p.required]}}


COMPACT_TYPES = {"string": "str", "integer": "int", "float": "float", "number": "float", "boolean": "bool",
                 "array": "list", "dict": "dict", "object": "dict", "tuple": "list", "any": "any"}


def signature(schema):
    """One line for small models: `name(param: type description = default, ...) description`."""
    parts = []
    parameters = schema.get("parameters") or {}
    required = parameters.get("required") or []
    for name, p in parameters.get("properties", parameters).items():
        if not isinstance(p, dict):
            continue
        kind = COMPACT_TYPES.get(p.get("type"), str(p.get("type", "any")))
        if p.get("format") in ("date", "time"):
            kind = p["format"]
        if p.get("enum"):
            kind = "|".join(map(str, p["enum"]))
        elif kind == "list":
            kind = f"list[{COMPACT_TYPES.get((p.get('items') or {}).get('type'), 'any')}]"
        elif kind == "dict" and p.get("properties"):
            kind = "{" + ", ".join(p["properties"]) + "}"
        default = "" if name in required else " = " + format_value(p["default"]) if p.get("default") is not None else "?"
        parts.append(f"{name}: {kind} {p.get('description', '')}".strip() + default)
    return f"{schema['name']}({', '.join(parts)}) {schema.get('description', '')}".strip()

# ---------------------------------------------------------------------------------------------
# Values, and the ways a query may say them ("forms")
# ---------------------------------------------------------------------------------------------

ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
MONTHS = "January February March April May June July August September October November December".split()


def in_words(n):
    """A number below 100 in words."""
    return ONES[n] if n < 20 else TENS[n // 10] + ("-" + ONES[n % 10] if n % 10 else "")


def ordinal(n):
    return f"{n}" + ("th" if 10 <= n <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th"))


def forms_of(kind):
    """The forms in which a value of this kind can be asked for; "literal" is always the first."""
    if kind == "int":
        return ["literal", "words", "twice", "half", "dozen"]
    if kind in UNITS:
        return ["literal", "words", "unit"]
    if kind == "date":
        return ["literal", "long", "ordinal", "relative", "after"]
    if kind == "time":
        return ["literal", "ampm", "spoken"]
    if kind.startswith("enum(") and any(o in PARAPHRASES for o in kind[5:-1].split(",")):
        return ["literal", "paraphrase"]
    return ["literal"]


def draw(rng, param, form, strings, today):
    """Draw a value and the phrase that stands for it in a query.

    strings: draws a string of a kind; today: (year, month, day), days up to 22. Returns (value, phrase).
    """
    kind = param.kind
    if kind == "int":
        if form == "words":
            n = rng.randint(2, 60)
            return n, in_words(n)
        if form == "twice":
            n = rng.randint(2, 49)
            return 2 * n, f"{rng.choice(['twice', 'double', 'two times'])} {n}"
        if form == "half":
            n = rng.randint(2, 49)
            return n, f"{rng.choice(['half of', 'one half of'])} {2 * n}"
        if form == "dozen":
            n = rng.randint(1, 6)
            return 12 * n, "a dozen" if n == 1 else f"{in_words(n)} dozen"
        n = rng.randint(2, 99) if rng.random() < 0.7 else rng.randint(100, 9999)
        return n, str(n)
    if kind in UNITS:
        larger, factor = UNITS[kind]
        plural = larger if larger == "dozen" else larger + "s"
        if form == "unit":
            n = rng.randint(2, 12)
            if rng.random() < 0.25 and factor % 2 == 0:
                half = f"{n}.5 {plural}" if rng.random() < 0.5 else f"{in_words(n)} and a half {plural}"
                return n * factor + factor // 2, half
            return n * factor, f"{n if rng.random() < 0.5 else in_words(n)} {plural}"
        if form == "words":
            n = rng.randint(2, 60)
            return n, f"{in_words(n)} {kind}"
        n = rng.randint(2, 99) if rng.random() < 0.7 else rng.randint(100, 2000)
        return n, f"{n} {kind}"
    if kind in ("float", "money"):
        x = round(rng.uniform(1, 100), rng.choice([1, 1, 2])) if rng.random() < 0.7 else float(rng.randint(1, 500))
        return x, str(int(x)) if x % 1 == 0 and rng.random() < 0.5 else repr(x)
    if kind == "date":
        year, month, day = today
        n = rng.randint(2, 6)
        if form == "relative":
            offset, phrase = rng.choice([(0, "today"), (1, "tomorrow"), (2, "the day after tomorrow"),
                                         (n, f"in {in_words(n)} days"), (n, f"{in_words(n)} days from today")])
            return f"{year}-{month:02d}-{day + offset:02d}", phrase
        if form != "ordinal":
            year += rng.randint(0, 1)
        month, day = rng.randint(1, 12), rng.randint(1, 22 if form == "after" else 28)
        if form == "after":
            return f"{year}-{month:02d}-{day + n:02d}", f"{in_words(n)} days after {MONTHS[month - 1]} {day}, {year}"
        iso = f"{year}-{month:02d}-{day:02d}"
        return iso, {"ordinal": f"the {ordinal(day)} of {MONTHS[month - 1]}", "literal": iso,
                     "long": f"{MONTHS[month - 1]} {day}, {year}"}[form]
    if kind == "time":
        if form == "spoken":
            hour, minute = rng.randint(5, 22), rng.choice([0, 15, 30, 45])
            shown = in_words((hour + (minute == 45) - 1) % 12 + 1)
            part = "in the morning" if hour < 12 else "in the afternoon" if hour < 18 else "in the evening"
            spoken = {0: f"{shown} o'clock", 15: f"quarter past {shown}", 30: f"half past {shown}", 45: f"quarter to {shown}"}
            return f"{hour:02d}:{minute:02d}", f"{spoken[minute]} {part}"
        hour, minute = rng.randint(0, 23), rng.choice([0, 0, 15, 30, 45, 5 * rng.randint(0, 11)])
        if form == "ampm":
            clock = (hour - 1) % 12 + 1
            return f"{hour:02d}:{minute:02d}", f"{clock}{f':{minute:02d}' if minute else ''} {'am' if hour < 12 else 'pm'}"
        return f"{hour:02d}:{minute:02d}", f"{hour:02d}:{minute:02d}"
    if kind == "bool":
        value = rng.random() < 0.5
        return value, "true" if value else "false"
    if param.options:
        if form == "paraphrase":
            option = rng.choice([o for o in param.options if o in PARAPHRASES])
            return option, rng.choice(PARAPHRASES[option])
        option = rng.choice(param.options)
        return option, option
    if kind.startswith("list("):
        items = []
        while len(items) < 2 or (len(items) == 2 and rng.random() < 0.5):
            v = rng.randint(1, 99) if kind == "list(int)" else strings(kind[5:-1])
            if v not in items and "," not in str(v):
                items.append(v)
        return items, ", ".join(map(str, items[:-1])) + f" and {items[-1]}"
    if param.fields:
        value = {key: strings(k) for key, k in param.fields}
        if rng.random() < 0.5:
            return value, ", ".join(value.values())
        return value, ", ".join(f"{key} {v}" for key, v in value.items())
    text = strings(kind)
    return text, text

# ---------------------------------------------------------------------------------------------
# The world: sixteen domains of six small functions that really run against a tiny state
# ---------------------------------------------------------------------------------------------

# A parameter's annotation reads "kind: description: cue phrase", with ~ where its value stands in a query.

HELD_OUT = {  # tools that no training sample shows, about half of a domain's, each with one that makes the ids it takes
    "val": """calendar.create_event calendar.move_event calendar.invite_guests find_match buy_tickets log_run weather.find_station
        read_station wind_chill find_course enroll_student make_flashcard units.convert_length days_between percentage""",
    "test": """search_hotels reserve_hotel search_trains pay_bill estimate_loan save_coins schedule_device pause_schedule
        start_cleaning create_group add_member send_parcel play_song find_cooking_show stop_playing files.write_file
        files.share_file files.print_file find_sitter hire_sitter human_age find_doctor visit_doctor log_drink find_item fill_cart
        show_cart maps.find_place maps.bookmark_place maps.report_traffic find_restaurant book_table release_table
        order_takeaway"""}
SPLIT = {name: split for split, names in HELD_OUT.items() for name in names.split()}      # the others are the training set's

class ToolError(Exception):
    """A call the world refuses; its text is what the tool returns."""

class World:
    """The small deterministic state that calls act on: records with ids, running totals and named settings."""

    def __init__(self):
        self.records, self.totals, self.settings = {}, {"checking": 2400, "savings": 8100}, {}

    def number(self, low, high, *key):
        """A whole number from low to high that looks random but only depends on the key."""
        return low + zlib.crc32(repr(key).encode()) % (high - low + 1)

    def pick(self, options, *key):
        return options[self.number(0, len(options) - 1, *key)]

    def add(self, kind, /, **record):
        """Keep a record under a new id, one that can only be copied, not guessed; returns both."""
        code = self.number(1000, 9999, kind, record)
        while (key := f"{kind[0].upper()}{code}") in self.records: code += 1
        self.records[key] = {f"{kind}_id": key, **record}
        return dict(self.records[key])

    def get(self, kind, key):
        record = self.records.get(str(key), {})
        if f"{kind}_id" not in record: raise ToolError(f"no such {kind}: {key}")
        return record

    def remove(self, kind, key):
        return self.get(kind, key) and self.records.pop(key)

    def find(self, kind):
        return [record for record in self.records.values() if f"{kind}_id" in record]

    def total(self, name, change=0):
        self.totals[name] = round(self.totals.get(name, 0) + change, 2)
        return self.totals[name]

    def put(self, name, /, **settings):
        self.settings[name] = {**self.settings.get(name, {}), **settings}
        return {"name": name, **self.settings[name]}

TOOLS = {}

def tool(domain, intent, name=None):
    """Register a function as a tool: its signature gives the schema, its intents ("this|or that") the queries."""
    def register(function):
        params = []
        for p in list(inspect.signature(function).parameters.values())[1:]:
            kind, description, cue = p.annotation.split(": ")
            required = p.default is p.empty
            params.append(Param(p.name, kind, description, cue, required, None if required else p.default))
        key = name or function.__name__
        TOOLS[key] = Tool(key, function.__doc__, params, intent.split("|"), domain, SPLIT.get(key, "train"), function)
        return function
    return register

# ---- travel
@tool("travel", "find flights|search for flights")
def search_flights(w, origin: "city: city to fly from: from ~", destination: "city: city to fly to: to ~",
        date: "date: day of departure: on ~",
        cabin: "enum(economy,premium,business): cabin class: in ~ class" = "economy"):
    """Search flights between two cities."""
    if origin == destination: raise ToolError("origin and destination are the same")
    return w.add("flight", price=w.number(80, 900, origin, destination, date, cabin))
@tool("travel", "find trains|search for a train")
def search_trains(w, origin: "city: city the train leaves from: from ~", destination: "city: city to arrive in: to ~",
        time: "time: earliest departure time: leaving at ~",
        pace: "enum(fast,slow): pace of the train: at ~ pace" = "fast"):
    """Search trains between two cities."""
    if origin == destination: raise ToolError("origin and destination are the same")
    return {"pace": pace, "departure": time, "duration_minutes": w.number(45, 600, origin, destination, pace)}
@tool("travel", "find hotels|search for a hotel")
def search_hotels(w, city: "city: city to stay in: in ~", nights: "int: number of nights: for ~ nights",
        breakfast: "bool: include breakfast: with breakfast/without breakfast" = False,
        near: "street: street it is near: near ~" = ""):
    """Search hotels with free rooms."""
    name = w.pick(["Grand", "Park", "Harbor", "Station"], city) + " Hotel"
    return w.add("hotel", name=name, price=nights * w.number(50, 240, city, breakfast))
@tool("travel", "book a flight|buy a flight ticket")
def book_flight(w, flight_id: "id(flight): flight to book: on flight ~",
        passenger: "person: passenger who flies: for passenger ~",
        baggage_grams: "grams: baggage weight in grams: with baggage of ~" = 8000):
    """Book a flight that was found."""
    price = w.get("flight", flight_id)["price"] + baggage_grams // 500
    return w.add("booking", passenger=passenger, price=price)
@tool("travel", "reserve a hotel room|take a hotel room")
def reserve_hotel(w, hotel_id: "id(hotel): hotel to reserve: at hotel ~",
        guest: "person: guest who stays: for guest ~", checkin: "date: check-in day: with check-in on ~",
        size: "enum(small,large): room size: with room size ~" = "small"):
    """Reserve a hotel that was found."""
    return w.add("booking", hotel=w.get("hotel", hotel_id)["name"], guest=guest, checkin=checkin, size=size)
@tool("travel", "cancel a booking|call off a booking")
def cancel_booking(w, booking_id: "id(booking): booking to cancel: with booking id ~"):
    """Cancel a flight or hotel booking."""
    return {"status": "cancelled", "refund": w.remove("booking", booking_id).get("price", 0)}

# ---- calendar
@tool("calendar", "create an event|plan an event", name="calendar.create_event")
def create_event(w, title: "title: title of the event: with title ~", date: "date: day of the event: on ~",
        time: "time: starting time: starting at ~",
        duration_minutes: "minutes: length in minutes: with a length of ~" = 60,
        visibility: "enum(private,public): who sees it: with visibility ~" = "private"):
    """Create an event in the calendar."""
    return w.add("event", title=title, start=f"{date} {time}", minutes=duration_minutes, visibility=visibility)
@tool("calendar", "move an event|reschedule an event", name="calendar.move_event")
def move_event(w, event_id: "id(event): event to move: for event ~", date: "date: day to move to: to ~",
        time: "time: time it starts at: at ~" = "09:00"):
    """Move an event to another day."""
    w.get("event", event_id).update(start=f"{date} {time}")
    return {"status": "moved", "start": f"{date} {time}"}
@tool("calendar", "invite guests|invite people to an event", name="calendar.invite_guests")
def invite_guests(w, event_id: "id(event): event they come to: to event ~",
        guests: "list(person): guests to invite: with guests ~"):
    """Invite guests to an event."""
    return {"event": w.get("event", event_id)["title"], "invited": guests}
@tool("calendar", "find free time|look for free time")
def find_free_time(w, date: "date: day to search: on ~",
        duration_minutes: "minutes: slot in minutes: for a slot of ~",
        part: "enum(morning,evening): part of the day: in the part of day ~" = "morning"):
    """Find free time on a day."""
    hour = w.number(7, 11, date) + 10 * (part == "evening")
    return {"date": date, "time": f"{hour:02d}:{w.pick(['00', '15', '30'], date)}", "minutes": duration_minutes}
@tool("calendar", "set an alarm|wake me by alarm")
def set_alarm(w, time: "time: time to ring at: at ~", sound: "enum(loud,quiet): alarm sound: with ~ sound" = "loud",
        repeat: "enum(daily,weekly,monthly): how it repeats: and repeat it ~" = "daily"):
    """Set an alarm for a time."""
    return w.put("alarm " + time, sound=sound, repeat=repeat)
@tool("calendar", "set a timer|start a timer|count down with a timer")
def set_timer(w, duration_seconds: "seconds: duration in seconds: with a duration of ~",
        label: "text: label of the timer: with label ~" = "",
        device: "device: device to ring on: on the device ~" = "phone"):
    """Set a timer that counts down."""
    return w.put("timer " + label, duration_seconds=duration_seconds, device=device)

# ---- banking
@tool("banking", "transfer money|send money")
def transfer_money(w, recipient: "person: person to pay to: to ~", amount: "money: amount in dollars: of ~ dollars",
        memo: "text: memo for the recipient: with memo ~" = ""):
    """Transfer money to a person."""
    return w.add("transfer", recipient=recipient, amount=amount, memo=memo, balance=w.total("checking", -amount))
@tool("banking", "cancel a transfer|take back a transfer")
def cancel_transfer(w, transfer_id: "id(transfer): transfer to cancel: with transfer id ~"):
    """Cancel a transfer of money."""
    return {"status": "cancelled", "balance": w.total("checking", w.remove("transfer", transfer_id)["amount"])}
@tool("banking", "pay a bill|settle a bill")
def pay_bill(w, company: "company: company to pay to: to the company ~",
        amount: "money: amount in dollars: over an amount of ~ dollars",
        account: "enum(checking,savings): account to take: from the ~ account" = "checking"):
    """Pay a bill from a company."""
    return {"paid": company, "balance": w.total(account, -amount)}
@tool("banking", "request a refund|ask for a refund")
def request_refund(w, product: "product: product sent back: for the product ~",
        seller: "company: seller who refunds: from the seller ~", amount: "money: amount in dollars: of ~ dollars"):
    """Request a refund for a product."""
    return {"product": product, "seller": seller, "pending": amount, "days": w.number(2, 14, seller)}
@tool("banking", "estimate a loan|calculate a loan")
def estimate_loan(w, amount: "money: amount in dollars: of ~ dollars",
        term_months: "months: loan term in months: with a term of ~",
        rate: "float: yearly rate in percent: at a rate of ~ percent" = 5.0):
    """Estimate the monthly loan payment."""
    r, n = rate / 1200, max(term_months, 1)
    return {"payment": round(amount * r / (1 - (1 + r) ** -n) if r else amount / n, 2)}
@tool("banking", "save coins|put coins aside")
def save_coins(w, amount_cents: "cents: amount in cents: with an amount of ~",
        repeat: "enum(daily,weekly,monthly): how it repeats: and repeat it ~" = "weekly"):
    """Save coins toward a goal."""
    return {"saved_cents": w.total("coins", amount_cents), "repeat": repeat}

# ---- smart_home
@tool("smart_home", "set the light|adjust the light|change the light")
def set_light(w, room: "room: room to light: in the room ~", level: "enum(bright,dark): light level: to ~ level"):
    """Set the light in a room."""
    return w.put("light " + room, level=level)
@tool("smart_home", "start the oven|heat the oven")
def start_oven(w, dish: "food: dish to cook: with the dish ~",
        duration_minutes: "minutes: baking in minutes: with baking of ~",
        temperature: "float: temperature in degrees: at ~ degrees" = 180.0):
    """Start the oven for a dish."""
    return w.put("oven", dish=dish, temperature=temperature, duration_minutes=duration_minutes)
@tool("smart_home", "start cleaning|run the cleaning robot")
def start_cleaning(w, rooms: "list(room): rooms to clean: in the rooms ~",
        suction: "enum(strong,weak): suction power: with ~ suction" = "weak",
        mop: "bool: mop the floor too: with mop/without mop" = False):
    """Start cleaning a list of rooms."""
    return {"rooms": rooms, "suction": suction, "mop": mop, "minutes": sum(w.number(8, 25, r, mop) for r in rooms)}
@tool("smart_home", "brew coffee|make a coffee")
def brew_coffee(w, cup_milliliters: "milliliters: cup size in milliliters: with a cup of ~",
        strength: "enum(strong,weak): coffee strength: with ~ strength" = "strong",
        milk: "bool: add milk: with milk/without milk" = False):
    """Brew a cup of coffee."""
    return {"cups": w.total("coffee", 1), "water_milliliters": cup_milliliters, "milk": milk, "strength": strength}
@tool("smart_home", "schedule a device|plan a device schedule")
def schedule_device(w, device: "device: device to switch: for the device ~", time: "time: switching time: at ~",
        power: "enum(on,off): power state: with power ~",
        repeat: "enum(daily,weekly): how it repeats: and repeat it ~" = "daily"):
    """Schedule when a device is switched."""
    return w.add("schedule", device=device, time=time, power=power, repeat=repeat)
@tool("smart_home", "pause a schedule|suspend a schedule")
def pause_schedule(w, schedule_id: "id(schedule): schedule to pause: with schedule id ~",
        pause_days: "days: pause in days: for a pause of ~" = 7):
    """Pause the schedule of a device."""
    return {"device": w.get("schedule", schedule_id)["device"], "status": "paused", "days": pause_days}

# ---- messaging
@tool("messaging", "send a message|write a message")
def send_message(w, recipient: "person: who it goes to: to ~", text: "text: what it is saying: saying ~"):
    """Send a message to a person."""
    return w.add("message", recipient=recipient, text=text)
@tool("messaging", "send an email|write an email")
def send_email(w, recipients: "list(person): recipients it goes to: to ~",
        subject: "title: subject line: with subject ~", body: "text: body of the email: with body ~",
        urgent: "bool: mark as urgent: with urgent mark/without urgent mark" = False):
    """Send an email to several people."""
    return {"sent": len(recipients), "subject": subject, "characters": len(body), "urgent": urgent}
@tool("messaging", "reply to a message|answer a message")
def reply_message(w, message_id: "id(message): message to answer: to message ~",
        text: "text: what it is saying: saying ~"):
    """Reply to a message with text."""
    return {"recipient": w.get("message", message_id)["recipient"], "text": text, "status": "sent"}
@tool("messaging", "send a parcel|mail a parcel")
def send_parcel(w, content: "product: content of the parcel: with content ~",
        address: "object(name=person,street=street,city=city): address it goes to: to the address ~",
        weight_grams: "grams: weight in grams: with a weight of ~" = 500,
        delivery: "enum(fast,cheap): delivery service: with ~ delivery" = "cheap"):
    """Send a parcel to an address."""
    rate = 0.02 if delivery == "fast" else 0.01
    return {"content": content, "recipient": address["name"], "price": round(4 + rate * weight_grams, 2)}
@tool("messaging", "create a group|open a chat group")
def create_group(w, name: "title: name of the group: with the name ~",
        members: "list(person): first members: with members ~",
        access: "enum(private,public): group access: with access ~" = "private"):
    """Create a group for chat."""
    return w.add("group", name=name, members=members, access=access)
@tool("messaging", "add a member|put someone in a group")
def add_member(w, group_id: "id(group): group to join: to group ~", member: "person: new member: with new member ~",
        role: "enum(admin,editor,reader): role in the group: in the role ~" = "reader"):
    """Add a member to a group."""
    group = w.get("group", group_id)
    group["members"] = [*group["members"], member]
    return {"group": group["name"], "members": len(group["members"]), "role": role}

# ---- media
@tool("media", "play a song|put on a song")
def play_song(w, song: "title: song to play: with the song ~", artist: "person: artist it is by: by ~" = "",
        volume: "enum(loud,quiet): sound volume: at ~ volume" = "quiet"):
    """Play a song by an artist."""
    return w.put("playing", title=song, artist=artist, volume=volume)
@tool("media", "play a movie|watch a movie")
def play_movie(w, movie: "title: movie to play: with the movie ~", room: "room: room to watch in: in the room ~",
        subtitles: "language: language of subtitles: with subtitles in ~" = ""):
    """Play a movie in a room."""
    return w.put("playing", title=movie, room=room, subtitles=subtitles)
@tool("media", "stop playing|end the music or movie")
def stop_playing(w):
    """Stop playing a song or movie."""
    return {"stopped": w.settings.pop("playing", {}).get("title", "nothing was playing")}
@tool("media", "create a playlist|start a playlist")
def create_playlist(w, name: "title: name of the playlist: with the name ~",
        tempo: "enum(fast,slow): tempo of its music: with ~ tempo" = "fast"):
    """Create a playlist for songs."""
    return w.add("playlist", name=name, tempo=tempo, songs=[])
@tool("media", "add a song|extend a song list")
def add_song(w, playlist_id: "id(playlist): playlist to extend: to playlist ~",
        song: "title: song to add: with the song ~", position: "int: place in the order: at place ~" = 1):
    """Add a song to a playlist."""
    playlist = w.get("playlist", playlist_id)
    playlist["songs"] = playlist["songs"][:position - 1] + [song] + playlist["songs"][position - 1:]
    return {"playlist": playlist["name"], "songs": playlist["songs"]}
@tool("media", "find a cooking show|look for a cooking show")
def find_cooking_show(w, foods: "list(food): foods it is using: using ~",
        taste: "enum(sweet,spicy): taste of the food: with ~ taste" = "sweet",
        length: "enum(short,long): show length: with ~ length" = "short"):
    """Find a cooking show by foods."""
    return {"title": f"{taste} " + " and ".join(foods), "minutes": w.number(5, 15, foods) + 30 * (length == "long")}

# ---- sports
@tool("sports", "find a match|look for a match")
def find_match(w, team: "team: team that plays: of the team ~", date: "date: day of the match: on ~",
        country: "country: country it is played in: in ~" = ""):
    """Find a match of a team."""
    return w.add("match", team=team, date=date, start=f"{w.number(14, 20, team, date)}:30")
@tool("sports", "buy match tickets|get tickets for a match")
def buy_tickets(w, match_id: "id(match): match to see: for match ~",
        tickets_pieces: "pieces: tickets in pieces: with tickets of ~",
        price: "enum(cheap,full): price class: with ~ price" = "full"):
    """Buy tickets for a match."""
    return {"match": w.get("match", match_id)["team"], "cost": tickets_pieces * (15 if price == "cheap" else 40)}
@tool("sports", "get league standings|show the standings")
def get_standings(w, country: "country: country of the league: of the country ~",
        order: "enum(ascending,descending): order of points: with ~ order" = "descending"):
    """Get the standings of a league."""
    points = {club: w.number(10, 60, club, country) for club in ("Rovers", "United", "Athletic")}
    return {"standings": sorted(points.items(), key=lambda club: club[1], reverse=order == "descending")}
@tool("sports", "log a training run|record a run distance")
def log_run(w, distance_meters: "meters: distance in meters: with a distance of ~",
        duration_minutes: "minutes: duration in minutes: with a duration of ~",
        place: "enum(indoor,outdoor): place of the run: at ~ place" = "outdoor"):
    """Log a run with its distance."""
    total = w.total("run " + place, distance_meters)
    return {"meters_per_minute": round(distance_meters / max(duration_minutes, 1), 1), "total_meters": total}
@tool("sports", "rank lap times|rank the laps")
def rank_laps(w, laps: "list(int): lap times: with lap times ~",
        order: "enum(ascending,descending): order of laps: with ~ order" = "ascending"):
    """Rank the lap times of a runner."""
    return {"laps": sorted(laps, reverse=order == "descending"), "best": min(laps, default=0)}
@tool("sports", "plan training|make a training plan")
def plan_training(w, level: "enum(beginner,expert): level of the athlete: for a level of ~",
        sessions: "int: sessions a week: with ~ sessions",
        partner: "enum(solo,group): solo or group training: with the partner setting ~" = "solo",
        daytime: "enum(morning,evening): time of the training: with the training time ~" = "evening"):
    """Plan training sessions for a week."""
    return {"sessions": sessions, "hours": sessions * (1 + (level == "expert")), "time": daytime, "form": partner}

# ---- files
@tool("files", "create a folder|make a folder", name="files.create_folder")
def create_folder(w, name: "title: name of the folder: with the name ~",
        access: "enum(private,public): folder access: with access ~" = "private"):
    """Create a folder for files."""
    return w.add("folder", name=name, access=access)
@tool("files", "lock a folder|protect a folder", name="files.lock_folder")
def lock_folder(w, folder_id: "id(folder): folder to lock: with folder id ~",
        password: "word: password to unlock it: with password ~",
        lock_days: "days: lock in days: with a lock of ~" = 30):
    """Lock a folder with a password."""
    w.get("folder", folder_id).update(password=password)
    return {"status": "locked", "days": lock_days}
@tool("files", "write a file|save text to a file", name="files.write_file")
def write_file(w, name: "title: name of the file: with the name ~",
        content: "text: content to write: with content ~"):
    """Write text to a new file."""
    return w.add("file", name=name, content=content)
@tool("files", "share a file|give access to a file", name="files.share_file")
def share_file(w, file_id: "id(file): file to share: with file id ~",
        people: "list(person): people who see it: with people ~",
        right: "enum(read,edit): access right: with the right to ~" = "read"):
    """Share a file with other people."""
    return {"file": w.get("file", file_id)["name"], "people": people, "right": right}
@tool("files", "print a file|put a file on paper", name="files.print_file")
def print_file(w, file_id: "id(file): file to print: with file id ~",
        copies_pieces: "pieces: copies in pieces: with copies of ~" = 1,
        printer: "device: printer to use: on the printer ~" = "printer"):
    """Print a file on a printer."""
    return {"file": w.get("file", file_id)["name"], "copies": copies_pieces, "printer": printer}
@tool("files", "search files|look for files", name="files.search_files")
def search_files(w, keyword: "word: keyword to search: with the keyword ~",
        order: "enum(ascending,descending): order of names: with ~ order" = "ascending"):
    """Search files by a keyword."""
    names = [file["name"] for file in w.find("file") if keyword in file["name"] + " " + file["content"]]
    return {"files": sorted(names, reverse=order == "descending")}

# ---- weather
@tool("weather", "get the forecast|tell me the forecast", name="weather.get_forecast")
def get_forecast(w, city: "city: city it is in: in ~", span_days: "days: forecast span in days: with a span of ~" = 1,
        scale: "enum(celsius,fahrenheit): temperature scale: on the scale ~" = "celsius"):
    """Get the weather forecast of a city."""
    sky, high = w.pick(["sun", "rain", "cloud", "snow"], city, span_days), w.number(-5, 35, city, span_days)
    return {"city": city, "sky": sky, "high": high if scale == "celsius" else round(high * 1.8 + 32, 1)}
@tool("weather", "get the sunrise|check the sunrise time", name="weather.get_sunrise")
def get_sunrise(w, city: "city: city to look at: at ~", date: "date: day of the sunrise: on ~"):
    """Get the sunrise for a day."""
    return {"date": date, "sunrise": f"0{w.number(4, 8, city, date[:7])}:{w.number(10, 59, city, date)}"}
@tool("weather", "compute wind chill|work out the wind chill")
def wind_chill(w, temperature: "float: temperature in degrees: at a temperature of ~ degrees",
        wind: "float: wind speed: with a wind speed of ~"):
    """Compute wind chill from wind speed."""
    chill = 13.12 + 0.6215 * temperature + (0.3965 * temperature - 11.37) * abs(wind) ** 0.16
    return {"feels_like": round(min(temperature, chill), 1)}
@tool("weather", "find a weather station|locate a station", name="weather.find_station")
def find_station(w, city: "city: city it is near: near ~", country: "country: country it is in: in ~" = "",
        radius_meters: "meters: radius in meters: with a radius of ~" = 5000):
    """Find a weather station near a city."""
    return w.add("station", city=city, away_meters=w.number(1, 100, city, country) * radius_meters // 100)
@tool("weather", "read a weather station|measure at a station")
def read_station(w, station_id: "id(station): station to read: at station ~",
        quantity: "enum(wind,rain,pressure): quantity to read: with the quantity ~"):
    """Read what a station measured."""
    return {"city": w.get("station", station_id)["city"], quantity: w.number(1, 40, station_id, quantity)}
@tool("weather", "subscribe to storm alerts|warn me with weather alerts")
def subscribe_alerts(w, hazards: "list(word): words to warn about: about ~", city: "city: city to watch over: over ~",
        device: "device: device to notify: on the device ~" = "phone"):
    """Subscribe to alerts of bad weather."""
    return w.put("alerts " + city, hazards=hazards, device=device)

# ---- education
@tool("education", "find a course|look for a course")
def find_course(w, subject: "title: subject of the course: on the subject ~",
        level: "enum(beginner,expert): course level: at the level ~" = "beginner",
        language: "language: teaching language: with teaching in ~" = "Italian"):
    """Find a course on a subject."""
    return w.add("course", subject=subject, level=level, language=language, weeks=w.number(4, 16, subject))
@tool("education", "enroll a student|sign a student up")
def enroll_student(w, course_id: "id(course): course to take: in course ~",
        student: "person: student to enroll: for student ~", start: "date: day to start: with start on ~",
        team: "team: study team to join: in the team ~" = ""):
    """Enroll a student in a course."""
    return {"student": student, "subject": w.get("course", course_id)["subject"], "start": start, "team": team}
@tool("education", "create a quiz|prepare a quiz")
def create_quiz(w, topic: "title: topic of the quiz: on the topic ~",
        questions: "int: number of questions: with ~ questions",
        limit_minutes: "minutes: time limit in minutes: with a limit of ~" = 20,
        hints: "bool: show hints: with hints/without hints" = True):
    """Create a quiz on a topic."""
    return w.add("quiz", topic=topic, questions=questions, minutes=limit_minutes, hints=hints)
@tool("education", "grade a quiz|mark quiz answers")
def grade_quiz(w, quiz_id: "id(quiz): quiz to grade: for quiz ~",
        answers: "list(int): answers given: with answers ~"):
    """Grade the answers to a quiz."""
    topic = w.get("quiz", quiz_id)["topic"]
    return {"right": sum(w.number(1, 4, topic, i) == a for i, a in enumerate(answers))}
@tool("education", "make a flashcard|write a flashcard")
def make_flashcard(w, word: "word: word on the front: with the word ~",
        meaning: "text: meaning on the back: with the meaning ~"):
    """Make a flashcard for a word."""
    w.put("flashcards", **{word: meaning})
    return {"word": word, "cards": len(w.settings["flashcards"])}
@tool("education", "show my flashcards|review all flashcards")
def show_flashcards(w):
    """Show all flashcards made so far."""
    return {"flashcards": w.settings.get("flashcards", {})}

# ---- pets
@tool("pets", "register a pet|register a new pet")
def register_pet(w, name: "word: name of the pet: with the name ~",
        species: "enum(cat,dog,rabbit): pet species: of species ~",
        weight_grams: "grams: weight in grams: with a weight of ~" = 4000):
    """Register a pet by its name."""
    return w.add("pet", name=name, species=species, weight_grams=weight_grams)
@tool("pets", "feed a pet|feed a pet now")
def feed_pet(w, pet_id: "id(pet): pet to feed: to pet ~", food: "food: food it gets: with the food ~",
        portion_grams: "grams: portion in grams: with a portion of ~" = 100,
        room: "room: room to eat in: in the room ~" = "kitchen"):
    """Feed a pet a portion of food."""
    return {"pet": w.get("pet", pet_id)["name"], "food": food, "eaten_grams": w.total(pet_id, portion_grams)}
@tool("pets", "insure a pet|insure a pet with someone")
def insure_pet(w, pet_id: "id(pet): pet to insure: for pet ~",
        insurer: "company: insurer to choose: with the insurer ~",
        fee: "money: fee in dollars: for a fee of ~ dollars",
        billing: "enum(monthly,yearly): billing rhythm: with billing ~" = "monthly"):
    """Insure a pet with a company."""
    yearly = round(fee * (12 if billing == "monthly" else 1), 2)
    return {"pet": w.get("pet", pet_id)["name"], "insurer": insurer, "yearly": yearly}
@tool("pets", "find a pet sitter|look for a sitter")
def find_sitter(w, address: "object(street=street,city=city): address to come to: to the address ~",
        date: "date: first day: from the first day ~", stay_days: "days: stay in days: with a stay of ~" = 1):
    """Find a sitter for some days."""
    name = w.pick(["Ines", "Bram", "Yuki"], address, date)
    return w.add("sitter", name=name, cost=w.number(15, 40, name) * stay_days)
@tool("pets", "hire a sitter|engage a pet sitter")
def hire_sitter(w, sitter_id: "id(sitter): sitter to hire: with sitter id ~",
        time: "time: time of arrival: at the time ~", walk: "enum(short,long): walk length: with ~ walk" = "short"):
    """Hire a sitter that was found."""
    sitter = w.get("sitter", sitter_id)
    return {"hired": sitter["name"], "time": time, "cost": sitter["cost"] + 10 * (walk == "long")}
@tool("pets", "convert a pet age|compute human years")
def human_age(w, age_months: "months: age in months: with an age of ~",
        size: "enum(small,large): size of the pet: with ~ size" = "small"):
    """Convert pet age to human years."""
    return {"human_years": round(age_months / 12 * (5 if size == "small" else 7), 1)}

# ---- health
@tool("health", "log a meal|note a meal")
def log_meal(w, dishes: "list(food): dishes eaten: with the dishes ~",
        meal: "enum(breakfast,lunch,dinner): kind of meal: at the meal ~",
        energy: "int: energy in calories: with an energy of ~ calories" = 500):
    """Log a meal and its energy."""
    return {"meal": meal, "dishes": dishes, "calories_today": w.total("calories", energy)}
@tool("health", "log a drink|note a drink")
def log_drink(w, amount_milliliters: "milliliters: amount in milliliters: with an amount of ~",
        warmth: "enum(hot,cold): warmth of the drink: with ~ warmth" = "cold"):
    """Log a drink and its amount."""
    return {"warmth": warmth, "milliliters_today": w.total("drinks", amount_milliliters)}
@tool("health", "find a doctor|look up a doctor")
def find_doctor(w, specialty: "enum(dentist,surgeon,pediatrician): medical specialty: with the specialty ~",
        city: "city: city to search in: in ~", language: "language: language the doctor speaks: who speaks ~" = ""):
    """Find a doctor by specialty."""
    return w.add("doctor", name=w.pick(["Dr. Ueda", "Dr. Lund", "Dr. Mora"], specialty, city), specialty=specialty)
@tool("health", "visit a doctor|arrange a doctor visit")
def visit_doctor(w, doctor_id: "id(doctor): doctor to visit: with doctor id ~",
        patient: "person: patient who comes: for patient ~", date: "date: day of the visit: on ~",
        priority: "enum(urgent,weekly,monthly): visit priority: with a priority of ~" = "monthly"):
    """Visit a doctor on a day."""
    doctor = w.get("doctor", doctor_id)["name"]
    return {"doctor": doctor, "patient": patient, "date": date, "time": f"{w.number(10, 16, doctor, date)}:20"}
@tool("health", "add a medicine|start a medicine")
def add_medicine(w, medicine: "enum(aspirin,insulin,ibuprofen): medicine to take: with the medicine ~",
        dose_pieces: "pieces: dose in pieces: with a dose of ~", time: "time: time to take it: at ~" = "08:00",
        rhythm: "enum(daily,weekly): rhythm of taking: with the rhythm ~" = "daily"):
    """Add a medicine to take regularly."""
    return w.add("medicine", medicine=medicine, dose_pieces=dose_pieces, time=time, rhythm=rhythm)
@tool("health", "stop a medicine|drop a medicine")
def stop_medicine(w, medicine_id: "id(medicine): medicine to stop: with medicine id ~",
        date: "date: last day: on the last day ~"):
    """Stop taking a medicine regularly."""
    return {"stopped": w.remove("medicine", medicine_id)["medicine"], "last_day": date}

# ---- shopping
@tool("shopping", "find an item to buy|shop for an item")
def find_item(w, product: "product: product wanted: with the product ~",
        brand: "company: brand that makes it: of the brand ~" = "",
        budget: "money: budget in dollars: within a budget of ~ dollars" = 100.0):
    """Find an item in the shop."""
    return w.add("item", product=product, price=round(budget * w.number(40, 95, product, brand) / 100, 2))
@tool("shopping", "put in the cart|fill the cart")
def fill_cart(w, item_id: "id(item): item to buy: with item id ~",
        count_pieces: "pieces: count in pieces: with a count of ~" = 1,
        wrap: "bool: gift wrap: with gift wrap/without gift wrap" = False):
    """Put an item in the cart."""
    item = w.get("item", item_id)
    w.put("cart", **{item["product"]: count_pieces})
    return {"added": item["product"], "total": w.total("cart", item["price"] * count_pieces)}
@tool("shopping", "show the cart|list my cart items")
def show_cart(w):
    """Show the cart and its total."""
    return {"items": w.settings.get("cart", {}), "total": w.total("cart")}
@tool("shopping", "check out|order the whole cart")
def check_out(w, address: "object(name=person,street=street,city=city): shipping address: to the shipping address ~",
        coupon: "word: coupon code: with coupon ~" = "",
        shipping: "enum(cheap,fast): shipping class: by ~ shipping" = "cheap"):
    """Order everything in the cart."""
    w.settings.pop("cart", None)
    return w.add("order", name=address["name"], total=w.totals.pop("cart", 0), shipping=shipping)
@tool("shopping", "track an order|follow an order")
def track_order(w, order_id: "id(order): order to track: with order id ~"):
    """Track an order on its way."""
    return {"for": w.get("order", order_id)["name"], "stage": w.pick(["packed", "shipped", "nearby"], order_id)}
@tool("shopping", "return an order|send an order back")
def return_order(w, order_id: "id(order): order to return: with order id ~",
        complaint: "text: complaint about it: with the complaint ~",
        payout: "enum(cash,voucher): form of payout: with payout as ~" = "cash"):
    """Return an order for its price."""
    return {"payout": payout, "amount": w.remove("order", order_id)["total"], "noted": complaint}

# ---- maps
@tool("maps", "find a route|show me the route", name="maps.find_route")
def find_route(w, start: "street: street to start at: with start at ~",
        goal: "street: street that is the goal: with the goal ~",
        vehicle: "enum(car,bus,bike): vehicle to use: with the vehicle ~" = "car",
        tolls: "bool: allow tolls: with tolls/without tolls" = True):
    """Find a route between two streets."""
    if start == goal: raise ToolError("start and goal are the same")
    return w.add("route", goal=goal, meters=w.number(400, 9000, start, goal), vehicle=vehicle)
@tool("maps", "start navigation|navigate along a route", name="maps.navigate")
def navigate(w, route_id: "id(route): route to follow: along route ~",
        language: "language: language of the voice: in the language ~" = "Spanish",
        screen: "device: screen to use: on the screen ~" = "phone"):
    """Start navigation along a route."""
    route = w.get("route", route_id)
    return {"goal": route["goal"], "minutes": route["meters"] // 250 + 1, "language": language, "screen": screen}
@tool("maps", "find a place nearby|look for a place", name="maps.find_place")
def find_place(w, category: "enum(cafe,museum,pharmacy): place category: of category ~",
        city: "city: city around it: around ~", reach_meters: "meters: reach in meters: within a reach of ~" = 1000):
    """Find a place of some category."""
    return w.add("place", category=category, city=city, meters=w.number(1, 100, category, city) * reach_meters // 100)
@tool("maps", "bookmark a place|mark a map place", name="maps.bookmark_place")
def bookmark_place(w, place_id: "id(place): place to mark: with place id ~",
        label: "title: label on the map: with the label ~", team: "team: team who may see it: for the team ~" = ""):
    """Bookmark a place on the map."""
    return {"label": label, "city": w.get("place", place_id)["city"], "bookmarks": w.total("bookmarks", 1)}
@tool("maps", "measure a tour|tell the tour length", name="maps.measure_tour")
def measure_tour(w, stops: "list(city): stops of the tour: with stops ~",
        circular: "bool: drive back home: with the way back/without the way back" = False):
    """Measure a tour through some cities."""
    legs = list(zip(stops, stops[1:] + stops[:1]))[:None if circular else -1]
    return {"legs": len(legs), "kilometers": sum(w.number(50, 800, sorted(leg)) for leg in legs)}
@tool("maps", "report traffic|report a traffic problem", name="maps.report_traffic")
def report_traffic(w, street: "street: street it is on: on ~",
        problem: "enum(jam,accident,roadwork): problem seen: with the problem ~",
        delay_minutes: "minutes: delay in minutes: with a delay of ~" = 10):
    """Report a traffic problem on a street."""
    return {"problem": problem, "delay_minutes": delay_minutes, "reports": w.total("at " + street, 1)}

# ---- units
@tool("units", "convert a temperature|change a temperature scale", name="units.convert_temperature")
def convert_temperature(w, value: "float: value to convert: with the value ~",
        source: "enum(celsius,fahrenheit,kelvin): scale to convert from: from ~",
        target: "enum(celsius,fahrenheit,kelvin): scale to convert to: to ~"):
    """Convert a temperature to another scale."""
    celsius = {"celsius": value, "fahrenheit": (value - 32) / 1.8, "kelvin": value - 273.15}[source]
    result = {"celsius": celsius, "fahrenheit": celsius * 1.8 + 32, "kelvin": celsius + 273.15}[target]
    return {target: round(result, 2)}
@tool("units", "convert a length|change a length unit", name="units.convert_length")
def convert_length(w, length_meters: "meters: length in meters: with a length of ~",
        unit: "enum(feet,yards,miles): unit of the result: into the unit ~" = "feet",
        digits: "int: digits after the point: with ~ digits" = 2):
    """Convert a length to another unit."""
    return {unit: round(length_meters / {"feet": 0.3048, "yards": 0.9144, "miles": 1609.344}[unit], digits)}
@tool("units", "convert a volume|change a volume unit", name="units.convert_volume")
def convert_volume(w, volume_milliliters: "milliliters: volume in milliliters: with a volume of ~",
        unit: "enum(cups,pints,gallons): unit of the result: into the unit ~" = "cups"):
    """Convert a volume to another unit."""
    return {unit: round(volume_milliliters / {"cups": 236.588, "pints": 473.176, "gallons": 3785.41}[unit], 2)}
@tool("units", "count the days between dates|compute days between dates")
def days_between(w, first: "date: first date: from the first date ~", last: "date: last date: to the last date ~",
        inclusive: "bool: count both ends: with both ends/without both ends" = False):
    """Count the days between two dates."""
    return {"days": abs((day.fromisoformat(last) - day.fromisoformat(first)).days) + inclusive}
@tool("units", "average some numbers|compute an average")
def average_numbers(w, numbers: "list(int): numbers to average: of the numbers ~",
        method: "enum(mean,median): method of averaging: by the method ~" = "mean"):
    """Average a list of numbers."""
    if not numbers: raise ToolError("no numbers to average")
    return {method: round((mean if method == "mean" else median)(numbers), 2)}
@tool("units", "compute a percentage|work out a percentage")
def percentage(w, part: "float: the part: with the part ~", whole: "float: the whole: with the whole ~"):
    """Compute the percentage of a whole."""
    if whole == 0: raise ToolError("the whole is zero")
    return {"percent": round(100 * part / whole, 2)}

# ---- restaurants
@tool("restaurants", "find a restaurant|pick a restaurant")
def find_restaurant(w, city: "city: city to eat in: in ~",
        cuisine: "country: country of the cuisine: with cuisine from ~" = "",
        seating: "enum(indoor,outdoor): seating area: with ~ seating" = "indoor"):
    """Find a restaurant in a city."""
    return w.add("restaurant", name=w.pick(["Olive", "Lantern", "Juniper"], city, cuisine), seating=seating)
@tool("restaurants", "book a table|get a table")
def book_table(w, restaurant_id: "id(restaurant): restaurant to visit: at restaurant ~",
        date: "date: day of the meal: on ~", time: "time: time of arrival: at ~",
        guests: "int: number of guests: for ~ guests", room: "room: room to sit in: in the room ~" = ""):
    """Book a table at a restaurant."""
    place = w.get("restaurant", restaurant_id)["name"]
    return w.add("table", place=place, when=f"{date} {time}", guests=guests, room=room)
@tool("restaurants", "give up a table|release a table")
def release_table(w, table_id: "id(table): table to release: with table id ~"):
    """Release a table that was booked."""
    return {"released": w.remove("table", table_id)["place"]}
@tool("restaurants", "order takeaway|get takeaway food")
def order_takeaway(w, restaurant_id: "id(restaurant): restaurant that cooks: from restaurant ~",
        dishes: "list(food): dishes to order: with the dishes ~",
        seasoning: "enum(sweet,spicy): seasoning of dishes: with ~ seasoning" = "spicy",
        tip_cents: "cents: tip in cents: with a tip of ~" = 0):
    """Order takeaway from a restaurant."""
    cost = sum(w.number(600, 2400, restaurant_id, dish) for dish in dishes) + tip_cents
    return {"from": w.get("restaurant", restaurant_id)["name"], "dishes": len(dishes), "cost_cents": cost}
@tool("restaurants", "review a dish|rate a dish")
def review_dish(w, dish: "food: dish that was eaten: about the dish ~", stars: "int: number of stars: with ~ stars",
        comment: "text: comment on the dish: with the comment ~" = ""):
    """Review a dish with stars."""
    return {"dish": dish, "comment": comment, "reviews": w.total("reviews of " + dish, 1), "stars": stars}
@tool("restaurants", "split the check|share the restaurant check")
def split_check(w, sum_cents: "cents: sum in cents: with a sum of ~",
        diners: "int: number of diners: between ~ diners",
        tip: "float: tip in percent: with a tip of ~ percent" = 10.0):
    """Split the check between diners."""
    if diners < 1: raise ToolError("nobody is there to pay")
    return {"each_cents": round(sum_cents * (1 + tip / 100) / diners)}

# Words to fill in: kind -> split -> values; no value of one split is a value of another.
POOLS = {
    "city": {"train": "Paris|Oslo|Berlin|Madrid|Lisbon|Chicago|Tokyo|Cairo|Toronto|New York|Vienna|Dublin|Athens|"
        "Mumbai|Nairobi|Boston|Lima|Prague|Warsaw|Denver|Hong Kong|Seattle|Milan|Geneva|Jakarta|Rio de Janeiro|"
        "Bergen|Manila|Havana|Salt Lake City",
     "val": "Rome|Helsinki|Munich|Valencia|Porto|Houston|Kyoto|Tunis|Ottawa|San Diego|Graz|Cork|Sofia|Delhi|Kampala|"
        "Austin|Quito|Brno|Krakow|Portland|Taipei|Phoenix|Turin|Basel|Hanoi|Buenos Aires|Malmo|Cebu|Kingston|"
        "Baton Rouge",
     "test": "London|Stockholm|Hamburg|Seville|Braga|Dallas|Osaka|Rabat|Montreal|Los Angeles|Linz|Galway|Zagreb|"
        "Chennai|Accra|Miami|Bogota|Riga|Gdansk|Tucson|Seoul|Detroit|Naples|Zurich|Bangkok|Mexico City|Aarhus|Davao|"
        "Santiago|Cape Town"},
    "person": {"train": "Anna|Ben Carter|Clara Jensen|David|Emma Novak|Farid|Grace Kim|Hugo|Isla Morgan|Jonas|"
        "Karim Aziz|Laura|Marco Rossi|Nadia|Oscar Lind|Priya|Quentin Blanc|Rosa Diaz|Samuel|Tara Singh|Umar|"
        "Vera Petrov|Will Turner|Xenia|Yusuf|Zoe Miller|Aaron|Bella Costa|Carl Weber|Dina",
     "val": "Alice|Boris Klein|Cecilia Ruiz|Daniel|Elif Kaya|Fiona|George Adams|Hana|Igor Popov|Julia|Kofi Mensah|"
        "Lena|Miguel Torres|Nina|Owen Price|Paula|Rafael Lopes|Sofia Berg|Theo|Uma Patel|Victor|Wanda Zielinska|Yara|"
        "Amir Haddad|Bruno|Chloe Martin|Dylan|Eva Horvat|Felix|Gina Romano",
     "test": "Adele|Bilal Khan|Carmen Vega|Dmitri|Esther Cohen|Frank|Greta Olsen|Henry|Irene Pappas|Jack O'Brien|"
        "Kenji|Lucia Moreno|Mateo|Noor Rahman|Olga|Peter Walsh|Ruth|Stefan Maier|Tomoko|Ursula Brandt|Vincent|"
        "Wei Zhang|Yvonne|Zainab|Arjun Mehta|Brigitte|Cyrus Tehrani|Dora|Edgar Stone|Freya"},
    "title": {"train": "The Old Lighthouse|Silver Rain|Budget Review|Letters from Home|Team Lunch|A Quiet Storm|"
        "Don't Look Down|Weekly Report|River Song|Project Falcon|The Glass Garden|Morning Coffee|Lost in the Snow|"
        "Class Reunion|Travel Notes|Summer Nights|Café Blue|Design Meeting|The Paper Boat|Wild Horses|Reading List|"
        "Long Way Home|Moonlight Drive|Hiring Plan|Sand, Sea and Sky|Winter Tale|Half-Open Door|Garden Party|Echoes|"
        "Dancing Alone",
     "val": "The Last Orchard|Golden Dust|Basic Chemistry|Notes on Light|World Geography|A Hidden Valley|"
        "Can't Stop Learning|Art History|Ocean Song|Human Rights|The Iron Bridge|Public Speaking|Lost Kingdoms|"
        "Cell Biology|Essay Writing|Autumn Leaves|Déjà Vu|Music Theory|The Clay House|Wild Flowers|Logic and Proof|"
        "Long Shadows|Starlight|Data Analysis|Sun, Moon and Stars|Modern Poetry|Self-Study Skills|Street Art|"
        "Volcanoes|Sailing North",
     "test": "The Empty Theater|Copper Sky|Best Bakery|Hotel by the Lake|Favorite Corner|A Distant Drum|"
        "Won't Be Long|Picnic Spot|Mountain Song|Grandma's House|The Stone Circle|Secret Beach|Lost and Found|"
        "Climbing Hall|Weekend Walk|Spring Fever|Crème Brûlée|Jazz Club|The Wooden Gate|Wild Geese|Book Market|"
        "Long Lake View|Candlelight|Bike Repair|Bread, Salt and Wine|Sunset Hill|Well-Kept Secret|Flea Market|"
        "Fireflies|Waiting Room"},
    "text": {"train": "running a bit late|see you at the station|my plans have changed|don't forget the keys|"
        "happy birthday, my friend|call me back later|the meeting is over|bring an umbrella|thanks for dinner|"
        "feed the cat|I'm already home|good luck with the exam|the train was cancelled|please check the numbers|"
        "water the plants|sorry, wrong address|lunch is ready|leave the door open|can't make it|great work, everyone|"
        "the package has arrived|pick up some milk|all tickets are sold|wear something warm|back in the office|"
        "new shoes, very comfortable|rent and heating|take out the trash|too expensive for us|keep this between us",
     "val": "the dog is shy|a kind of tree|walk him before breakfast|she's afraid of thunder|a very happy feeling|"
        "gives light at night|please brush her coat|no treats after dinner|something you can eat|"
        "a small wooden house|keep the windows shut|doesn't like strangers|the opposite of near|to move quickly|"
        "the toys are upstairs|a place to sleep|he barks at bicycles|water twice, food once|used for writing|"
        "a person who teaches|lock the garden gate|made of old glass|the vet's number is below|to speak softly|"
        "allergic to chicken|a part of the body|hide the slippers|someone you trust|let her rest|"
        "an animal with wings",
     "test": "the soup was salty|lid arrived broken|use the back entrance|we're feeling ill|"
        "side effects, mostly headaches|wrong color in the box|a truck is blocking us|crispy and well cooked|"
        "my babysitter can't come|the left lane is closed|dosage was too high|best dessert in town|it doesn't fit|"
        "police are on site|feeling much better|our flight got delayed|a bit too oily|zipper is stuck|"
        "follow the yellow signs|fresh, rich and tasty|doctor's advice|missing screws and manual|drive carefully|"
        "portion was tiny|car broke down|stopped by my physician|ice on the bridge|I'd eat it again|never turned on|"
        "treatment is finished"},
    "product": {"train": "desk chair|running shoes|wool blanket|coffee grinder|travel bag|phone case|rain jacket|"
        "board game|bread knife|yoga mat|garden hose|wall clock|picture frame|bike helmet|cotton shirt|tea kettle|"
        "leather belt|sketch book|camping tent|silk scarf|guitar strings|snow boots|floor rug|water bottle|chess set|"
        "sun hat|paint brush|tool box|photo album|winter coat",
     "val": "cat tree|dog leash|pencil case|rubber ball|feeding bowl|bird cage|lunch box|ruler set|fish tank|"
        "chew toy|pet blanket|math workbook|school bag|litter box|globe|hamster wheel|glue stick|puppy bed|"
        "nail clipper|alphabet puzzle|microscope|drawing tablet|reading lamp|horse brush|ant farm|flea comb|"
        "chalk board|calculator|scratching post|name tag",
     "test": "hiking backpack|office lamp|pepper mill|swim goggles|denim jacket|pillow case|hand cream|folding table|"
        "soup pot|wrist watch|tennis racket|ski gloves|laptop sleeve|baking tray|hair dryer|wine rack|beach towel|"
        "electric razor|baby stroller|fountain pen|bath robe|jump rope|curtain rod|sewing kit|shower mat|ice skates|"
        "rice cooker|shoe rack|picnic basket|bed sheet"},
    "company": {"train": "Northwind Energy|Bluefin Telecom|Acme Tools|Sunrise Water|Cedar Bank|Metro Gas|Falcon Air|"
        "Pine Street Books|Harbor Insurance|Delta Print|Orchard Foods|Greenleaf Power|Silverline Cable|Maple Dental|"
        "Quick Movers|Stone Bakery|Red Door Realty|Vista Hotels|Lumen Electric|Atlas Freight|Coral Media|"
        "Brightside Clinic|Kestrel Motors|Riverbank Gym|Polar Cooling|Summit Sports|Clover Market|Nova Internet|"
        "Granite Works|Ember Heating",
     "val": "Pawtect|Happy Tails|Wagwell Mutual|Whisker Trust|Barkley and Sons|Evergreen Cover|Safe Paws|"
        "Hearth Mutual|Fur First|Loyal Friend Group|Noble Shield|Kitten Care|Anchor Cover|Blue Collar Vets|"
        "Oakwood Assurance|Petra Life|Guardian Hound|Meadow Mutual|Tailspin|Vetsure|Bright Burrow|Companion Union|"
        "Ark Alliance|Purrfect Plans|Fetch Finance|Beacon Mutual|Stable Partners|Willow Cover|Rover Trust|"
        "Zeta Protect",
     "test": "Hilltop|Aurora Living|Zephyr Sportswear|Norden|Lakeside Linen|Monarch|Tidewater Outdoor|Kumo|"
        "Bramble and Oak|Solace|Ironclad Gear|Velvet Home|Peak Republic|Juno Beauty|Foxglove|Marble Arch Goods|"
        "Terra Nova|Pixel Forge|Wren and Co|Halcyon|Cobalt Cycles|Saffron House|Driftwood|Lynx Optics|Magnolia|"
        "Basecamp Union|Opal Studio|Thistle|Urban Heron|Yonder"},
    "food": {"train": "chicken|rice|mushrooms|apple pie|tomatoes|lasagna|garlic|salmon|pancakes|potatoes|onion bread|"
        "butter|carrots|roast beef|pizza|lemons|spinach|honey|noodles|cheesecake|beans|ginger|pumpkin|cherries|"
        "yogurt|meatballs|broccoli|chocolate cake|peanuts|baked fish",
     "val": "tuna|lamb|hay|dry kibble|sardines|boiled eggs|oat flakes|liver|pea mash|turkey|cottage cheese|duck|"
        "lettuce|beef stew|bran|cucumber|venison|parsley|puppy biscuits|shrimp|rabbit pellets|clover|fish oil|celery|"
        "minced pork|blueberries|bone broth|sweet corn|wet food|melon",
     "test": "fried rice|lentil soup|tacos|green curry|grilled squid|avocado toast|dumplings|falafel|ramen|"
        "apple strudel|paella|clam chowder|burrito|mango salad|hummus|pad thai|risotto|oatmeal|fish and chips|"
        "goulash|waffles|moussaka|stuffed peppers|gnocchi|kimchi|omelette|spring rolls|banana bread|tiramisu|"
        "pork belly"},
    "street": {"train": "Main Street|Oak Avenue|Mill Lane|Station Road|King Street|Harbor Drive|Elm Street|"
        "Church Road|Park Avenue|Rose Lane|River Street|College Road",
     "val": "Birch Street|Sunset Boulevard|Bakers Row|Garden Road|Queen Street|Lake Drive|Ash Grove|Bridge Road|"
        "Hill Avenue|Fox Lane|Canal Street|Abbey Road",
     "test": "Cedar Street|Ocean Boulevard|Weavers Row|Market Road|Prince Street|Valley Drive|Willow Close|"
        "Castle Road|Forest Avenue|Swan Lane|Temple Street|Orchard Way"},
    "device": {"train": "desk lamp|bedroom fan|air heater|coffee maker|radio|television|washing machine|"
        "front door lock|smart speaker|dryer|laptop|humidifier",
     "val": "wrist tracker|kitchen display|old phone|pocket pager|hall siren|tablet|doorbell|work computer|"
        "desk clock|baby monitor|weather box|alarm panel",
     "test": "car display|smart watch|helmet visor|dashboard|bike computer|mobile|projector|headset|handheld|console|"
        "e-reader|windshield panel"},
    "room": {"train": "kitchen|bedroom|bathroom|hallway|office|living room|garage|attic|nursery|guest room|"
        "laundry room|library",
     "val": "basement|mud room|barn|sun porch|pantry|stable|back yard|utility room|playroom|shed|den|conservatory",
     "test": "veranda|garden hall|rooftop|wine cellar|main hall|bar|gallery|tea room|courtyard|lounge|terrace|"
        "fireside corner"},
    "team": {"train": "Blue Sharks|City Rovers|Red Lions|Night Owls|River Hawks|United Stars|Iron Bulls|"
        "Golden Eagles|Harbor Kings|Storm Riders|Green Giants|Snow Wolves",
     "val": "Quick Foxes|Brave Bears|Book Worms|Silver Swans|Bright Minds|Early Birds|Lab Rats|White Whales|"
        "Number Crunchers|Word Wizards|Deep Divers|Sky Larks",
     "test": "Trail Seekers|Black Panthers|Road Runners|Map Makers|Desert Cobras|Urban Nomads|Coast Patrol|"
        "Wild Boars|Peak Hunters|Copper Falcons|Field Scouts|Thunder Ducks"},
    "word": {"train": "budget|invoice|sunflower|draft|falcon|holiday|velvet|recipe|anchor|contract|marble|journey",
     "val": "maple|ember|pepper|ginseng|shadow|biscuit|lantern|hail|frost|thunder|meadow|cinder",
     "test": "welcome|harvest|bonus|sparkle|treasure|confetti|mermaid|jackpot|blossom|vintage|comet|saffron"},
    "language": {"train": "Spanish|French|German|Japanese|Arabic|Portuguese|Hindi|Polish|Swedish|Greek|Turkish|"
        "Korean",
     "val": "Italian|Dutch|Russian|Mandarin|Hebrew|Romanian|Bengali|Czech|Danish|Latin|Persian|Vietnamese",
     "test": "English|Catalan|Ukrainian|Cantonese|Swahili|Hungarian|Tamil|Croatian|Norwegian|Irish|Urdu|Thai"},
    "country": {"train": "Spain|France|Germany|Japan|Egypt|Brazil|Poland|Sweden|Canada|Kenya|Argentina|Belgium",
     "val": "Norway|Portugal|Austria|Chile|Finland|Ireland|Nepal|Morocco|Bulgaria|Iceland|Uruguay|New Zealand",
     "test": "Italy|Greece|Thailand|Mexico|India|Lebanon|Vietnam|Peru|Ethiopia|Croatia|South Korea|Hungary"},
}
POOLS = {kind: {split: values.split("|") for split, values in pool.items()} for kind, pool in POOLS.items()}

# ---------------------------------------------------------------------------------------------
# Wishes: what a user wants (calls) and the words for it
# ---------------------------------------------------------------------------------------------

@dataclass
class Phrasing:
    """Sentence templates: one set per split, no frame is in two of them; the base's documents draw their own."""
    frames: list                  # "{intent} {cues}." for one wish
    joiners: list                 # between two wishes
    cues: list                    # how a value is placed when not by the tool's own cue: {name}, {v}
    same: list                    # refers to an earlier value of {name}
    usual: list                   # asks for the default of {name}
    again: list                   # a follow-up turn that changes {cues}
    ahead: list = field(default_factory=list)     # small talk: sentences before a request that ask for nothing
    behind: list = field(default_factory=list)    # and behind it
    talk: tuple = (1,)            # share of samples with none, one, two, ... of these around the last request
    own_cue: float = 0.75         # share of values placed by the tool's own cue


def words_of(name):
    """A name as words: search_flights -> search flights, findRoute -> find route."""
    out = ""
    for i, c in enumerate(name):
        out += " " if c in "._-" else " " + c.lower() if c.isupper() and i and name[i - 1].islower() else c.lower()
    return out


def one_of(rng, cue):
    """One of the cues of a parameter, cue|cue; no draw where there is but one."""
    return rng.choice(cue.split("|")) if "|" in cue else cue


@dataclass
class Wish:
    """One call that a user wants, and its words: the intent and one cue a value, with the form each value takes."""
    tool: Tool
    args: dict
    intent: str
    cues: list
    forms: list
    said: dict = field(default_factory=dict)      # parameter -> (form, phrase) of each value that is to be worked out


def make_wish(rng, tool, phrasing, form_weights, strings, today, before=None, mention=0.5, drop=None):
    """Draw one call of `tool` and the words for each of its values.

    form_weights: form -> weight; before: an earlier wish with the same tool, whose values "the same" refers to;
    mention: share of the optional parameters that are given; drop: a required parameter to leave unsaid.
    """
    args, cues, forms, said = {}, [], [], {}
    for p in tool.params:
        name = words_of(p.name)
        if p.name == drop or (not p.required and rng.random() > mention):
            continue
        if not p.required and p.default is not None and rng.random() < 0.12:
            cues.append(rng.choice(phrasing.usual).format(name=name))
            forms.append("default")
            continue
        if before and p.name in before.args and rng.random() < 0.35:
            args[p.name] = before.args[p.name]
            same = rng.choice(phrasing.same).format(name=name)
            cues.append(same if p.kind == "bool" or not p.cue else one_of(rng, p.cue).replace("~", same))
            forms.append("same")
            continue
        choices = forms_of(p.kind)
        unsaid = "unit" if p.kind == "pieces" and "dozen" not in form_weights else ""     # pieces come in dozens
        weights = [form_weights.get(f, 0) * (f != unsaid) for f in choices]
        form = rng.choices(choices, weights)[0] if sum(weights) else "literal"
        args[p.name], phrase = draw(rng, p, form, strings, today)
        forms.append(form)
        if form != "literal":
            said[p.name] = form, phrase
        if p.kind == "bool":
            yes, no = one_of(rng, p.cue).split("/")
            cues.append(yes if args[p.name] else no)
        elif p.cue and rng.random() < phrasing.own_cue:
            cues.append(one_of(rng, p.cue).replace("~", phrase))
        else:
            cues.append(rng.choice(phrasing.cues).format(name=name, v=phrase))
    return Wish(tool, args, rng.choice(tool.intents), cues, forms, said)


def say(rng, wish, phrasing, shuffle=0.5):
    """A wish in words."""
    cues = list(wish.cues)
    if rng.random() < shuffle:
        rng.shuffle(cues)
    separator = ", " if rng.random() < 0.3 else " "
    text = " ".join(rng.choice(phrasing.frames).format(intent=wish.intent, cues=separator.join(cues)).split())
    for mark in ".?!,:;":
        text = text.replace(" " + mark, mark)
    text = text.replace(":.", ".").replace(",.", ".").replace(",?", "?").strip(" ,")
    return text[0].upper() + text[1:]


def merge_wishes(rng, wishes, phrasing, shuffle=0.5):
    """Several wishes in one message."""
    out, *rest = [say(rng, w, phrasing, shuffle) for w in wishes]
    for text in rest:
        if rng.random() < 0.7:
            out = out.rstrip(".?! ") + rng.choice(phrasing.joiners) + text[0].lower() + text[1:]
        else:
            out += " " + text
    return out

# ---------------------------------------------------------------------------------------------
# Text that a model sees
# ---------------------------------------------------------------------------------------------

END, OPEN = "<|end|>", "<|assistant|>"
NO_TOOL = "None of the tools can do that."
ASK = "Please tell me the {name}."
GRADES = ("excellent", "acceptable", "fair", "poor")
GRADE_VALUES = (1, 2 / 3, 1 / 3, 0)    # what each counts as in C, the self-evaluation
GRADE_PROMPT = "Excellent, acceptable, fair or poor?"


def turn(role, text):
    """A message as the embedded model's chat template writes it."""
    return f"<|{role}|>{text}{END}"


def system_text(schemas, today):
    """The compact style: a heading, a signature a line, the date."""
    lines = ["Tools:", *(signature(s) for s in schemas)]
    if today:
        lines.append("Today is %d-%02d-%02d." % tuple(today))
    return "\n".join(lines)


JSON_INSTRUCTIONS = """You are an expert in composing functions. You are given a question and a set of possible functions. \
Based on the question, make one or more function calls to achieve the purpose. If none of the functions can be used, or \
the question lacks a required parameter, say so in a sentence. Otherwise return only the calls, in the format \
[name(param=value, ...), name(param=value, ...)].
Here is a list of functions in JSON format that you can invoke:
"""
DEFAULT_TEMPLATE = ("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
                    "{% if add_generation_prompt %}assistant: {% endif %}")


def system_message(sample, style):
    """The system message: compact signatures for small models, or JSON as in ToolACE's and BFCL's prompts."""
    if style == "compact":
        return system_text(sample.tools, sample.today and [int(x) for x in sample.today.split("-")])
    today = f"\nToday is {sample.today}." if sample.today else ""
    return JSON_INSTRUCTIONS + json.dumps(sample.tools, ensure_ascii=False) + today


def tool_style(tokenizer):
    """A tokenizer says in its own config that its model reads compact signatures; all others get JSON."""
    return tokenizer.init_kwargs.get("tool_style", "json")


def chat_text(tokenizer, messages, prompt=True, today=""):
    """Messages through the chat template; prompt: up to where the assistant's next answer begins; today: YYYY-MM-DD.

    Some templates take no system message, some only alternating user and assistant turns, some drop unknown roles: then messages before
    a user's are merged into it, and a tool's result becomes a user's. A template that writes a date gets the sample's, or a fixed one;
    thinking is turned off. Raises DataError.
    """
    date = day.fromisoformat(today or "2025-01-01").strftime("%d %b %Y")
    if tokenizer.chat_template:
        template = tokenizer.get_chat_template()
    else:
        template = "{{ bos_token }}" * (tokenizer("?")["input_ids"][0] == tokenizer.bos_token_id) + DEFAULT_TEMPLATE
    if "strftime_now" in template:      # some ask for a date_string, as Llama's do, some read the clock
        template = "{%- macro strftime_now(format) -%}{{ date_string }}{%- endmacro -%}" + template
    for roles in ({}, {"tool": "user"}, {"system": "user"}, {"system": "user", "tool": "user"}):
        turns = []
        for m in messages:
            role = roles.get(m["role"], m["role"])
            if roles and turns and turns[-1]["role"] == role:
                turns[-1] = {"role": role, "content": turns[-1]["content"] + "\n\n" + m["content"]}
            else:
                turns.append({"role": role, "content": m["content"]})
        try:
            text = tokenizer.apply_chat_template(turns, chat_template=template, date_string=date, add_generation_prompt=prompt,
                                                 tokenize=False, enable_thinking=False)
        except Exception as error:      # a template may raise what it likes
            problem = error
            continue
        if not (lost := [m for m in messages if not is_said(m["content"], text)]):
            return text + "\n</think>\n\n" * text.rstrip().endswith("<think>")     # a template that always thinks gets an empty thought
        problem = f"it leaves out what the {lost[0]['role']} says"
    raise DataError(f"the model's chat template does not take the roles {', '.join(m['role'] for m in messages)} ({problem})")


def is_said(content, text):
    """Whether a message stands in a text, as it is or as JSON; templates may drop what was thought before an answer."""
    content = content.split("</think>")[-1].strip()
    return content in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def end_of_turn(tokenizer):
    """The text that ends an assistant's turn in the chat template, such as <|im_end|>."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"}]
    ids = tokenizer(behind_answer(chat_text(tokenizer, messages, prompt=False)).strip(), add_special_tokens=False)["input_ids"]
    if ids and ids[0] in tokenizer.added_tokens_decoder:      # a token of its own, which nothing else is written with
        return tokenizer.decode(ids[:1])
    if not tokenizer.eos_token:
        raise DataError("neither the model's chat template nor its tokenizer has a token that ends an answer")
    return tokenizer.eos_token


def behind_answer(text):
    """What a chat template writes after ANSWER, an assistant's message. Raises DataError where it leaves the message out."""
    if "ANSWER" not in text:
        raise DataError("the model's chat template leaves out what the assistant says")
    return text.rsplit("ANSWER", 1)[1]


def prompt_ids(tokenizer, sample):
    """Token ids of the prompt: system message with the tools, then the conversation."""
    first, rest = system_message(sample, tool_style(tokenizer)), sample.messages
    if rest and rest[0]["role"] == "system":      # a sample's own goes behind ours: many templates take one only
        first, rest = first + "\n\n" + rest[0]["content"], rest[1:]
    messages = [{"role": "system", "content": first}, *rest]
    return tokenizer(chat_text(tokenizer, messages, today=sample.today), add_special_tokens=False)["input_ids"]


def target_ids(tokenizer, sample):
    """Token ids of the right answer, with the end of the turn."""
    return tokenizer(sample.target + end_of_turn(tokenizer), add_special_tokens=False)["input_ids"]


def grade_ids(tokenizer):
    """Self-evaluation: ids that follow an answer so far and ask for its grade, and the first id of each of GRADES."""
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "ANSWER"},
                {"role": "user", "content": GRADE_PROMPT}]
    question = behind_answer(chat_text(tokenizer, messages))
    encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    return encode(question), [encode(grade)[0] for grade in GRADES]

# ---------------------------------------------------------------------------------------------
# Samples of the world
# ---------------------------------------------------------------------------------------------

BASE_ONLY = ("twice", "dozen", "after", "spoken")    # forms that no training sample of the world shows

FORM_WEIGHTS = {  # the training set is skewed to the literal, as synthetic data is; the held-out sets are not
    "train": {"literal": 10, "words": 0.5, "half": 0.5, "unit": 0.8, "long": 0.6, "ordinal": 0.4, "relative": 0.6,
              "ampm": 0.8, "paraphrase": 1.2},
    "test": {"literal": 2, "words": 0.7, "half": 0.7, "twice": 1, "dozen": 0.7, "unit": 1.5, "long": 0.7, "ordinal": 0.7,
             "relative": 0.7, "after": 1, "ampm": 1, "spoken": 1.5, "paraphrase": 1.5}}
FORM_WEIGHTS["val"] = FORM_WEIGHTS["test"]

SCENARIOS = {"single": 5, "select": 5, "parallel": 2, "mixed": 2, "chain": 2, "followup": 1.5, "missing": 0.9,
             "irrelevant": 0.9}
SIZES = {  # tools in a toolset, as BFCL has them: one where no tool is to be chosen
    "single": [1], "parallel": [1, 1, 1, 2, 3, 4], "select": [2, 2, 3, 3, 4, 5, 6], "mixed": [2, 2, 3, 3, 4, 5],
    "chain": [2, 2, 3, 3, 4, 5], "followup": [1, 1, 2, 3, 4], "missing": [1, 1, 2, 3, 4], "irrelevant": [1, 1, 2, 3, 4]}

OFTEN = (0.25, 0, 0.25, 0.25, 0.25)     # shares of requests with no sentence of small talk, one, two, ...: what the base fails on
PHRASINGS = {
    "train": Phrasing(
        ["{intent} {cues}.", "I want to {intent} {cues}.", "Please {intent} {cues}.", "Can you {intent} {cues}?",
         "I need to {intent} {cues}.", "Help me {intent} {cues}.", "Let's {intent} {cues}.", "Kindly {intent} {cues}.",
         "Could you please {intent} {cues}?", "I would like to {intent} {cues}.", "Go ahead and {intent} {cues}.",
         "My friend wants to {intent} {cues}.", "Is there a way to {intent} {cues}?", "Hello, {intent} {cues}, thank you.",
         "Next on my list is to {intent} {cues}.", "The task is to {intent} {cues}.", "I was asked to {intent} {cues}.",
         "How do I {intent} {cues}?", "We should {intent} {cues}, okay?", "Since nobody else will, {intent} {cues}.",
         "Dear helper, {intent} {cues}.", "Here is what I want: {intent} {cues}.", "One more thing to do - {intent} {cues}.",
         "If you can, {intent} {cues}, please.", "After lunch we {intent} {cues}.", "{intent} {cues}, and be quick about it."],
        [" and ", " and then ", ". Then ", ". Also, ", ", plus ", ". When that is done, ", ". I also want you to do this: "],
        ["with {name} {v}", "{name} {v}", "use {v} as {name}", "the {name} is {v}", "{name} set to {v}", "its {name} should be {v}",
         "with {v} as the {name}", "my {name} would be {v}", "whose {name} is {v}", "pick {v} as the {name}", "{name} = {v}",
         "{v} as {name}"],
        ["the same {name} as before", "that same {name}", "the {name} I just gave"],
        ["with the usual {name}", "with the standard {name}", "any {name} will do", "I don't care about the {name}"],
        ["Now do it {cues}.", "Do the same, but {cues}.", "Once more, {cues}.", "Again {cues}, please.", "Repeat that {cues}."],
        ["Hi there.", "Good morning!", "Sorry to bother you.", "I have a small request.", "Long time no see.", "Here I am again.",
         "It has been a busy week.", "My phone is almost empty.", "The children are asleep at last.", "I just came home from work.",
         "You were very useful yesterday.", "I am new here.", "This should be easy for you.", "What a lovely day it is.",
         "My sister told me about you.", "I am in a bit of a hurry."],
        ["That would be great.", "I appreciate it.", "Many thanks!", "Talk to you later.", "Have a nice day.", "You are the best.",
         "I have no time to do it myself.", "That is all for now.", "No need to explain.", "I owe you one.", "It means a lot to me.",
         "My hands are full right now.", "Take your time.", "I knew I could count on you.", "See you tomorrow.",
         "This makes my life easier."], talk=(0.88, 0.06, 0.06)),
    "val": Phrasing(
        ["Would it be possible to {intent} {cues}?", "It's time to {intent} {cues}.", "Someone has to {intent} {cues}.",
         "Today's plan: {intent} {cues}."],
        [" as well as ", ". Besides, ", "; next, "],
        ["{name} being {v}", "taking {v} for {name}", "({name}: {v})"],
        ["the previous {name}", "an unchanged {name}"], ["with ordinary {name}", "leaving the {name} alone"],
        ["What about {cues}?", "Change it to be {cues}."],
        ["Good afternoon, my friend.", "I hope that I am not disturbing.", "The bus is late again.", "I could use some help.",
         "My computer has been slow all morning.", "We have guests tonight.", "It is raining outside.", "Nice to meet you."],
        ["Thanks in advance.", "I will always be grateful.", "Bye for now.", "My wife will be happy.", "Sorry for the trouble.",
         "I rely on it.", "That will save me an hour.", "Enjoy the evening."], talk=OFTEN),
    "test": Phrasing(
        ["I'd be grateful if you could {intent} {cues}.", "My boss told me to {intent} {cues}.",
         "Any chance you {intent} {cues}?", "Quick favor: {intent} {cues}.", "Before I forget, {intent} {cues}.",
         "Hey assistant, {intent} {cues}, cheers."],
        [". On top of that, ", ". Afterwards, ", ", followed by this: "],
        ["where {name} equals {v}", "having {v} as its {name}", "and make the {name} {v}"],
        ["the {name} mentioned earlier", "an equal {name}"], ["whatever {name} is typical", "no particular {name}"],
        ["Actually, make that {cues}.", "And one more {cues}."],
        ["Greetings from the train.", "Everything fine on your side, I hope.", "I did not sleep much last night.",
         "Our meeting just ended.", "These things are not my strength.", "My old assistant was useless.", "The coffee here is terrible.",
         "You must be tired of my questions.", "Everyone says that you are clever.", "I am writing this on the way home.",
         "Good to have you back.", "Let me begin with a compliment."],
        ["A thousand thanks.", "What a relief for us all.", "All the best to you.", "I trust you with this.",
         "My neighbor will not believe it.", "Do not worry if it takes a while.", "There is a lot to do here.",
         "We look forward to your answer.", "Then I can finally relax.", "We speak again soon.", "I am sorry if that is too much.",
         "You never let me down."], talk=OFTEN)}

DAYS = [(year, month, d) for year in (2025, 2026, 2027) for month in range(1, 13) for d in range(1, 23)]


@dataclass
class Sample:
    """A toolset, a conversation up to the point where the assistant must answer, and the right answer."""
    id: str
    tools: list                   # schemas in BFCL's layout
    messages: list                # [{"role": user | assistant | tool, "content": text}, ...]
    target: str                   # calls in call syntax, or text
    level: str = ""               # easy, medium, hard
    scenario: str = ""
    forms: list = field(default_factory=list)     # of the values that the query asks for
    today: str = ""               # the date that relative dates count from
    setup: list = field(default_factory=list)     # calls that made the ids which the query mentions
    talk: int = 0                 # sentences around the last request that ask for nothing

    @functools.cached_property
    def calls(self):
        """The target's calls; None where the right answer is text."""
        return parse_calls(self.target) if self.target.startswith("[") else None


LEVELS = ("easy", "medium", "hard")


def level_of(tools, calls):
    """easy, medium or hard by the paper's rule (section "Stage 1"): |T| tools, L characters of JSON, |Y| calls."""
    size, length, n_calls = len(tools), len(json.dumps(tools, ensure_ascii=False)), len(calls or ())
    if size >= 4 or length > 2000 or n_calls >= 4:
        return "hard"
    return "easy" if size <= 1 and length < 1000 and n_calls <= 1 else "medium"


@functools.cache
def returned_ids():
    """Which tool makes which id: tool name -> key of its result. Found by running every tool once."""
    found, rng = {}, random.Random(0)
    for _ in range(3):        # a tool that needs an id works once the id's maker is known
        for t in TOOLS.values():
            world = World()
            try:
                draw_string = functools.partial(world_string, rng, world, [], t.split, t.domain, found)
                args = {p.name: draw(rng, p, "literal", draw_string, DAYS[0])[0] for p in t.params}
                result = t.run(world, **args)
            except (ToolError, KeyError):
                continue
            taken = {p.name for p in t.params}
            found.update({t.name: key for key in result if key.endswith("_id") and key not in taken}
                         if isinstance(result, dict) else {})
    return found


def world_string(rng, world, setup, split, domain, makers, kind):
    """A string value of the world. An id is made by a call that returns one, which is appended to `setup`."""
    if not kind.startswith("id("):
        return rng.choice(POOLS[kind][split])
    key = kind[3:-1] + "_id"
    known = [name for name, made in makers.items() if made == key and (TOOLS[name].domain, TOOLS[name].split) == (domain, split)]
    if not known:
        raise KeyError(key)
    maker = TOOLS[rng.choice(known)]
    inner = functools.partial(world_string, rng, world, setup, split, domain, makers)
    call = Call(maker.name, {p.name: draw(rng, p, "literal", inner, DAYS[0])[0] for p in maker.params})
    setup.append(format_calls([call]))
    return maker.run(world, **call.args)[key]


def make_sample(rng, split, index):
    """One sample of the world, or None where the draw leads nowhere (a contradiction, a repeated call)."""
    scenario = rng.choices(list(SCENARIOS), SCENARIOS.values())[0]
    split_tools = [t for t in TOOLS.values() if t.split == split]
    phrasing, domain, today = PHRASINGS[split], rng.choice(split_tools).domain, rng.choice(DAYS)
    here = [t for t in split_tools if t.domain == domain]
    world, setup, makers = World(), [], returned_ids()
    strings = functools.partial(world_string, rng, world, setup, split, domain, makers)
    wish = lambda tool, **kw: make_wish(rng, tool, phrasing, FORM_WEIGHTS[split], strings, today, **kw)

    tool, messages, chosen = rng.choice(here), [], None
    if scenario == "chain":
        links = [(a, b, p) for a in here for b in here for p in b.params if a is not b and makers.get(a.name) == p.name]
        if not links:
            return None
        source, sink, link = rng.choice(links)
        wishes, chosen = [wish(source), wish(sink, drop=link.name)], [source, sink]
        query, calls = merge_wishes(rng, wishes, phrasing), [Call(source.name, wishes[0].args)]
        messages.append({"role": "user", "content": query})
        if rng.random() < 0.7:
            result = source.run(world, **wishes[0].args)
            messages += [{"role": "assistant", "content": format_calls(calls)},
                         {"role": "tool", "content": json.dumps(result, ensure_ascii=False)}]
            setup.append(format_calls(calls))
            args = {p.name: {**wishes[1].args, link.name: result[link.name]}.get(p.name) for p in sink.params
                    if p.name in wishes[1].args or p.name == link.name}
            calls = [Call(sink.name, args)]
    elif scenario == "missing":
        needed = [p for p in tool.params if p.required and p.kind != "bool"]
        if not needed:
            return None
        p = rng.choice(needed)
        wishes, chosen = [wish(tool, drop=p.name)], [tool]
        messages.append({"role": "user", "content": say(rng, wishes[0], phrasing)})
        calls, target = None, ASK.format(name=words_of(p.name))
    elif scenario == "irrelevant":
        stranger = rng.choice([t for t in split_tools if t.domain != domain])
        strings = functools.partial(world_string, rng, world, setup, split, stranger.domain, makers)     # for `wish` from here on
        wishes, chosen = [wish(stranger)], [tool]
        messages.append({"role": "user", "content": say(rng, wishes[0], phrasing)})
        calls, target, setup = None, NO_TOOL, []
        split_tools = [t for t in split_tools if t.domain != stranger.domain]
    else:
        more = rng.choice([1, 1, 1, 1, 2, 3]) if scenario in ("parallel", "mixed") else 0
        mention = 0.3 if more else 0.5     # of several calls each says less
        wishes = [wish(tool, mention=mention)]
        if scenario == "parallel":
            for _ in range(more):
                wishes.append(wish(tool, before=wishes[-1], mention=mention))
        elif scenario == "mixed":
            others = [t for t in here if t is not tool]
            wishes += [wish(t, mention=mention) for t in rng.sample(others, min(more, len(others)))]
        chosen = list({w.tool.name: w.tool for w in wishes}.values())
        calls = [Call(w.tool.name, w.args) for w in wishes]
        messages.append({"role": "user", "content": merge_wishes(rng, wishes, phrasing)})
        if scenario == "followup":
            if not wishes[0].args:
                return None
            p = rng.choice([p for p in tool.params if p.name in wishes[0].args])
            change = wish(Tool(tool.name, "", [Param(p.name, p.kind, "", p.cue)], tool.intents))
            messages += [{"role": "assistant", "content": format_calls(calls)},
                         {"role": "tool", "content": json.dumps(tool.run(world, **wishes[0].args), ensure_ascii=False)},
                         {"role": "user", "content": rng.choice(phrasing.again).format(cues=" ".join(change.cues))}]
            setup.append(format_calls(calls))
            calls, wishes = [Call(tool.name, {**wishes[0].args, **change.args})], [wishes[0], change]

    if calls is not None:
        target = format_calls(calls)
        if len({format_calls([c]) for c in calls}) < len(calls) or parse_calls(target) != calls:
            return None
        for call in calls:
            TOOLS[call.name].run(world, **call.args)      # a call that the world refuses raises ToolError
    n_tools = rng.choice(SIZES[scenario])
    near, far = [t for t in here if t not in chosen], [t for t in split_tools if t.domain != domain]
    others = rng.sample(near, min(len(near), rng.randint(0, 4))) + rng.sample(far, min(len(far), 6))
    tools = chosen + others[:max(0, n_tools - len(chosen))]
    rng.shuffle(tools)
    schemas = [t.schema() for t in tools]
    return Sample(f"{split}-{index}", schemas, messages, target, level_of(schemas, calls), scenario,
                  sorted({f for w in wishes for f in w.forms}), "%d-%02d-%02d" % today, setup)


def last_query(sample, change):
    """The sample with the text of its last user's message changed."""
    last = max(i for i, m in enumerate(sample.messages) if m["role"] == "user")
    messages = [{**m, "content": change(m["content"])} if i == last else m for i, m in enumerate(sample.messages)]
    return replace(sample, messages=messages)


def small_talk(rng, sample, phrasing, shares):
    """The sample with sentences around its last request that ask for nothing; shares: of samples with none, one, two, ..."""
    talk = rng.choices(range(len(shares)), shares)[0]
    ahead = rng.randint(max(0, talk - 2), min(talk, 2))      # no more than two on a side
    before, behind = rng.sample(phrasing.ahead, ahead), rng.sample(phrasing.behind, talk - ahead)
    return replace(last_query(sample, lambda text: " ".join([*before, text, *behind])), talk=talk)


def make_samples(n, split, seed=0, talk=True):
    """n different samples of a split. Near-duplicates (alike but for digits, case and small talk) are dropped.

    talk: small talk around the last request. True: with the split's own shares; a tuple: with these (see `small_talk`); False:
    none. Apart from it the samples are the same.
    """
    shares = PHRASINGS[split].talk if talk is True else talk
    rng, samples, seen = random.Random(f"{split} {seed}"), [], set()
    while len(samples) < n:
        try:
            sample = make_sample(rng, split, len(samples))
        except ToolError:
            continue
        if sample is None:
            continue
        key = re.sub(r"\d", "0", " ".join(m["content"] for m in sample.messages).lower())
        if key not in seen:
            seen.add(key)
            samples.append(small_talk(random.Random(f"{split} {seed} {sample.id}"), sample, PHRASINGS[split], shares) if talk else sample)
    return samples

# ---------------------------------------------------------------------------------------------
# Files: our JSON lines, ToolACE's layout and OpenAI's
# ---------------------------------------------------------------------------------------------

class DataError(ValueError):
    """A sample that cannot be used; its text says where it stands and what is wrong."""


class AnswerError(ValueError):
    """An answer in somebody else's data that starts like calls and is not written in call syntax."""


def from_json(value):
    """What a text says in JSON, as many published files have their tools; anything else, and an empty text, as it is."""
    return json.loads(value) if isinstance(value, str) and value.strip() else value


def normalize_tool(tool):
    """A schema in BFCL's, OpenAI's or ToolACE's layout -> BFCL's. Raises ValueError if it has no name, or a parameter has no schema."""
    tool = tool.get("function", tool) if isinstance(tool, dict) else {}
    if not isinstance(tool.get("name"), str):
        raise ValueError("a tool without a name")
    parameters = from_json(tool.get("parameters")) or {}
    definitions = {**(parameters.get("definitions") or {}), **(parameters.get("$defs") or {})}
    if "properties" not in parameters:     # a flat table of parameters; nothing says which are required
        parameters = {"properties": {k: v for k, v in parameters.items() if k not in ("$defs", "definitions")
                                     and (isinstance(v, dict) or k not in SCHEMA_WORDS)}}
    properties = {key: plain_type(p, definitions) for key, p in (parameters["properties"] or {}).items() if p is not None}
    required = parameters.get("required") or []
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise ValueError(f"required, of the tool {tool['name']!r}, is a list of parameters (got {required!r})")
    return {"name": tool["name"], "description": tool.get("description") or "",
            "parameters": {"type": "dict", "properties": properties, "required": required}}


SCHEMA_WORDS = ("type", "required", "title", "description", "additionalProperties", "strict", "$schema")     # beside a table of parameters


def normalize_tools(tools):
    """Tools normalized; of several with one name, as in some data sets, the first."""
    tools = from_json(tools)
    if not isinstance(tools, list):
        raise ValueError(f"tools is a list of schemas (got {tools!r:.80})")
    tools = [normalize_tool(tool) for tool in tools]
    return [tool for i, tool in enumerate(tools) if tool["name"] not in (other["name"] for other in tools[:i])]


PLAIN_TYPES = {"number": "float", "object": "dict", "str": "string", "int": "integer", "bool": "boolean", "list": "array",
               "tuple": "tuple", "double": "float"}     # JSON schema's and Python's names -> BFCL's


def plain_type(schema, definitions=None, depth=0):
    """A property's schema with one type, in BFCL's names: of several, as JSON schema allows, the first that is not null.
    Nested schemas (an array's items, an object's properties) likewise. Python's types, as in ToolACE ("List[int], optional"),
    are translated, a $ref is replaced by its definition, anyOf by its first option that is not null. Raises ValueError."""
    if depth > MAX_DEPTH:
        raise ValueError("a schema that refers to itself without end")
    if not isinstance(schema, dict):
        raise ValueError(f"a parameter's schema is an object with a type (got {schema!r:.80})")
    plain = functools.partial(plain_type, definitions=definitions, depth=depth + 1)
    if isinstance(name := schema.get("$ref"), str):
        if name.split("/")[-1] not in (definitions or {}):
            raise ValueError(f"the schema {name} is not among the tool's definitions")
        return plain({**definitions[name.split("/")[-1]], **{key: value for key, value in schema.items() if key != "$ref"}})
    for word in ("allOf", "anyOf", "oneOf"):
        options = [one for one in schema.get(word) or () if isinstance(one, dict) and one.get("type") != "null"]
        if options:
            return plain({**options[0], **{key: value for key, value in schema.items() if key != word}})
    kind = schema.get("type", "any")
    if not isinstance(kind, str):
        kinds = [k for k in kind if k != "null"] if isinstance(kind, list) else []
        kind = kinds[0] if kinds and isinstance(kinds[0], str) else "any"
    kind = re.sub(r",\s*optional$", "", kind.strip(), flags=re.I)
    if wrapped := re.fullmatch(r"Optional\[(.*)\]", kind):
        kind = wrapped[1]
    outer, within = re.fullmatch(r"(.*?)(?:\[(.+)\])?", kind, re.S).groups()
    kind = PLAIN_TYPES.get(outer.lower(), outer.lower() if outer.lower() in PLAIN_TYPES.values() else kind)
    schema = {**schema, "type": kind} if "type" in schema else dict(schema)
    if kind == "array" and within and "items" not in schema:
        schema["items"] = {"type": within}
    if "items" in schema:
        schema["items"] = plain(schema["items"]) if isinstance(schema["items"], dict) else {}
    if isinstance(schema.get("properties"), dict):
        schema["properties"] = {key: plain(p) for key, p in schema["properties"].items() if isinstance(p, dict)}
    return schema


def check_sample(sample):
    """Raises ValueError if the sample has no tools, a broken message or field, or a target that its tools do not allow."""
    if not sample.tools:
        raise ValueError("a sample without tools")
    if sample.level not in ("", *LEVELS):
        raise ValueError(f"level is easy, medium or hard, or left out (got {sample.level!r})")
    if sample.today:
        try:
            if day.fromisoformat(sample.today).isoformat() != sample.today:
                raise ValueError
        except (TypeError, ValueError):
            raise ValueError(f"today is a date such as 2026-03-14, or left out (got {sample.today!r})") from None
    for m in sample.messages:
        if not isinstance(m, dict) or not isinstance(m.get("role"), str) or not isinstance(m.get("content"), str):
            raise ValueError("a message has to be an object with a role and a content, both text")
    if not sample.messages or sample.messages[-1]["role"] not in ("user", "tool"):
        raise ValueError("the conversation must end with a user's or a tool's message")
    if not sample.target.strip():
        raise ValueError("the target is empty")
    if not isinstance(sample.id, str) or not isinstance(sample.scenario, str):
        raise ValueError("id and scenario are text")
    try:
        json.dumps(asdict(sample), ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("half a character, such as \\ud83d, which no UTF-8 text has") from None
    tools = {t["name"]: t["parameters"] for t in sample.tools}
    for name, args in sample.calls or ():
        if name not in tools:
            raise ValueError(f"the target calls {name!r}, which is not among the tools")
        for key in args:
            if key not in tools[name]["properties"]:
                raise ValueError(f"the target gives {name!r} a parameter {key!r} that it does not have")
        for key in tools[name]["required"]:
            if key not in args:
                raise ValueError(f"the target leaves out {key!r}, which {name!r} requires")


ROLES = {"human": "user", "gpt": "assistant", "observation": "tool", "function": "tool", "developer": "system"}     # others' -> ours


def plain_message(message):
    """A message as {role, content}: OpenAI's calls, which stand beside the text, in call syntax. Raises ValueError."""
    role, content, calls = (message.get(key) for key in ("role", "content", "tool_calls")) if isinstance(message, dict) else [None] * 3
    if calls:
        functions = [call["function"] for call in calls]
        content = format_calls([Call(function["name"], from_json(function.get("arguments")) or {}) for function in functions])
    elif isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise ValueError("a message has a part that is not text")
        content = "".join(part["text"] for part in content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise ValueError("a message has to be an object with a role and a content, both text (or tool_calls, as OpenAI's)")
    role = ROLES.get(role, role)
    if role not in ("system", "user", "assistant", "tool"):
        raise ValueError(f"a message is the system's, a user's, the assistant's or a tool's (got {role!r})")
    return {"role": role, "content": content}


def each_answer(messages, name, weights=(), **fields):
    """A sample for each answer of the assistant to a user or a tool. Raises ValueError where there is none.

    Messages of the assistant that follow each other are one answer: the calls, if some of them call tools, else all the text.
    weights: of each message, as OpenAI's layout has them; an answer with a 0 is not learned, but remembered by those behind it.
    """
    turns, learned = [], []
    for m, weight in itertools.zip_longest(messages, weights):
        if turns and m["role"] == turns[-1]["role"] == "assistant":
            said, weight = [turns.pop()["content"], m["content"]], weight if learned.pop() else 0
            calls = [text for text in said if text.lstrip().startswith("[")] or ["\n".join(said)]
            if len(calls) > 1:
                calls = [format_calls([call for text in calls for call in parse_calls(text)])]
            m = {"role": "assistant", "content": calls[0]}
        turns.append(m)
        learned.append(weight != 0)
    at = [i for i, m in enumerate(turns) if i and learned[i] and m["role"] == "assistant" and turns[i - 1]["role"] in ("user", "tool")]
    if not at:
        raise ValueError("no answer of the assistant")
    return [Sample(f"{name}-{n}", messages=turns[:i], target=turns[i]["content"].strip(), **fields) for n, i in enumerate(at)]


OTHER_CALLS = r"<tool_call>|<\|python_tag\|>|\[TOOL_CALLS\]"      # call formats that models were taught elsewhere


def check_answer(sample):
    """Raises CallSyntaxError for a target in broken call syntax, or in another one: that would count as text, and be right."""
    if sample.calls is None:
        try:
            called = parse_calls(f"[{sample.target}]")      # only the brackets are missing
        except CallSyntaxError:
            called = re.match(rf'{OTHER_CALLS}|\{{\s*"name"\s*:', sample.target)
        if called:
            raise CallSyntaxError("no [ in front of a call, as in [name(parameter=value)],", 0)


def from_record(record, name):
    """Samples of one record: one in our layout; in ToolACE's (whose instructions around the tools are replaced by ours) and in OpenAI's
    fine-tuning layout (tools, messages), one for each answer of the assistant. Raises ValueError or AnswerError, a kind of it."""
    if not isinstance(record, dict):
        raise ValueError("not an object")
    if "conversations" in record:
        system = record.get("system") or ""
        start = re.search(r"\[\s*\{", system)
        if not start:
            raise ValueError("no list of tools in the system text")
        tools, end = json.JSONDecoder().raw_decode(system[start.start():])
        # "The current time is ...", in front of the tools, or else behind them
        dates = re.findall(r"\b\d{4}-\d\d-\d\d\b", system[:start.start()] + " " + system[start.start() + end:])
        messages = [plain_message({"role": one.get("from"), "content": one.get("value")}) for one in record["conversations"]]
        samples = each_answer(messages, name, tools=normalize_tools(tools), today=dates[0] if dates else "")
    elif {"tools", "messages"} <= set(record):
        known = {key: record[key] for key in Sample.__dataclass_fields__ if record.get(key) is not None}     # null: as if it were not there
        known = {**known, "tools": normalize_tools(record["tools"]), "messages": list(map(plain_message, record["messages"]))}
        known["id"] = str(number) if isinstance(number := known.get("id", name), int) else number
        if "target" not in known:
            weights = [one.get("weight") for one in record["messages"]]
            samples = each_answer(known.pop("messages"), known.pop("id"), weights, **known)
        elif isinstance(known["target"], str):
            samples = [Sample(**{**known, "target": known["target"].strip()})]
        else:
            raise ValueError(f"the target is text: calls as [name(parameter=value)], or words (got {known['target']!r})")
    else:
        raise ValueError("neither our layout (tools, messages, target: README has an example) nor ToolACE's (system, conversations) nor "
                         "OpenAI's (tools, messages)")
    for sample in samples:
        try:
            check_answer(sample)
        except CallSyntaxError as error:
            raise (ValueError if "target" in record else AnswerError)(f"the answer is not in call syntax: {error}")
        check_sample(sample)
        sample.level = sample.level or level_of(sample.tools, sample.calls)
    return samples


def read_samples(path, skip_bad=False):
    """Samples of a JSON or JSON lines file in our layout, ToolACE's or OpenAI's.

    A record that cannot be used raises DataError with file and line (or number in the list); with skip_bad it is
    counted and left out. Published data has a few answers that are not in call syntax (7 of 322 in a sample of
    ToolACE's): these are always left out and counted. Returns (samples, number left out). Raises DataError for a
    missing or empty file too.
    """
    try:
        with open(path, encoding="utf-8-sig") as f:
            text = f.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error.strerror if isinstance(error, OSError) else 'not UTF-8 text'})")
    records = []
    if text.lstrip().startswith("["):
        try:
            records = [(f"{path}: record {i}", json.dumps(r)) for i, r in enumerate(json.loads(text), 1)]
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg})")
        except RecursionError:
            raise DataError(f"{path}: lists within lists without end")
    else:
        records = [(f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    samples, skipped = [], 0
    for where, line in records:
        try:
            samples += from_record(json.loads(line), f"{len(samples)}")
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            if not (skip_bad or isinstance(error, AnswerError)):
                raise DataError(f"{where}: {error} (--skip_bad leaves such records out)")
            skipped += 1
    if not samples:
        raise DataError(f"{path}: no usable sample")
    return samples, skipped


def write_samples(samples, path):
    """One JSON object a line."""
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(json.dumps(asdict(s), ensure_ascii=False) + "\n" for s in samples)


def check_folder(path):
    """Raises ValueError if `path` (--out) cannot be written as a file: before the work, not after it."""
    if path and not os.path.isdir(os.path.dirname(path) or "."):
        raise ValueError(f"--out {path}: there is no folder {os.path.dirname(path)}")
    if path and os.path.isdir(path):
        raise ValueError(f"--out {path} is a folder: give a file")
    if path:
        new = not os.path.exists(path)
        try:
            open(path, "ab").close()
        except OSError as error:
            raise ValueError(f"--out {path}: {error.strerror}") from None
        if new:
            os.remove(path)


def read_flags(argv, *configs, rest=False):
    """A command's flags -> one dataclass for each of `configs`: every field is a flag, its comment what --help says of it.

    rest: what is no flag of these is returned beside them, as strings, else ValueError is raised.
    """
    from transformers import HfArgumentParser    # the only import of it: reading and making samples need none
    parser, comments = HfArgumentParser(configs, allow_abbrev=False), {}
    for part in (part for config in configs for part in reversed(config.__mro__[:-1])):
        for name, first, more in re.findall(r"^    (\w+): .*?  # (.*)((?:\n +# .*)*)", inspect.getsource(part), re.M):
            comments[name] = (first + re.sub(r"\n +#", "", more)).replace("%", "%%")
    for action in parser._actions:
        action.help = comments.get(action.dest, action.help)
    *found, left = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if left and not rest:
        near = difflib.get_close_matches(left[0].split("=")[0].lstrip("-"), comments, 1)
        raise ValueError(f"there is no setting {left[0]}" + (f", but --{near[0]}" if near else "") + " (--help lists them)")
    for name, value in (pair for part in found for pair in vars(part).items() if isinstance(pair[1], (int, float))):
        if not abs(value) < 2 ** 40:      # nan, too
            raise ValueError(f"--{name} has to be a number below 2 ** 40 (got {value})")
    return (*found, left) if rest else found


@dataclass
class SynthConfig:
    split: str = "train"     # train, val or test: samples of the world; base: documents of the embedded base
    n: int = 3000            # samples
    seed: int = 0            # the same seed gives the same bytes
    talk: bool = True        # small talk around requests: seldom in training, often in the held-out sets
    out: str = ""            # JSON lines file to write; none: nothing is written
    show: int = 0            # samples to print as the embedded model sees them


def main(argv=None):
    cfg, = read_flags(argv, SynthConfig)
    if cfg.split == "base":
        from base.documents import training_document    # made of what this file defines
        if cfg.out:
            raise ValueError("--split base has no samples to write to --out: it shows documents")
        for i in range(cfg.show):
            for text, parent, learned in training_document(random.Random(f"{cfg.seed}-{i}")):
                print(f"{'learn' if learned else '     '} {parent:3d}  {text}")
        return
    if cfg.split not in PHRASINGS or cfg.n < 1:
        raise ValueError(f"--split is train, val, test or base, and --n at least 1 (got {cfg.split}, {cfg.n})")
    check_folder(cfg.out)
    samples = make_samples(max(cfg.n if cfg.out else 0, cfg.show), cfg.split, cfg.seed, cfg.talk)
    for sample in samples[:cfg.show]:
        print(f"--- {sample.id}  {sample.level}  {sample.scenario}  {' '.join(sample.forms)}")
        print(turn("system", system_message(sample, "compact")))
        for m in sample.messages:
            print(turn(m["role"], m["content"]))
        print(OPEN + sample.target)
    if cfg.out:
        write_samples(samples[:cfg.n], cfg.out)
        counts = {level: sum(s.level == level for s in samples[:cfg.n]) for level in LEVELS}
        print(f"{cfg.out}: {cfg.n} samples {counts}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"synth.py: {error}")

"""How often a model begins a call with the right tool, by how many there are and by what the request says of its name.

    python -m docs.choosing --model base

The same requests among 1, 2, 4 and 6 tools of the simulated world's validation split: the rest of a call does not get
harder, the choice does. Two tables of docs/base.md.
"""

import random
from dataclasses import dataclass, replace

import synth
from eval import evaluate
from sft import load_model, run


@dataclass
class ChoosingConfig:
    model: str = "base"      # path or hub name of a causal language model
    n: int = 150             # requests for one call
    seed: int = 78           # of the requests
    device: str = "auto"


def among(sample, size, rng):
    """The sample with `size` tools: the one that its target calls, and others of the validation split, in any order."""
    right = sample.calls[0].name
    others = [t.schema() for t in synth.TOOLS.values() if t.split == "val" and t.name != right]
    tools = [t for t in sample.tools if t["name"] == right] + rng.sample(others, size - 1)
    return replace(sample, tools=rng.sample(tools, size))


def said(sample):
    """Is the first word of the right tool's name in the request, and if not, does the name have a dot?"""
    name = sample.calls[0].name
    if synth.words_of(name).split()[0] in sample.messages[-1]["content"].lower():
        return "first word said"
    return "not said, dot" if "." in name else "not said, no dot"


def percent(flags):
    return f"{100 * sum(flags) / len(flags):.0f}% of {len(flags)}" if flags else "none"


def main(argv=None):
    cfg, = synth.read_flags(argv, ChoosingConfig)
    if cfg.n < 1:
        raise ValueError(f"--n has to be at least 1 (got {cfg.n})")
    model, tokenizer = load_model(cfg.model, cfg.device)
    drawn = synth.make_samples(6 * cfg.n, "val", cfg.seed, talk=False)
    requests = [s for s in drawn if s.scenario in ("single", "select")][:cfg.n]
    rng, columns = random.Random(0), ("first word said", "not said, no dot", "not said, dot")
    print("| tools | exact | right tool |", " | ".join(columns), "|")
    print("| --- " * (3 + len(columns)) + "|")
    for size in (1, 2, 4, 6):
        samples = [among(sample, size, rng) for sample in requests]
        records = evaluate(model, tokenizer, samples)
        right = [r["response"].startswith(f"[{s.calls[0].name}(") for r, s in zip(records, samples)]
        parts = [[ok for ok, s in zip(right, samples) if said(s) == column] for column in columns]
        print(f"| {size} |", " | ".join(map(percent, [[r["correct"] for r in records], right, *parts])), "|")


if __name__ == "__main__":
    run(main)

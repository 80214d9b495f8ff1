"""The tables and figures of docs/results.md, from the lines of results.jsonl and nothing else.

    python -m docs.experiments --draw --results docs

A line is a run: arm, seed, settings, tokens, what loop.score reported of each model, and for each model a string of 0s and 1s, one
for each held-out sample (`correct`; in the same order the samples' `levels` and `requests`, letters of REQUESTS). Lines with a `try`
are of the validation split.
"""

import math
import re

import numpy as np

import loop
from eval import BFCL_CATEGORIES, ERROR_KINDS

KINDS = ("trained", "decoded", "scored")
# Kinds of request, by their letter in a line; a capital where there is small talk around it
REQUESTS = {"one call": "c", "a later turn": "t", "several calls": "s", "no tool fits": "n", "a value is missing": "m"}
SCENARIOS = {"single": "c", "select": "c", "chain": "t", "followup": "t", "parallel": "s", "mixed": "s", "irrelevant": "n", "missing": "m"}


def cost(tokens):
    """Forward passes of one token, where a prefix that responses share is decoded for each anew: backward costs two more, so a trained token
    counts three; decoded and scored one."""
    return 3 * tokens["trained"] + tokens["decoded"] + tokens["scored"]


def best_try(lines, method):
    """Number of the method's try to take: the first that is within one standard error of the best on the validation split.

    The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984): of settings that a validation set does
    not tell apart, the simplest, here the one that TRIES names first. The error is that of the paired difference. Without tries: 0.
    """
    tries = {line["try"]: np.array([float(c) for c in line["correct"][line["models"][-1]["model"]]])
             for line in lines if line["arm"] == method and line["try"] is not None}
    best = max(tries.values(), key=np.mean, default=None)
    behind = {number: best - one for number, one in tries.items()}
    return min((number for number, gap in behind.items() if gap.mean() <= gap.std() / math.sqrt(len(gap))), default=0)


def of(lines, arm):
    return [line for line in lines if line["arm"] == arm and line["try"] is None]


def rows_of(lines, arm, model):
    """What loop.score said of a model, one row a seed."""
    return [row for line in of(lines, arm) for row in line["models"] if row["model"] == model]


def right(lines, arm, model=None, level="", requests=""):
    """{seed: (cases,) 0 or 1} of an arm's last model, or of the one named. level: e, m or h; requests: letters (REQUESTS); none: all."""
    found = {}
    for line in of(lines, arm):
        text = line["correct"].get(model or list(line["correct"])[-1], "")
        found[line["seed"]] = np.array([float(c) for c, its, kind in zip(text, line.get("levels", text), line.get("requests", text))
                                        if level in ("", its) and (not requests or kind in requests)])
    return {seed: array for seed, array in found.items() if len(array)}


def difference(before, after, draws=4000, own=False):
    """(mean, low, high): after - before, a bootstrap 95% interval over seeds and over cases, paired in both.

    before, after: {seed: (cases,) numbers}. All seeds share the test set, so a bootstrap draw takes the same cases from every
    seed in it; own: each seed has cases of its own.
    """
    seeds = sorted(before.keys() & after.keys())
    if not seeds:
        return math.nan, math.nan, math.nan
    gaps, rng = [after[seed] - before[seed] for seed in seeds], np.random.default_rng(0)
    shares = lambda n, draws: rng.multinomial(n, np.full(n, 1 / n), draws) / n      # of n things, taken n times
    if own:
        drawn = np.zeros(draws)
        for _ in seeds:      # draw a seed, then cases of that seed
            which = rng.integers(len(seeds), size=draws)
            for n, gap in enumerate(gaps):
                drawn[which == n] += shares(len(gap), (which == n).sum()) @ gap / len(seeds)
    else:
        drawn = (shares(len(seeds), draws) @ np.stack(gaps) * shares(len(gaps[0]), draws)).sum(1)
    return np.mean([gap.mean() for gap in gaps]), *np.quantile(drawn, [0.025, 0.975])


def versus(before, after, own=False, scale=100, form="+.1f"):
    """`difference` as a cell, by default of shares, in points. One seed has no interval, except where each seed has cases of its own:
    over cases alone it would be too narrow."""
    points, low, high = (scale * x for x in difference(before, after, own=own))
    bounds = f" [{low:{form}}, {high:{form}}]" if own or len(before.keys() & after.keys()) > 1 else ""
    return "" if math.isnan(points) else f"{points:{form}}{bounds}"


def spread(values, form=".1f"):
    """Mean and standard deviation over seeds."""
    values = list(values)
    return f"{np.mean(values):{form}}" + (f" ± {np.std(values, ddof=1):{form}}" if len(values) > 1 else "") if values else ""


def percent(found):
    return [100 * array.mean() for array in found.values()]


def scores(lines, *model):
    """Two cells: overall and hard accuracy of (arm, model)."""
    return [spread(percent(right(lines, *model, level=level))) for level in ("", "h")]


def gaps(lines, before, after):
    """Two cells: what one (arm, model) is over another, overall and hard."""
    return [versus(right(lines, *before, level=level), right(lines, *after, level=level)) for level in ("", "h")]


def table(head, rows):
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])


def figure(folder, name, curves=(), bars=(), x=""):
    """curves: name -> (places, {seed: cases} of each); bars: name -> (labels, values), stacked. Returns markdown."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    fig, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    for label, (at, found) in dict(curves).items():
        values = [percent(one) or [math.nan] for one in found]
        axes.errorbar(at, [np.mean(v) for v in values], [np.std(v, ddof=1) if len(v) > 1 else 0 for v in values],
                      marker="o", capsize=3, label=label)
    left = 0
    for label, (labels, values) in dict(bars).items():
        axes.barh(labels, values, left=left, label=label)
        left = left + np.array(values)
    if bars:
        axes.invert_yaxis()
    axes.set(xlabel=x, ylabel="" if bars else "% right")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    fig.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
    pyplot.close(fig)
    return f"\n\n![{name}]({name}.png)"


def both_levels(lines, at, models):
    """Curves of overall and hard accuracy for `figure`."""
    return {said: (at, [right(lines, *model, level=level) for model in models]) for said, level in (("overall", ""), ("hard", "h"))}


def names(lines, number):
    """The arms of an experiment that make models, in the order of their lines, without the loop."""
    return list(dict.fromkeys(line["arm"] for line in lines if number in line["experiments"].split() and line["try"] is None
                              and line["arm"] != "loop" and line["models"]))


def last_round(lines):
    return [row["model"] for line in of(lines, "loop") for row in line["models"]][-1]


SIZES = [*((f"1/{d} of the data", "sft") for d in (16, 8, 4, 2)), ("loop", "warm-up")]


def of_its_seeds(lines, arm):
    """The lines of the seeds that an arm was run with, so that all rows of a table are of the same seeds."""
    return [line for line in lines if line["seed"] in {one["seed"] for one in of(lines, arm)}]


def gains_decay(lines, folder):
    lines = of_its_seeds(lines, SIZES[0][0])
    rows = [[f"1/{2 ** (4 - i)}", spread((row["tokens"]["trained"] / 1e6 for row in rows_of(lines, *model)), ".3f"), *scores(lines, *model),
             *(gaps(lines, SIZES[i - 1], model) if i else ("", ""))] for i, model in enumerate(SIZES)]
    return table(["share of the data", "trained, million tokens", "overall", "hard", "doubling, overall", "doubling, hard"], rows) + \
        figure(folder, "gains", both_levels(lines, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1], SIZES), x="share of the training set")


def deficiency(lines, folder):
    models = {arm: (arm, "sft") for arm, model in SIZES[:-1] if of(lines, arm)}
    models |= {row["model"]: ("loop", row["model"]) for row in of(lines, "loop")[0]["models"]}
    errors = {label: [row["errors"] for row in rows_of(lines, *model)] for label, model in models.items()}
    totals = {label: {kind: sum(one.get(kind, 0) for one in found) for kind in ERROR_KINDS} for label, found in errors.items()}
    kinds = [kind for kind in ERROR_KINDS if any(total[kind] for total in totals.values())]
    part = {label: [100 * total[kind] / max(1, sum(total.values())) for kind in kinds] for label, total in totals.items()}
    rows = [[label, spread((sum(one.values()) for one in found), ".0f"), spread(map(parameter_errors, found), ".0f"),
             *(f"{share:.0f}%" for share in part[label]), len(found)] for label, found in errors.items()]
    return table(["model", "wrong", "of them parameters", *(f"{kind}, share" for kind in kinds), "seeds"], rows) + \
        figure(folder, "errors", bars={kind: (list(part), [shares[i] for shares in part.values()]) for i, kind in enumerate(kinds)},
               x="% of the wrong answers")


def parameter_errors(errors):
    return sum(errors.get(kind, 0) for kind in loop.PARAMETER_ERRORS)


def curriculum(lines, folder):
    return arms_against(of_its_seeds(lines, "shuffled"), folder, "3", ("loop", "warm-up"))


def arms_against(lines, folder, number, reference=("loop", None), sign=1):
    """One row an arm: what it has cost, in millions of tokens, how it does, and how far it is over (sign -1: under) the
    reference, whose row comes first. If some arms lack seeds, a column has the reference's mean over each arm's seeds."""
    rows, final = [], right(lines, *reference)
    some = any(right(lines, name).keys() != final.keys() for name in names(lines, number))
    for model in [reference, *((name, None) for name in names(lines, number))]:
        work = [row["tokens"] for row in rows_of(lines, *model)] if model[1] else [line["tokens"] for line in of(lines, model[0])]
        paid = [f"{np.mean(list(map(f, work))) / 1e6:.3f}" for f in (cost, *(lambda t, kind=kind: t[kind] for kind in KINDS))]
        gap = ["", ""] if model == reference else gaps(lines, *(reference, model)[::sign])
        there = [spread(percent({seed: final[seed] for seed in final.keys() & right(lines, *model).keys()}))] if some else []
        rows.append([model[1] or model[0], *paid, *scores(lines, *model), *there, *gap, len(work)])
    label = reference[1] or reference[0]
    there = [f"{label}, same seeds"] if some else []
    label = f"over {label}" if sign == 1 else f"{label} over it"
    return table(["run", "cost", *KINDS, "overall", "hard", *there, f"{label}, overall", f"{label}, hard", "seeds"], rows)


def equal_compute(lines, folder):
    arms = ["loop", *names(lines, "4")]
    values = [np.mean(percent(right(lines, arm, level="h")) or [0]) for arm in arms]
    return arms_against(lines, folder, "4", sign=-1) + \
        figure(folder, "compute", bars={"hard": (arms, values)}, x="% right, with the loop's compute or more") + untried(lines, ["warm-up", *arms])


def untried(lines, methods):
    """A sentence on the methods of which no settings were tried out on validation."""
    first = [name for name in methods if not any(line["arm"] == name and line["try"] is not None for line in lines)]
    said = (f"With the first of their settings (`TRIES`), without `--tune`: {', '.join(first)}. The defaults beneath were chosen by hand "
            "on validation, the loop's with more tries than SFT's (`rounds.md`).")
    return "\n\n" + said if first else ""


def by_request(lines, folder):
    """Experiment 4 by kind of request, and the loop's lead over each other use where several calls, or a question back, are due."""
    columns = {**{name: letter + letter.upper() for name, letter in REQUESTS.items()},
               "with small talk": "".join(REQUESTS.values()).upper(), "without": "".join(REQUESTS.values())}
    final, gaps_in = ("loop", last_round(lines)), ("several calls", "a value is missing")
    first = next(line["requests"] for line in of(lines, "loop") if "requests" in line)
    rows = [["samples", *(sum(kind in letters for kind in first) for letters in columns.values()), "", ""]]
    for model in [("loop", "warm-up"), final, *((name, None) for name in names(lines, "4"))]:
        gap = [versus(right(lines, *model, requests=columns[name]), right(lines, *final, requests=columns[name])) for name in gaps_in]
        rows.append([model[1] if model[1] == "warm-up" else model[0],
                     *(spread(percent(right(lines, *model, requests=letters))) for letters in columns.values()),
                     *(gap if model != final else ["", ""])])
    return table(["run", *columns, *(f"loop over it, {name}" for name in gaps_in)], rows)


def carries_over(lines, folder):
    """What each run has learned of the training set's tools, and of others; then what pairs have taught, on themselves and on new pairs."""
    fresh = lambda name: right(lines, "what carries over", name)      # samples of each seed's own
    policies = {row["model"]: ("loop", row["model"]) for row in of(lines, "loop")[0]["models"][1:]}
    policies |= {name: (name, None) for name in names(lines, "4")}
    rows = [[name, spread(percent(fresh(name))), versus(fresh("warm-up"), fresh(name), own=True) if name != "warm-up" else "",
             spread(percent(right(lines, *model))), versus(right(lines, "loop", "warm-up"), right(lines, *model)) if name != "warm-up" else ""]
            for name, model in policies.items()]
    found = [line["pairs"] for line in of(lines, "what carries over")]
    kinds = dict.fromkeys(kind for one in found for kind in one)
    pairs = [[kind, spread((one[kind]["before"]["pairs"] for one in found if kind in one), ".0f"),
              *(spread((one[kind][when][what] for one in found if kind in one), form) for what, form in (("preferred", ".1f"), ("nats", ".2f"))
                for when in ("before", "after"))] for kind in kinds]
    return table(["run", "new samples, training tools", "over warm-up", "held-out tools", "over warm-up"], rows) + "\n\n" + table(
        ["pairs", "how many", "chosen likelier, before: %", "after round 1", "likelier by, median nats, before", "after round 1"], pairs)


def what_matters(lines, folder):
    swept = [int(name.split()[0]) for name in names(lines, "5") if name.endswith(" simulations")]
    curves = both_levels(lines, swept, [(f"{n} simulations",) for n in swept])
    return arms_against(lines, folder, "5") + (figure(folder, "simulations", curves, x="simulations a tree") if swept else "") + \
        untried(lines, ["warm-up", "loop", "whole responses", "SimPO", "IPO", "ORPO"])


def search_earns(lines, folder):
    found = {line["seed"]: line["found"] for line in of(lines, "found")}
    keys = {"right": "distinct right", "wrong": "distinct wrong", "distinct": "distinct responses", "bigrams": "distinct bigrams",
            "usable": "% of queries with a pair", "pairs": "pairs"}
    kinds = list(next(iter(found.values())))
    each = lambda kind, key: {seed: np.array(one[kind][key], float) for seed, one in found.items()}      # (queries,)
    rows = [[kind, spread((one[kind]["decoded"] / len(one[kind]["right"]) for one in found.values()), ".0f"),
             *(spread((array.mean() for array in each(kind, key).values()), ".2f") for key in keys)] for kind in kinds]
    rows += [[f"{kinds[0]} over {kind}", "", *(versus(each(kind, key), each(kinds[0], key), own=True, scale=1, form="+.2f") for key in keys)]
             for kind in kinds[1:]]
    return table(["a query's", "decoded tokens", *keys.values()], rows)


def does_it_last(lines, folder):
    arms, rows = names(lines, "7"), []
    models = [row["model"] for row in of(lines, arms[0])[0]["models"]]
    curves = {f"{arm}, {said}": one for arm in arms
              for said, one in both_levels(lines, range(len(models)), [(arm, model) for model in models]).items()}
    for arm in arms:
        for model in models:
            sampled = [line["diversity"][model] for line in of(lines, arm)]
            paid = [row["tokens"] for row in rows_of(lines, arm, model)] if model != "warm-up" else []
            rows.append([arm, model, f"{np.mean(list(map(cost, paid))) / 1e6:.3f}" if paid else "", *scores(lines, arm, model),
                         gaps(lines, (arm, "warm-up"), (arm, model))[0] if paid else "",
                         *(spread(one[key] for one in sampled) for key in ("distinct", "right"))])
    return table(["run", "model", "cost of the round", "overall", "hard", "over warm-up, overall", "distinct of 8 samples",
                  "% of samples right"], rows) + \
        figure(folder, "rounds", curves, x="round")


def bfcl_mean(lines, policy):
    """{seed: (cases,)} whose plain mean is that of the four call categories' accuracies."""
    parts = [right(lines, "BFCL", f"{policy}: {category}") for category in BFCL_CATEGORIES[:4]]
    size = {seed: sum(len(part[seed]) for part in parts) for seed in parts[0]}
    return {seed: np.concatenate([part[seed] * n / 4 / len(part[seed]) for part in parts]) for seed, n in size.items()}


def transfers(lines, folder):
    policies = dict.fromkeys(name.split(":")[0] for line in of(lines, "BFCL") for name in line["correct"])
    mean = {policy: bfcl_mean(lines, policy) for policy in policies}
    rows = [[policy, *(spread(percent(right(lines, "BFCL", f"{policy}: {category}"))) for category in BFCL_CATEGORIES[:5]),
             spread(percent(mean[policy])), versus(mean["base"], mean[policy]), versus(mean["warm-up"], mean[policy])] for policy in policies]
    return table(["model", *BFCL_CATEGORIES[:5], "mean of the first four", "over base", "over warm-up"], rows)


def under_perturbation(lines, folder):
    after = last_round(lines)
    lines, rows = of_its_seeds(lines, "robustness"), []
    scored = lambda name: [("robustness", f"{model}: {name}") for model in ("warm-up", after)]
    for name in dict.fromkeys(key.split(": ")[1] for line in of(lines, "robustness") for key in line["correct"]):
        pair = scored(name)
        changes = [gaps(lines, *both)[0] if name != "unchanged" else "" for both in zip(scored("unchanged"), pair)]
        rows.append([name, *scores(lines, *pair[0]), *scores(lines, *pair[1]), *gaps(lines, *pair), *changes])
    heads = [f"{what}, {level}" for what in ("warm-up", after, "the rounds' gain") for level in ("overall", "hard")]
    return table(["samples", *heads, "warm-up's change", f"{after}'s change"], rows)


def reached(lines, folder):
    """The targets that were set, and what was found."""
    final, others = ("loop", last_round(lines)), names(lines, "4")
    gain = gaps(lines, ("loop", "warm-up"), final)
    rows = [["loop over its own warm-up, overall", "+8 points", gain[0]], ["loop over its own warm-up, hard", "+12 points", gain[1]]]
    if others:
        best = min(others, key=lambda name: difference(right(lines, name, level="h"), right(lines, *final, level="h"), draws=1)[0])
        rows.append([f"loop over the best other use of its compute ({best}), hard", "+4, interval above 0", gaps(lines, (best,), final)[1]])
    wrong = [[parameter_errors(row["errors"]) for row in rows_of(lines, "loop", model)] for model in ("warm-up", final[1])]
    rows.append(["wrong answers that are parameter values or names, before and after", "a third fewer",
                 f"{spread(wrong[0])}, then {spread(wrong[1])} ({100 * sum(wrong[1]) / max(1, sum(wrong[0])) - 100:+.0f}%)"])
    rows += [[said, "interval above 0", gaps(lines, (name,), final)[1]] for name, said in (
        ("whole responses", "tree pairs over pairs of whole independent responses, hard"), ("one round", "all rounds over one, hard"))
        if of(lines, name)]
    if of(lines, "BFCL"):
        rows += [[f"BFCL, mean of the call categories, loop over {other}", least,
                  versus(bfcl_mean(lines, other), bfcl_mean(lines, final[1]))] for other, least in (("base", "+10"), ("warm-up", "no lower"))]
    return table(["figure", "at least", "found"], rows)


def tries(lines, folder):
    rows = []
    for line in (line for line in lines if line["try"] is not None):
        row, taken = line["models"][-1], line["try"] == best_try(lines, line["arm"])
        said = ", ".join(f"{key} {value}" for key, value in line["tried"].items()) or "the defaults"
        rows.append([line["arm"], f"**{said}**" if taken else said, f"{row['accuracy']:.1f}",
                     loop.percent_text(row["hard"]), f"{line['cost'] / 1e6:.3f}"])
    return table(["method", "settings (bold: taken)", "validation, overall", "hard", "cost, million"], rows)


# title, the arm without which there is nothing to show (none: any of its own), what draws it
SECTIONS = {
    "reached": ("What was to be reached", "loop", reached),
    "1": ("1. Gains decay", "1/16 of the data", gains_decay),
    "2": ("2. The deficiency", "loop", deficiency),
    "3": ("3. Curriculum", "shuffled", curriculum),
    "4": ("4. The loop against the same compute spent otherwise", "", equal_compute),
    "requests": ("The same by kind of request", "same data", by_request),
    "carry": ("What carries over from the training set's tools", "what carries over", carries_over),
    "5": ("5. What in the loop matters", "", what_matters),
    "6": ("6. Search earns its keep", "found", search_earns),
    "7": ("7. Does it last?", "many rounds", does_it_last),
    "8": ("8. Transfer to BFCL", "BFCL", transfers),
    "9": ("9. Robustness", "robustness", under_perturbation),
    "tune": ("Settings tried on the validation split", "", tries)}
INTRODUCTION = """# Results

Percent of held-out samples answered exactly right, mean ± standard deviation over seeds; in brackets, a paired bootstrap 95%
interval over seeds and samples (none with one seed: over samples alone it is too narrow). Cost, in millions of tokens: 3 x trained +
decoded + scored. Experiment 4's runs and `one round` cost at least what the loop did; the other variants of experiment 5 have three rounds, or more
where that comes nearer to the loop's cost; the numbers of simulations have three, at whatever cost.
"""


def commands(lines, numbers, arms, quick):
    """The commands that make these experiments' lines, one for each set of seeds; without numbers, those for the tries.

    arms: all that there are; a command names its own, where there are others in its experiments.
    """
    mine = [line for line in lines if (line["try"] is None and set(numbers) & set(line["experiments"].split()) if numbers
                                       else line["try"] is not None)]
    runs, groups = dict.fromkeys(line["arm"] for line in mine), {}
    for arm in [arm for arm in runs if arm != "loop"] or runs:
        groups.setdefault(tuple(sorted({line["seed"] for line in mine if line["arm"] == arm})), []).append(arm)
    every = {arm.name for arm in arms if set(numbers) & set(arm.experiments.split())}
    found = []
    for seeds, group in groups.items():
        words = ["--only", ",".join(numbers)] if numbers else ["--tune"]
        group = [arm for arm in runs if arm in group or arm == "loop"]      # which all others begin with
        if not numbers or not every <= set(group):
            words += ["--arms", '"' + ";".join(group) + '"']
        if quick:
            words.append("--quick")
        else:
            words += ["--seeds", ",".join(map(str, seeds))] if numbers else []
            runner = {key: value for line in mine if line["arm"] in group for key, value in line.get("runner", {}).items()}
            words += [text for key, value in runner.items() for text in (f"--{key}", str(value))] + mine[0]["flags"]
        found.append(" ".join(["python -m docs.experiments", *words]))
    return found


def draw(lines, folder, quick=False, arms=()):
    """results.md: each section's table and figure between its marks; what a person wrote around them stays. arms: see commands."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "results.md"
    text = path.read_text(encoding="utf-8") if path.exists() else INTRODUCTION

    def is_there(name):
        if name == "tune":
            return any(line["try"] is not None for line in lines)
        if name == "requests" and not any("requests" in line for line in of(lines, "loop")):     # lines of before
            return False
        if needs := SECTIONS[name][1]:
            return bool(of(lines, needs))
        return any(name == "4" or arm not in names(lines, "4") for arm in names(lines, name))      # whole responses are in 4 and 5

    shown = [name for name in SECTIONS if name.isdigit() and is_there(name)]
    for name, (title, _, make) in SECTIONS.items():
        if not is_there(name):
            continue
        command = "\n".join(commands(lines, {"reached": shown, "tune": [], "requests": ["4"], "carry": ["4"]}.get(name, [name]), arms, quick))
        block = f"<!-- begin {name} -->\n```\n{command}\n```\n\n{make(lines, folder)}\n<!-- end {name} -->"
        marks = re.compile(rf"<!-- begin {name} -->.*?<!-- end {name} -->", re.DOTALL)
        if marks.search(text):
            text = marks.sub(lambda _: block, text)
        else:      # before the first of the sections that come after it
            after = list(SECTIONS)[list(SECTIONS).index(name) + 1:]
            at = min((n for one in after if (n := text.find(f"\n## {SECTIONS[one][0]}\n")) >= 0), default=len(text))
            text = f"{text[:at]}\n## {title}\n\n{block}\n{text[at:]}"
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(lines)} runs")

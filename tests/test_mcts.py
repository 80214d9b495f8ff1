"""Search: steps, PUCT and backup by hand, what a tree may hold, and the pairs that come of it."""

import copy
import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mcts
import synth
from conftest import tiny
from eval import Prompts, graded_outcome, response_text, stop_token
from mcts import (Node, SearchConfig, Tree, backup, cut_steps, preference_pairs, puct, read_trees, search, select, show,
                  step_ends, write_trees)
from synth import Call, Sample, format_calls

CFG = SearchConfig(simulations=5, k=3, max_new=14)


# ---- Steps --------------------------------------------------------------------------------------------------------

def text_steps(text):
    ends = list(step_ends(text))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)]) if a < b]


@pytest.mark.parametrize("text, steps", [
    ("[f(a=1)]", ["[f(", "a=1)]"]),
    ("[f(a=1, b=2)]", ["[f(", "a=1,", " b=2)]"]),
    ("[f()]", ["[f(", ")]"]),
    ("[f(a=1), g(b=2, c=3)]", ["[f(", "a=1),", " g(", "b=2,", " c=3)]"]),
    ("[f(), g()]", ["[f(", "),", " g(", ")]"]),
    ("[Get Time(zone=1)]", ["[Get Time(", "zone=1)]"]),
    ("[Today's Quiz(a=1, b='x')]", ["[Today's Quiz(", "a=1,", " b='x')]"]),
    ("[f(user's=1, b='x, y'), g(c=3)]", ["[f(", "user's=1,", " b='x, y'),", " g(", "c=3)]"]),
    ('[f(a="x, y), g(b=1)]", b=2)]', ["[f(", 'a="x, y), g(b=1)]",', " b=2)]"]),
    (r'[f(a="say \"hi, you\"", b="\\", c=1)]', ["[f(", r'a="say \"hi, you\"",', r' b="\\",', " c=1)]"]),
    ("""[f(a='it"s, ', b="it's, ")]""", ["[f(", """a='it"s, ',""", """ b="it's, ")]"""]),
    ("[f(a=[1, [2, 3]], b={'k': (1, 2), 'l': ')'}, c=(4,))]",
     ["[f(", "a=[1, [2, 3]],", " b={'k': (1, 2), 'l': ')'},", " c=(4,))]"]),
    (" [ f (a=1 , b=2 ) , g( ) ]", [" [ f (", "a=1 ,", " b=2 ) ,", " g(", " ) ]"]),
    ("I cannot do (that), sorry.", ["I cannot do (that), sorry."]),
    ("[f(a=1", ["[f(", "a=1"]),
    ('[f(a="x, y', ["[f(", 'a="x, y']),
    ("[]", ["[]"]),
])
def test_where_steps_end(text, steps):
    assert text_steps(text) == steps


@pytest.mark.parametrize("kind", ["tokenizer", "chatml"])
def test_steps_of_targets(request, kind):
    """Joined they are the ids again, and each is as many whole steps of the text as its tokens hold."""
    tokenizer = request.getfixturevalue(kind)
    stop_id = stop_token(tokenizer)
    for sample in synth.make_samples(150, "train", 11) + synth.make_samples(150, "test", 11):
        ids = synth.target_ids(tokenizer, sample)
        steps = cut_steps(tokenizer, ids, stop_id)
        assert [t for step in steps for t in step] == ids and all(steps)
        wanted, at = list(step_ends(sample.target)) or [len(sample.target)], 0
        for n, step in enumerate(steps):
            text = tokenizer.decode([t for s in steps[:n + 1] for t in s]).removesuffix(synth.end_of_turn(tokenizer))
            inside = [end for end in wanted if at < end <= len(text)]
            assert inside, (sample.target, text)
            # the last token reaches the boundary, and the one before it does not
            before = tokenizer.decode([t for s in steps[:n + 1] for t in s][:-1 - (n == len(steps) - 1)])
            assert n == len(steps) - 1 or len(before) < inside[0] <= len(text)
            at = len(text)
        for n in range(1, len(steps)):  # a prefix of whole steps is cut alike: a node's path does not move
            prefix = [t for step in steps[:n] for t in step]
            assert cut_steps(tokenizer, prefix, stop_id) == steps[:n]


values = st.recursive(st.text(max_size=6) | st.text("'\"\\,()[]{}=é日😀", max_size=5) | st.integers() | st.none(),
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
                      max_leaves=5)
calls = st.lists(st.builds(Call, st.sampled_from(["f", "play_song", "a.b", "Get Time", "Today's Quiz"]),
                           st.dictionaries(st.sampled_from(["a", "city", "from_date"]), values, max_size=3)), max_size=3)


@given(calls, st.integers(0, 60), st.booleans())
def test_any_response_is_the_sum_of_its_steps(tokenizer, calls, cut, ended):
    ids = tokenizer(format_calls(calls), add_special_tokens=False)["input_ids"]
    ids = ids[:-cut] if 0 < cut < len(ids) else ids
    ids = ids + [stop_token(tokenizer)] if ended else ids
    steps = cut_steps(tokenizer, ids, stop_token(tokenizer))
    assert [t for step in steps for t in step] == ids and all(steps)


def test_a_call_without_parameters_is_no_reason_to_cut_a_name(tokenizer):
    """One token may hold two boundaries, as in `(), `: what follows is a step of its own, and whole."""
    text = "[show_cart(), stop_playing(), set_alarm(time=5)]"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    steps = [tokenizer.decode(step) for step in cut_steps(tokenizer, ids, stop_token(tokenizer))]
    assert "".join(steps) == text
    names = [step.strip(" (),[]") for step in steps if step.strip(" (),[]")]
    assert names == ["show_cart", "stop_playing", "set_alarm", "time=5"]


def test_text_and_nothing_are_one_step(tokenizer):
    stop_id = stop_token(tokenizer)
    ids = tokenizer("Please tell me the city.<|end|>", add_special_tokens=False)["input_ids"]
    assert cut_steps(tokenizer, ids, stop_id) == [ids]
    assert cut_steps(tokenizer, [stop_id], stop_id) == [[stop_id]]


# ---- PUCT and backup ----------------------------------------------------------------------------------------------

def node(parent, r, prior=0.5, **fields):
    """A node as expansion leaves it: visited once, Q = r."""
    return Node(parent, [1], "", prior=prior, r=r, q=r, visits=1, **fields)


def grow(tree, parent, *children):
    for child in children:
        tree.nodes.append(child)
        tree.nodes[parent].children.append(len(tree.nodes) - 1)
    tree.nodes[parent].expanded = True


def test_two_simulations_by_hand():
    tree = Tree(None, [], [Node(-1, [], "")])
    root = tree.nodes[0]
    assert select(tree, 1.0) == 0
    grow(tree, 0, node(0, 0.4, 0.5), node(0, -0.2, 0.4))
    backup(tree, 0, gamma=0.9)
    a, b = tree.nodes[1:]
    assert (root.visits, root.value) == (1, pytest.approx(0.1))       # (1 * 0.4 + 1 * -0.2) / 2
    assert puct(tree, 0, a, 1.0) == pytest.approx(0.4 + 0.5 * 1 / 2)
    assert puct(tree, 0, b, 2.0) == pytest.approx(-0.2 + 2 * 0.4 * 1 / 2)
    assert select(tree, 1.0) == 1
    grow(tree, 1, node(1, 1.0), node(1, 0.0))
    backup(tree, 1, gamma=0.9)
    assert (a.visits, a.value, a.q) == (2, 0.5, pytest.approx(0.4 + 0.9 * 0.5))
    assert (root.visits, root.value) == (2, pytest.approx((2 * 0.85 + 1 * -0.2) / 3))
    assert puct(tree, 0, a, 1.0) == pytest.approx(0.85 + 0.5 * math.sqrt(2) / 3)
    assert puct(tree, 1, tree.nodes[4], 1.0) == pytest.approx(0.0 + 0.5 * math.sqrt(2) / 2)
    assert select(tree, 1.0) == 3 and select(tree, 100.0) == 2  # with much weight on the prior, the less visited one


def test_selection_stays_out_of_closed_parts():
    tree = Tree(None, [], [Node(-1, [], "")])
    grow(tree, 0, node(0, 1.0, final=True, closed=True), node(0, -1.0))
    backup(tree, 0, 1.0)
    assert not tree.nodes[0].closed and select(tree, 1.0) == 2
    grow(tree, 2, node(2, 0.0, final=True, closed=True))
    backup(tree, 2, 1.0)
    assert tree.nodes[2].closed and tree.nodes[0].closed  # nothing is left to expand


# ---- The search ---------------------------------------------------------------------------------------------------

@pytest.fixture
def few(samples):
    """Four samples whose targets are calls, and one whose target is text."""
    return [*[s for s in samples if s.calls][:4], Sample("text", samples[0].tools, samples[0].messages, synth.NO_TOOL)]


def test_what_a_tree_holds(model, tokenizer, few, monkeypatch):
    """Children differ; their ids are what was decoded; visits add up; r, Q and V follow the equations."""
    decoded, decode_task = [], mcts.decode_task

    def record(prompts, i, prefix, *args):
        found = yield from decode_task(prompts, i, prefix, *args)
        decoded.extend((asked[i], tuple(prefix + ids)) for ids, _ in found)
        return found

    def remember(model, prompts, drafts):
        asked[:] = map(tuple, prompts)
        return Prompts(model, prompts, drafts)
    asked, prompts_of = [], [synth.prompt_ids(tokenizer, s) for s in few]
    monkeypatch.setattr(mcts, "Prompts", remember)
    monkeypatch.setattr(mcts, "decode_task", record)
    trees = search(model, tokenizer, few, CFG, seed=1, progress=False)
    stop_id = stop_token(tokenizer)
    assert [t.sample for t in trees] == few and [t.prompt for t in trees] == prompts_of
    for tree in trees:
        target = synth.target_ids(tokenizer, tree.sample)
        responses = [ids for prompt, ids in decoded if prompt == tuple(tree.prompt)]
        assert tree.samples == CFG.k and 0 <= tree.hits <= tree.samples
        assert 1 <= tree.nodes[0].visits <= CFG.simulations and tree.nodes[0].reward == 0
        for n, this in enumerate(tree.nodes):
            ids = tree.so_far(n)
            assert this.expanded == bool(this.children) and (not this.final or this.closed)
            assert all(tree.nodes[c].parent == n and c > n for c in this.children)
            children = [tree.nodes[c] for c in this.children]
            assert len({tuple(c.ids) for c in children}) == len(children)
            if children:
                assert len(children) <= CFG.k + 1
                assert this.visits == (n > 0) + 1 + sum(c.visits - 1 for c in children)
                assert this.value == pytest.approx(sum(c.visits * c.q for c in children) / sum(c.visits for c in children))
            elif n:
                assert this.visits == 1 and this.value == 0
            if n:
                assert this.ids and any(r[:len(ids)] == tuple(ids) for r in [*responses, tuple(target)])
                assert this.text == response_text(tokenizer, this.ids, stop_id)
                assert this.r == pytest.approx(this.reward - tree.nodes[this.parent].reward)
                assert this.q == pytest.approx(this.r + CFG.discount * this.value)
                assert this.reward == pytest.approx(this.outcome + this.grade)
                assert 0 < this.grade < CFG.self_eval and -1 <= this.outcome <= 1 and 0 < this.prior <= 1
                assert this.final == (this.ids[-1] == stop_id or len(ids) >= CFG.max_new)


def test_no_response_is_longer_than_it_may_be(qwen2, tokenizer, few):
    short = replace(CFG, simulations=8, max_new=9, target_step=False)
    for tree in search(qwen2, tokenizer, few, short, progress=False):
        lengths = [len(tree.so_far(n)) for n in range(len(tree.nodes))]
        assert max(lengths) <= 9 and len(tree.right or ()) <= 9


def test_mistakes_in_the_search_say_what_to_do(checkpoint):
    for flag, value in (("--max_new", "0"), ("--k", "0"), ("--outcome", "best")):
        with pytest.raises(ValueError, match=flag):
            mcts.main(["--model", str(checkpoint), flag, value])


def test_a_finished_response_has_its_own_outcome(qwen2, tokenizer, few):
    for tree in search(qwen2, tokenizer, few, replace(CFG, outcome="graded"), progress=False):
        for n, this in enumerate(tree.nodes):
            if this.final and this.ids[-1] == stop_token(tokenizer):
                text = response_text(tokenizer, tree.so_far(n), stop_token(tokenizer))
                assert this.outcome == graded_outcome(tree.sample, text)
    for tree in search(qwen2, tokenizer, few[:4], replace(CFG, outcome="exact", target_step=False), progress=False):
        assert {this.outcome for this in tree.nodes[1:]} == {-1.0}  # a random model is never right


def test_another_reward_changes_the_values_and_not_what_is_right(tokenizer, few, monkeypatch):
    """A response's own right and wrong, and the target's rollout, follow the reward's scale; none counts as right by its number."""
    stop_id, cfg = stop_token(tokenizer), SearchConfig(depth=1)
    sample = next(s for s in few if s.calls)
    due = synth.target_ids(tokenizer, sample)
    wrong = tokenizer("[f()]", add_special_tokens=False)["input_ids"] + [stop_id]

    def grown(scale):
        monkeypatch.setattr(mcts, "graded_outcome", lambda *args: scale * graded_outcome(*args))
        tree = Tree(sample, synth.prompt_ids(tokenizer, sample), [Node(-1, [], "")])
        children = mcts.expand(tree, 0, [(due, [-0.1] * len(due)), (wrong, [-0.1] * len(wrong)), (wrong[:-1], [-0.1] * (len(wrong) - 1))],
                               cut_steps(tokenizer, due, stop_id), tokenizer, cfg, stop_id)
        return tree, [tree.nodes[c].outcome for c in children]
    for scale in (1, 10, 0.5):
        tree, outcomes = grown(scale)
        assert (tree.samples, tree.hits, tree.right) == (3, 1, due) and [right for _, right in tree.finished] == [True, False, False]
        assert outcomes == [scale, scale * graded_outcome(sample, "[f()]"), mcts.UNFINISHED]     # one node of both: sampled, and the target's


def test_the_same_seed_gives_the_same_trees(qwen2, tokenizer, few):
    first, again, other = (search(qwen2, tokenizer, few, CFG, seed, progress=False) for seed in (3, 3, 4))
    assert first == again and first != other


@pytest.mark.parametrize("self_eval", [0.0, 0.5])
def test_trees_do_not_know_of_each_other(model, tokenizer, few, self_eval):
    """Searched one by one, two by two, or all together: the same trees."""
    cfg = replace(CFG, self_eval=self_eval)
    together = search(model, tokenizer, few, cfg, progress=False)
    room = max(mcts.tokens_in_flight(tree.prompt, tokenizer, cfg) for tree in together)
    with pytest.raises(ValueError, match=r"max_tokens_in_flight 100 is too little for the sample \S+, whose search needs"):
        search(model, tokenizer, few, replace(cfg, max_tokens_in_flight=100), progress=False)
    alone = [t for n in (1, 2) for t in search(model, tokenizer, few, replace(cfg, max_tokens_in_flight=n * room), progress=False)]
    together += together
    for a, b in zip(together, alone):
        assert [(n.ids, n.parent, n.children, n.visits, n.final) for n in a.nodes] == [
            (n.ids, n.parent, n.children, n.visits, n.final) for n in b.nodes]
        for x, y in zip(a.nodes, b.nodes):
            for key in ("prior", "q", "r", "reward", "outcome", "grade", "value"):
                assert getattr(x, key) == pytest.approx(getattr(y, key), abs=1e-4)


def test_what_a_search_cannot_hold_or_sample_is_told(tokenizer, few, capsys):
    longest = max(len(synth.target_ids(tokenizer, sample)) for sample in few)
    mcts.check_samples(tokenizer, few, replace(CFG, max_new=longest))
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"max_tokens_in_flight 100 is too little for the sample \S+, whose search needs"):
        mcts.check_samples(tokenizer, few, replace(CFG, max_tokens_in_flight=100))
    mcts.check_samples(tokenizer, few, replace(CFG, max_new=longest - 1))
    assert re.match(rf"\d+ of {len(few)} samples have a target of more than {longest - 1} tokens", capsys.readouterr().out)


def test_an_end_of_turn_right_behind_a_step_is_a_child(qwen2, tokenizer, few):
    """The step before is not cut anew: what is sampled last may be the right ending, or a wrong one."""
    sample = next(s for s in few if s.calls)
    *_, stop_id = ids = synth.target_ids(tokenizer, sample)
    for path, outcome in ((ids[:-1], 1.0), (cut_steps(tokenizer, ids, stop_id)[0], -1.0)):
        tree = Tree(sample, synth.prompt_ids(tokenizer, sample), [Node(-1, [], "")])
        for step in cut_steps(tokenizer, path, stop_id):
            tree.nodes.append(Node(len(tree.nodes) - 1, step, ""))
        child, = mcts.expand(tree, len(tree.nodes) - 1, [([stop_id], [-0.5])], [], tokenizer, SearchConfig(depth=20, target_step=False), stop_id)
        assert tree.nodes[child].ids == [stop_id] and tree.nodes[child].final
        assert (tree.nodes[child].outcome == 1.0) == (outcome == 1.0) and len(tree.finished) == 1


def test_the_targets_steps_are_candidates(qwen2, tokenizer, few):
    stop_id = stop_token(tokenizer)
    for tree in search(qwen2, tokenizer, few[:4], CFG, progress=False):
        steps = cut_steps(tokenizer, synth.target_ids(tokenizer, tree.sample), stop_id)
        assert steps[0] in [tree.nodes[c].ids for c in tree.nodes[0].children]
        assert [t for step in steps for t in step] == tree.right
        for n, this in enumerate(tree.nodes):  # wherever the path is the target's, so is one of the candidates
            path = [tree.nodes[m].ids for m in tree.path(n)]
            if this.expanded and path == steps[:len(path)]:
                assert steps[len(path)] in [tree.nodes[c].ids for c in this.children]
    trees = search(qwen2, tokenizer, few[:4], replace(CFG, target_step=False), progress=False)
    assert not any(tree.right for tree in trees)


@torch.no_grad()
def test_the_prior_is_the_policys_probability_normalized_by_length(model, tokenizer, few):
    """Of sampled steps, and of the target's, which were scored afterwards."""
    tree = search(model, tokenizer, few[:1], CFG, progress=False)[0]
    for n, this in list(enumerate(tree.nodes))[1:]:
        before = tree.prompt + tree.so_far(this.parent)
        row = torch.tensor([before + this.ids])
        logps = torch.log_softmax(model(row).logits[0, :-1], -1).gather(1, row[0, 1:, None])[len(before) - 1:]
        assert this.prior == pytest.approx(math.exp(logps.sum().item() / len(this.ids) ** 1.25), abs=1e-4)


@pytest.mark.parametrize("before_the_end", ["", " "])     # Llama 2's template has a blank there
@torch.no_grad()
def test_the_grade_is_the_policys_own(model, tokenizer, few, before_the_end):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|end|>", before_the_end + "<|end|>")
    tree, = search(model, tokenizer, few[:1], replace(CFG, depth=2, max_new=80), progress=False)      # the target's second step ends it
    (question, grades), stop_id = synth.grade_ids(tokenizer), stop_token(tokenizer)
    due = [n for n, this in enumerate(tree.nodes) if n and (n < 4 or this.final and this.ids[-1] == stop_id)]
    assert any(tree.nodes[n].ids[-1] == stop_id for n in due)
    for n, this in ((n, tree.nodes[n]) for n in due):
        so_far = tree.so_far(n)
        rest = question[question.index(stop_id) + 1:] if so_far[-1] == stop_id else question
        last = model(torch.tensor([tree.prompt + so_far + rest])).logits[0, -1, grades]
        p = torch.softmax(last, -1).tolist()
        assert this.grade == pytest.approx(0.5 * (p[0] + p[1] * 2 / 3 + p[2] / 3), abs=1e-4)


def test_a_tree_stops_at_its_depth(qwen2, tokenizer, few):
    trees = search(qwen2, tokenizer, few, replace(CFG, depth=2, simulations=8, max_new=60), progress=False)
    for tree in trees:
        assert max(len(tree.path(n)) for n in range(len(tree.nodes))) <= 2
        assert all(tree.nodes[n].final for n in range(len(tree.nodes)) if len(tree.path(n)) == 2)


def test_search_through_another_models_template(chatml, few):
    tree, = search(tiny("llama", len(chatml)), chatml, few[:1], CFG, progress=False)
    assert len(tree.nodes) > 3 and tree.right == synth.target_ids(chatml, few[0])


# ---- Pairs --------------------------------------------------------------------------------------------------------

def fan(*children):
    """A tree of one node and its children, given as (Q, outcome)."""
    tree = Tree(Sample("1", [], [{"role": "user", "content": "?"}], "x"), [1], [Node(-1, [], "")])
    grow(tree, 0, *(Node(0, [i], f"step {i}", q=q, outcome=outcome, visits=1) for i, (q, outcome) in enumerate(children)))
    return tree


@pytest.mark.parametrize("children, pairs", [
    ([(0.2, 0.5), (0.9, 1.0), (-0.5, -1.0)], [(2, 3)]),     # the highest against the lowest
    ([(0.2, 1.0), (0.25, 1.0)], []),                        # a gap under 0.1
    ([(0.25, 0.0), (0.375, 1.0)], [(2, 1)]),                # over it
    ([(-0.4, 1.0), (-0.9, -1.0)], []),                      # the better one is bad: under -0.3
    ([(-0.3, 1.0), (-0.9, -1.0)], [(1, 2)]),
    ([(0.9, -1.0), (0.1, 1.0)], []),                        # Q and outcome disagree
    ([(0.9, 1.0)], []),
])
def test_which_children_make_a_pair(children, pairs):
    assert preference_pairs(fan(*children), SearchConfig(near=0)) == pairs


def test_a_call_and_a_text_are_a_pair_only_if_asked_for():
    tree = fan((0.9, 1.0), (0.1, 0.0), (0.8, 0.5), (-0.5, -1.0))
    for node, text in zip(tree.nodes[1:], ("Please tell me the city.", "None of the tools can do that.", "[f(", ' [g(a="[", ')):
        node.text = text
    assert preference_pairs(tree, SearchConfig(near=0)) == [(3, 4), (1, 2)]
    assert preference_pairs(tree, SearchConfig(near=0, across=True)) == [(1, 4)]


def test_the_likeliest_of_the_worse_steps_is_rejected_where_it_is_near():
    """Q, outcome and prior of four steps: the last is too good to be rejected, and near asks how likely the others are."""
    tree = fan((0.9, 1.0), (-0.5, -1.0), (0.1, 0.0), (0.85, 0.9))
    for node, prior in zip(tree.nodes[1:], (0.5, 0.1, 0.4, 0.9)):
        node.prior = prior
    assert preference_pairs(tree, SearchConfig(near=0)) == [(1, 2)]
    assert preference_pairs(tree, SearchConfig(near=0.1)) == preference_pairs(tree, SearchConfig(near=0.8)) == [(1, 3)]
    assert preference_pairs(tree, SearchConfig(near=0.9)) == []


@pytest.mark.parametrize("near", [-0.1, 1.5])
def test_near_is_a_share(near):
    with pytest.raises(ValueError, match=rf"--near is a share from 0 to 1 \(got {near}\)"):
        mcts.check_search(SearchConfig(near=near))


def test_pairs_of_a_search_obey_the_settings(qwen2, tokenizer, few):
    trees, found = search(qwen2, tokenizer, few, CFG, progress=False), 0
    lowest = replace(CFG, near=0)
    for cfg in (lowest, replace(lowest, min_gap=0.5), replace(lowest, min_chosen=0.4), CFG):
        for tree in trees:
            for chosen, rejected in preference_pairs(tree, cfg):
                w, l = tree.nodes[chosen], tree.nodes[rejected]
                siblings = [n.q for n in map(tree.nodes.__getitem__, tree.nodes[w.parent].children)
                            if n.text.startswith("[") == w.text.startswith("[")]
                assert w.parent == l.parent and w.q == max(siblings) and (l.q == min(siblings) or cfg.near)
                assert l.prior >= cfg.near * w.prior
                assert w.q - l.q >= cfg.min_gap and w.q >= cfg.min_chosen and w.ids != l.ids
                found += 1
    assert found


# ---- Files and the command ----------------------------------------------------------------------------------------

def test_trees_are_written_and_read(qwen2, tokenizer, few, tmp_path):
    trees = search(qwen2, tokenizer, few, CFG, progress=False)
    write_trees(trees, tmp_path / "trees.jsonl")
    assert read_trees(tmp_path / "trees.jsonl") == trees
    text = show(trees[0], CFG)
    assert few[0].messages[-1]["content"] in text and len(text.splitlines()) >= len(trees[0].nodes) + 2
    with open(tmp_path / "trees.jsonl", "a", encoding="utf-8") as f:
        f.write('{"nodes": []}\n')
    with pytest.raises(ValueError, match=rf"trees\.jsonl, line {len(trees) + 1}: not a tree"):
        read_trees(tmp_path / "trees.jsonl")


@pytest.mark.parametrize("broken, said", [(b"\xff{", "not a tree"), (b'{"nodes": []}', "it has no nodes"), (b"7", "not a tree")])
def test_a_file_of_other_things_is_told_by_its_line(tmp_path, broken, said):
    (tmp_path / "trees.jsonl").write_bytes(b"\n" + broken)      # a blank line is none
    with pytest.raises(ValueError, match=rf"trees\.jsonl, line 2: .*{said}"):
        read_trees(tmp_path / "trees.jsonl")


@pytest.mark.parametrize("flags", [["--near", "2"], ["--outcome", "exat"], ["--temperature", "-1"], ["--n", "-1"]])
def test_settings_that_no_search_can_have_are_refused_without_a_search_too(tmp_path, flags):
    with pytest.raises(ValueError, match=flags[0]):
        mcts.main(["--trees", str(tmp_path / "trees.jsonl"), *flags])


def test_the_command_searches_saves_and_shows(checkpoint, tmp_path, few, capsys):
    synth.write_samples(few, tmp_path / "data.jsonl")
    mcts.main(["--model", str(checkpoint), "--data", str(tmp_path / "data.jsonl"), "--n", "2", "--out",
               str(tmp_path / "trees.jsonl"), "--simulations", "2", "--k", "2", "--max_new", "8", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "2 trees, " in out and "dpo.py" not in out and len(read_trees(tmp_path / "trees.jsonl")) == 2
    mcts.main(["--trees", str(tmp_path / "trees.jsonl"), "--show", "2"])
    assert capsys.readouterr().out.count("whole responses right") == 3
    mcts.main(["--trees", str(tmp_path / "trees.jsonl"), "--out", str(tmp_path / "same.jsonl"), "--near", "0", "--across", "True"])
    assert capsys.readouterr().out.endswith("for the same pairs give dpo.py --near 0.0 --across True, too\n")

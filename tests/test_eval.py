"""Decoding against transformers' own, and judging: each kind of error, the scores, the command."""

import itertools
import json
import math
import random
import re
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, MistralConfig, MistralForCausalLM

import eval as evaluation
import sft
import synth
from base import documents
from eval import (ERROR_KINDS, Prompts, Rows, Written, decode, decode_task, evaluate, graded_outcome, interval, judge, paired_interval, print_scores,
                  response_text, run_tasks, score, score_task, stop_token, summarize)
from synth import Call, Sample, format_calls

NO_STOP = -1


@pytest.fixture
def prompts(model):
    """Token ids of prompts of very different lengths."""
    rng = random.Random(0)
    return [[rng.randrange(6, model.config.vocab_size) for _ in range(n)] for n in (5, 40, 2, 17, 1, 90, 17)]


@torch.no_grad()
def greedy(model, ids, max_new, stop_id=None):
    """transformers' greedy continuation of one prompt."""
    row = torch.tensor([ids])
    out = model.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=max_new, do_sample=False,
                         eos_token_id=stop_id, pad_token_id=0)
    return out[0, len(ids):].tolist()


@torch.no_grad()
def forward_logps(model, before, ids):
    """Log-probability of each of `ids` behind `before`, from one plain forward pass."""
    row = torch.tensor([[*before, *ids]])
    logps = torch.log_softmax(model(row).logits[0, :-1].float(), -1).gather(1, row[0, 1:, None])[:, 0]
    return logps[len(before) - 1:].tolist()


# ---- Decoding -----------------------------------------------------------------------------------------------------

def one_each(found):
    """The token ids of rows that were decoded once each."""
    return [ids for (ids, _), in found]


def test_greedy_decoding_equals_generate(model, prompts):
    """Token by token, for prompts of different lengths in one batch, some of which end early."""
    model.generation_config.eos_token_id = None
    endless = [greedy(model, p, 16) for p in prompts]
    for stop_id in (NO_STOP, endless[0][4], endless[5][8]):
        expected = [greedy(model, p, 16, stop_id) if stop_id != NO_STOP else e for p, e in zip(prompts, endless)]
        found = decode(Prompts(model, prompts), range(len(prompts)), [[]] * len(prompts), 16, stop_id)
        assert one_each(found) == expected
    assert len({len(ids) for ids in expected}) > 1


def test_decoding_goes_on_behind_prefixes(model, prompts):
    model.generation_config.eos_token_id = None
    index, prefixes = [0, 0, 5, 4, 2, 0], [[9, 8, 7], [], [11], [30, 31, 32, 33, 34, 35, 36], [12, 13], [9, 8]]
    found = decode(Prompts(model, prompts), index, prefixes, 8, NO_STOP)
    assert one_each(found) == [greedy(model, prompts[i] + prefix, 8 - len(prefix)) for i, prefix in zip(index, prefixes)]


@pytest.mark.parametrize("copies", [1, 3])
def test_log_probabilities_are_those_of_a_plain_forward_pass(model, prompts, copies):
    """Of every copy, though they share a row: none sees the tokens of another."""
    index, prefixes = [3, 5, 4, 3], [[9, 8], [], [], [10]]
    for temperature in (0, 2.0):  # sampled at a temperature or not: they are the policy's own
        found = decode(Prompts(model, prompts), index, prefixes, 10, NO_STOP, copies, temperature, [1, 2, 3, 4])
        for i, prefix, row in zip(index, prefixes, found):
            assert len(row) == copies and len({tuple(ids) for ids, _ in row}) == (copies if temperature else 1)
            for ids, logps in row:
                assert logps == pytest.approx(forward_logps(model, prompts[i] + prefix, ids), abs=1e-4)


@pytest.mark.parametrize("copies, temperature", [(1, 0), (3, 1.0)])
def test_the_batch_changes_nothing(model, prompts, copies, temperature):
    """Alone or together, in one forward pass or in many: the same tokens, the same log-probabilities."""
    index, prefixes, seeds = [0, 1, 5, 5, 2, 4], [[], [9], [8, 7], [], [6, 6, 6], []], [3, 1, 4, 1, 5, 9]
    stop_id = decode(Prompts(model, prompts), [1], [[]], 8, NO_STOP)[0][0][0][3]
    settings = dict(copies=copies, temperature=temperature)
    together = decode(Prompts(model, prompts), index, prefixes, 12, stop_id, seeds=seeds, **settings)
    alone = [decode(Prompts(model, [prompts[i]]), [0], [prefix], 12, stop_id, seeds=[seed], **settings)[0]
             for i, prefix, seed in zip(index, prefixes, seeds)]
    chunked = decode(Prompts(model, prompts, max_tokens=1), index, prefixes, 12, stop_id, seeds=seeds, max_tokens=150, **settings)
    for other in (alone, chunked):
        for row, as_row in zip(other, together):
            for (ids, logps), (as_ids, as_logps) in zip(row, as_row, strict=True):
                assert ids == as_ids and logps == pytest.approx(as_logps, abs=1e-4)


def alike(found, expected):
    """The same tokens, and log-probabilities that differ by floating-point noise."""
    for row, as_row in zip(found, expected, strict=True):
        for (ids, logps), (as_ids, as_logps) in zip(row, as_row, strict=True):
            assert ids == as_ids and logps == pytest.approx(as_logps, abs=1e-4)
    return True


def test_a_cache_serves_many_calls(model, prompts):
    """What was decoded before is gone, behind the same prefix or another."""
    cached = Prompts(model, prompts)
    first = decode(cached, [0, 1, 0], [[], [9], [8]], 6, NO_STOP)
    decode(cached, [1, 0], [[7, 7], []], 9, NO_STOP, copies=2)
    assert alike(decode(cached, [0, 1, 0], [[], [9], [8]], 6, NO_STOP), first)


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_drafts_change_nothing(model, prompts, temperature):
    """Right ones, half right ones, wrong ones, longer and shorter than the response."""
    settings = dict(max_new=20, stop_id=NO_STOP, copies=3, temperature=temperature, seeds=range(7))
    plain = decode(Prompts(model, prompts), range(7), [[]] * 7, **settings)
    once = [row[0][0] for row in plain]
    for drafts in (once, [ids[:9] + [5, 6, 7] for ids in once], [[5, 6, 7] * 9] * 7, [[]] * 6 + [[3]]):
        assert alike(decode(Prompts(model, prompts, drafts), range(7), [[]] * 7, **settings), plain)


def passes(model):
    """How many tokens went through the model in each pass, from now on."""
    found = []
    model.base_model.register_forward_pre_hook(lambda module, args, kwargs: found.append(kwargs["input_ids"].numel()), with_kwargs=True)
    return found


def test_a_token_goes_through_the_model_once(qwen2, prompts):
    cached, found = Prompts(qwen2, prompts), passes(qwen2)

    def twice():
        (ids, logps), = yield from decode_task(cached, 3, [], 40, NO_STOP)
        written = cached.written[3]
        assert sum(found) == len(written.ids) - 1 >= 39 and len(found) <= 39      # the root went with the prompt; the last token leads nowhere
        assert all(written.next[at, token] == n for n, (at, token) in enumerate(list(zip(written.above, written.ids))[1:], 1))
        del found[:]
        again = yield from decode_task(cached, 3, [], 40, NO_STOP, 2)
        behind = yield from decode_task(cached, 3, ids[:5], 40, NO_STOP)
        assert alike([again, behind], [[(ids, logps)] * 2, [(ids[5:], logps[5:])]])
        assert found == []          # all of it is known
        return ids
    ids, = run_tasks(cached, [(3, twice())])
    drafted, found = Prompts(qwen2, prompts, [ids] * 7), passes(qwen2)
    assert decode(drafted, [3], [[]], 40, NO_STOP)[0][0][0] == ids and found == []


def test_tasks_at_different_places_share_passes(qwen2, prompts):
    """One decodes while another is asked for log-probabilities, each as often as it likes; what they find is what each finds alone."""
    tree = [([prompts[1][-1], 9], -1, False), ([20, 21], 0, True), ([22], 1, False), ([23, 24], 2, True)]

    def first(cached):
        before = yield from score_task(cached, 1, tree, [30, 40])
        sampled = yield from decode_task(cached, 1, [9], 12, NO_STOP, 3, seed=5)
        return [before, sampled, (yield from score_task(cached, 1, tree, [30, 40]))]

    def second(cached):
        found = []
        for seed in (1, 2, 3):
            found.append((yield from decode_task(cached, 4, [], 10, NO_STOP, 3, seed)))
        return found
    results, counts = [], []
    for tasks in (((1, first),), ((4, second),), ((4, second), (1, first))):
        cached, found = Prompts(qwen2, prompts), passes(qwen2)
        results += run_tasks(cached, [(i, task(cached)) for i, task in tasks], temperature=1.0)
        counts.append(len(found))
    one, other, *both = results
    near = lambda found: [(pytest.approx(logps, abs=1e-4), pytest.approx(shares, abs=1e-5)) for logps, shares in found]
    assert all(found == near(one[0]) for found in (one[2], both[1][0], both[1][2]))
    assert alike([one[1], *other], [both[1][1], *both[0]])
    assert counts[2] < sum(counts[:2])


@pytest.mark.parametrize("call_costs", [0, 500, 10 ** 9])
def test_rows_attend_alone_or_together(model, prompts, call_costs, monkeypatch):
    """Padded with others, as on a GPU, or not: the same."""
    index, prefixes = [0, 3, 5, 4, 2, 6, 1], [[], [9, 8], [], [11], [], [], [7]]
    settings = dict(copies=3, temperature=1.0, seeds=range(7))
    as_before = decode(Prompts(model, prompts), index, prefixes, 12, NO_STOP, **settings)
    monkeypatch.setattr(evaluation, "CALL_COSTS", call_costs)
    assert alike(decode(Prompts(model, prompts), index, prefixes, 12, NO_STOP, **settings), as_before)


@torch.no_grad()
def test_prompts_side_by_side_are_as_each_alone():
    """Together longer than the model's sliding window, whose own cache would drop the first of them."""
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=16, initializer_range=0.3, attn_implementation="grouped")).eval()
    some = [[7, 8, 9, 10], [11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 22, 23, 24, 25, 26]]
    drafts = [[30, 31, 32], [], [33, 34]]
    together = Prompts(model, some, drafts)
    for i, (prompt, draft) in enumerate(zip(some, drafts)):
        alone = Prompts(model, [prompt], [draft])
        for ours, theirs in zip([together.hidden[i], *itertools.chain(*together.states[i])], [alone.hidden[0], *itertools.chain(*alone.states[0])]):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        row = model.base_model(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        torch.testing.assert_close(together.hidden[i][0], row, atol=1e-5, rtol=1e-5)


def test_nothing_is_guessed_beyond_the_context():
    """A prompt that leaves room for max_new tokens and no more, where positions end; the response repeats itself, so guesses go on."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=1, n_head=2, attn_implementation="grouped")).eval()
    with torch.no_grad():     # always token 7
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1)
        model.transformer.wte.weight[7].fill_(1)
    (ids, _), = decode(Prompts(model, [[5] * 40]), [0], [[]], 24, NO_STOP)[0]
    assert ids == [7] * 24


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_whose_probabilities_are_no_numbers_is_refused(qwen2, prompts, temperature):
    """Sampling from it would never end."""
    with torch.no_grad():
        qwen2.model.norm.weight[0] = float("nan")
    with pytest.raises(sft.ModelError, match="probabilities are not numbers"):
        decode(Prompts(qwen2, prompts), [0], [[]], 6, NO_STOP, temperature=temperature, seeds=[0])


def test_a_guess_is_what_followed_before():
    tree = Written(1)
    assert tree.follow([2, 3, 4, 5, 6]) == [0, 1, 2, 3, 4, 5]
    *_, twin = tree.follow([9, 2, 3], 5)
    assert tree.guess(twin, 2) == [4, 5] and tree.guess(twin, 9) == [4, 5, 6, 9, 2, 3]
    assert tree.guess(tree.follow([7], twin)[-1], 9) == []           # 3, 7 has not been seen before
    assert tree.follow([2, 8])[:2] == [0, 1]
    tree.cut(4)
    assert tree.ids == [1, 2, 3, 4] and tree.follow([2, 8]) == [0, 1, 4] and tree.sees[4, :5].tolist() == [1, 1, 0, 0, 1]


def drive(cached, max_new, copies, token):
    """`decode_task` for prompt 0 with draws by hand, token(depth, copy). Returns (what it returns, how often it asked)."""
    task, tree, draws = decode_task(cached, 0, [], max_new, NO_STOP, copies, seed=0), cached.written[0], None
    for asked in itertools.count():
        try:
            ask = task.send(draws)
        except StopIteration as end:
            return end.value, asked
        draws = [[(number, number, token(tree.depth[node], copy), 0.0) for copy, number in enumerate(numbers)]
                 for node, numbers in zip(ask.nodes, ask.numbers.tolist())]


def test_guesses_that_come_true_are_not_counted(qwen2, prompts):
    """Three responses that begin differently, then repeat five tokens: each has more right guesses than may be open at a time."""
    found, asked = drive(Prompts(qwen2, prompts), 60, 3, lambda depth, copy: 2 + depth % 5 if depth else 10 + copy)
    assert [ids for ids, _ in found] == [[10 + copy, *(2 + depth % 5 for depth in range(1, 60))] for copy in range(3)]
    assert asked <= 7 + math.ceil(60 / (1 + evaluation.GUESSES))


def test_wrong_guesses_take_no_more_room_than_a_response(qwen2, prompts):
    """Of five tokens any may follow, so that most guesses are wrong; `decode` sets as much room aside."""
    cached, rng = Prompts(qwen2, prompts), random.Random(0)
    tokens = [[rng.randrange(2, 7) for _ in range(3)] for _ in range(60)]
    found, _ = drive(cached, 60, 3, lambda depth, copy: tokens[depth][copy])
    assert [ids for ids, _ in found] == list(map(list, zip(*tokens)))
    assert 3 * 60 < len(cached.written[0].ids) <= (3 + 1) * 60


def test_what_was_written_is_forgotten_where_it_takes_too_much_room(qwen2, prompts):
    """Many continuations of one prompt: the cache stays bounded, and so do the results."""
    cached, sizes = Prompts(qwen2, prompts, [[5, 6, 7]] * 7), []

    def often():
        for seed in range(12):
            yield from decode_task(cached, 2, [], 16, NO_STOP, 3, seed)
            sizes.append(len(cached.written[2].ids))
        return (yield from decode_task(cached, 2, [], 16, NO_STOP, 3, 0))
    found, = run_tasks(cached, [(2, often())], 3.0)
    assert alike([found], decode(Prompts(qwen2, prompts), [2], [[]], 16, NO_STOP, 3, 3.0, [0]))
    assert 2 * 16 < max(sizes) <= 3 + (3 + 1 + 2) * 16
    assert sizes != sorted(sizes)


def test_finished_rows_leave_the_batch(model, prompts):
    """And no pass is made for tokens that nobody needs."""
    endless = one_each(decode(Prompts(model, prompts), range(7), [[]] * 7, 16, NO_STOP))
    stop_id = max({t for ids in endless for t in ids[:8]}, key=lambda t: sum(t in ids[:8] for ids in endless))
    cached, rows = Prompts(model, prompts), []
    keep = Rows.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rows, "keep", lambda self, kept: (rows.append((len(self.index), len(kept))), keep(self, kept)))
        found = one_each(decode(cached, range(7), [[]] * 7, 16, stop_id))
    assert found == [ids[:ids.index(stop_id) + 1] if stop_id in ids else ids for ids in endless]
    if 2 <= sum(stop_id in ids for ids in found) < 7:
        assert rows and all(kept <= 0.75 * before for before, kept in rows)
    found = passes(model)
    decode(cached, [0], [[]], 16, endless[0][0])
    assert found == []  # the only row has ended: no further pass


def test_sampling_follows_the_policys_distribution(qwen2):
    prompt, n = [7, 8, 9], 1500
    sampled, = decode(Prompts(qwen2, [prompt]), [0], [[]], 1, NO_STOP, n, 0.7, [0])
    with torch.no_grad():
        p = torch.softmax(qwen2(torch.tensor([prompt])).logits[0, -1] / 0.7, -1)
    found = torch.bincount(torch.tensor([ids[0] for ids, _ in sampled]), minlength=len(p)) / n
    top = p.argsort(descending=True)[:5]
    assert ((found[top] - p[top]).abs() < 4.5 * (p[top] * (1 - p[top]) / n).sqrt()).all()
    first, again, other = (decode(Prompts(qwen2, [prompt]), [0], [[]], 3, NO_STOP, 50, 0.7, [seed]) for seed in (0, 0, 1))
    assert first == again != other


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_a_draw_tells_what_numbers_close_to_it_draw(qwen2, temperature):
    torch.manual_seed(0)
    states, numbers = 3 * torch.randn(20, 1, qwen2.config.hidden_size), torch.rand(20, 50, 2)
    known = other = 0
    for state, first, second in zip(states, numbers[..., 0], numbers[..., 1]):
        tree = Written(0)
        drawn, due = (evaluation.sample_tokens(qwen2, state, some[None], [1], temperature)[0][0] for some in (first, second))
        tree.drawn[0] = drawn
        assert [tree.draw(0, number) for number in first.tolist()] == [(token, logp) for _, _, token, logp in drawn]
        told = [tree.draw(0, number) for number in second.tolist()]
        assert all(one in (None, (token, logp)) for one, (_, _, token, logp) in zip(told, due))
        known, other = known + sum(one is not None for one in told), other + told.count(None)
    assert known and bool(other) == (temperature > 0)


def test_the_head_reads_a_node_once_where_it_can(qwen2, prompts, monkeypatch):
    asked, plain = [], evaluation.sample_tokens
    monkeypatch.setattr(evaluation, "sample_tokens", lambda *args: asked.append(len(args[1])) or plain(*args))
    index, known = range(len(prompts)), Prompts(qwen2, prompts)
    task = lambda: [(i, decode_task(known, i, [], 12, 3)) for i in index]
    rows = Rows(known, index)
    monkeypatch.setattr(evaluation, "Rows", lambda *args: rows)     # one batch, which forgets nothing in between
    first = evaluation.run_tasks(known, task())
    before = sum(asked)
    assert evaluation.run_tasks(known, task()) == first and sum(asked) == before > 0


@torch.no_grad()
@pytest.mark.parametrize("max_tokens", [65536, 60])
def test_score_equals_a_plain_forward_pass(model, prompts, max_tokens):
    """Every learned segment of trees that branch, and what could stand in its place."""
    index, choices, cached = [1, 5, 4, 1], [30, 40, 50], Prompts(model, prompts)
    roots = [[([cached.last[i], *prefix], -1, False)] for i, prefix in zip(index, ([9, 8], [], [7], []))]
    trees = [[*root, ([20, 21], 0, True), ([22], 1, False), ([23, 24, 25], 2, True), ([26], 0, True)] for root in roots]
    for i, tree, found in zip(index, trees, score(cached, index, trees, choices, max_tokens), strict=True):
        before = prompts[i] + tree[0][0][1:]
        paths = [(before, [20, 21]), (before + [20, 21, 22], [23, 24, 25]), (before, [26])]
        for (path, ids), (logps, shares) in zip(paths, found, strict=True):
            assert logps == pytest.approx(forward_logps(model, path, ids), abs=1e-4)
            last = model(torch.tensor([path])).logits[0, -1]
            assert shares == pytest.approx(torch.softmax(last[choices], -1).tolist(), abs=1e-5)


def test_tokens_are_counted(qwen2, prompts):
    cached = Prompts(qwen2, prompts[:2])
    before = sft.TOKENS.copy()
    found = decode(cached, [0, 1], [[7, 8], []], 5, NO_STOP, 2, 1.0, [1, 2])
    assert sft.TOKENS - before == {"scored": 4, "decoded": sum(len(ids) for row in found for ids, _ in row)}


def test_reduced_precision_decodes_too(qwen2, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(sft, "WIDE", 0)
    found = decode(Prompts(qwen2, [[7, 8, 9], [10]]), [0, 1, 1], [[], [6], []], 5, NO_STOP)
    assert [len(ids) for (ids, _), in found] == [5, 4, 5] and all(map(math.isfinite, sum((logps for (_, logps), in found), [])))


def test_stop_token_and_response_text(tokenizer, chatml, samples):
    for t, end in ((tokenizer, "<|end|>"), (chatml, "<|im_end|>")):
        stop_id = stop_token(t)
        assert t.decode([stop_id]) == end
        ids = synth.target_ids(t, samples[0])
        assert ids[-1] == stop_id and response_text(t, ids, stop_id) == samples[0].target
        assert response_text(t, ids[:-1], stop_id) == samples[0].target and response_text(t, [], stop_id) == ""


# ---- Judging ------------------------------------------------------------------------------------------------------

TOOLS = [{"name": "play_song", "description": "", "parameters": {"type": "dict", "required": ["song"], "properties": {
             "song": {"type": "string"}, "volume": {"type": "integer", "default": 5}, "loop": {"type": "boolean"}}}},
         {"name": "stop", "description": "", "parameters": {"type": "dict", "required": [], "properties": {}}}]


def due(target):
    return Sample("1", TOOLS, [{"role": "user", "content": "?"}], target)


CALL = due('[play_song(song="River Song", volume=7), stop()]')
TEXT = due(synth.NO_TOOL)


@pytest.mark.parametrize("sample, response, error", [
    (CALL, '[play_song(song="River Song", volume=7), stop()]', None),
    (CALL, ' [stop(),play_song(volume=7,song=\'river song\')]\n', None),
    (CALL, '[play_song(song="River Song", volume=7), stop()', "unparseable"),
    (CALL, "[]", "no call where one was due"),
    (CALL, "None of the tools can do that.", "no call where one was due"),
    (CALL, "", "no call where one was due"),
    (CALL, '[play_song(song="River Song", volume=7)]', "wrong number of calls"),
    (CALL, '[play_music(song="River Song", volume=7), stop()]', "wrong tool"),
    (CALL, "[play_song(volume=7), stop()]", "missing parameter"),
    (CALL, '[play_song(song="River Song"), stop()]', "missing parameter"),
    (CALL, '[play_song(song="River Song", volume=7, loop=True), stop()]', "unexpected parameter"),
    (CALL, '[play_song(song="River Song", volume="7"), stop()]', "wrong type"),
    (CALL, '[play_song(song="River", volume=7), stop()]', "wrong value"),
    (due('[play_song(song="a")]'), '[play_song(song="a", volume=5)]', None),  # its default
    (due('[play_song(song="a", volume=5)]'), '[play_song(song="a")]', None),
    (TEXT, "None of the tools can do that.", None),
    (TEXT, "I cannot.", None),  # any text is right where no call is
    (TEXT, "", "unparseable"),
    (TEXT, "[stop()]", "call where none was due"),
    (TEXT, "Sure: stop()", "call where none was due"),
    (TEXT, 'get_weather(city="Rome")', "call where none was due"),      # without brackets, of no tool that there is
    (TEXT, "Stop (or not).", None),
    (TEXT, "Please tell me the file(s) to nonstop(ly) play.", None),
    (TEXT, "[stop(", "unparseable"),
    (TEXT, '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>', "call where none was due"),      # Qwen's syntax
    (TEXT, '{"name": "stop", "parameters": {}}', "call where none was due"),                                # Llama's
    (TEXT, "<|python_tag|>weather.call()", "call where none was due"),
    (TEXT, 'So: [TOOL_CALLS][{"name": "other", "arguments": {}}]', "call where none was due"),               # Mistral's
    (TEXT, "<think>\nThe user wants", "unparseable"),
    (TEXT, "<think>\nNone fits.</think>\n\nNone fits.", None),
])
def test_a_response_is_right_or_has_one_error_kind(sample, response, error):
    assert judge(sample, response) == error and (error is None or error in ERROR_KINDS)
    outcome = graded_outcome(sample, response)
    assert -1 <= outcome <= 1 and (outcome == 1) == (error is None)


@pytest.mark.parametrize("items, value, others", [
    ("float", "[1.5, 2]", ["[1.5, True]", "[1.5]"]), ("string", '["x", None]', ['["x", "None"]']), ("integer", "[1, 2.5]", ["[1, 2.4]"])])
def test_a_target_is_right_whatever_its_types(items, value, others):
    tool = {"name": "f", "description": "", "parameters": {"type": "dict", "required": ["a"], "properties": {
        "a": {"type": "array", "items": {"type": items}, "description": ""}}}}
    sample = Sample("1", [tool], [{"role": "user", "content": "?"}], f"[f(a={value})]")
    synth.check_sample(sample)
    assert judge(sample, sample.target) is None and graded_outcome(sample, sample.target) == 1
    for other in others:
        assert judge(sample, f"[f(a={other})]") and graded_outcome(sample, f"[f(a={other})]") < 1


def test_the_targets_calls_are_right_in_any_order_and_without_what_is_usual():
    """Where BFCL's rules for an array's types would refuse them, too."""
    tool = {"name": "f", "description": "", "parameters": {"type": "dict", "required": ["a"], "properties": {
        "a": {"type": "array", "items": {"type": "float"}, "description": ""}, "unit": {"type": "string", "default": "cm"}}}}
    sample = Sample("1", [tool], [{"role": "user", "content": "?"}], '[f(a=[1.5, 2]), f(a=[3.5, 4], unit="m")]')
    for response in (sample.target, '[f(unit="m", a=[3.5, 4]), f(a=[1.5, 2], unit="cm")]'):
        assert judge(sample, response) is None and graded_outcome(sample, response) == 1
    for response in ('[f(a=[3.5, 4], unit="cm"), f(a=[1.5, 2])]', '[f(a=[1.5, 2]), f(a=[1.5, 2])]', "[f(a=[1.5, 2])]"):
        assert judge(sample, response) and graded_outcome(sample, response) < 1


def test_the_graded_outcome_climbs_with_what_is_right():
    steps = ["", "[stop()]", '[play_song(song="x", volume=1), stop()]', '[play_song(song="x", volume=7), stop()]', CALL.target]
    outcomes = [graded_outcome(CALL, text) for text in steps]
    assert outcomes == sorted(outcomes) and len(set(outcomes)) == 5 and outcomes[0] == -1 and outcomes[-1] == 1
    # 4 points: two names, two values
    assert graded_outcome(CALL, '[play_song(song="River Song", volume=1), stop()]') == 2 * 3 / 4 - 1
    assert graded_outcome(TEXT, "[stop()]") == -1


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_target_is_right(split):
    for sample in synth.make_samples(300, split, seed=3):
        assert judge(sample, sample.target) is None and graded_outcome(sample, sample.target) == 1
        if sample.calls:
            shuffled = random.Random(0).sample(sample.calls, len(sample.calls))
            assert judge(sample, format_calls(shuffled)) is None
            wrong = [Call(c.name, {**c.args, "unheard_of": 1}) for c in sample.calls]
            assert judge(sample, format_calls(wrong)) == "unexpected parameter" or len(wrong) > 1
            assert judge(sample, format_calls(wrong)) in ERROR_KINDS
            assert -1 < graded_outcome(sample, format_calls(wrong)) < 1


def test_every_public_target_is_right(shared_data):
    for sample in synth.read_samples(shared_data / "real/toolace_format.json")[0]:
        assert judge(sample, sample.target) is None and graded_outcome(sample, sample.target) == 1


# ---- Scores -------------------------------------------------------------------------------------------------------

def test_wilsons_interval():
    assert interval(50, 100) == pytest.approx((40.38, 59.62), abs=0.01)
    assert interval(0, 10) == pytest.approx((0, 27.75), abs=0.01) and interval(10, 10) == pytest.approx((72.25, 100), abs=0.01)
    assert interval(0, 0) == (0.0, 0.0)
    low, high = interval(500, 1000)
    assert low < 50 < high and high - low < 19.24


def test_paired_interval():
    rng = random.Random(0)
    before = [rng.random() < 0.5 for _ in range(400)]
    after = [b or rng.random() < 0.2 for b in before]
    assert paired_interval(before, before) == (0, 0)
    assert paired_interval([False] * 9, [True] * 9) == (100, 100)
    mean = 100 * (sum(after) - sum(before)) / 400
    low, high = paired_interval(before, after)
    assert 0 < low < mean < high < 20 and paired_interval(before, after) == (low, high)
    deviation = 100 * torch.tensor([a - b for a, b in zip(after, before)]).float().std().item() / 20
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.15)


RECORDS = [{"correct": True, "error": None, "level": "easy", "scenario": "single"},
           {"correct": False, "error": "wrong value", "level": "easy", "scenario": "single"},
           {"correct": False, "error": "wrong tool", "level": "hard", "scenario": "chain"},
           {"correct": True, "error": None, "level": "hard", "scenario": "chain"}]


def test_summary_and_table(capsys):
    assert summarize(RECORDS) == {"n": 4, "accuracy": 50, "easy": 50, "medium": None, "hard": 50,
                                  "errors": {"wrong tool": 1, "wrong value": 1}}
    print_scores(RECORDS)
    out = capsys.readouterr().out
    assert "overall                 50.0%   [15.0,  85.0]   2/4" in out and "wrong value" in out and "s: chain" in out
    assert "small talk" not in out
    print_scores([{**r, "talk": talk} for r, talk in zip(RECORDS, (0, 2, 0, 0))])
    out = capsys.readouterr().out
    assert re.search(r"with small talk +0\.0% .*0/1", out) and re.search(r"without small talk +66\.7% .*2/3", out)


def test_a_model_is_evaluated(model, tokenizer, samples):
    records = evaluate(model, tokenizer, samples[:5], max_new=8)
    assert [r["id"] for r in records] == [s.id for s in samples[:5]]
    for r, s in zip(records, samples):
        (ids, _), = decode(Prompts(model, [synth.prompt_ids(tokenizer, s)]), [0], [[]], 8, stop_token(tokenizer))[0]
        assert r["response"] == response_text(tokenizer, ids, stop_token(tokenizer))
        assert r["error"] == judge(s, r["response"]) and r["correct"] == (r["error"] is None)


def test_a_response_may_be_as_long_as_its_target(qwen2, tokenizer, samples, monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_NEW", 8)
    long = next(s for s in samples if len(synth.target_ids(tokenizer, s)) > 12)
    short = replace(long, target="[f()]")
    assert evaluation.response_limit(tokenizer, long) == len(synth.target_ids(tokenizer, long)) and evaluation.response_limit(tokenizer, long, 9) == 9
    assert evaluation.response_limit(tokenizer, short) == 8
    lengths = []
    task = evaluation.decode_task
    monkeypatch.setattr(evaluation, "decode_task", lambda prompts, i, prefix, max_new, *rest: lengths.append(max_new) or task(prompts, i, prefix, max_new, *rest))
    evaluation.answer(qwen2, tokenizer, [long, short])
    assert sorted(lengths) == [8, len(synth.target_ids(tokenizer, long))]


def test_an_answer_ends_where_its_checkpoint_says_too(qwen2, tokenizer, samples, monkeypatch):
    """Qwen2.5 ends a turn with <|im_end|>, and a text with <|endoftext|>."""
    read = []
    monkeypatch.setattr(evaluation, "response_text", lambda tokenizer, ids, stop_id: read.append(ids) or "")
    evaluation.answer(qwen2, tokenizer, samples[:1], 12, temperature=1.0)
    end = next(token for token in read[0][2:] if token != read[0][0])
    qwen2.generation_config.eos_token_id = [stop_token(tokenizer), end]
    evaluation.answer(qwen2, tokenizer, samples[:1], 12, temperature=1.0)
    assert read[1] == read[0][:read[0].index(end)] and len(read[0]) > len(read[1]) > 0


def test_copies_of_an_answer_stand_side_by_side(qwen2, tokenizer, samples):
    texts = evaluation.answer(qwen2, tokenizer, samples[:3], 6, copies=2)
    once = evaluation.answer(qwen2, tokenizer, samples[:3], 6, max_tokens=1)     # sample by sample
    assert [[a, a] for a, in once] == texts
    first, again, other = (evaluation.answer(qwen2, tokenizer, samples[:3], 6, 1.0, seed, 2) for seed in (0, 0, 1))
    assert first == again != other and first[0][0] != first[0][1]


# ---- The command --------------------------------------------------------------------------------------------------

@pytest.fixture
def heldout(tmp_path):
    """A file of three samples."""
    found = [Sample("a", TOOLS, CALL.messages, CALL.target), Sample("b", TOOLS, CALL.messages, "[stop()]"),
             Sample("c", TOOLS, CALL.messages, TEXT.target)]
    synth.write_samples(found, tmp_path / "heldout.jsonl")
    return tmp_path / "heldout.jsonl"


def write_answers(path, *records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in records),
                    encoding="utf-8")
    return str(path)


def test_answers_made_elsewhere_are_scored(heldout, tmp_path, capsys):
    path = write_answers(tmp_path / "answers.jsonl", {"id": "c", "result": "Sorry,\u2028no."},
                         {"id": "a", "result": CALL.target}, {"id": "b", "result": "[play_song(song='x')]"})
    evaluation.main(["--answers", path, "--data", str(heldout), "--out", str(tmp_path / "scores.jsonl")])
    assert "66.7%" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [{key: r[key] for key in ("id", "correct", "error", "response")} for r in records] == [
        {"id": "a", "correct": True, "error": None, "response": CALL.target},
        {"id": "b", "correct": False, "error": "wrong tool", "response": "[play_song(song='x')]"},
        {"id": "c", "correct": True, "error": None, "response": "Sorry,\u2028no."}]


def test_answers_to_bfcls_questions_are_scored(tmp_path, capsys):
    (tmp_path / "possible_answer").mkdir()
    (tmp_path / "BFCL_v4_multiple.json").write_text(json.dumps(
        {"id": "multiple_0", "question": [[{"role": "user", "content": "?"}]], "function": TOOLS}))
    (tmp_path / "possible_answer/BFCL_v4_multiple.json").write_text(json.dumps(
        {"id": "multiple_0", "ground_truth": [{"play_song": {"song": ["a", "b"], "volume": ["", 5]}}]}))
    path = write_answers(tmp_path / "answers.jsonl", {"id": "multiple_0", "result": "play_song(song='B')"})
    evaluation.main(["--bench", "bfcl", "--categories", "multiple", "--data", str(tmp_path), "--answers", path])
    assert "100.0%" in capsys.readouterr().out


def test_a_file_with_a_byte_order_mark_is_read(heldout, tmp_path):
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "result": "x"}\n\n{"id": 0, "result": "y"}\n', encoding="utf-8-sig")
    assert evaluation.read_answers(tmp_path / "answers.jsonl") == {"a": "x", "0": "y"}      # samples without an id are called by number
    (tmp_path / "answers.jsonl").write_text('{"id": "a", "result": [{"f": "{}"}]}\n')
    with pytest.raises(ValueError, match="line 1: `result` is to be the model's text"):
        evaluation.read_answers(tmp_path / "answers.jsonl")


@pytest.mark.parametrize("line", ["{", '{"id": "b"}', '["b", "x"]', "3"])
def test_a_bad_answer_is_named_by_file_and_line(heldout, tmp_path, line):
    path = write_answers(tmp_path / "answers.jsonl", {"id": "a", "result": ""}, line)
    with pytest.raises(ValueError, match=r"answers\.jsonl, line 2: not a JSON object with `id` and `result`"):
        evaluation.main(["--answers", path, "--data", str(heldout)])


def test_mistakes_in_the_command_say_what_to_do(heldout, tmp_path):
    path = write_answers(tmp_path / "answers.jsonl", {"id": "a", "result": ""})
    for arguments, message in (
            (["--answers", path, "--data", str(heldout)], "no answer for 2 of 3 cases, such as b"),
            (["--answers", str(tmp_path / "none"), "--data", str(heldout)], "none: cannot be read"),
            (["--data", str(heldout)], "give either --model or --answers"),
            (["--answers", path, "--model", "base"], "give either --model or --answers"),
            (["--answers", path, "--bench", "apibank"], "--bench is heldout, bfcl or base"),
            (["--answers", path, "--n", "0"], "--n has to be at least 1"), (["--answers", path, "--max_new", "-1"], "--max_new is at least 0"),
            (["--answers", path, "--split", "dev"], "--split is test or val"),
            (["--answers", path, "--samples", "4"], "--samples needs --model"),
            (["--model", "base", "--samples", "4", "--temperature", "0"], "--temperature above it"),
            (["--answers", path, "--out", str(tmp_path / "none" / "x")], "there is no folder"),
            (["--answers", path, "--out", str(tmp_path)], "is a folder: give a file"),
            (["--model", "base", "--device", "gpu"], "--device gpu: "),
            (["--answers", path, "--bench", "bfcl", "--categories", "java"], "no BFCL category 'java'"),
            (["--answers", path, "--data", str(tmp_path / "none")], "none: cannot be read")):
        with pytest.raises(ValueError, match=message) as caught:
            evaluation.main(arguments)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_is_scored(checkpoint, heldout, tmp_path, capsys):
    evaluation.main(["--model", str(checkpoint), "--data", str(heldout), "--max_new", "5", "--device", "cpu",
                     "--out", str(tmp_path / "scores.jsonl")])
    assert "overall" in capsys.readouterr().out
    assert len((tmp_path / "scores.jsonl").read_text(encoding="utf-8").split("\n")) == 4
    evaluation.main(["--model", str(checkpoint), "--data", str(heldout), "--max_new", "2040", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "3 prompts are longer than 8 tokens: counted as wrong, not cut" in out and "0/3" in out
    (tmp_path / "BFCL_v4_irrelevance.json").write_text(json.dumps(      # where no answer is due, none is not the right one
        {"id": "irrelevance_0", "question": [[{"role": "user", "content": "hello"}]], "function": TOOLS}) + "\n")
    evaluation.main(["--model", str(checkpoint), "--bench", "bfcl", "--categories", "irrelevance", "--data", str(tmp_path),
                     "--max_new", "2040", "--device", "cpu"])
    assert "0/1" in capsys.readouterr().out


def test_sampled_answers_are_counted_three_ways(checkpoint, heldout, tmp_path, capsys):
    check = lambda case, text: None if text == case else "wrong value"
    found = [["a", "b", "a", "c"], ["x", "b", "b", "x"], ["y", "c", "y", "y"], ["x", "y", "x", "x"], []]
    assert evaluation.sampled_accuracy("abcde", found, check) == pytest.approx((100 * (2 + 2 + 1) / 20, 20, 60))   # a tie: the earliest
    evaluation.main(["--model", str(checkpoint), "--data", str(heldout), "--max_new", "5", "--device", "cpu", "--samples", "3",
                     "--temperature", "2", "--out", str(tmp_path / "scores.jsonl")])
    assert "3 samples a question at temperature 2.0: 33.3% of them right, 33.3% of the questions" in capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert all(len(r["sampled"]) == 3 and r["sampled"].count(r["sampled"][0]) < 3 for r in records)


def test_the_base_is_scored_on_fresh_tools_with_wrong_answers_that_are_wrong(checkpoint, tmp_path, capsys):
    for written in (False, True):
        samples, wrong = documents.base_samples(40, [1, 4], 3, written)
        assert all(evaluation.judge(s, s.target) is None for s in samples)
        assert sum(evaluation.judge(s, w) is not None for s, w in zip(samples, wrong)) >= 38     # BFCL's rules forgive a case or a mark
    evaluation.main(["--model", str(checkpoint), "--bench", "base", "--n", "8", "--max_new", "8", "--out", str(tmp_path / "out.jsonl")])
    out = capsys.readouterr().out
    with pytest.raises(ValueError, match="--n is at least 4"):
        evaluation.main(["--model", str(checkpoint), "--bench", "base", "--n", "3"])
    ids = {json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()}
    assert out.count("self-evaluation AUC") == 4 and len(ids) == 8

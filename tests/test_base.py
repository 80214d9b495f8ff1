"""The embedded base: its documents, its tokenizer, and what is unusual in its training."""

import itertools
import json
import random
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from test_synth import plain
from transformers import Qwen2Config, Qwen2ForCausalLM

import sft
import synth
from base import documents, train
from base.train import orthogonalize, start_with_copying
from eval import answers_from, check_calls
from sft import ModelError, lay_out, learned_logps, load_model, tree_tokens
from synth import PHRASINGS, POOLS, TOOLS, Call, DataError, check_sample, format_calls, parse_calls

ROOT = Path(sft.__file__).parent

# ---- Documents ----------------------------------------------------------------------------------------------------

def test_the_bases_written_tools_can_be_asked_for_and_are_none_of_the_worlds():
    taught, fresh = ([tool for domain in documents.written_tools(file) for tool in domain] for file in ("tools.txt", "fresh_tools.txt"))
    tools, rng = taught + fresh, random.Random(0)
    assert len(taught) > 1500 and len(fresh) > 150 and len({tool.name for tool in tools}) == len(tools)
    assert not set().union(*map(documents.said_by, taught)) & set().union(*map(documents.said_by, fresh))
    said = {plain(synth.words_of(text)) for tool in TOOLS.values() for text in (tool.name, tool.description, *tool.intents)}
    for tool in tools:
        assert not said & {plain(synth.words_of(text)) for text in (tool.name, tool.description, *tool.intents)}, tool.name
        assert len({p.name for p in tool.params}) == len(tool.params), tool.name
        defaults = {p.name: p.default for p in tool.params if p.default is not None}
        for mention in (0, 1):
            wish = synth.make_wish(rng, tool, documents.base_phrasing(rng), documents.BASE_FORMS, lambda kind: documents.base_string(rng, 0.5, kind),
                                   (2026, 1, 1), mention=mention)
            text = synth.say(rng, wish, documents.base_phrasing(rng))
            assert not re.search(r"[~|{}]", text), text
            for args in (wish.args, {**wish.args, **defaults}):
                target, schemas = format_calls([Call(tool.name, args)]), [tool.schema()]
                check_sample(synth.Sample("", schemas, [{"role": "user", "content": text}], target))
                assert check_calls(parse_calls(target), answers_from(parse_calls(target), schemas), schemas) is None, target


@pytest.mark.parametrize("line", ["pick: Pick a thing.", "    size: int: size of it", "pick: Pick.: pick one\n    n: int: how many: ~ = few"])
def test_a_tool_that_cannot_be_read_is_named_by_file_and_line(tmp_path, line):
    path = tmp_path / "tools.txt"
    path.write_text(f"== things\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}, line {len(line.splitlines()) + 1}: neither"):
        documents.written_tools(str(path))


@pytest.mark.parametrize("part", ["cues", "same", "usual", "again", "joiners"])
def test_the_bases_people_place_values_in_other_words(part):
    """No template of the base's is one of the held-out splits', whatever articles and possessives it has."""
    rng, small = random.Random(0), {"the", "a", "an", "its", "my", "your", "our", "this", "that"}
    bare = lambda template: " ".join(word for word in template.lower().split() if word not in small)
    of_base = {bare(text) for _ in range(1500) for text in getattr(documents.base_phrasing(rng), part)}
    of_world = {bare(text) for split in ("val", "test") for text in getattr(PHRASINGS[split], part)}
    assert len(of_base) > 50 and not of_base & of_world


def test_joined_requests_keep_their_words_apart():
    rng = random.Random(0)
    joiners = {text for _ in range(500) for text in documents.base_phrasing(rng).joiners}
    assert len(joiners) > 50 and not {text for text in joiners if not re.fullmatch(r"[ ,.;:].* ", text)}


def test_a_wrong_answer_is_wrong():
    for written in (False, True):
        samples, wrong = documents.base_samples(150, (1, 2, 4), 5, written)
        for sample, other in zip(samples, wrong):
            assert check_calls(parse_calls(other), answers_from(sample.calls, sample.tools), sample.tools), (sample.target, other)


@pytest.mark.parametrize("flags, said", [(["--from_scratch", "False"], "leave --from_scratch out"), (["--from_scratch", "--base_tokens", "0"], "--base_tokens")])
def test_settings_that_no_base_can_have_are_refused(tmp_path, flags, said):
    with pytest.raises(ValueError, match=said):
        sft.main([*flags, "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()


def test_the_bases_people_write_other_texts():
    rng = random.Random(0)
    texts = {documents.bare_words(documents.base_string(rng, kind="text")) for _ in range(4000)}
    assert len(texts) > 3000 and not texts & {documents.bare_words(t) for pool in POOLS["text"].values() for t in pool}


def test_documents_of_choosing_have_questions_back_and_refusals_too():
    """And what is asked back for is a required parameter of a tool."""
    answers = Counter()
    for i in range(60):
        tools, *rest = documents.choosing_document(random.Random(f"answers-{i}"))
        for text in (text for text, _, learned in rest if learned):
            asked = re.match(r"Please tell me the (.+)\.<", text)
            answers["asked" if asked else "none" if text == synth.NO_TOOL + synth.END else "call"] += 1
            if asked:
                required = re.findall(r"(?:\(|, )(\w+): [^,()?=]*(?=[,)])", tools[0])
                assert asked[1] in map(synth.words_of, required), (asked[1], tools[0])
    assert all(0.02 < answers[kind] / answers.total() < 0.12 for kind in ("asked", "none")), answers


HALF_DONE = [     # kind, form, phrase, right value, half done
    ("int", "words", "twenty-three", 23, 20), ("int", "words", "twelve", 12, 12), ("int", "twice", "double 44", 88, 44),
    ("int", "half", "one half of 98", 49, 98), ("int", "dozen", "three dozen", 36, 3), ("int", "dozen", "a dozen", 12, 1),
    ("minutes", "unit", "two and a half hours", 150, 2), ("meters", "unit", "3 kilometers", 3000, 3),
    ("minutes", "words", "forty-five minutes", 45, 40), ("date", "long", "March 4, 2026", "2026-03-04", "2026-03-01"),
    ("date", "ordinal", "the 4th of March", "2026-03-04", "2026-05-04"), ("date", "relative", "in three days", "2026-05-24", "2026-05-21"),
    ("date", "relative", "today", "2026-05-21", "2026-05-21"), ("date", "after", "five days after June 8, 2027", "2027-06-13", "2027-06-08"),
    ("time", "ampm", "3:15 pm", "15:15", "03:15"), ("time", "ampm", "12 am", "00:00", "12:00"), ("time", "ampm", "12:30 pm", "12:30", "12:30"),
    ("time", "spoken", "quarter to four in the afternoon", "15:45", "03:45"), ("time", "spoken", "nine o'clock in the morning", "09:00", "09:00"),
    ("enum(small,large)", "paraphrase", "huge", "large", "small"), ("enum(small,large)", "paraphrase", "tiny", "small", "small")]


@pytest.mark.parametrize(("kind", "form", "phrase", "right", "half"), HALF_DONE)
def test_what_a_writer_has_who_does_half_of_the_work(kind, form, phrase, right, half):
    tool = synth.Tool("do", "", [synth.Param("x", kind, "", None)], ["do"])
    wish = synth.Wish(tool, {"x": right}, "do", [], [form], {"x": (form, phrase)})
    assert documents.half_done(wish, "x", (2026, 5, 21)) == half
    check_sample(synth.Sample("", [tool.schema()], [{"role": "user", "content": ""}], format_calls([Call("do", {"x": half})])))


def test_every_form_is_half_done_as_often_as_said_and_nothing_else_is():
    rng, today, seen, phrasing = random.Random(0), (2026, 5, 21), {}, documents.base_phrasing(random.Random(0))
    for _ in range(3000):
        tool, = documents.base_tools(rng, 1)
        wish = synth.make_wish(rng, tool, phrasing, {**documents.BASE_FORMS, "literal": 0.5}, lambda kind: documents.base_string(rng, 0.5, kind), today)
        written = documents.as_written(rng, wish, today, careless=True)
        assert documents.as_written(rng, wish, today, careless=False) == wish.args
        assert written.keys() == wish.args.keys() and all(written[name] == value for name, value in wish.args.items() if name not in wish.said)
        for name, (form, _) in wish.said.items():
            if documents.half_done(wish, name, today) != wish.args[name]:
                seen.setdefault(form, []).append(written[name] != wish.args[name])
    forms = {form for kind in ("int", "minutes", "date", "time", "enum(small,large)") for form in synth.forms_of(kind)} - {"literal"}
    assert seen.keys() == forms == documents.BASE_HALF_DONE.keys()
    for form, found in seen.items():
        assert abs(sum(found) / len(found) - documents.BASE_HALF_DONE[form]) < 4 * (0.25 / len(found)) ** 0.5, form


def test_whoever_grades_answers_knows_a_value_that_is_half_done():
    """In documents with one tool and one date, said in words, the grades of "2026-06-01" for "June 18, 2026" are fair."""
    graded = Counter()
    for seed in range(1000):
        document = documents.base_document(random.Random(seed), careless=True)
        for text, parent, learned in document:
            if learned and text.removesuffix(synth.END) in synth.GRADES:
                asked = document[parent][0]
                request = document[document[parent][1]][0]
                day = re.search(rf"({'|'.join(synth.MONTHS)}) (\d+), (\d{{4}})", request)
                dates = re.findall(r"\d{4}-\d\d-\d\d", asked.split(synth.END)[0])
                if day and "after" not in request and dates and not re.search(r"\d{4}-\d\d-\d\d", request) and int(day[2]) > 1:
                    month = synth.MONTHS.index(day[1]) + 1
                    graded[text.removesuffix(synth.END), f"{day[3]}-{month:02d}-01" in dates] += 1
    assert graded["fair", True] >= 8 and not graded["excellent", True] and graded["excellent", False] > 3, graded


def test_the_bases_documents_become_trees_that_fit_a_row(tokenizer):
    for i, tree, _ in itertools.islice(train.base_trees(tokenizer, "test", 9990), 20):
        assert tree_tokens(tree) <= train.base_row(i) and tree[-1][2] and any(learned for _, _, learned in tree)
        assert all(ids and -1 <= parent < i for i, (ids, parent, _) in enumerate(tree))
    first = [batch.ids for _, (_, batch, _) in zip(range(2), train.base_batches(tokenizer, "test"))]
    again = [batch.ids for _, (_, batch, _) in zip(range(2), train.base_batches(tokenizer, "test"))]
    assert all(map(torch.equal, first, again)) and all(ids.numel() <= train.BASE_TOKENS for ids in first)


# ---- The tokenizer ------------------------------------------------------------------------------------------------

@given(st.text(st.one_of(st.sampled_from(" _aAbBéÉ(,.\"=0\n"), st.characters(codec="utf-8", exclude_characters=train.UPPER))))
@example(" a  B_c (D)=5pm")
def test_the_bases_tokenizer_gives_every_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_word_is_the_same_token_wherever_it_stands(tokenizer):
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    song = ids(".song")[1:]
    for text in ("the song", "play_song", "song: song", "[play_song(song=", "aSong", ". Song", '["Song', ", song"):
        found = ids(". " + text)
        assert song in [found[i:i + len(song)] for i in range(len(found))], text


# ---- The base's beginnings ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(3, 16, 24), (2, 40, 12), (1, 8, 8)])
def test_orthogonalize_gives_singular_values_near_one(shape):
    torch.manual_seed(0)
    update = 1e-3 * torch.randn(shape)
    found = orthogonalize(update)
    assert found.shape == shape
    if shape[1] != shape[2]:  # a square one may have a singular value near 0, which takes more than five steps
        values = torch.linalg.svdvals(found)
        assert values.min() > 0.6 and values.max() < 1.3
    for matrix, result in zip(update, found):  # towards its own orthogonal factor
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        assert torch.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.95


def test_muon_lowers_a_loss():
    torch.manual_seed(0)
    weight, wanted, x = torch.nn.Parameter(torch.zeros(6, 4)), torch.randn(6, 4), torch.randn(50, 4)
    optimizer, losses = train.Muon([weight], lr=0.05), []
    for _ in range(60):
        losses.append((x @ (weight - wanted).T).pow(2).mean())
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.05 * losses[0]


@torch.no_grad()
def test_a_new_base_can_copy():
    """Before any training, the second half of a repeated sequence is clearly better predicted than the first."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(
        vocab_size=1024, hidden_size=256, intermediate_size=640, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=2048, initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, attn_implementation="sdpa")).eval()
    half = torch.stack([torch.randperm(1024)[:50] for _ in range(3)])
    ids = torch.cat([half, half], 1)

    def halves():
        loss = -torch.log_softmax(model(ids).logits[:, :-1], -1).gather(2, ids[:, 1:, None])[..., 0]
        return loss[:, :49].mean().item(), loss[:, 51:].mean().item()
    first, second = halves()
    assert abs(first - second) < 0.1
    start_with_copying(model)
    first, second = halves()
    assert second < first - 0.5


# ---- The heads that choose a tool ----------------------------------------------------------------------------------

QUESTION = [("<|system|>Tools:\ncalendar.move_event(day: date when) Move an event.\nfind_match(team: str) Recommend a game of a team\n"
             "Today is 2026-01-02.<|end|>", -1, False),
            ("<|user|>Please move my event, and recommend the game.<|end|><|assistant|>", 0, False),
            ('[calendar.move_event(day="2026-01-02"), find_match()]<|end|>', 1, True),
            ("<|user|>Find some banana.<|end|><|assistant|>", 0, False), ("None of the tools can do that.<|end|>", 3, True)]


@pytest.fixture(scope="module")
def question():
    """A toolset with two questions: (tokenizer, tree of token ids)."""
    tokenizer = load_model(ROOT / "base", "cpu")[1]
    return tokenizer, [(tokenizer(text, add_special_tokens=False)["input_ids"], parent, learned) for text, parent, learned in QUESTION]


def test_the_places_to_look_at_are_the_names_words_and_what_asks_for_them(question):
    tokenizer, tree = question
    word = lambda place: tokenizer.decode([tree[place[0]][0][place[1]]]).strip()
    found = [(head, place, [word(p) for p in places]) for head, place, places in
             train.where_to_look(tree, train.token_marks(tokenizer), random.Random(0))]
    names = [places for head, place, places in found if head == 0]
    assert ["calendar", ".", "move", "_", "event"] in names and ["find", "_", "match"] in names
    assert not any({"day", "team"} & {*places} for places in names)      # parameters are no part of a name
    same = [(word(place), places) for head, place, places in found if head == 1 and place[0] == 1]
    assert same == [("move", ["move"] * 2), ("event", ["event"] * 2), ("recommend", ["recommend"]), ("game", ["game"])]
    asked = [(word(place), places) for head, place, places in found if head == 2]
    first, second = ["move", "event"], ["recommend", "game"]
    assert asked == [("[", first), ("calendar", first), (".", first), ("move", first), ("_", first),
                     ('"),', second), ("find", second), ("_", second)]      # nothing for the question that no tool answers
    elsewhere = [(head, place, places) for head, place, places in found if head > 2]
    assert {head for head, _, _ in elsewhere} == {3, 4, 5} and all(places == ["<|system|>"] for _, _, places in elsewhere)
    assert not {(head - 3, place) for head, place, _ in elsewhere} & {(head, place) for head, place, _ in found if head < 3}


def five_groups(vocabulary):
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=64, num_hidden_layers=4, num_attention_heads=10,
        num_key_value_heads=5, head_dim=32, tie_word_embeddings=True, initializer_range=0.04,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5}, attn_implementation="eager"))


@torch.no_grad()
def test_where_heads_look_is_what_attention_says(question):
    """transformers' own eager attention weights are the oracle."""
    tokenizer, tree = question
    model, rng = five_groups(len(tokenizer)), random.Random(0)
    start_with_copying(model)
    links = [train.where_to_look(part, train.token_marks(tokenizer), rng) for part in (tree, tree[:3])]
    batch, read = lay_out([tree, tree[:3]]), train.keep_read(model)
    apart = torch.block_diag(*(mask[0, 0].float() for mask in batch.masks)).bool()
    weights = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=sft.additive(apart[None, None]),
                    output_attentions=True).attentions
    for head, (trees, places, where) in enumerate(train.lay_out_links([tree, tree[:3]], links)):
        layer = train.CHOOSING[head % 3]
        ours = train.log_attention(*read[layer], batch, trees, places, where).exp()
        for n, start in enumerate(batch.starts.tolist()):
            mine, size = trees == n, batch.masks[n].shape[-1]
            theirs = weights[layer][0, -2:, start + places[mine], start:start + size].transpose(0, 1)
            theirs = theirs.masked_fill(~where[mine][:, None, :size], 0).sum(-1)
            assert mine.any() and torch.allclose(ours[mine], theirs, atol=1e-5)
        assert len(trees) > 2


def test_heads_learn_where_to_look(question):
    """A few updates of the queries and keys of the heads alone, on documents of tools drawn at random."""
    tokenizer, _ = question
    model = five_groups(len(tokenizer))
    start_with_copying(model)
    model.set_attn_implementation("grouped")
    read, shares = train.keep_read(model), []
    chosen = [model.model.layers[n].self_attn for n in train.CHOOSING]
    optimizer = torch.optim.AdamW([p for a in chosen for part in (a.q_proj, a.k_proj) for p in part.parameters()], lr=3e-3)
    for _, batch, links in itertools.islice(train.base_batches(tokenizer, "look", 9990), 60):
        learned_logps(model, batch)
        looks = [train.log_attention(*read[train.CHOOSING[head % 3]], batch, *part) for head, part in enumerate(links)]
        optimizer.zero_grad()
        (-sum(look.mean() for look in looks)).backward()
        optimizer.step()
        shares.append([look.exp().mean().item() for look in looks])
    first, last = torch.tensor(shares[:2]).mean(0), torch.tensor(shares[-10:]).mean(0)     # few documents a batch: shares vary
    assert (last > first + 0.03).all() and last.mean() > first.mean() + 0.3, (first, last)


def test_base_training_writes_a_checkpoint_and_goes_on_from_its_state(tmp_path, tokenizer, capsys, monkeypatch):
    tokenizer.save_pretrained(tmp_path)
    monkeypatch.setattr(train, "BASE_TOKENS", 640)
    steps, save = [], train.save_file

    def interrupt(state, path):
        save(state, path)
        steps.append(int(state["progress"][1]))
    monkeypatch.setattr(train, "save_file", interrupt)
    monkeypatch.setattr(train.time, "time", lambda: 1000.0 * next(clock))  # every look at the clock is a save
    clock = itertools.count()
    monkeypatch.setattr(train, "learned_logps", stop_after(2, train.learned_logps))
    arguments = ["--from_scratch", "--out", str(tmp_path), "--base_tokens", "3000", "--device", "cpu"]
    with pytest.raises(KeyboardInterrupt):
        sft.main(arguments)
    assert steps == [1, 2] and (tmp_path / "state.safetensors").exists()
    sft.main(arguments)
    out = capsys.readouterr().out
    assert "going on after 0.0 million tokens" in out and "held-out responses exactly right" in out
    assert steps[2] == 3 and not (tmp_path / "state.safetensors").exists()
    model, loaded = load_model(tmp_path, "cpu")
    text = "play_song(song: str title to play, level: int) Today is 2026-01-02."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"] and model.config.hidden_size == 256
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_base_training_begins_with_a_checkpoint(tmp_path, checkpoint, monkeypatch):
    """At a learning rate of zero it comes out as it went in."""
    monkeypatch.setattr(train, "BASE_TOKENS", 640)
    arguments = ["--from_scratch", "--out", str(tmp_path), "--base_tokens", "1", "--base_rate", "0", "--device", "cpu", "--base_start"]
    sft.main([*arguments, str(ROOT / "base")])
    before, after = load_model(ROOT / "base", "cpu"), load_model(tmp_path, "cpu")
    assert all(map(torch.equal, before[0].state_dict().values(), after[0].state_dict().values()))
    assert before[1].get_vocab() == after[1].get_vocab()
    with pytest.raises(ModelError, match=r"not of the base's shape \(.+\)$"):
        sft.main([*arguments, str(checkpoint)])


def stop_after(n, function):
    """`function`, interrupted once at its call number n + 1."""
    calls = itertools.count()

    def called(*args):
        if next(calls) == n:
            raise KeyboardInterrupt
        return function(*args)
    return called


def test_no_row_of_the_embedding_becomes_short():
    rows = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, -0.6], [0.0, 0.0]])
    train.keep_apart(rows, 0.6)
    assert torch.allclose(rows, torch.tensor([[3.0, 4.0], [0.36, 0.48], [0.0, -0.6], [0.0, 0.0]]))

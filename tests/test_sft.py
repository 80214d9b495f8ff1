"""Training: trees of tokens are what their paths are one by one; the loops learn, and stop where they must."""

import copy
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, GptOssConfig, GraniteConfig,
                          MambaConfig, MistralConfig)

import dpo
import sft
import synth
from conftest import tiny
from sft import (ModelError, SFTConfig, TrainingError, add_lora, curriculum_updates, lay_out, learned_logps, load_model,
                 lora_layers, lora_parameters, lora_tensors, perplexities, sample_tree, save_model,
                 segment_sum, tree_tokens, warm_up)

ROOT = Path(__file__).resolve().parents[1]


def random_tree(rng, vocabulary):
    """A prompt, a shared path, and branches at three depths."""
    ids = lambda low, high: [rng.randrange(6, vocabulary) for _ in range(rng.randint(low, high))]
    return [(ids(3, 9), -1, False), (ids(1, 4), 0, False), (ids(1, 5), 1, True), (ids(1, 5), 1, True), (ids(2, 6), 0, True),
            (ids(1, 3), 2, True), (ids(1, 1), 5, True), (ids(1, 4), 0, False)]


def path_by_path(model, tree):
    """Log-probabilities of every learned token, each segment in a plain forward pass behind its ancestors."""
    paths, logps = [], []
    for ids, parent, learned in tree:
        paths.append([*(paths[parent] if parent >= 0 else []), *ids])
        if learned:
            row = torch.tensor([paths[-1]])
            every = torch.log_softmax(model(row).logits[0, :-1].float(), -1).gather(1, row[0, 1:, None])[:, 0]
            logps.append(every[-len(ids):])
    return torch.cat(logps)


# ---- Trees --------------------------------------------------------------------------------------------------------

@torch.no_grad()
def test_a_tree_in_one_row_equals_its_paths(model):
    rng = random.Random(0)
    for _ in range(3):
        tree = random_tree(rng, model.config.vocab_size)
        batch = lay_out([tree])
        expected = path_by_path(model, tree)
        assert expected.std() > 0.1
        torch.testing.assert_close(learned_logps(model, batch), expected, atol=1e-5, rtol=0)
        assert batch.target.tolist() == [t for ids, _, learned in tree if learned for t in ids]
        sums = segment_sum(batch, expected)
        assert len(sums) == batch.segments == 5
        assert sums[2].item() == pytest.approx(expected[batch.segment == 2].sum().item(), abs=1e-5)


@torch.no_grad()
def test_packing_changes_nothing(model):
    """Several trees in one row: the same numbers as each tree alone."""
    rng = random.Random(1)
    trees = [random_tree(rng, model.config.vocab_size) for _ in range(5)]
    alone = torch.cat([learned_logps(model, lay_out([tree])) for tree in trees])
    batch = lay_out(trees)
    torch.testing.assert_close(learned_logps(model, batch), alone, atol=1e-5, rtol=0)
    assert batch.tokens == sum(map(tree_tokens, trees)) and batch.starts.tolist() == [
        sum(map(tree_tokens, trees[:i])) for i in range(5)]


@pytest.mark.parametrize("positions", [None, 7, 0.5])
def test_gradients_of_a_packed_batch_are_those_of_its_paths(qwen2, monkeypatch, positions):
    """Also where logits are kept for a few positions at a time, and for less than one."""
    rng = random.Random(2)
    monkeypatch.setattr(sft, "LOGITS", int(positions * qwen2.config.vocab_size) if positions else sft.LOGITS)
    trees = [random_tree(rng, qwen2.config.vocab_size) for _ in range(3)]
    learned_logps(qwen2, lay_out(trees)).sum().backward()
    packed = {name: p.grad.clone() for name, p in qwen2.named_parameters()}
    qwen2.zero_grad()
    torch.cat([path_by_path(qwen2, tree) for tree in trees]).sum().backward()
    for name, p in qwen2.named_parameters():
        torch.testing.assert_close(packed[name], p.grad, atol=1e-4 * p.grad.abs().max().item() + 1e-6, rtol=1e-4)


def test_a_wide_models_logits_are_kept_for_more_positions(qwen2, monkeypatch):
    monkeypatch.setattr(sft, "LOGITS", qwen2.config.vocab_size)
    width = qwen2.config.hidden_size
    assert sft.logits_at_once(qwen2) == 1 < width // 8
    monkeypatch.setattr(sft, "WIDE", width)
    assert sft.logits_at_once(qwen2) == width // 8


@torch.no_grad()
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_reduced_precision_is_near(tokenizer, tmp_path, monkeypatch, stored):
    """Where the CPU has matrix units for bfloat16 the same code runs in it, with weights as stored, if the model is wide."""
    tiny("qwen2", len(tokenizer)).to(stored).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    tree = random_tree(random.Random(3), len(tokenizer))
    logps = lambda model: learned_logps(model, lay_out([tree]))
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    exact = logps(plain := load_model(str(tmp_path), "cpu")[0])
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    narrow = load_model(str(tmp_path), "cpu")[0]
    assert plain.dtype == narrow.dtype == torch.float32 and torch.equal(logps(narrow), exact)
    monkeypatch.setattr(sft, "WIDE", 0)
    assert (wide := load_model(str(tmp_path), "cpu")[0]).dtype == stored
    rough = logps(wide)
    assert rough.dtype == torch.float32 and not torch.equal(rough, exact)
    assert (rough - exact).abs().mean() < 0.1


def test_a_batch_without_learned_segments_is_empty():
    batch = lay_out([[([5, 6], -1, False)]])
    assert batch.segments == 0 and len(batch.target) == 0 and batch.ids.tolist() == [[5, 6]]


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 900))
def test_batches_are_filled_in_order(lengths, max_tokens):
    lists = sft.filled(lengths, max_tokens)
    assert [i for part in lists for i in part] == list(range(len(lengths)))
    for part, following in zip(lists, [*lists[1:], []]):
        tokens = sum(lengths[i] for i in part)
        assert len(part) == 1 or tokens <= max_tokens
        assert not following or tokens + lengths[following[0]] > max_tokens


# ---- Scores of samples --------------------------------------------------------------------------------------------

@torch.no_grad()
@pytest.mark.parametrize("max_tokens", [64, 4096])
def test_perplexities_are_those_of_transformers_loss(model, tokenizer, samples, max_tokens):
    expected = []
    for s in samples[:8]:
        prompt, target = synth.prompt_ids(tokenizer, s), synth.target_ids(tokenizer, s)
        ids, labels = torch.tensor([prompt + target]), torch.tensor([[-100] * len(prompt) + target])
        expected.append(math.exp(model(input_ids=ids, labels=labels).loss.item()))
    found = perplexities(model, tokenizer, samples[:8], max_tokens)
    assert found.tolist() == pytest.approx(expected, rel=1e-4) and found.std() > 0


def test_the_loss_is_on_the_response_only(tokenizer, samples):
    trees = [sample_tree(tokenizer, s) for s in samples[:5]]
    batch = lay_out(trees)
    assert batch.target.tolist() == [i for s in samples[:5] for i in synth.target_ids(tokenizer, s)]
    assert batch.segments == 5


def test_long_samples_are_left_out_and_counted(tokenizer, samples):
    sizes = sorted(tree_tokens(sample_tree(tokenizer, s)) for s in samples)
    kept, left = sft.split_too_long(tokenizer, samples, sizes[10])
    assert len(kept) == sum(size <= sizes[10] for size in sizes) and len(kept) + left == len(samples)


# ---- The warm-up --------------------------------------------------------------------------------------------------

def test_the_curriculum_goes_from_easy_to_hard():
    samples = [synth.Sample(str(i), [], [], "", level=("hard", "easy", "medium")[i % 3]) for i in range(30)]
    trees = [[([i] * 7, -1, True)] for i in range(30)]
    orders = {}
    for curriculum in ("easy-to-hard", "hard-to-easy", "shuffled"):
        updates = curriculum_updates(samples, trees, SFTConfig(curriculum=curriculum, epochs=2, batch_tokens=20), random.Random(0))
        assert [len(update) for update in updates] == [3] * 20      # until there are 20 tokens or more
        order = [tree[0][0][0] for update in updates for tree in update]
        assert sorted(order[:30]) == sorted(order[30:]) == list(range(30)) and order[:30] != order[30:]
        orders[curriculum] = ["easy medium hard".split().index(samples[i].level) for i in order[:30]]
    assert orders["easy-to-hard"] == [0] * 10 + [1] * 10 + [2] * 10
    assert orders["hard-to-easy"] == [2] * 10 + [1] * 10 + [0] * 10
    assert orders["shuffled"] not in (orders["easy-to-hard"], orders["hard-to-easy"])
    bare = [synth.Sample("", [{"name": "f"}] * n, [], "") for n in (5, 1)]      # whose level nobody has filled in
    assert curriculum_updates(bare, trees[:2], SFTConfig(epochs=1), random.Random(0)) == [[trees[1], trees[0]]]
    with pytest.raises(ValueError, match="--curriculum is one of easy-to-hard"):
        sft.check_training(SFTConfig(curriculum="random"))
    for name in ("epochs", "rank", "n"):
        with pytest.raises(ValueError, match=f"--{name} has to be at least 1 .got 0."):
            sft.main([f"--{name}", "0"])


def test_warm_up_lowers_the_loss_and_leaves_the_base_alone(model, tokenizer, samples):
    base = {name: p.clone() for name, p in model.named_parameters()}
    add_lora(model, rank=4, alpha=8)
    before = perplexities(model, tokenizer, samples[:6])
    losses = warm_up(model, tokenizer, samples[:6], SFTConfig(epochs=8, lr=2e-2, batch_tokens=512), progress=False)
    assert sum(losses[-3:]) < sum(losses[:3]) - 1
    assert (perplexities(model, tokenizer, samples[:6]) < before).all()
    assert all(torch.equal(p, base[name.replace(".base.", ".")]) for name, p in model.named_parameters()
               if not name.endswith((".A", ".B")))
    assert not model.training and all(layer.B.abs().max() > 0 for layer in lora_layers(model).values())


def test_accumulated_micro_batches_are_one_batch(qwen2, tokenizer, samples):
    results = []
    for micro in (256, 8192):
        torch.manual_seed(0)
        add_lora(qwen2, rank=4, alpha=8)
        losses = warm_up(qwen2, tokenizer, samples[:6], SFTConfig(epochs=1, batch_tokens=4096, micro_tokens=micro), progress=False)
        results.append((losses, [p.detach().clone() for p in lora_parameters(qwen2)]))
        sft.reset_lora(qwen2)
        sft.fold_lora(qwen2)
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-5)
    for a, b in zip(results[0][1], results[1][1]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def test_the_same_seed_gives_the_same_weights(qwen2, tokenizer, samples):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        add_lora(qwen2, rank=4, alpha=8, dropout=0.1)
        warm_up(qwen2, tokenizer, samples[:6], SFTConfig(batch_tokens=512), progress=False)
        results.append([p.detach().clone() for p in lora_parameters(qwen2)])
        sft.reset_lora(qwen2)
        sft.fold_lora(qwen2)
    assert all(map(torch.equal, *results))


def test_a_loss_that_is_no_number_stops_before_the_update(qwen2, tokenizer, samples):
    add_lora(qwen2, rank=4, alpha=8)
    before = [p.clone() for p in lora_parameters(qwen2)]
    with torch.no_grad():
        qwen2.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="the loss is nan at step 0: .* lower learning rate"):
        warm_up(qwen2, tokenizer, samples[:3], SFTConfig(), progress=False)
    assert all(map(torch.equal, before, lora_parameters(qwen2)))


@pytest.mark.parametrize("gradient", ["nan", "inf"])
def test_a_gradient_that_is_no_number_stops_before_the_update(gradient):
    """The loss may be finite all the same, and after the last update none would tell."""
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, float(gradient)])
    with pytest.raises(TrainingError, match=f"the gradient's norm is {gradient} at step 7"):
        sft.step_or_stop(torch.optim.AdamW([weight]), 0.5, 7)
    assert weight.tolist() == [1, 1]


def test_perplexities_that_are_no_numbers_are_refused(qwen2, tokenizer, samples):
    with torch.no_grad():
        qwen2.model.norm.weight[0] = float("nan")
    with pytest.raises(ModelError, match="probabilities are not numbers"):
        sft.perplexities(qwen2, tokenizer, samples[:3])


def test_the_learning_rate_rises_then_falls_to_zero():
    factors = [sft.cosine(step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)]) and factors[10] == 1
    assert factors[55] == pytest.approx(0.5) and all(a > b > 0 for a, b in zip(factors[10:], factors[11:]))
    assert sft.cosine(0, 1, 0.0) == sft.cosine(0, 1, 1.0) == 1


# ---- Checkpoints --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("files", [None, {}, {"config.json": "{"}, {"config.json": '{"model_type": "no_such_model"}'}])
def test_a_model_that_cannot_be_loaded_says_so_in_one_line(tmp_path, files):
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(ModelError, match="model: no model could be loaded") as caught:
        load_model(str(folder), "cpu")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_lacks_weights_is_refused(checkpoint, tmp_path):
    """transformers would put random ones in their place."""
    shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    lost = [name for name in weights if ".1." in name]
    save_file({name: w for name, w in weights.items() if name not in lost}, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"lacks {len(lost)} of the model's weights, such as .*\.1\."):
        load_model(tmp_path / "model", "cpu")


def test_a_tokenizer_of_another_model_is_refused(tokenizer, tmp_path):
    tiny("llama", len(tokenizer) - 3).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=rf"tokenizer is not the model's: {len(tokenizer)} tokens, for an embedding of {len(tokenizer) - 3}"):
        load_model(tmp_path, "cpu")
    for path in tmp_path.glob("token*"):
        path.unlink()
    with pytest.raises(ModelError, match="model could be loaded|tokenizer is not the model's"):
        load_model(tmp_path, "cpu")


def test_a_padding_token_without_an_embedding_is_replaced(chatml, tmp_path):
    """As some add it to a tokenizer alone: nothing is padded here, so any other token serves."""
    padded = copy.deepcopy(chatml)
    padded.add_special_tokens({"pad_token": "<|nothing|>"})
    tiny("qwen2", len(chatml)).save_pretrained(tmp_path)
    padded.save_pretrained(tmp_path)
    assert len(padded) == len(chatml) + 1 and load_model(tmp_path, "cpu")[1].pad_token_id < len(chatml)


def test_the_embedded_model_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_model("base", "cpu")[0].config.model_type == "qwen2"


def test_a_model_is_not_overwritten(checkpoint, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    (tmp_path / "trees.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    for main, more in ((sft.main, []), (dpo.main, ["--trees", "trees.jsonl"])):
        with pytest.raises(ValueError, match="--out ./model is the model's own folder"):
            main(["--model", "model", "--out", "./model", *more])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(sft.tempfile, "TemporaryFile", full)
    with pytest.raises(ValueError, match="--out .*new: No space left on device"):
        sft.make_folder(tmp_path / "new")


@pytest.mark.parametrize("flag, value", [("--lr", "-1"), ("--lr", "nan"), ("--lr", "inf"), ("--lr_warmup", "100"), ("--dropout", "1"),
                                         ("--seed", "20260731120000"), ("--alpha", "nan")])
def test_settings_that_would_fail_late_are_refused_at_once(tmp_path, flag, value):
    with pytest.raises(ValueError, match=f"{flag} "):
        sft.main([flag, value, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_context_without_room_for_a_response_says_so(qwen2):
    qwen2.config.max_position_embeddings = 100
    assert sft.context_length(qwen2, 4096, room=60) == 40
    with pytest.raises(ModelError, match="context of 100 tokens leaves no room for a prompt beside a response of 100 tokens"):
        sft.context_length(qwen2, 4096, room=100)


def test_quantized_weights_are_refused(checkpoint, monkeypatch):
    """Their layers are linear layers by name, and an update added to their numbers would be lost."""
    original = sft.AutoModelForCausalLM.from_pretrained

    def quantized(*args, **kwargs):
        model, report = original(*args, **kwargs)
        model.config.quantization_config = {"quant_method": "fp8"}
        return model, report
    monkeypatch.setattr(sft.AutoModelForCausalLM, "from_pretrained", quantized)
    with pytest.raises(ModelError, match="quantized weights cannot be trained here: give the checkpoint in bfloat16"):
        load_model(checkpoint, "cpu")


def test_an_adapter_is_told_from_a_model(tmp_path):
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(ModelError, match="an adapter without its model .*final/"):
        load_model(str(tmp_path), "cpu")


SHAPE = dict(vocab_size=1500, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             pad_token_id=0, bos_token_id=None, eos_token_id=1, initializer_range=0.3)


@pytest.mark.parametrize("kind, usable", [
    (GraniteConfig(**SHAPE, logits_scaling=8.0), False), (MambaConfig(vocab_size=1500, hidden_size=32, num_hidden_layers=2), False),
    (BloomConfig(vocab_size=1500, hidden_size=32, n_layer=2, n_head=4), False), (MistralConfig(**SHAPE, sliding_window=16), True),
    (Gemma2Config(**{**SHAPE, "head_dim": 8}, final_logit_softcapping=0.5), False),
    (GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2), False),
    (GPT2Config(vocab_size=1500, n_embd=32, n_layer=2, n_head=4), True)], ids=lambda x: x.model_type if hasattr(x, "model_type") else "")
def test_a_model_that_would_be_scored_wrongly_is_refused(kind, usable, tokenizer, tmp_path):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(kind).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    if usable:
        model, _ = load_model(tmp_path / "model", "cpu")
        window = getattr(kind, "sliding_window", None)
        assert sft.context_length(model, 4096, room=6) == (window - 6 if window else 1024 - 6)     # every token sees all before it
    else:
        with pytest.raises(ModelError, match="ForCausalLM cannot be used here") as caught:
            load_model(tmp_path / "model", "cpu")
        assert "\n" not in str(caught.value)


def test_an_attention_that_does_not_know_rows_is_refused(qwen2):
    """Queries of several rows come side by side: a model that would take them for one row cannot be decoded with."""
    sft.check_architecture(qwen2, "model")
    qwen2.set_attn_implementation("sdpa")
    with pytest.raises(ModelError, match="Qwen2ForCausalLM cannot be used here"):
        sft.check_architecture(qwen2, "model")


@torch.no_grad()
def test_save_model_writes_the_merged_model_and_leaves_this_one(model, tokenizer, tmp_path):
    ids = torch.arange(40).reshape(2, 20) + 6
    names, plain = list(model.state_dict()), model(ids).logits
    add_lora(model, rank=4, alpha=8)
    for name, p in lora_tensors(model).items():
        torch.nn.init.normal_(p, std=0.1)
    adapted, state = model(ids).logits, {name: p.clone() for name, p in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path)
    assert torch.equal(model(ids).logits, adapted) and not torch.allclose(adapted, plain, atol=1e-2)
    assert all(torch.equal(p, state[name]) for name, p in model.state_dict().items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert list(loaded.state_dict()) == names
    torch.testing.assert_close(loaded(ids).logits, adapted, atol=1e-5, rtol=0)
    ours, ours_tokenizer = load_model(tmp_path, "cpu")
    assert torch.equal(ours(ids).logits, loaded(ids).logits)
    text = "<|user|>set room_size to 12<|end|>"
    assert ours_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_a_saved_tokenizer_cuts_words_as_before(checkpoint, tokenizer, samples):
    """AutoTokenizer takes one look at a Qwen2 model's config and cuts words Qwen's way; load_model does not."""
    loaded = load_model(checkpoint, "cpu")[1]
    for s in samples:
        assert synth.prompt_ids(loaded, s) == synth.prompt_ids(tokenizer, s)
        assert synth.target_ids(loaded, s) == synth.target_ids(tokenizer, s)
    assert len(loaded) == len(tokenizer) and loaded.pad_token_id == tokenizer.pad_token_id


def test_the_command_trains_and_saves(checkpoint, tmp_path, capsys, samples):
    synth.write_samples(samples[:6], tmp_path / "train.jsonl")
    sft.main(["--model", str(checkpoint), "--data", str(tmp_path / "train.jsonl"), "--out", str(tmp_path / "out"),
              "--device", "cpu", "--rank", "2", "--epochs", "1"])
    assert "6 samples, 2 updates, perplexity of targets" in capsys.readouterr().out
    assert {"config.json", "model.safetensors", "adapter.json", "adapter.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "out").iterdir()}
    load_model(tmp_path / "out", "cpu")
    with pytest.raises(synth.DataError, match="no sample is left to train on"):
        sft.main(["--model", str(checkpoint), "--data", str(tmp_path / "train.jsonl"), "--max_tokens", "20",
                  "--device", "cpu", "--out", str(tmp_path / "none")])


def test_a_users_mistake_ends_with_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["sft.py"])
    for error in (ModelError("x: no model"), ValueError("bad"), FileNotFoundError(2, "No such file", "a.jsonl")):
        def main():
            raise error
        with pytest.raises(SystemExit) as caught:
            sft.run(main)
        assert caught.value.code == f"sft.py: {error}"

    def too_large():
        raise RuntimeError("CUDA out of memory. Tried to allocate 9 GiB\nand more")
    with pytest.raises(SystemExit) as caught:
        sft.run(too_large)
    assert caught.value.code.startswith("sft.py: the device's memory cannot hold this") and "\n" not in caught.value.code
    with pytest.raises(RuntimeError, match="a fault of ours"):
        sft.run(lambda: (_ for _ in ()).throw(RuntimeError("a fault of ours")))

    def interrupted():
        raise KeyboardInterrupt
    with pytest.raises(SystemExit) as caught:
        sft.run(interrupted)
    assert caught.value.code == 130 and "stopped" in capsys.readouterr().out

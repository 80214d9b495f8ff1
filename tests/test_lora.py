"""LoRA layers: the same numbers as peft on three architectures, and every state they can be in."""
import copy
import json
import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM,
                          Qwen2Config, Qwen2ForCausalLM)
from transformers.pytorch_utils import Conv1D

from conftest import tiny
from sft import (LoRALinear, add_lora, fold_lora, kept_by_merging, load_lora, lora_layers, lora_parameters, lora_tensors,
                 merge_lora, reset_lora, save_lora, save_model, unmerge_lora)

# No matrix but attention's output is square, so that a transposed one cannot pass unseen.
LLAMA = LlamaConfig(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, tie_word_embeddings=False)
QWEN2 = Qwen2Config(vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = GPT2Config(vocab_size=61, n_embd=24, n_inner=40, n_layer=2, n_head=4, n_positions=32, bos_token_id=0,
                  eos_token_id=0)
KINDS = {"llama": (LlamaForCausalLM, LLAMA), "qwen2": (Qwen2ForCausalLM, QWEN2), "gpt2": (GPT2LMHeadModel, GPT2)}
LAYERS = {"llama": 14, "qwen2": 14, "gpt2": 8}
TOKENS = torch.arange(3 * 11).reshape(3, 11) * 7 % 61


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    model_class, config = KINDS[kind]
    model = model_class(copy.deepcopy(config)).eval()
    for parameter in model.parameters():  # the usual 0.02 gives logits too small to tell apart within 1e-5
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def logits(model):
    return model(TOKENS).logits


def loss(model):
    return F.cross_entropy(logits(model)[:, :-1].flatten(0, 1).float(), TOKENS[:, 1:].flatten())


def shake(model, std=0.1):
    """Move B away from zero, as training would."""
    torch.manual_seed(1)
    for name, tensor in lora_tensors(model).items():
        if name.endswith(".B"):
            torch.nn.init.normal_(tensor, std=std)
    return model


def with_peft(model, dropout=0.0):
    """(ours, peft's, peft's layers by name): two copies of `model` with the same adapter in both."""
    peft = pytest.importorskip("peft", reason="peft is the oracle: pip install -r requirements-dev.txt")
    config = peft.LoraConfig(r=4, lora_alpha=12, lora_dropout=dropout, target_modules="all-linear")
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    ours = shake(add_lora(copy.deepcopy(model), rank=4, alpha=12, dropout=dropout))
    modules = {n.removeprefix("base_model.model."): m for n, m in theirs.named_modules() if hasattr(m, "lora_A")}
    assert modules.keys() == lora_layers(ours).keys()
    with torch.no_grad():
        for name, layer in lora_layers(ours).items():
            modules[name].lora_A["default"].weight.copy_(layer.A)
            modules[name].lora_B["default"].weight.copy_(layer.B)
    return ours, theirs, modules


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.is_gradient_checkpointing")  # peft's
def test_equals_peft(model):
    ours, theirs, modules = with_peft(model)
    assert (logits(ours) - logits(model)).abs().max() > 0.1  # the adapter does something
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)
    loss(ours).backward()
    loss(theirs).backward()
    for name, layer in lora_layers(ours).items():
        torch.testing.assert_close(layer.A.grad, modules[name].lora_A["default"].weight.grad, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(layer.B.grad, modules[name].lora_B["default"].weight.grad, atol=1e-6, rtol=1e-5)
    merge_lora(ours)
    theirs.merge_adapter()
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=0)
    for name, layer in lora_layers(ours).items():
        torch.testing.assert_close(layer.base.weight, modules[name].base_layer.weight, atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:.is_gradient_checkpointing")  # peft's
def test_dropout_equals_peft_with_the_same_seed_and_follows_train_and_eval(model):
    ours, theirs, _ = with_peft(model, dropout=0.3)
    assert torch.equal(logits(ours), logits(ours))  # added to a model in eval mode: no dropout yet
    out = []
    for m in (ours, theirs):
        m.train()
        torch.manual_seed(2)
        out.append(logits(m))
    torch.testing.assert_close(*out, atol=1e-5, rtol=0)
    assert not torch.equal(out[0], logits(ours))


def test_first_logits_are_the_bases_and_only_the_adapter_learns(kind, model):
    before, total = logits(model), sum(p.numel() for p in model.parameters())
    add_lora(model, rank=4, alpha=8)
    assert len(lora_layers(model)) == LAYERS[kind] and len(lora_parameters(model)) == 2 * LAYERS[kind]
    assert torch.equal(logits(model), before)
    loss(model).backward()
    trained = {id(p) for p in lora_parameters(model)}
    assert all((p.grad is not None) == p.requires_grad == (id(p) in trained) for p in model.parameters())
    assert sum(p.numel() for p in model.parameters() if id(p) not in trained) == total
    for layer in lora_layers(model).values():  # B is zero, so nothing reaches A in the first step
        assert layer.B.grad.any() and not layer.A.grad.any()


def test_new_adapter_is_drawn_as_in_the_authors_code(model):
    for layer in lora_layers(add_lora(model, rank=64, alpha=8)).values():
        bound = 1 / math.sqrt(layer.A.shape[1])
        assert 0.95 * bound < layer.A.abs().max() <= bound and layer.B.abs().max() == 0


def test_merge_and_unmerge(model):
    plain, state = logits(model), copy.deepcopy(model.state_dict())
    shake(add_lora(model, rank=4, alpha=8))
    adapted = logits(model)
    merge_lora(model)
    merge_lora(model)  # twice is once
    assert all(layer.unmerged.data_ptr() != layer.base.weight.data_ptr() for layer in lora_layers(model).values())
    torch.testing.assert_close(logits(model), adapted, atol=1e-5, rtol=0)
    assert (adapted - plain).abs().max() > 1e-3
    unmerge_lora(model)
    unmerge_lora(model)
    assert torch.equal(logits(model), adapted)
    for name, layer in lora_layers(model).items():
        assert torch.equal(layer.base.weight, state[f"{name}.weight"])


def test_a_layer_that_adds_nothing_keeps_no_copy(model):
    plain = logits(model)
    add_lora(model, rank=4, alpha=8)
    merge_lora(model)
    assert all(layer.unmerged.data_ptr() == layer.base.weight.data_ptr() for layer in lora_layers(model).values())
    assert torch.equal(logits(model), plain)
    unmerge_lora(model)
    assert torch.equal(logits(model), plain) and not any(layer.unmerged is not None for layer in lora_layers(model).values())


def test_reset_restores_the_base_and_draws_a_new_adapter(model):
    plain = logits(model)
    shake(add_lora(model, rank=4, alpha=8))
    old = [p.clone() for p in lora_parameters(model)]
    merge_lora(model)
    reset_lora(model)
    assert torch.equal(logits(model), plain)
    assert all(not torch.equal(a, b) for a, b in zip(old, lora_parameters(model)))


def test_fold_writes_a_plain_checkpoint(model, tmp_path):
    names = list(model.state_dict())
    shake(add_lora(model, rank=4, alpha=8))
    adapted = logits(model)
    assert fold_lora(model) is model and not lora_layers(model)
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert torch.equal(logits(loaded), logits(model))
    torch.testing.assert_close(logits(loaded), adapted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype, size, kept", [(torch.float32, 1e-6, (0.99, 1.01)), (torch.bfloat16, 1e-2, (0.9, 1.1)),
                                               (torch.bfloat16, 1e-6, (-0.1, 0.3))])
def test_what_a_merged_weight_keeps_of_a_small_update(tokenizer, tmp_path, capsys, dtype, size, kept):
    model = tiny("qwen2", len(tokenizer)).to(dtype)
    shake(add_lora(model, rank=4, alpha=4))
    for layer in lora_layers(model).values():
        with torch.no_grad():
            layer.B.mul_(size / layer.update().abs().mean())
    merge_lora(model)
    assert kept[0] < kept_by_merging(model) < kept[1]
    unmerge_lora(model)
    save_model(model, tokenizer, tmp_path)
    assert ("rounded to bfloat16, the merged weights keep" in capsys.readouterr().out) == (kept[1] < 0.9)


def test_save_and_load(model, tmp_path):
    plain = copy.deepcopy(model)
    shake(add_lora(model, rank=4, alpha=8, targets=r"mlp"))
    save_lora(model, tmp_path / "adapter")
    assert sorted(f.name for f in (tmp_path / "adapter").iterdir()) == ["adapter.json", "adapter.safetensors"]
    loaded = load_lora(plain, tmp_path / "adapter")
    assert loaded is plain and loaded.lora == dict(rank=4, alpha=8, dropout=0.0, targets="mlp")
    assert torch.equal(logits(loaded), logits(model))
    reset_lora(model)
    merge_lora(model)
    assert torch.equal(logits(load_lora(model, tmp_path / "adapter")), logits(loaded))  # onto layers that are there


@pytest.mark.parametrize("change, message", [
    (dict(rank=2), r"this adapter is not for this model.*\.A = \[2, .*where the adapter has \[4, "),
    (dict(alpha=9), r"alpha = 9 where the adapter has 8"),
    (dict(targets="down_proj"), r"gate_proj\.A = None where the adapter has \[4, 24\]"),
])
def test_load_refuses_another_models_adapter(tmp_path, change, message):
    settings = dict(rank=4, alpha=8, targets="mlp")
    save_lora(shake(add_lora(LlamaForCausalLM(LLAMA), **settings)), tmp_path)
    other = add_lora(LlamaForCausalLM(LLAMA), **settings | change)
    before = logits(other)
    with pytest.raises(ValueError, match=message) as error:
        load_lora(other, tmp_path)
    assert "\n" not in str(error.value) and torch.equal(logits(other), before)


def test_load_leaves_a_plain_model_plain_when_it_fails(tmp_path):
    save_lora(shake(add_lora(LlamaForCausalLM(LLAMA), targets="mlp")), tmp_path)
    wider = copy.deepcopy(LLAMA)
    wider.intermediate_size = 48
    plain = LlamaForCausalLM(wider)
    before, names = logits(plain), list(plain.state_dict())
    with pytest.raises(ValueError, match=r"down_proj\.A = \[8, 48\] where the adapter has \[8, 40\]"):
        load_lora(plain, tmp_path)
    assert list(plain.state_dict()) == names and torch.equal(logits(plain), before)
    (tmp_path / "adapter.json").write_text(json.dumps({"rank": 8}))
    with pytest.raises(ValueError, match=r"adapter\.json: expected rank, alpha, dropout and targets"):
        load_lora(plain, tmp_path)


def test_only_layers_that_match_are_adapted(model, kind):
    head = model.get_output_embeddings()
    pattern, count = (r"h\.1\.mlp", 2) if kind == "gpt2" else (r"layers\.1\.mlp", 3)
    add_lora(model, targets=pattern)
    assert len(lora_layers(model)) == count and all(".1.mlp." in name for name in lora_layers(model))
    assert model.get_output_embeddings() is head


def test_bad_targets_and_second_adapter_say_what_to_do(model, kind):
    names = list(model.state_dict())
    exists = "mlp.c_fc" if kind == "gpt2" else "mlp.down_proj"
    for pattern in ("no_such_layer", "lm_head", "embed"):
        with pytest.raises(ValueError, match=f"'{pattern}' match no linear layer of this model; it has .*{exists}"):
            add_lora(model, targets=pattern)
    with pytest.raises(ValueError, match="not a regular expression"):
        add_lora(model, targets="(")
    with pytest.raises(ValueError, match="at least 1"):
        add_lora(model, rank=0)
    with pytest.raises(ValueError, match="no LoRA layers to save"):
        save_lora(model, "nowhere")
    assert list(model.state_dict()) == names and all(p.requires_grad for p in model.parameters())
    add_lora(model)
    with pytest.raises(ValueError, match="already has LoRA layers"):
        add_lora(model)
    assert not any(isinstance(layer.base, LoRALinear) for layer in lora_layers(model).values())


@pytest.mark.parametrize("base", [torch.nn.Linear(5, 3), Conv1D(3, 5)])
def test_one_layer_is_its_formula(base):
    torch.manual_seed(0)
    layer = LoRALinear(base, rank=2, alpha=6)
    torch.nn.init.normal_(layer.B)
    weight = base.weight if isinstance(base, torch.nn.Linear) else base.weight.T  # (out, in)
    x = torch.randn(4, 7, 5)
    expected = x @ (weight + 6 / 2 * layer.B @ layer.A).T + base.bias
    torch.testing.assert_close(layer(x), expected)
    layer.merge()
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.base(x), expected)


def test_bfloat16_base_keeps_a_float32_adapter(model):
    reference = add_lora(copy.deepcopy(model), rank=4, alpha=8)
    shake(add_lora(model.to(torch.bfloat16), rank=4, alpha=8), std=0.01)
    for a, b in zip(lora_parameters(reference), lora_parameters(model)):
        a.data.copy_(b)
        assert b.dtype == torch.float32
    expected = logits(reference)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = logits(model)
        assert out.dtype == torch.bfloat16
        assert (out.float() - expected).norm() < 0.05 * expected.norm()
    loss(model).backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in lora_parameters(model))
    weights = [layer.base.weight.clone() for layer in lora_layers(model).values()]
    merge_lora(model)
    assert (logits(model).float() - expected).norm() < 0.05 * expected.norm()
    unmerge_lora(model)
    assert all(torch.equal(w, layer.base.weight) for w, layer in zip(weights, lora_layers(model).values()))


def test_a_few_steps_of_training_lower_the_loss_and_spare_the_base(model):
    add_lora(model, rank=4, alpha=8)
    base = [p.clone() for p in model.parameters() if not p.requires_grad]
    optimizer, losses = torch.optim.AdamW(lora_parameters(model), lr=1e-2), []
    for _ in range(12):
        losses.append(loss(model))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(a, b) for a, b in zip(base, (p for p in model.parameters() if not p.requires_grad)))

"""A device whose memory runs out: every stage goes on with less at a time, says so, and gives the same result."""

import copy

import pytest
import torch

import sft
from dpo import DPOConfig, optimize, paired_tree
from eval import answer
from mcts import SearchConfig, preference_pairs, search

SEARCH = SearchConfig(simulations=3, k=2, max_new=12)


def learn(model, stage):
    """LoRA after a stage of training: what it wrote into A and B, as one vector."""
    torch.manual_seed(0)
    sft.add_lora(model, 4, 8)
    stage(model)
    return torch.cat([p.detach().flatten() for p in sft.lora_parameters(model)])


def warm_up(model, tokenizer, samples):
    return learn(model, lambda m: sft.warm_up(m, tokenizer, samples[:12], sft.SFTConfig(batch_tokens=4096), progress=False))


def prefer(model, tokenizer, samples):
    trees = search(model, tokenizer, samples[:6], SEARCH, progress=False)
    paired = [paired_tree(tree, preference_pairs(tree, SEARCH)) for tree in trees]
    return learn(model, lambda m: optimize(m, paired, DPOConfig(), progress=False))


def grow(model, tokenizer, samples):
    trees = search(model, tokenizer, samples[:8], SEARCH, progress=False)
    return [[node.ids for node in tree.nodes] for tree in trees], torch.tensor([n.q for tree in trees for n in tree.nodes])


def decode(model, tokenizer, samples):
    return answer(model, tokenizer, samples[:8], max_new=12, temperature=1.0, copies=2)


def perplexity(model, tokenizer, samples):
    return torch.tensor(sft.perplexities(model, tokenizer, samples))


def same(a, b):
    if torch.is_tensor(a):
        return torch.allclose(a, b, rtol=1e-3, atol=1e-5)
    return all(map(same, a, b)) if isinstance(a, tuple) else a == b


@pytest.mark.parametrize("stage", [warm_up, prefer, grow, decode, perplexity])
def test_less_at_a_time(qwen2, tokenizer, samples, monkeypatch, capsys, stage):
    """The device holds 1,100 tokens and no more; CUDA's words for it, as torch has them."""
    expected = stage(copy.deepcopy(qwen2), tokenizer, samples)
    forward, refused = type(qwen2.model).forward, []

    def small(self, *args, input_ids, **kwargs):
        if input_ids.numel() > 1100:
            refused.append(input_ids.shape)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, *args, input_ids=input_ids, **kwargs)
    monkeypatch.setattr(type(qwen2.model), "forward", small)
    found = stage(copy.deepcopy(qwen2), tokenizer, samples)
    assert refused and same(found, expected)
    said = [line for line in capsys.readouterr().out.splitlines() if "out of memory" in line]
    assert 1 <= len(said) <= len(refused) <= 12


@pytest.mark.parametrize("error", [RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
                                   RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), MemoryError()],
                         ids=["CPU", "cuBLAS", "numpy"])
def test_nothing_left_to_halve(qwen2, tokenizer, samples, monkeypatch, error):
    def none(*args, **kwargs):
        raise error
    monkeypatch.setattr(type(qwen2.model), "forward", none)
    with pytest.raises(sft.TrainingError, match="out of memory, with one sample at a time too"):
        perplexity(qwen2, tokenizer, samples)


def test_other_errors_pass(qwen2, tokenizer, samples, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("expected scalar type Half")
    monkeypatch.setattr(type(qwen2.model), "forward", broken)
    with pytest.raises(RuntimeError, match="scalar type Half"):
        perplexity(qwen2, tokenizer, samples)

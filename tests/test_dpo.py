"""Preference training: a packed batch of trees is its pairs one by one, and an update prefers what was chosen."""

import copy
import json
import math
import random
from dataclasses import replace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import dpo
import sft
import synth
from dpo import LOSSES, DPOConfig, Loss, PairLogps, lay_out_trees, optimize, pair_logps, paired_tree, trend
from mcts import Node, SearchConfig, Tree, preference_pairs, write_trees
from sft import add_lora, learned_logps, lora_parameters, lora_tensors, segment_sum, tree_tokens


def searched(seed, vocabulary, depth=3):
    """A tree as search leaves it: at each level two or three children, the first of them goes on; random ids and Q."""
    rng = random.Random(seed)
    ids = lambda low, high: [rng.randrange(6, vocabulary) for _ in range(rng.randint(low, high))]
    tree = Tree(synth.Sample(str(seed), [{"name": "f", "parameters": {"properties": {}}}], [{"role": "user", "content": "?"}],
                             "[f()]"), ids(4, 9), [Node(-1, [], "")])
    parent = 0
    for _ in range(depth):
        for i in range(rng.randint(2, 3)):
            q = 1.0 - 0.4 * i
            tree.nodes.append(Node(parent, ids(1, 5), "", q=q, outcome=q, visits=rng.randint(1, 9)))
            tree.nodes[parent].children.append(len(tree.nodes) - 1)
        tree.nodes[parent].expanded = True
        parent = tree.nodes[parent].children[0]
    if seed % 2 == 0:
        tree.right = ids(3, 8)
    return tree


@pytest.fixture
def policy(model):
    """A model with an adapter that does something."""
    torch.manual_seed(0)
    add_lora(model, rank=4, alpha=8)
    shake(model)
    return model


def shake(model, std=0.05):
    for name, p in lora_tensors(model).items():
        p.data += std * torch.randn(p.shape)


@pytest.fixture
def searched_trees(policy):
    return [searched(seed, policy.config.vocab_size) for seed in range(5)]


def fragment_logp(model, tree, n):
    """Log-probability of node n's ids behind the prompt and its path, from one plain forward pass."""
    before, ids = tree.prompt + tree.so_far(tree.nodes[n].parent), tree.nodes[n].ids
    return response_logp(model, before, ids)


def response_logp(model, before, ids):
    row = torch.tensor([before + ids])
    return torch.log_softmax(model(row).logits[0, :-1], -1).gather(1, row[0, 1:, None])[len(before) - 1:].sum()


def pair_by_pair(model, trees, cfg, reference=None):
    """Loss over all pairs of some search trees, each fragment in its own forward pass; reference: such sums, detached."""
    losses, sums, right = [], [], []
    for tree in trees:
        for chosen, rejected in preference_pairs(tree, SearchConfig()):
            logps = fragment_logp(model, tree, chosen), fragment_logp(model, tree, rejected)
            sums.append([x.detach() for x in logps])
            ref = reference[len(sums) - 1] if reference else sums[-1]
            w, l = tree.nodes[chosen], tree.nodes[rejected]
            smoothing = min(0.5, l.visits / (w.visits + l.visits)) if cfg.smooth_by_visits else 0.0
            one = lambda x: torch.as_tensor(x).reshape(1)
            pair = PairLogps(one(logps[0]), one(logps[1]), one(len(w.ids)), one(len(l.ids)), one(ref[0]), one(ref[1]), smoothing)
            losses.append(LOSSES[cfg.loss].of(pair, cfg.beta, cfg.margin)[0])
        if tree.right:
            right.append(-response_logp(model, tree.prompt, tree.right) / len(tree.right))
    loss = torch.stack(losses).mean()
    if cfg.sft_weight and right:
        loss = loss + cfg.sft_weight * torch.stack(right).mean()
    return loss, sums


def paired(trees, sft=True):
    return [t for t in (paired_tree(tree, preference_pairs(tree, SearchConfig()), sft) for tree in trees) if t]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sft_weight, smooth", [(0.0, False), (0.3, True)])
def test_packed_trees_equal_pairs_one_by_one(policy, tokenizer, searched_trees, monkeypatch, loss, sft_weight, smooth):
    """Loss and LoRA gradients, several trees a batch and several forward passes an update; after the first update the
    policy has moved away from its reference."""
    cfg = DPOConfig(loss=loss, beta=0.7, sft_weight=sft_weight, smooth_by_visits=smooth and loss == "dpo", pref_epochs=2, pref_batch=9,
                    pref_micro_tokens=60)
    passes = [len(part) for *_, part in dpo.micro_batches(paired(searched_trees, bool(sft_weight)), 60)]
    assert len(passes) > 1 and max(passes) > 1
    noise = [0.05 * torch.randn(p.shape) for p in lora_parameters(policy)]
    seen = []

    def step(optimizer, total, number):
        seen.append((total, [p.grad.clone() for p in lora_parameters(policy)]))
        for p, change in zip(lora_parameters(policy), noise):
            p.data += change
            p.grad = None
    monkeypatch.setattr(dpo, "step_or_stop", step)
    state = [p.detach().clone() for p in lora_parameters(policy)]
    optimize(policy, paired(searched_trees, bool(sft_weight)), cfg, progress=False)
    assert len(seen) == 2

    for p, start in zip(lora_parameters(policy), state):
        p.data.copy_(start)
    reference = None
    for total, gradients in seen:
        expected, sums = pair_by_pair(policy, searched_trees, cfg, reference)
        reference = reference or sums
        assert total == pytest.approx(expected.item(), rel=1e-4)
        expected.backward()
        for p, found, change in zip(lora_parameters(policy), gradients, noise):
            assert p.grad.norm() > 0
            assert (found - p.grad).norm() <= 1e-4 * p.grad.norm()
            p.data += change
            p.grad = None


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss.reference])
def test_the_reference_is_the_policy_at_the_start(policy, tokenizer, searched_trees, loss):
    """So before the first update nothing is ahead of its reference."""
    cfg = DPOConfig(loss=loss, sft_weight=0.0, pref_epochs=1, pref_batch=9)
    first, = optimize(policy, paired(searched_trees), cfg, progress=False)
    assert first["margin"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] == pytest.approx(math.log(2) if loss == "dpo" else (1 / (2 * cfg.beta)) ** 2, rel=1e-4)


def test_the_reference_is_without_dropout(model, tokenizer):
    torch.manual_seed(0)
    add_lora(model, rank=4, alpha=8, dropout=0.5)
    shake(model, 0.3)
    cfg = DPOConfig(loss="dpo", sft_weight=0.0, pref_epochs=1, pref_batch=9)
    trees = [searched(seed, model.config.vocab_size) for seed in range(5)]
    first, = optimize(model, paired(trees), cfg, progress=False)
    assert abs(first["margin"]) > 1e-3 and not model.training  # the policy has it while it learns


@pytest.mark.parametrize("loss", LOSSES)
def test_optimizing_prefers_what_was_chosen(qwen2, tokenizer, loss):
    torch.manual_seed(0)
    add_lora(qwen2, rank=4, alpha=8)
    base = [p.clone() for p in qwen2.parameters() if not p.requires_grad]
    trees = [searched(seed, qwen2.config.vocab_size) for seed in range(6)]
    cfg = DPOConfig(loss=loss, beta={"simpo": 2.0, "ipo": 0.2}.get(loss, 0.5), sft_weight=0.0, pref_lr=1e-2, pref_epochs=15,
                    pref_batch=3)
    log = optimize(qwen2, paired(trees), cfg, progress=False)
    n_pairs = sum(len(preference_pairs(tree, SearchConfig())) for tree in trees)
    assert len(log) == 30 and log[0]["pairs"] + log[1]["pairs"] == n_pairs
    assert all(set(r) == {"loss", "accuracy", "margin", "sft", "pairs"} for r in log)
    assert log[-1]["margin"] > log[0]["margin"] + 0.1 and log[-1]["loss"] < log[0]["loss"]
    assert log[-1]["accuracy"] == log[-2]["accuracy"] == 1.0
    assert all(map(torch.equal, base, [p for p in qwen2.parameters() if not p.requires_grad]))
    with torch.no_grad():
        for tree in trees:
            for chosen, rejected in preference_pairs(tree, SearchConfig()):
                w, l = (fragment_logp(qwen2, tree, n) / len(tree.nodes[n].ids) for n in (chosen, rejected))
                assert w > l or LOSSES[loss].reference  # those compare with the reference


def test_the_sft_term_raises_right_responses(qwen2, tokenizer):
    torch.manual_seed(0)
    add_lora(qwen2, rank=4, alpha=8)
    trees = [searched(seed, qwen2.config.vocab_size) for seed in (0, 2, 4)]
    cfg = DPOConfig(loss="dpo", sft_weight=1.0, pref_lr=1e-2, pref_epochs=8, pref_batch=3)
    log = optimize(qwen2, paired(trees), cfg, progress=False)
    assert log[-1]["sft"] < log[0]["sft"] - 0.5


def test_the_same_seed_gives_the_same_weights(qwen2, tokenizer):
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        add_lora(qwen2, rank=4, alpha=8, dropout=0.1)
        trees = [searched(seed, qwen2.config.vocab_size) for seed in range(5)]
        optimize(qwen2, paired(trees), DPOConfig(pref_batch=2), seed=4, progress=False)
        results.append([p.detach().clone() for p in lora_parameters(qwen2)])
        sft.reset_lora(qwen2)
        sft.fold_lora(qwen2)
    assert all(map(torch.equal, *results))


# ---- Trees as rows ------------------------------------------------------------------------------------------------

def test_a_paired_tree_holds_what_its_pairs_need_and_no_more():
    tree = searched(0, 100)
    pairs = preference_pairs(tree, SearchConfig())
    found = paired_tree(tree, pairs)
    needed = {n for pair in pairs for fragment in pair for n in tree.path(fragment)}
    assert tree_tokens(found.segments) == len(tree.prompt) + sum(len(tree.nodes[n].ids) for n in needed) + len(tree.right)
    learned = [ids for ids, _, wanted in found.segments if wanted]
    assert [learned[c] for c in found.chosen] == [tree.nodes[c].ids for c, _ in pairs]
    assert [learned[r] for r in found.rejected] == [tree.nodes[r].ids for _, r in pairs]
    assert learned[found.right] == tree.right and found.segments[0] == (tree.prompt, -1, False)
    assert found.visits == [(tree.nodes[c].visits, tree.nodes[r].visits) for c, r in pairs]
    assert paired_tree(tree, pairs, sft=False).right == -1
    assert paired_tree(tree, [], sft=False) is None
    assert paired_tree(tree, []).chosen == [] and paired_tree(searched(1, 100), []) is None


@torch.no_grad()
def test_a_batch_keeps_each_pair_together(policy, searched_trees):
    trees = paired(searched_trees)
    batch, where = lay_out_trees(trees)
    assert len(where["visits"]) == len(where["chosen"])
    lengths = torch.bincount(batch.segment, minlength=batch.segments)
    logps = segment_sum(batch, learned_logps(policy, batch))
    pairs = pair_logps(logps, lengths, where, None, DPOConfig(smooth_by_visits=True))
    by_prompt, at = {tuple(t.prompt): t for t in searched_trees}, 0
    for tree in (by_prompt[tuple(t.segments[0][0])] for t in trees):
        for chosen, rejected in preference_pairs(tree, SearchConfig()):
            w, l = tree.nodes[chosen], tree.nodes[rejected]
            assert (pairs.chosen_lengths[at], pairs.rejected_lengths[at]) == (len(w.ids), len(l.ids))
            assert pairs.chosen[at].item() == pytest.approx(fragment_logp(policy, tree, chosen).item(), abs=1e-4)
            assert pairs.rejected[at].item() == pytest.approx(fragment_logp(policy, tree, rejected).item(), abs=1e-4)
            assert pairs.label_smoothing[at].item() == pytest.approx(min(0.5, l.visits / (w.visits + l.visits)))
            at += 1
    assert at == len(pairs.chosen)


def test_the_bases_own_dropout_stays_off(tokenizer, searched_trees):
    """GPT-2's, which would make the policy differ from its reference before the first step; LoRA's is on."""
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=512, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.5,
                                      embd_pdrop=0.5, resid_pdrop=0.5, attn_implementation="grouped")).eval()
    for dropout, still in ((0.0, True), (0.5, False)):
        policy = add_lora(copy.deepcopy(gpt2), rank=2, alpha=4, dropout=dropout)
        shake(policy)
        first, = optimize(policy, paired(searched_trees), DPOConfig(pref_batch=99), progress=False)
        assert (abs(first["margin"]) < 1e-5) == still and first["pairs"]
        assert not any(module.training for module in policy.modules())


def test_the_trend_is_of_the_updates_that_had_pairs():
    log = [{"loss": loss, "accuracy": acc, "margin": 0.0, "pairs": n} for loss, acc, n in ((0.7, 0.5, 4), (0.5, 0.75, 4), (1.2, 0.0, 0))]
    assert trend(log, 1) == "loss 0.700 -> 0.500, accuracy 0.500 -> 0.750, margin 0.000 -> 0.000"
    assert trend(log[2:]).startswith("loss 1.200 -> 1.200")
    log = [{"loss": float(n), "accuracy": 0.5, "margin": 0.0, "pairs": 4} for n in range(7)]
    assert trend(log).startswith("loss 1.000 -> 5.000")     # the first three and the last three, no update twice


# ---- Mistakes, and the command ------------------------------------------------------------------------------------

def test_unknown_losses_and_losses_that_are_no_number(policy, tokenizer, searched_trees):
    with pytest.raises(ValueError, match="--loss is one of dpo, ipo, simpo, orpo .got kto."):
        optimize(policy, paired(searched_trees), DPOConfig(loss="kto"), progress=False)
    before = [p.clone() for p in lora_parameters(policy)]
    with torch.no_grad():
        policy.model.norm.weight[0] = float("nan")
    with pytest.raises(sft.TrainingError, match="the loss is nan at step 0"):
        optimize(policy, paired(searched_trees), DPOConfig(), progress=False)
    assert all(map(torch.equal, before, lora_parameters(policy)))


def test_a_loss_of_ones_own_is_a_line(policy, tokenizer, searched_trees, monkeypatch):
    """Contrastive preference optimization (Xu et al., arXiv 2401.08417): no reference, sums; `margin` follows what the line says."""
    def cpo(p, beta, gamma):
        return -torch.nn.functional.logsigmoid(beta * (p.chosen - p.rejected)) - p.chosen
    monkeypatch.setitem(LOSSES, "cpo", Loss(cpo, reference=False, mean=False))
    first, = optimize(policy, paired(searched_trees), DPOConfig(loss="cpo", beta=0.5, pref_batch=9), progress=False)
    policy.eval()
    _, sums = pair_by_pair(policy, searched_trees, DPOConfig(loss="dpo"))
    assert len(sums) == first["pairs"]
    monkeypatch.setitem(LOSSES, "half", Loss(cpo, reference=False, mean=True))
    pairs = PairLogps(torch.tensor([-4.0]), torch.tensor([-6.0]), torch.tensor([1]), torch.tensor([3]))
    assert dpo.margin(pairs, "cpo", 0.5).item() == pytest.approx(1.0) and dpo.margin(pairs, "half", 0.5).item() == pytest.approx(-1.0)


@pytest.mark.parametrize("loss, says", [
    (lambda p, beta, gamma: p.chosen - p.ref_chosen, "--loss mine: .*needs reference=True in dpo.LOSSES"),
    (lambda p, beta, gamma: (p.rejected - p.chosen).mean(), r"--loss mine has to give one value a pair, \(2,\) for two"),
    (lambda p, beta, gamma: 1.0, "--loss mine has to give one value a pair")])
def test_a_loss_that_cannot_work_is_refused_before_anything_runs(monkeypatch, loss, says):
    monkeypatch.setitem(LOSSES, "mine", Loss(loss, reference=False, mean=False))
    with pytest.raises(ValueError, match=says):
        dpo.check_preference(DPOConfig(loss="mine"))


@pytest.mark.parametrize("cfg, says", [
    (DPOConfig(loss="simpo", smooth_by_visits=True), "--smooth_by_visits is for --loss dpo"), (DPOConfig(sft_weight=-1), "--sft_weight"),
    (DPOConfig(pref_warmup=7), "--pref_warmup is a share")])
def test_settings_that_would_be_ignored_or_do_harm_are_refused(cfg, says):
    with pytest.raises(ValueError, match=says):
        dpo.check_preference(cfg)


def test_the_command_trains_on_saved_trees(checkpoint, tokenizer, tmp_path, capsys):
    trees = [searched(seed, len(tokenizer)) for seed in range(4)]
    sample = synth.make_samples(1, "train", 0)[0]
    trees = [replace(tree, sample=sample, prompt=synth.prompt_ids(tokenizer, sample)) for tree in trees]
    write_trees(trees, tmp_path / "trees.jsonl")
    dpo.main(["--model", str(checkpoint), "--trees", str(tmp_path / "trees.jsonl"), "--out", str(tmp_path / "out"),
              "--pref_epochs", "2", "--loss", "simpo", "--beta", "2", "--rank", "2", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "12 pairs in 4 trees, 2 updates, loss " in out and "accuracy" in out and "margin" in out
    sft.load_model(tmp_path / "out", "cpu")
    assert json.loads((tmp_path / "out" / "adapter.json").read_text())["rank"] == 2


def test_mistakes_in_the_command_say_what_to_do(checkpoint, tmp_path):
    with pytest.raises(ValueError, match="give --trees"):
        dpo.main(["--model", str(checkpoint)])
    flat = searched(1, 50)
    for n in flat.nodes:
        n.q = 0.0
    write_trees([flat], tmp_path / "flat.jsonl")
    with pytest.raises(ValueError, match="was made with another tokenizer"):
        dpo.main(["--model", str(checkpoint), "--trees", str(tmp_path / "flat.jsonl"), "--out", str(tmp_path / "x")])
    for flag, value in (("--pref_epochs", "0"), ("--pref_batch", "-1"), ("--beta", "0"), ("--loss", "kto"), ("--near", "2")):
        with pytest.raises(ValueError, match=flag):
            dpo.main(["--model", str(checkpoint), "--trees", str(tmp_path / "flat.jsonl"), "--out", str(tmp_path / "x"), flag, value])
    flat.sample = synth.make_samples(1, "train", 0)[0]
    flat.prompt = synth.prompt_ids(sft.load_model(checkpoint, "cpu")[1], flat.sample)
    write_trees([flat], tmp_path / "flat.jsonl")
    with pytest.raises(ValueError, match=r"flat\.jsonl: no tree has a pair"):
        dpo.main(["--model", str(checkpoint), "--trees", str(tmp_path / "flat.jsonl"), "--out", str(tmp_path / "x")])
    with pytest.raises(OSError, match="none.jsonl"):
        dpo.main(["--model", str(checkpoint), "--trees", str(tmp_path / "none.jsonl"), "--out", str(tmp_path / "x")])

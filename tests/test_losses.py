"""Preference losses: trl's numbers and gradients, values worked out by hand, and what happens at the extremes."""
import math
import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from dpo import (LOSSES, PairLogps, accuracy, dpo_loss, implicit_rewards, ipo_loss, log1mexp, margin,
                 orpo_loss, simpo_loss, visit_smoothing)

N = 7  # pairs


def logps(seed, dtype=torch.float32, requires_grad=True):
    """Six fields of random pairs: log-probabilities of a token around -1, lengths from 1 to 9."""
    g = torch.Generator().manual_seed(seed)
    w_len, l_len = torch.randint(1, 10, (2, N), generator=g)
    w, l, ref_w, ref_l = (-2 * torch.rand(4, N, generator=g, dtype=dtype) - 0.05) * torch.stack([w_len, l_len] * 2)
    return PairLogps(w.requires_grad_(requires_grad), l.requires_grad_(requires_grad), w_len, l_len, ref_w, ref_l)


def same(ours, theirs, pairs):
    """Losses (pairs,) and their gradients within 1e-6."""
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    inputs = (pairs.chosen, pairs.rejected)
    for a, b in zip(*(torch.autograd.grad(x.sum(), inputs, retain_graph=True) for x in (ours, theirs))):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


def bare(module, name, **attributes):
    """One of trl's trainers without its __init__ (it wants a model and data): only the loss is of interest."""
    pytest.importorskip("trl", reason="trl is the oracle: pip install -r requirements-dev.txt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = object.__new__(getattr(pytest.importorskip(module), name))
    gather = SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)
    for key, value in dict(accelerator=gather, label_smoothing=0.0, alpha=0.0, **attributes).items():
        setattr(trainer, key, value)
    return trainer


def trl_dpo(pairs, loss_type, beta):
    """trl's DPOTrainer computes its loss inside the step: feed it a model that returns our log-probabilities.

    A row is [one prompt token, the fragment, padding]; the whole fragment's log-probability sits on its first token.
    Returns (pairs,), from one call a pair, since it gives back the mean only.
    """
    trainer = bare("trl.trainer.dpo_trainer", "DPOTrainer", model=SimpleNamespace(training=True), beta=beta,
                   loss_types=[loss_type], loss_weights=[1.0], f_divergence_type="reverse_kl", ld_alpha=None,
                   precompute_ref_logps=True, use_weighting=False, aux_loss_enabled=False, _tp_size=1,
                   _total_train_tokens=0, _metrics=defaultdict(lambda: defaultdict(list)))
    losses = []
    for i in range(N):
        lengths = torch.stack([pairs.chosen_lengths[i], pairs.rejected_lengths[i]])[:, None]
        place = torch.arange(1 + lengths.max())[None]
        mask = ((place >= 1) & (place <= lengths)).long()
        token_logps = torch.stack([pairs.chosen[i], pairs.rejected[i]])[:, None] * (place[:, 1:] == 1)
        zeros = torch.zeros_like(token_logps)
        outputs = SimpleNamespace(log_probs=token_logps, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
        inputs = dict(input_ids=mask, attention_mask=mask, completion_mask=mask,
                      ref_chosen_logps=pairs.ref_chosen[i:i + 1], ref_rejected_logps=pairs.ref_rejected[i:i + 1])
        losses.append(trainer._compute_loss(lambda **_: outputs, inputs, return_outputs=False))
    return torch.stack(losses)


@pytest.mark.parametrize("beta", [0.1, 1.0])
@pytest.mark.parametrize("name, loss_type", [("dpo", "sigmoid"), ("ipo", "ipo")])
def test_dpo_and_ipo_equal_trl(name, loss_type, beta):
    pairs = logps(0)
    same(LOSSES[name].of(pairs, beta, None), trl_dpo(pairs, loss_type, beta), pairs)


@pytest.mark.parametrize("smoothing", [0.0, 0.2, torch.linspace(0, 0.5, N)])
def test_smoothed_dpo_equals_trl(smoothing):
    """trl smooths in CPO only, which is DPO once the reference is taken off."""
    pairs = logps(1)
    pairs.label_smoothing = smoothing
    trainer = bare("trl.experimental.cpo.cpo_trainer", "CPOTrainer", loss_type="sigmoid", beta=0.3)
    trainer.label_smoothing = smoothing
    theirs, *_ = trainer.cpo_loss(pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected)
    same(LOSSES["dpo"].of(pairs, 0.3, None), theirs, pairs)


@pytest.mark.parametrize("beta, gamma", [(2.5, 0.5), (2.0, 0.0), (10.0, 3.0)])
def test_simpo_equals_trl(beta, gamma):
    pairs = logps(2)
    trainer = bare("trl.experimental.cpo.cpo_trainer", "CPOTrainer", loss_type="simpo", beta=beta, simpo_gamma=gamma)
    theirs, *rewards = trainer.cpo_loss(pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths)
    same(LOSSES["simpo"].of(pairs, beta, gamma), theirs, pairs)
    torch.testing.assert_close(list(implicit_rewards(pairs, "simpo", beta)), rewards)


def test_orpo_equals_trl():
    pairs, lambda_ = logps(3), 0.4
    trainer = bare("trl.experimental.orpo.orpo_trainer", "ORPOTrainer", beta=lambda_)
    chosen, rejected = pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths
    term, *rewards = trainer.odds_ratio_loss(chosen, rejected)
    same(LOSSES["orpo"].of(pairs, lambda_, None), -chosen - term, pairs)  # trl: cross-entropy - term
    torch.testing.assert_close(list(implicit_rewards(pairs, "orpo", lambda_)), rewards[:2])


def test_values_by_hand():
    t = torch.tensor
    # margin = 0.5 * ((-1 - -2) - (-4 - -3)) = 1
    dpo = t([-1.0]), t([-4.0]), t([-2.0]), t([-3.0])
    assert dpo_loss(*dpo, beta=0.5).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert dpo_loss(*dpo, beta=0.5, label_smoothing=0.25).item() == pytest.approx(math.log(1 + math.exp(-1)) + 0.25)
    # log-ratios a token: 1 / 2 and -1 / 4; 1 / (2 * 0.5) = 1
    assert ipo_loss(*dpo, t([2]), t([4]), beta=0.5).item() == pytest.approx((0.75 - 1) ** 2)
    # 2 * (-0.5 - -1) - 0.4 = 0.6
    simpo = simpo_loss(t([-1.0]), t([-4.0]), t([2]), t([4]), beta=2.0, gamma=0.4)
    assert simpo.item() == pytest.approx(math.log(1 + math.exp(-0.6)))
    # p = 0.8 and 0.5: odds 4 and 1, sigmoid(log 4) = 0.8
    orpo = orpo_loss(t([math.log(0.8)]), t([math.log(0.5)]), lambda_=2.0)
    assert orpo.item() == pytest.approx(-3 * math.log(0.8))


def test_visit_smoothing():
    w, l = torch.tensor([3.0, 2.0, 5.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 0.0, 4.0, 0.0])
    expected = torch.tensor([1 / (3 / 1 + 1), 0.5, 0.0, 0.5, 0.5])     # never more likely wrong than right
    torch.testing.assert_close(visit_smoothing(w, l), expected)
    torch.testing.assert_close(visit_smoothing(w.long(), l.long()), expected)


@pytest.mark.parametrize("smoothing", [0.1, 0.25, 0.5])
def test_smoothed_dpo_is_least_where_the_margin_says_what_the_label_is_worth(smoothing):
    zero, best = torch.zeros(1), torch.tensor([math.log((1 - smoothing) / smoothing)]).requires_grad_()
    loss = dpo_loss(best, zero, zero, zero, 1.0, smoothing)
    assert torch.autograd.grad(loss, best)[0].item() == pytest.approx(0, abs=1e-6)


def test_policy_equal_to_its_reference_has_no_margin():
    pairs = logps(4, requires_grad=False)
    pairs.ref_chosen, pairs.ref_rejected = pairs.chosen, pairs.rejected
    torch.testing.assert_close(LOSSES["dpo"].of(pairs, 0.7, None), torch.full((N,), math.log(2)))
    torch.testing.assert_close(LOSSES["ipo"].of(pairs, 0.5, None), torch.ones(N))
    for name in (name for name, loss in LOSSES.items() if loss.reference):
        assert not margin(pairs, name, 0.7).any() and not accuracy(pairs, name, 0.7).any()


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_down_the_gradient_prefers_the_chosen(name):
    pairs = logps(5)
    before = margin(pairs, name, 0.5)
    LOSSES[name].of(pairs, 0.5, 0.5).sum().backward()
    if name != "ipo":  # IPO pulls to a fixed margin, from either side
        assert (pairs.chosen.grad < 0).all() and (pairs.rejected.grad > 0).all()
    with torch.no_grad():
        far = before > 1
        pairs.chosen -= 1e-3 * pairs.chosen.grad
        pairs.rejected -= 1e-3 * pairs.rejected.grad
    assert (margin(pairs, name, 0.5) > before)[~far].all()


def test_margin_and_accuracy():
    t = torch.tensor
    pairs = PairLogps(t([-4.0, -1.0]), t([-3.0, -3.0]), t([4, 1]), t([2, 3]), t([-6.0, -1.0]), t([-3.0, -4.0]))
    torch.testing.assert_close(margin(pairs, "dpo", 0.5), t([1.0, -0.5]))
    torch.testing.assert_close(margin(pairs, "ipo", 0.5), t([0.25, -1 / 6]))
    for name in ("simpo", "orpo"):
        torch.testing.assert_close(margin(pairs, name, 0.5), t([0.25, 0.0]))
        assert accuracy(pairs, name, 0.5).tolist() == [1.0, 0.0]  # a tie is no win
    assert accuracy(pairs, "dpo", 0.5).tolist() == [1.0, 0.0]
    chosen, rejected = implicit_rewards(pairs, "dpo", 0.5)
    assert chosen.tolist() == [1.0, 0.0] and rejected.tolist() == [0.0, 0.5]


@pytest.mark.parametrize("name", LOSSES)
def test_extremes_are_finite_and_so_are_gradients(name):
    values = torch.tensor([0.0, -1e-9, -1e-7, -1e-3, -20.0, -2000.0])
    w, l = (x.flatten().clone().requires_grad_() for x in torch.meshgrid(values, values, indexing="ij"))
    ones = torch.ones(len(w), dtype=torch.long)
    losses = LOSSES[name].of(PairLogps(w, l, ones, ones, -ones.float(), -ones.float()), 2.5, 0.5)
    assert losses.shape == (36,) and losses.isfinite().all() and (losses >= 0).all()
    losses.sum().backward()
    assert w.grad.isfinite().all() and l.grad.isfinite().all()


def test_log1mexp_keeps_its_digits():
    x = -torch.logspace(-6, 1.9, 200)
    exact = [math.log(-math.expm1(v)) if v > -0.6931 else math.log1p(-math.exp(v)) for v in x.tolist()]
    torch.testing.assert_close(log1mexp(x), torch.tensor(exact), rtol=2e-6, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradcheck(name):
    pairs = logps(6, torch.float64)
    pairs.label_smoothing = torch.linspace(0, 0.5, N, dtype=torch.float64)

    def loss(chosen, rejected):
        return LOSSES[name].of(PairLogps(**vars(pairs) | dict(chosen=chosen, rejected=rejected)), 1.3, 0.5)
    assert torch.autograd.gradcheck(loss, (pairs.chosen, pairs.rejected))

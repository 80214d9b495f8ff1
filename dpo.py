"""Learn from preferences: losses as pure functions, and an update in which a tree is one sequence.

    python dpo.py --model out/warmup --trees trees.jsonl --out out/round1 --loss simpo --beta 2.5

All pairs of a tree share its prompt and most of their path. The tree is laid out in one row, each token at the position
that it has on its own path and attending to its ancestors only (sft.lay_out), so that one forward pass gives the
log-probabilities of every fragment of every pair, the same as pair by pair. DPO's and IPO's reference is the policy at
the start of the round: its log-probabilities are computed once, before the first update, without a second model.
"""

import math
import random
from dataclasses import dataclass, replace
from typing import Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import synth
from mcts import PairConfig, check_pairs, preference_pairs, read_trees
from sft import (add_lora, check_at_least_one, cosine, count_tokens, filled, lay_out, learned_logps, load_model, lora_parameters,
                 make_folder, run, save_lora, save_model, segment_sum, step_or_stop, train_lora, tree_tokens, within_memory)


# ---------------------------------------------------------------------------------------------
# Losses (docs/method.md, 2d): functions of log-probabilities, one loss a pair
# ---------------------------------------------------------------------------------------------


@dataclass
class PairLogps:
    """What the losses know of a batch of preference pairs. All fields (pairs,); log-probabilities in nats, summed
    over the tokens of the pair's fragment only (its shared prompt and path cancel or carry no preference)."""
    chosen: Tensor  # log pi(w)
    rejected: Tensor  # log pi(l)
    chosen_lengths: Tensor  # tokens of the fragment, at least 1
    rejected_lengths: Tensor
    ref_chosen: Tensor | None = None  # log ref(w); only DPO and IPO ask for a reference
    ref_rejected: Tensor | None = None
    label_smoothing: Tensor | float = 0.0  # DPO's: how likely the pair is the wrong way round


def dpo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps, beta, label_smoothing=0.0):
    """-log sigmoid(beta * ((log pi(w) - log ref(w)) - (log pi(l) - log ref(l)))).

    Rafailov et al., arXiv 2305.18290, eq. 7. All logps (pairs,), nats, sums over a fragment's tokens; `beta` in
    reward per nat. `label_smoothing`, a number or (pairs,), is the probability that the label is wrong: that share of
    the loss pulls the other way (Mitchell's conservative DPO; by visits in Xie et al., see visit_smoothing).
    """
    margin = beta * ((chosen_logps - ref_chosen_logps) - (rejected_logps - ref_rejected_logps))
    return -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)


def visit_smoothing(chosen_visits, rejected_visits):
    """1 / (N_w / N_l + 1) = N_l / (N_w + N_l), (pairs,): the less search prefers w, the less the label is trusted.

    Label smoothing of Xie et al., arXiv 2405.00451. Equal counts give 0.5; so do two zeros, as nothing is known then. Capped
    at 0.5: search never re-enters a finished branch, so a right response may have fewer visits than wrong siblings.
    """
    visits = chosen_visits + rejected_visits
    return torch.where(visits > 0, rejected_visits / visits.clamp(min=1), 0.5).clamp(max=0.5)


def ipo_loss(chosen_logps, rejected_logps, ref_chosen_logps, ref_rejected_logps,
             chosen_lengths, rejected_lengths, beta):
    """(h - 1 / (2 beta))^2, h the log-ratio of chosen minus that of rejected, each a mean over its tokens.

    Azar et al., arXiv 2310.12036, eq. 17, where beta is called tau. The mean is not in the paper: summed, the squared
    loss would grow with a fragment's length. trl took it from the paper's authors.
    """
    chosen = (chosen_logps - ref_chosen_logps) / chosen_lengths
    rejected = (rejected_logps - ref_rejected_logps) / rejected_lengths
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def simpo_loss(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths, beta, gamma):
    """-log sigmoid(beta * (mean log pi(w) - mean log pi(l)) - gamma), means over a fragment's tokens; no reference.

    Meng et al., arXiv 2405.14734, eq. 6. `gamma` is the margin itself, as in that equation and in trl's simpo_gamma;
    the SimPO authors' code sets gamma_beta_ratio instead, which is gamma / beta.
    """
    return -F.logsigmoid(beta * (chosen_logps / chosen_lengths - rejected_logps / rejected_lengths) - gamma)


def log1mexp(x):
    """log(1 - exp(x)) for x < 0, without losing digits at either end (Maechler, 2012)."""
    return torch.where(x > -math.log(2), torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def orpo_loss(chosen_mean_logps, rejected_mean_logps, lambda_):
    """-mean log pi(w) - lambda * log sigmoid(log odds(w) - log odds(l)), odds = p / (1 - p), p = exp(mean log pi).

    Hong et al., arXiv 2403.07691, eq. 6: cross-entropy on the chosen fragment plus the odds-ratio term (eq. 7). Means
    over a fragment's tokens (trl's cross-entropy covers the prompt too); no reference.
    """
    def log_odds(logp):  # p that rounds to 1 would have infinite odds, and NaN for a gradient
        logp = logp.clamp(max=-torch.finfo(logp.dtype).eps)
        return logp - log1mexp(logp)
    return -chosen_mean_logps - lambda_ * F.logsigmoid(log_odds(chosen_mean_logps) - log_odds(rejected_mean_logps))


class Loss(NamedTuple):
    """A loss and the inputs it needs. A new one needs only a line in LOSSES."""
    of: Callable          # (PairLogps, beta, gamma) -> (pairs,): one value a pair, independent of the others (a call sees a micro-batch,
                          # not the update). beta is IPO's tau and ORPO's lambda too
    reference: bool       # it reads ref_chosen and ref_rejected, which are None otherwise
    mean: bool            # it compares means over a fragment's tokens, not sums: so do `margin` and `accuracy`


LOSSES = {
    "dpo": Loss(lambda p, beta, gamma: dpo_loss(p.chosen, p.rejected, p.ref_chosen, p.ref_rejected, beta, p.label_smoothing),
                reference=True, mean=False),
    "ipo": Loss(lambda p, beta, gamma: ipo_loss(p.chosen, p.rejected, p.ref_chosen, p.ref_rejected,
                                                p.chosen_lengths, p.rejected_lengths, beta), reference=True, mean=True),
    "simpo": Loss(lambda p, beta, gamma: simpo_loss(p.chosen, p.rejected, p.chosen_lengths, p.rejected_lengths, beta, gamma),
                  reference=False, mean=True),
    "orpo": Loss(lambda p, beta, gamma: orpo_loss(p.chosen / p.chosen_lengths, p.rejected / p.rejected_lengths, beta),
                 reference=False, mean=True),
}


def implicit_rewards(pairs, loss, beta):
    """(chosen, rejected), each (pairs,): beta times the log-ratio to the reference (DPO; a token's mean for IPO) or
    beta times the mean log-probability (SimPO, ORPO). `margin` and `accuracy` compare them."""
    chosen, rejected = pairs.chosen, pairs.rejected
    if LOSSES[loss].reference:
        chosen, rejected = chosen - pairs.ref_chosen, rejected - pairs.ref_rejected
    if LOSSES[loss].mean:
        chosen, rejected = chosen / pairs.chosen_lengths, rejected / pairs.rejected_lengths
    return beta * chosen, beta * rejected


def margin(pairs, loss, beta):
    """(pairs,) implicit reward of the chosen fragment minus the rejected one's; SimPO's gamma is not taken off."""
    chosen, rejected = implicit_rewards(pairs, loss, beta)
    return chosen - rejected


def accuracy(pairs, loss, beta):
    """(pairs,) 1.0 where the policy ranks the chosen fragment strictly first, else 0.0."""
    return (margin(pairs, loss, beta) > 0).float()


# ---------------------------------------------------------------------------------------------
# The update
# ---------------------------------------------------------------------------------------------


@dataclass
class DPOConfig:
    loss: str = "dpo"                # dpo, ipo, simpo (the paper's best), orpo
    beta: float = 1.0                # DPO: 0.1 in the ancestor; SimPO: 2.5 in the released script; IPO's tau, ORPO's lambda
    margin: float = 0.5              # SimPO's gamma, the margin aimed at (the log shows the one reached)
    smooth_by_visits: bool = False   # DPO: label smoothing by visit counts, as the ancestor does
    sft_weight: float = 0.0          # weight of cross-entropy on a right response of each tree; 0: preferences only
    pref_lr: float = 2e-4            # of LoRA; the 8B model of the paper wants about 1e-6
    pref_warmup: float = 0.1         # share of the steps in which the learning rate rises; then cosine to zero
    pref_epochs: int = 1             # passes over a round's trees
    pref_batch: int = 8              # trees an update
    pref_micro_tokens: int = 8192    # tokens a forward pass; larger updates are accumulated


@dataclass
class PairedTree:
    """A search tree as one packable tree of tokens, with its pairs as numbers of learned segments."""
    segments: list       # (ids, parent, learned), as in sft.lay_out
    chosen: list         # of each pair: position of its chosen fragment among the learned segments
    rejected: list
    visits: list         # of each pair: (visits of the chosen node, visits of the rejected one)
    right: int           # position of the right response among the learned segments, or -1


def paired_tree(tree, pairs, sft=True):
    """The parts of a search tree that its pairs need, or None if it has no pairs and no right response.

    Prompt first, then every node on the way to a fragment, then (with `sft`) one right response as a branch of its own.
    """
    needed = sorted({n for pair in pairs for fragment in pair for n in tree.path(fragment)})
    fragments = {n for pair in pairs for n in pair}
    segments, place, number = [(tree.prompt, -1, False)], {0: 0}, {}
    for n in needed:         # parents have smaller numbers than their children
        node = tree.nodes[n]
        place[n] = len(segments)
        if n in fragments:
            number[n] = len(number)
        segments.append((node.ids, place[node.parent], n in fragments))
    right = -1
    if sft and tree.right:
        right = len(number)
        segments.append((tree.right, 0, True))
    if not pairs and right < 0:
        return None
    return PairedTree(segments, [number[c] for c, _ in pairs], [number[r] for _, r in pairs],
                      [(tree.nodes[c].visits, tree.nodes[r].visits) for c, r in pairs], right)


def lay_out_trees(trees):
    """PairedTrees -> (Batch, indices of the pairs' fragments and the right responses among learned segments)."""
    chosen, rejected, visits, right, first = [], [], [], [], 0
    for tree in trees:
        chosen += [first + c for c in tree.chosen]
        rejected += [first + r for r in tree.rejected]
        visits += tree.visits
        if tree.right >= 0:
            right.append(first + tree.right)
        first += sum(learned for _, _, learned in tree.segments)
    index = lambda values: torch.tensor(values, dtype=torch.long)
    return lay_out([tree.segments for tree in trees]), {
        "chosen": index(chosen), "rejected": index(rejected), "right": index(right),
        "visits": torch.tensor(visits, dtype=torch.float).reshape(-1, 2)}


def pair_logps(logps, lengths, where, reference, cfg):
    """Fragments' log-probabilities (segments,) -> PairLogps of the pairs; reference (segments,) or None."""
    chosen, rejected = where["chosen"].to(logps.device), where["rejected"].to(logps.device)
    smoothing = visit_smoothing(*where["visits"].to(logps.device).T) if cfg.smooth_by_visits else 0.0
    return PairLogps(logps[chosen], logps[rejected], lengths[chosen], lengths[rejected],
                     None if reference is None else reference[chosen], None if reference is None else reference[rejected],
                     smoothing)


def micro_batches(trees, micro_tokens):
    """(Batch, where its pairs are, its trees) of each forward pass over trees, of at most `micro_tokens` tokens or one tree."""
    for part in filled([tree_tokens(tree.segments) for tree in trees], micro_tokens):
        part = [trees[i] for i in part]
        yield *lay_out_trees(part), part


def check_preference(cfg):
    """Raises ValueError for a setting that no preference training can have."""
    check_at_least_one(cfg, "pref_epochs", "pref_batch", "pref_micro_tokens")
    if cfg.loss not in LOSSES:
        raise ValueError(f"--loss is one of {', '.join(LOSSES)} (got {cfg.loss})")
    if cfg.beta <= 0:
        raise ValueError(f"--beta has to be above 0 (got {cfg.beta})")
    if cfg.smooth_by_visits and cfg.loss != "dpo":
        raise ValueError(f"--smooth_by_visits is for --loss dpo: {cfg.loss} has no labels to smooth")
    if cfg.sft_weight < 0:
        raise ValueError(f"--sft_weight has to be at least 0 (got {cfg.sft_weight})")
    if cfg.pref_lr < 0:
        raise ValueError(f"--pref_lr has to be at least 0 (got {cfg.pref_lr})")
    if not 0 <= cfg.pref_warmup <= 1:
        raise ValueError(f"--pref_warmup is a share from 0 to 1 (got {cfg.pref_warmup})")
    check_loss(cfg.loss)


def check_loss(name):
    """Raises ValueError for a loss of LOSSES that does not give one value a pair, or reads a reference that it does not ask for."""
    logps, lengths = torch.tensor([-1.0, -2.0]), torch.tensor([1, 2])
    pairs = PairLogps(logps, logps - 1, lengths, lengths)
    if LOSSES[name].reference:
        pairs = replace(pairs, ref_chosen=logps, ref_rejected=logps)
    try:
        found = LOSSES[name].of(pairs, 1.0, 0.5)
    except TypeError as error:
        raise ValueError(f"--loss {name}: {error}; one that reads ref_chosen and ref_rejected needs reference=True in dpo.LOSSES") from None
    if getattr(found, "shape", None) != (2,):
        raise ValueError(f"--loss {name} has to give one value a pair, (2,) for two (got {getattr(found, 'shape', found)})")


@torch.no_grad()
def segment_logps(model, trees, micro_tokens):
    """Log-probabilities in nats of PairedTrees' learned segments under the policy, dropout off: {id(tree): (segments,)}, and the tokens
    a forward pass that the device's memory holds."""
    model.eval()

    def score(micro_tokens):
        found = {}
        for batch, _, part in micro_batches(trees, micro_tokens):
            batch = batch.to(model.device)
            logps = segment_sum(batch, learned_logps(model, batch))
            found.update(zip(map(id, part), logps.split([sum(learned for _, _, learned in tree.segments) for tree in part])))
        return found
    count_tokens("scored", sum(tree_tokens(tree.segments) for tree in trees))
    return within_memory(score, micro_tokens)


def optimize(model, trees, cfg, seed=0, progress=True):
    """Preference optimization of the LoRA layers on PairedTrees (docs/method.md, 2d); the list is shuffled.

    Returns a list with one record an update: loss, accuracy (share of pairs whose chosen fragment is ahead), margin
    (nats times beta) and the cross-entropy of right responses. Raises TrainingError when the loss or the gradient is not finite.
    """
    check_preference(cfg)
    rng, updates = random.Random(seed), []
    for _ in range(cfg.pref_epochs):
        rng.shuffle(trees)
        updates += [trees[i:i + cfg.pref_batch] for i in range(0, len(trees), cfg.pref_batch)]
    optimizer = torch.optim.AdamW(lora_parameters(model), lr=cfg.pref_lr, weight_decay=0.0)
    reference, log, micro_tokens = {}, [], cfg.pref_micro_tokens
    if LOSSES[cfg.loss].reference:       # the policy at the start of the round
        reference, micro_tokens = segment_logps(model, trees, micro_tokens)
    train_lora(model)
    for step, update in enumerate(bar := tqdm(updates, desc="optimize", disable=not progress, leave=False)):
        for group in optimizer.param_groups:
            group["lr"] = cfg.pref_lr * cosine(step, len(updates), cfg.pref_warmup)

        def gradients(micro_tokens):
            n_pairs, n_right = sum(len(t.chosen) for t in update), sum(t.right >= 0 for t in update)
            record = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0, "sft": 0.0, "pairs": n_pairs}
            optimizer.zero_grad(set_to_none=True)
            for batch, where, part in micro_batches(update, micro_tokens):
                batch = batch.to(model.device)
                logps = segment_sum(batch, learned_logps(model, batch))
                lengths = torch.bincount(batch.segment, minlength=batch.segments)
                ref = torch.cat([reference[id(tree)] for tree in part]) if reference else None
                loss = logps.new_zeros(())
                if len(where["chosen"]):
                    pairs = pair_logps(logps, lengths, where, ref, cfg)
                    loss = loss + LOSSES[cfg.loss].of(pairs, cfg.beta, cfg.margin).sum() / n_pairs
                    record["accuracy"] += accuracy(pairs, cfg.loss, cfg.beta).sum().item() / n_pairs
                    record["margin"] += margin(pairs, cfg.loss, cfg.beta).sum().item() / n_pairs
                right = where["right"].to(logps.device)
                if cfg.sft_weight and len(right):
                    nll = -(logps[right] / lengths[right]).sum() / n_right
                    record["sft"] += nll.item()
                    loss = loss + cfg.sft_weight * nll
                if loss.requires_grad:      # not of a micro-batch without pairs, where right responses count for nothing
                    loss.backward()
                record["loss"] += loss.item()
            return record

        record, micro_tokens = within_memory(gradients, micro_tokens)
        count_tokens("trained", sum(tree_tokens(tree.segments) for tree in update))
        step_or_stop(optimizer, record["loss"], step)
        log.append(record)
        bar.set_postfix({key: f"{np.mean([r[key] for r in with_pairs(log)[-10:]]):.3f}" for key in ("loss", "accuracy", "margin")})
    model.eval()
    return log


def with_pairs(log):
    """Records of the updates that had pairs; all of them where none had."""
    return [record for record in log if record["pairs"]] or log


def trend(log, n=5):
    """What `optimize` returned as text: means of its first and of its last n updates, of fewer where these would be the same."""
    log = with_pairs(log)
    n = min(n, max(1, len(log) // 2))
    return ", ".join(f"{key} {np.mean([r[key] for r in log[:n]]):.3f} -> {np.mean([r[key] for r in log[-n:]]):.3f}"
                     for key in ("loss", "accuracy", "margin"))


@dataclass
class DPOFiles:
    model: str = "base"          # path or hub name of a causal language model: the policy, and the reference
    trees: str = ""              # trees that mcts.py wrote
    out: str = "out/dpo"         # folder for the adapter and the merged checkpoint
    rank: int = 16               # LoRA
    alpha: float = 32
    dropout: float = 0.0
    targets: str = ""            # regular expression over layer names; none: every linear layer
    seed: int = 0
    device: str = "auto"


def main(argv=None):
    files, cfg, pair_cfg = synth.read_flags(argv, DPOFiles, DPOConfig, PairConfig)
    if not files.trees:
        raise ValueError("give --trees, a file that mcts.py wrote")
    check_preference(cfg)
    check_pairs(pair_cfg)
    check_at_least_one(files, "rank")
    make_folder(files.out, files.model)
    model, tokenizer = load_model(files.model, files.device)
    grown = read_trees(files.trees)
    for tree in grown:
        if tree.prompt != synth.prompt_ids(tokenizer, tree.sample):
            raise ValueError(f"{files.trees}: the tree of sample {tree.sample.id} was made with another tokenizer than {files.model}'s")
    trees = [paired_tree(t, preference_pairs(t, pair_cfg), bool(cfg.sft_weight)) for t in grown]
    trees = [t for t in trees if t]
    if not trees:
        raise ValueError(f"{files.trees}: no tree has a pair (pairs are made here: give those of mcts.py's flags once more that they depend "
                         "on, --outcome, --min_gap, --min_chosen, --near and --across)")
    torch.manual_seed(files.seed)
    add_lora(model, files.rank, files.alpha, files.dropout, files.targets)
    log = optimize(model, trees, cfg, files.seed)
    save_lora(model, files.out)
    save_model(model, tokenizer, files.out)
    print(f"{files.out}: {sum(len(t.chosen) for t in trees)} pairs in {len(trees)} trees, {len(log)} updates, {trend(log)}")


if __name__ == "__main__":
    run(main)

"""The search of mcts.py one node at a time: every step, rollout and grade is a model call of its own on the full prompt.

This is how the AlphaZero-like code that the paper builds on searches, and what `mcts.search` is measured against and
checked against (bench.py, test_bench.py). Selection, expansion and backup are mcts.py's own pure functions; here are
only the calls to the model, each for one row, without a cache that outlives the call. It is kinder than its ancestor,
which lets every step run on to the end of the response and then scores it in a second pass: here a step stops at its
end, and its log-probabilities are those of the sampling.
"""

import math

import torch
from transformers import StoppingCriteria

import mcts
import synth
from eval import expected_grade, stop_token
from sft import autocast, count_tokens


class StepEnd(StoppingCriteria):
    """Stops `generate` at a token that holds the end of a step."""

    def __init__(self, tokenizer, start):
        self.tokenizer, self.start = tokenizer, start     # start: tokens of the prompt

    def __call__(self, input_ids, scores, **kwargs):
        response = input_ids[0, self.start:].tolist()
        ended = False
        if mcts.may_end_step(self.tokenizer, response[-1]):
            ends = list(mcts.step_ends(self.tokenizer.decode(response)))
            ended = bool(ends) and ends[-1] > len(self.tokenizer.decode(response[:-1]))
        return torch.full((1,), ended, dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def generate(model, ids, max_new, temperature, stop_id, pad_id, criteria=()):
    """One continuation of `ids` -> (new ids, their log-probabilities in nats under the policy at temperature 1)."""
    how = dict(do_sample=True, temperature=temperature, top_k=0, top_p=1.0) if temperature else dict(do_sample=False)
    row = torch.tensor([ids], device=model.device)
    with autocast(model):
        out = model.generate(input_ids=row, attention_mask=torch.ones_like(row), max_new_tokens=max_new, eos_token_id=stop_id,
                             pad_token_id=pad_id, stopping_criteria=list(criteria), output_logits=True,
                             return_dict_in_generate=True, **how)
    new = out.sequences[0, len(ids):]
    logits = torch.cat(out.logits).float()     # (new, vocabulary)
    logps = (logits.gather(1, new[:, None])[:, 0] - logits.logsumexp(-1)).tolist()
    count_tokens("scored", len(ids))
    count_tokens("decoded", len(new))
    return new.tolist(), logps


@torch.no_grad()
def last_logits(model, ids, n):
    """(n, vocabulary): logits at the last n places of `ids`, from one forward pass."""
    count_tokens("scored", len(ids))
    with autocast(model):
        return model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=n, use_cache=False).logits[0].float()


def expansion(model, tokenizer, tree, leaf, cfg, stop_id):
    """k continuations of a leaf, as mcts.expand takes them: each a sampled step, then its rollout."""
    before, responses = tree.prompt + tree.so_far(leaf), []
    left = cfg.max_new - len(tree.so_far(leaf))
    last_step = len(tree.path(leaf)) + 1 >= cfg.depth     # the rest of the response is one step
    call = lambda ids, room, *criteria: generate(model, ids, room, cfg.temperature, stop_id, tokenizer.pad_token_id, criteria)
    for _ in range(cfg.k):
        ids, logps = call(before, left, *([] if last_step else [StepEnd(tokenizer, len(tree.prompt))]))
        if ids[-1] != stop_id and len(ids) < left:
            rest, more = call(before + ids, left - len(ids))
            ids, logps = ids + rest, logps + more
        responses.append((ids, logps))
    return responses


def evaluate(model, tree, leaf, children, cfg, stop_id, question, grades):
    """R(s) = O(s) + C(s) of a leaf's children, and the prior of a child that was not sampled: one pass for each."""
    before = tree.prompt + tree.so_far(leaf)
    for node in map(tree.nodes.__getitem__, children):
        if node.prior < 0:
            logits = last_logits(model, before + node.ids, len(node.ids) + 1)[:-1]
            logp = torch.log_softmax(logits, -1)[torch.arange(len(node.ids)), node.ids].sum().item()
            node.prior = math.exp(logp / len(node.ids) ** cfg.length_power)
        if cfg.self_eval:
            skip = question.index(stop_id) + 1 if node.ids[-1] == stop_id and stop_id in question else 0
            logits = last_logits(model, before + node.ids + question[skip:], 1)[0, grades]
            node.grade = cfg.self_eval * expected_grade(torch.softmax(logits, -1).tolist())
        node.reward = node.outcome + node.grade
        node.r = node.reward - tree.nodes[leaf].reward
        node.q, node.visits = node.r, 1


def search(model, tokenizer, samples, cfg):
    """One finished tree a sample, like mcts.search; samples by torch's global seed."""
    stop_id, (question, grades), trees = stop_token(tokenizer), synth.grade_ids(tokenizer), []
    for sample in samples:
        tree = mcts.Tree(sample, synth.prompt_ids(tokenizer, sample), [mcts.Node(-1, [], "")])
        due = mcts.cut_steps(tokenizer, synth.target_ids(tokenizer, sample), stop_id)
        for _ in range(cfg.simulations):
            if tree.nodes[0].closed:
                break
            leaf = mcts.select(tree, cfg.c_puct)
            responses = expansion(model, tokenizer, tree, leaf, cfg, stop_id)
            children = mcts.expand(tree, leaf, responses, due, tokenizer, cfg, stop_id)
            evaluate(model, tree, leaf, children, cfg, stop_id, question, grades)
            mcts.backup(tree, leaf, cfg.discount)
        trees.append(tree)
    return trees

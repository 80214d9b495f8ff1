"""What a GPU would refuse is refused here too: every stage runs on a device that is not the CPU, and to the same numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file

import eval
import loop
import mcts
import sft
from another_device import GPU, Elsewhere, another_device
from conftest import save_tiny

MINIATURE = ["--n", "16", "--n_test", "6", "--simulations", "3", "--max_new", "12", "--rank", "2", "--pick", "0.5", "--across", "True",
             "--epochs", "1", "--pref_epochs", "1", "--min_gap", "0.01", "--sft_weight", "0.5", "--replay", "0.5"]


def test_the_device_is_one_of_its_own():
    ours = torch.arange(6.0)
    with another_device():
        theirs = ours.to("cuda")
        assert theirs.device == GPU and theirs.is_cuda and isinstance(theirs + 1, Elsewhere) and not isinstance(theirs.cpu(), Elsewhere)
        for mixed in (lambda: theirs + ours, lambda: ours + theirs, lambda: torch.cat([theirs, ours]), lambda: ours[theirs.long()],
                      lambda: ours.index_add_(0, theirs.long(), ours), lambda: theirs.masked_fill(ours > 1, 0.0)):
            with pytest.raises(RuntimeError, match="same device"):
                mixed()
        with pytest.raises(TypeError, match="numpy"):
            theirs.numpy()
        with pytest.raises(TypeError, match="float64"):
            theirs.double()
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
        assert (theirs * torch.tensor(2.0))[torch.tensor([1, 3])].tolist() == [2.0, 6.0]      # what a GPU allows
        theirs[2:] = ours[2:] + 10
        theirs[[0, 1]] = 7.0
        assert theirs.tolist() == [7.0, 7.0, 12.0, 13.0, 14.0, 15.0]
        weight = torch.nn.Parameter(torch.ones(6, device="cuda"))
        (weight * theirs).sum().backward()
        assert weight.grad.device == GPU and weight.grad.tolist() == theirs.tolist()


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    return save_tiny("llama", tokenizer, tmp_path_factory.mktemp("model"))


def test_the_loop_runs_there_and_ends_with_the_same_numbers(checkpoint, tmp_path, monkeypatch):
    full = loop.evaluate      # a random model never ends its answer
    monkeypatch.setattr(loop, "evaluate", lambda *args, **kwargs: full(*args, max_new=6, **kwargs))

    def run(device, iters):
        loop.main(["--model", str(checkpoint), "--device", device, "--out", str(tmp_path / device), "--iters", str(iters), *MINIATURE])
    run("cpu", 2)
    with another_device():
        run("cuda", 1)
        run("cuda", 2)      # goes on from files
    for name in ("base/responses.jsonl", "warmup/responses.jsonl", "iter1/pairs.jsonl", "iter2/picked.jsonl", "iter2/responses.jsonl"):
        assert (tmp_path / "cpu" / name).read_text() == (tmp_path / "cuda" / name).read_text() != "", name
    for name in ("warmup/adapter.safetensors", "iter2/adapter.safetensors", "final/model.safetensors"):
        ours, theirs = (load_file(tmp_path / device / name) for device in ("cpu", "cuda"))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, msg=f"{name}: {key}")


def test_search_and_scoring_alone_run_there(checkpoint, tmp_path, capsys):
    with another_device():
        mcts.main(["--model", str(checkpoint), "--device", "cuda", "--n", "3", "--simulations", "2", "--max_new", "8", "--out",
                   str(tmp_path / "trees.jsonl")])
        eval.main(["--model", str(checkpoint), "--device", "cuda", "--bench", "base", "--n", "8", "--max_new", "6"])
        eval.main(["--model", str(checkpoint), "--device", "cuda", "--n", "4", "--samples", "2", "--max_new", "6"])
    assert len((tmp_path / "trees.jsonl").read_text().splitlines()) == 3 and "AUC" in capsys.readouterr().out


def test_the_base_is_trained_there(tmp_path, capsys):
    with another_device():
        sft.main(["--from_scratch", "--device", "cuda", "--base_tokens", "1", "--out", str(tmp_path / "base")])
    assert "held-out responses exactly right" in capsys.readouterr().out
    assert json.loads((tmp_path / "base" / "config.json").read_text())["model_type"] == "qwen2"

"""Where memory runs out, batches get smaller and results stay."""

import numpy as np
import pytest
import torch

from recbole_lea.engine.llm import load_llm
from recbole_lea.engine.memory import add_gradients, out_of_memory
from recbole_lea.le import finetune as ft
from recbole_lea.le.item_tokens import _losses
from tests.le.helpers import SEQUENCES, environment
from tests.le.test_environment import all_prompts

ERRORS = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "CUDA itself": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate()`"),
    "Triton": RuntimeError("Triton Error [CUDA]: out of memory"),
    "Linux": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "macOS": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:75] . DefaultCPUAllocator: not enough memory: you tried to "
        "allocate 4000000000000 bytes."
    ),
}


def limit(env, monkeypatch, rows, error=ERRORS["CUDA"], where="forward"):
    """More than so many rows run out of memory, at the end of a forward or within a backward pass.

    Returns:
        The number of rows of each pass that was tried.
    """
    tried, hidden = [], env.hidden

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise error

    def limited(batch, *rest):
        tried.append(len(batch.ids))
        found = hidden(batch, *rest)
        if len(batch.ids) <= rows:
            return found
        if where == "forward":
            raise error
        return Fails.apply(found)

    monkeypatch.setattr(env, "hidden", limited)
    return tried


@pytest.mark.parametrize("kind", ERRORS)
def test_reading_goes_on_with_fewer_rows(settings, monkeypatch, caplog, kind):
    env = environment(settings(row_length=96, batch_rows=8, max_history=4))
    prompts = [[p] for p in all_prompts(env)]
    assert max(len(p) for (p,) in prompts) <= 96
    whole = env.answer(prompts, env.reward_of)
    tried = limit(env, monkeypatch, 3, ERRORS[kind])
    np.testing.assert_allclose(env.answer(prompts, env.reward_of), whole, rtol=1e-5, atol=1e-7)
    assert tried[:4] == [8, 4, 2, 2]
    assert set(tried[4:]) == {2}  # the size that fits is kept
    assert "out of memory with 8 rows of 96 tokens: going on with 4" in caplog.text
    assert "with 4 rows of 96 tokens: going on with 2" in caplog.text
    assert "lea_batch_rows" in caplog.text


def test_what_does_not_fit_row_by_row_is_an_error(settings, monkeypatch):
    env = environment(settings(row_length=48, batch_rows=4, reward_prompt="paper"))
    limit(env, monkeypatch, 0)
    with pytest.raises(ValueError, match="one row of 48 tokens: lower lea_row_length.*2.00 GiB"):
        env.answer([[p] for p in all_prompts(env)], env.reward_of)


def test_other_errors_are_not_taken_for_it(settings, monkeypatch):
    env = environment(settings(row_length=48, batch_rows=4, reward_prompt="paper"))
    tried = limit(env, monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        env.answer([[p] for p in all_prompts(env)], env.reward_of)
    assert tried == [4]


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("state_loss", ["softmax", "pairwise"])
def test_fine_tuning_learns_the_same(settings, tmp_path, monkeypatch, where, state_loss):
    s = settings(
        row_length=56, batch_rows=4, finetune_fraction=0.9, finetune_batch_size=20,
        state_loss=state_loss, finetune_clip=None, state_input="items", reward_head="none",
        action_prompt_item_last=", the next item the user interacts with is {item}",
    )  # fmt: skip
    whole, limited = environment(s), environment(s)
    steps = {}
    for name, env in (("whole", whole), ("limited", limited)):
        optimizer = torch.optim.SGD([p for p in env.parameters() if p.requires_grad], lr=0)
        if name == "limited":
            tried = limit(env, monkeypatch, 1, where=where)
        batch = [(s, t) for s in range(8) for t in range(1, len(SEQUENCES.items[s]))][:20]
        rng = np.random.default_rng(0)
        losses = ft._train_step(env, optimizer, SEQUENCES, batch, rng)
        gradients = {n: p.grad.clone() for n, p in env.named_parameters() if p.grad is not None}
        steps[name] = losses, gradients
    assert tried[:3] == [4, 2, 1]
    np.testing.assert_allclose(steps["limited"][0], steps["whole"][0], rtol=1e-5)
    assert steps["limited"][1].keys() == steps["whole"][1].keys()
    for name, gradient in steps["whole"][1].items():
        torch.testing.assert_close(steps["limited"][1][name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_item_tokenization_learns_the_same(settings, monkeypatch, where):
    env = environment(settings(row_length=16, batch_rows=4), adapted=False)
    ids = [[env.vocab_size + i, 5, 6 + i, 7, 8, 9] for i in range(8)]
    tables = [torch.ones(8, 32, requires_grad=True) for _ in range(2)]
    whole = _losses(env, ids, tables[0], backward=True)
    tried = limit(env, monkeypatch, 1, where=where)
    torch.testing.assert_close(_losses(env, ids, tables[1], backward=True), whole)
    assert tried[:3] == [4, 2, 1]
    torch.testing.assert_close(tables[1].grad, tables[0].grad)


def test_gradients_add_up_as_backward_does():
    a, b, unused = (torch.full((2,), float(i), requires_grad=True) for i in (2, 3, 4))
    for _ in range(2):
        add_gradients((a * b).sum(), [a, b, unused])
    assert (a.grad.tolist(), b.grad.tolist(), unused.grad) == ([6, 6], [4, 4], None)


def test_what_is_out_of_memory():
    assert all(out_of_memory(error) for error in [*ERRORS.values(), MemoryError()])
    assert not out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(2**50)
    assert out_of_memory(real.value)


def test_an_llm_that_does_not_fit_is_an_error(tiny_llm, monkeypatch):
    def full(self, *args):
        raise ERRORS["CUDA"]

    monkeypatch.setattr(torch.nn.Module, "to", full)
    with pytest.raises(ValueError, match=f"lea_llm: {tiny_llm}.*does not fit.*lea_llm_dtype"):
        load_llm(tiny_llm, "float32", torch.device("cpu"))

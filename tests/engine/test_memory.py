"""Where memory runs out, one line says what to lower."""

import numpy as np
import pytest
import torch

from recbole_lea.engine.llm import load_llm
from recbole_lea.engine.memory import out_of_memory
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


@pytest.mark.parametrize("kind", ERRORS)
def test_reading_ends_in_one_line(settings, monkeypatch, kind):
    env = environment(settings(row_length=96, batch_rows=8, max_history=4))

    def full(*args):
        raise ERRORS[kind]

    monkeypatch.setattr(env, "hidden", full)
    with pytest.raises(ValueError, match="^out of memory: lower lea_batch_rows, .*"):
        env.answer([[p] for p in all_prompts(env)], env.reward_of)


def test_other_errors_are_not_taken_for_it(settings, monkeypatch):
    env = environment(settings(row_length=48, batch_rows=4, reward_prompt="paper"))

    def broken(*args):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(env, "hidden", broken)
    with pytest.raises(RuntimeError, match="^mat1"):
        env.answer([[p] for p in all_prompts(env)], env.reward_of)


class Fails(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ERRORS["CUDA"]


def test_learning_ends_in_one_line(settings, monkeypatch):
    env = environment(settings(row_length=56, batch_rows=4))
    plain, hidden = environment(settings(row_length=16, batch_rows=4), adapted=False), env.hidden
    monkeypatch.setattr(env, "hidden", lambda *args: Fails.apply(hidden(*args)))
    optimizer = torch.optim.SGD([p for p in env.parameters() if p.requires_grad], lr=0)
    batch = [(s, t) for s in range(8) for t in range(1, len(SEQUENCES.items[s]))][:20]
    with pytest.raises(ValueError, match="^out of memory: lower lea_batch_rows, .*2.00 GiB"):
        ft._train_step(env, optimizer, SEQUENCES, batch, np.random.default_rng(0))
    own = plain.hidden
    monkeypatch.setattr(plain, "hidden", lambda *args: Fails.apply(own(*args)))
    ids = [[plain.vocab_size + i, 5, 6 + i, 7, 8, 9] for i in range(8)]
    with pytest.raises(ValueError, match="^out of memory: lower lea_batch_rows, .*2.00 GiB"):
        _losses(plain, ids, torch.ones(8, 32, requires_grad=True), backward=True)


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

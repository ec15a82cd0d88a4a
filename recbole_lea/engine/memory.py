"""Running out of memory: known by its errors, and said in one line."""

import contextlib
from collections.abc import Iterator

import torch

MESSAGES = ("out of memory", "not enough memory", "can't allocate memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on an accelerator or the CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


@contextlib.contextmanager
def within_memory() -> Iterator[None]:
    """Also a decorator: running out of memory is a ValueError that names the keys to lower."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise ValueError(
            "out of memory: lower lea_batch_rows, or lea_row_length, lea_max_history, "
            "lea_item_max_tokens and lea_finetune_negatives, set lea_llm_dtype to bfloat16, or use "
            f"a smaller LLM; what the LE's cache holds is kept ({error})"
        ) from error

"""The Q head (Eq. 9) and the state that it is given (Eq. 4)."""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from recbole_lea.equations import q_values, rl_state

# Actions at a time on a CPU: a larger piece of Q leaves the cache before its maximum is taken.
CPU_PIECE = 2048


class QHead(nn.Module):
    """Q(s, a) for all actions, on h_t, the LE's state, or both.

    Args:
        state: ``hidden``, ``LE`` or ``both``.
        hidden_size: H, width of h_t.
        le_size: d, width of the LE's state; 0 if unused.
        n_items: actions, RecBole's padding item 0 included.
        layernorm, hidden_layernorm: normalise the LE's state, h_t first.
    """

    def __init__(
        self, state: str, hidden_size: int, le_size: int, n_items: int, layernorm: bool,
        hidden_layernorm: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.state = state
        hidden_size *= state != "LE"
        self.norm = nn.LayerNorm(le_size) if layernorm and le_size else nn.Identity()
        normalised = hidden_layernorm and hidden_size
        self.hidden_norm = nn.LayerNorm(hidden_size) if normalised else nn.Identity()
        self.linear = nn.Linear(hidden_size + le_size, n_items)

    def join(self, hidden: Tensor | None, le_state: Tensor | None) -> Tensor:
        """h_t [B, H] and s'_t [B, d], either None where it is unused -> the state s_t [B, S]."""
        if self.state == "LE":
            return self.norm(le_state)
        hidden = self.hidden_norm(hidden)
        return hidden if self.state == "hidden" else rl_state(self.norm(le_state), hidden)

    def forward(self, state: Tensor) -> Tensor:
        """Q of all actions: s_t [B, S] -> [B, n_items]."""
        return q_values(state, self.linear.weight, self.linear.bias)

    def pieces(self, state: Tensor, chunk: int | None) -> Iterator[Tensor]:
        """``forward``, ``chunk`` actions at a time, or all for None: [B, S] -> [B, chunk] each."""
        size = chunk or len(self.linear.bias)
        if not state.is_cuda:
            size = min(size, CPU_PIECE)
        weights, biases = self.linear.weight.split(size), self.linear.bias.split(size)
        for weight, bias in zip(weights, biases, strict=True):
            yield q_values(state, weight, bias)

    def values(self, state: Tensor, actions: Tensor) -> Tensor:
        """Q of the given actions alone: s_t [B, S], actions [B, k] -> [B, k]."""
        weight = F.embedding(actions, self.linear.weight)  # [B, k, S]
        return (weight * state[:, None]).sum(dim=-1) + self.linear.bias[actions]

"""The sequential model G of SASRec and GRU4Rec: h_t, h_{t+1}, and the scores of h_t (Eq. 7)."""

from collections.abc import Mapping
from typing import Any

import torch
from recbole.model.sequential_recommender import SASRec
from torch import Tensor, nn

from recbole_lea.equations import scores

# Parts of a batch on a CPU, by length: the padding of short prefixes costs as much as items do.
# Three are slower, as would be two on a GPU: small operations wait for each other.
LENGTH_PARTS = 2

_RecBoleModel: Any = object  # behind our mixins stands a class of RecBole's, without type hints


class Backbone(_RecBoleModel):
    """Mixed in before RecBole's SASRec or GRU4Rec; ``AnyBackbone`` serves the others.

    Attributes:
        causal: whether the output at a position depends on the items up to it alone, at positions
            counted from the oldest item: h_t can then be taken from a pass over x_{1:t+1}.
        inputs: the interaction's fields that ``forward`` takes, in its order.
        hidden_width: H, width of h_t.
        normalised: whether h_t leaves the backbone with mean 0 and deviation 1.
    """

    causal = True

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        reason: str | None = "its `loss_fct` is not a cross-entropy over all items"
        if type(getattr(self, "loss_fct", None)) is nn.CrossEntropyLoss:
            self.to(self.device)  # some classes' forward moves tensors there
            reason = self._describe(dataset)
        if reason:
            name = self.backbone_class().__name__
            raise ValueError(f"{name} cannot be a backbone of LEA: {reason} (docs/backbones.md)")

    def _describe(self, dataset) -> str | None:
        """Set the attributes, or say why LEA cannot train this backbone."""
        self.inputs: tuple[str, ...] = (self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        self.hidden_width = self.item_embedding.embedding_dim
        self.normalised = isinstance(self, SASRec)  # by its last LayerNorm
        return None

    @classmethod
    def backbone_class(cls) -> type:
        """RecBole's own class: the next one after our mixins."""
        return cls.__mro__[cls.__mro__.index(Backbone) + 1]

    def supervised(
        self, interaction, hidden: Tensor, head: nn.Linear | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """Scores of all items (Eq. 7) [B, n_items], and the loss's other terms, a scalar.

        Of h_t [B, H] and a batch; ``head`` is None where the item embeddings are the head.
        """
        head_of_items = (self.item_embedding.weight,) if head is None else (head.weight, head.bias)
        return scores(hidden, *head_of_items), 0.0

    def encode(self, fields: Mapping[str, Tensor]) -> Tensor:
        """h_t [B, H] of the fields named by ``inputs``."""
        return self.forward(*(fields[name] for name in self.inputs))

    def encode_by_length(self, fields: Mapping[str, Tensor]) -> Tensor:
        """``encode``; on a CPU, a causal backbone in parts of similar length without padding.

        Lengths may be [B] or, for two positions of one sequence, [B, 2] with the later one last:
        [B, H] or [B, 2, H].
        """
        lengths = fields[self.ITEM_SEQ_LEN]
        if lengths.is_cuda or not self.causal:
            return self.encode(fields)
        longest = lengths if lengths.dim() == 1 else lengths[:, -1]  # [B]
        order = longest.argsort()
        parts = []
        for rows in order.tensor_split(min(LENGTH_PARTS, len(order))):
            part = {name: fields[name][rows] for name in self.inputs}
            part[self.ITEM_SEQ] = part[self.ITEM_SEQ][:, : int(longest[rows[-1]])]
            parts.append(self.encode(part))
        return torch.cat(parts)[order.argsort()]

    def encode_pair(self, interaction) -> tuple[Tensor, Tensor]:
        """h_t = G(x_{1:t}) and, without gradient, h_{t+1}, [B, H] each.

        A causal backbone takes both from one pass over x_{1:t+1}, under the same dropout masks;
        where the window is full, and so slides, h_{t+1} takes a pass of its own.
        """
        now = {name: interaction[name] for name in self.inputs}
        seq, seq_len = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        next_seq, next_len = append_item(seq, seq_len, interaction[self.POS_ITEM_ID])
        later = now | {self.ITEM_SEQ: next_seq, self.ITEM_SEQ_LEN: next_len}
        if not self.causal:
            hidden = self.encode(now)
            with torch.no_grad():
                return hidden, self.encode(later)
        full = seq_len == seq.shape[1]
        both = now | {
            self.ITEM_SEQ: torch.where(full[:, None], seq, next_seq),
            self.ITEM_SEQ_LEN: torch.stack([seq_len, next_len], dim=1),  # [B, 2]
        }
        hidden, next_hidden = self.encode_by_length(both).unbind(1)
        next_hidden = next_hidden.detach()
        rows = full.nonzero().squeeze(1)
        if len(rows):
            with torch.no_grad():
                slid = self.encode({name: value[rows] for name, value in later.items()})
            next_hidden = next_hidden.index_copy(0, rows, slid)
        return hidden, next_hidden

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """RecBole's [B, L, H] at [B] -> [B, H]; also at [B, k] -> [B, k, H]."""
        if gather_index.dim() == 1:
            return super().gather_indexes(output, gather_index)
        return output.gather(1, gather_index[:, :, None].expand(-1, -1, output.shape[-1]))


def append_item(seq: Tensor, seq_len: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """x_{1:t} [B, L], padded right with 0, t [B] and a_t [B] -> x_{1:t+1} [B, L] and t + 1 [B].

    A full window loses its oldest item.
    """
    length = seq.shape[1]
    full = (seq_len == length)[:, None]
    shifted = torch.where(full, seq.roll(-1, dims=1), seq)
    position = seq_len.clamp(max=length - 1)[:, None]
    return shifted.scatter(1, position, item[:, None]), (seq_len + 1).clamp(max=length)

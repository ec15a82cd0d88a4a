"""RecBole's other backbones: the scores of h_t are taken from their own loss while it runs."""

from typing import Any

import torch
from torch import Tensor, nn

from recbole_lea.equations import scores
from recbole_lea.model.backbone import Backbone


class AnyBackbone(Backbone):
    """Mixed in before any RecBole backbone but SASRec and GRU4Rec.

    LEA can train one whose loss is a cross-entropy over all items, of one ``forward`` over items,
    length and user, plus terms that LEA leaves as they are (a regulariser); its ranking scores
    have to be those of its loss. A trial on two rows finds that out.
    """

    causal = False

    @torch.no_grad()
    def _describe(self, dataset) -> str | None:
        """As ``Backbone._describe``, on the shortest and the longest training row."""
        lengths = dataset.inter_feat[self.ITEM_SEQ_LEN]
        rows = torch.stack([lengths.argmin(), lengths.argmax()])
        rows = dataset.inter_feat[rows].to(self.device)
        known = (self.USER_ID, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        before = {name: rows[name].clone() for name in known}
        names = {id(value): name for name, value in rows.interaction.items()}
        self.eval()  # without dropout, which would draw
        try:
            passes, cross_entropies, _ = self._captured_loss(rows)
            ranking = super().full_sort_predict(rows)  # [2, n_items]
        except KeyError as error:
            return f"it reads {error}, which LEA's data lack"
        self.train()
        if len(passes) != 1 or len(cross_entropies) != 1:
            return "its loss is not one cross-entropy of one forward"
        (inputs, hidden), (found, target) = passes[0], cross_entropies[0]
        self.inputs = tuple(names.get(id(value), "") for value in inputs)
        if not set(known).issuperset(self.inputs):
            return "its forward takes more than items, length and user"
        if any(not torch.equal(rows[name], value) for name, value in before.items()):
            return "its forward changes its inputs, which LEA uses again"
        if not isinstance(hidden, Tensor) or hidden.dim() != 2:
            return "its forward does not give one vector a sequence"
        if found.shape != (2, self.n_items) or names.get(id(target)) != self.POS_ITEM_ID:
            return "its loss is not over all items, of the next one"
        if not torch.allclose(found, ranking, atol=1e-4 * float(found.abs().max())):
            return "its ranking scores are not those of its loss"
        self.hidden_width = hidden.shape[1]
        spread, mean = torch.std_mean(hidden, dim=1, correction=0)  # [2]
        self.normalised = bool(torch.stack([spread - 1, mean]).abs().max() < 1e-2)
        return None

    def _captured_loss(
        self, interaction, hidden: Tensor | None = None
    ) -> tuple[list[Any], list[Any], Tensor | None]:
        """Run RecBole's loss, on a given h_t [B, H] if any.

        Returns (inputs, output) of each ``forward``, (scores, target) of each cross-entropy, and
        the other terms.
        """
        passes, cross_entropies = [], []
        zero = torch.zeros((), device=self.device)

        def forward(*inputs: Tensor) -> Tensor:
            output = type(self).forward(self, *inputs) if hidden is None else hidden
            passes.append((inputs, output))
            return output

        def loss_fct(scores: Tensor, target: Tensor) -> Tensor:
            cross_entropies.append((scores, target))
            return zero

        self.__dict__ |= {"forward": forward, "loss_fct": loss_fct}  # hides the class's own
        try:
            rest = super().calculate_loss(interaction)
        finally:
            del self.__dict__["forward"], self.__dict__["loss_fct"]
        return passes, cross_entropies, None if rest is zero else rest

    def supervised(
        self, interaction, hidden: Tensor, head: nn.Linear | None = None
    ) -> tuple[Tensor, Tensor | float]:
        """As ``Backbone.supervised``, by RecBole's own loss of a given h_t."""
        _, cross_entropies, rest = self._captured_loss(interaction, hidden)
        own = cross_entropies[0][0] if head is None else scores(hidden, head.weight, head.bias)
        return own, 0.0 if rest is None else rest.reshape(())

"""SNQN and SA2C with the LE's feedback, on top of a RecBole sequential recommender."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from sklearn.decomposition import PCA
from torch import Tensor, nn

from recbole_lea.engine.processes import Share, drawn
from recbole_lea.equations import advantage, double_q_value, supervised_loss, td_loss
from recbole_lea.le.sequences import leave_out
from recbole_lea.methods import needs_warmup, switches
from recbole_lea.model.fields import DONE, FIELD_PREFIX
from recbole_lea.model.registry import refusal

# Backbones whose output at a position depends on the items up to it alone, at positions counted
# from the oldest item: h_t can be read from a pass over x_{1:t+1}.
CAUSAL = (SASRec, GRU4Rec)

# Parts of a batch on a CPU, by length: prefixes are mostly shorter than the window, whose padding
# costs as much as items do. Three are slower: small operations wait for each other, as a GPU would
# with two.
LENGTH_PARTS = 2

# Actions at a time on a CPU, where a larger piece of Q leaves the cache before its maximum is read.
CPU_PIECE = 2048


class QHead(nn.Module):
    """Q(s, a) for all actions (Eq. 9), on h_t, the LE's state, or both (Eq. 4).

    Args:
        state: ``hidden``, ``LE`` or ``both``.
        hidden_size: width of h_t.
        le_size: width of the LE's state; 0 if unused.
        n_items: actions, RecBole's padding item 0 included.
        layernorm: normalise the LE's state first.
        hidden_layernorm: normalise h_t first.
    """

    def __init__(
        self,
        state: str,
        hidden_size: int,
        le_size: int,
        n_items: int,
        layernorm: bool,
        hidden_layernorm: bool,
    ) -> None:
        super().__init__()
        self.state = state
        self.norm = nn.LayerNorm(le_size) if layernorm and le_size else nn.Identity()
        reads_hidden = state != "LE"
        self.hidden_norm = (
            nn.LayerNorm(hidden_size) if hidden_layernorm and reads_hidden else nn.Identity()
        )
        width = reads_hidden * hidden_size + le_size
        self.linear = nn.Linear(width, n_items)

    def join(self, hidden: Tensor | None, le_state: Tensor | None) -> Tensor:
        """h_t [B, H] and s'_t [B, d], either None where it is unused -> the state s_t [B, S]."""
        if self.state == "LE":
            return self.norm(le_state)
        assert hidden is not None
        hidden = self.hidden_norm(hidden)
        if self.state == "hidden":
            return hidden
        return torch.cat([self.norm(le_state), hidden], dim=-1)  # s_t = s'_t || h_t

    def forward(self, state: Tensor) -> Tensor:
        """Q of all actions: s_t [B, S] -> [B, n_items]."""
        return self.linear(state)

    def pieces(self, state: Tensor, chunk: int | None) -> Iterator[Tensor]:
        """``forward``, ``chunk`` actions at a time (all for None; on a CPU at most ``CPU_PIECE``).

        [B, S] -> [B, chunk] each.
        """
        size = chunk or len(self.linear.bias)
        if not state.is_cuda:
            size = min(size, CPU_PIECE)
        weights, biases = self.linear.weight.split(size), self.linear.bias.split(size)
        for weight, bias in zip(weights, biases, strict=True):
            yield F.linear(state, weight, bias)

    def values(self, state: Tensor, actions: Tensor) -> Tensor:
        """Q of the given actions alone: s_t [B, S], actions [B, k] -> [B, k]."""
        weight = F.embedding(actions, self.linear.weight)  # [B, k, S]
        return (weight * state[:, None]).sum(dim=-1) + self.linear.bias[actions]


@dataclass
class Reading:
    """What a backbone's own ``calculate_loss`` passes through ``forward`` and ``loss_fct``.

    Attributes:
        hidden: h_t [B, H] that stands for what ``forward`` would return; None computes it.
        passes: inputs and output of each ``forward``.
        scores: of each cross-entropy, with its targets: [B, n_items] and [B].
        zero: what each cross-entropy counts as.
    """

    zero: Tensor
    hidden: Tensor | None = None
    passes: list[tuple[tuple[Tensor, ...], Tensor]] = field(default_factory=list)
    scores: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class ReadableCrossEntropy(nn.CrossEntropyLoss):
    """RecBole's cross-entropy; while it is read it counts as 0."""

    reading: Reading | None = None

    def forward(self, scores: Tensor, target: Tensor) -> Tensor:
        """Scores [B, n_items] and targets [B] to a scalar."""
        if self.reading is None:
            return super().forward(scores, target)
        self.reading.scores.append((scores, target))
        return self.reading.zero


# What stands behind our mixins: a class of RecBole's, which has no type hints.
_Backbone: Any = object


class Readable(_Backbone):
    """Mixed in before a RecBole backbone: h_t, and the scores that its own loss makes of h_t.

    RecBole's ``calculate_loss`` stays the one place that says how h_t becomes scores and what
    else belongs to the loss. LEA can train a backbone whose loss is one cross-entropy over all
    items, of one pass of ``forward`` over items, length and user, plus terms that LEA leaves as
    they are (a regulariser); its ranking scores have to be those of its loss. A trial on two
    rows finds that out.

    Attributes:
        inputs: the interaction's fields that ``forward`` takes, in its order.
        hidden_width: H, width of h_t.
        only_cross_entropy: whether the loss has no further terms.
        normalised: whether h_t leaves the backbone with mean 0 and deviation 1, as after SASRec's
            last LayerNorm.
    """

    _reading: Reading | None = None

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        if type(getattr(self, "loss_fct", None)) is not nn.CrossEntropyLoss:
            raise ValueError(self._refusal("its `loss_fct` is not a cross-entropy over all items"))
        self.loss_fct = ReadableCrossEntropy()
        self._try(dataset)

    def _refusal(self, reason: str) -> str:
        return refusal(self.backbone_class().__name__, reason)

    @classmethod
    def backbone_class(cls) -> type:
        """RecBole's own class: the next one after our mixins."""
        mro = cls.__mro__
        return mro[mro.index(Readable) + 1]

    @torch.no_grad()
    def _try(self, dataset) -> None:
        """Set the attributes from a trial on two training rows, the shortest and the longest.

        Raises:
            ValueError: LEA cannot train this backbone; says why.
        """
        lengths = dataset.inter_feat[self.ITEM_SEQ_LEN]
        rows = torch.stack([lengths.argmin(), lengths.argmax()])
        rows = dataset.inter_feat[rows].to(self.device)
        known = (self.USER_ID, self.ITEM_SEQ, self.ITEM_SEQ_LEN)
        before = {name: rows[name].clone() for name in known}
        names = {id(value): name for name, value in rows.interaction.items()}
        # on config's device, as some forwards move tensors there; without dropout, which would draw
        self.to(self.device).eval()
        try:
            with self._read() as reading:
                rest = super().calculate_loss(rows)
            ranking = super().full_sort_predict(rows)
        except KeyError as error:
            raise ValueError(self._refusal(f"it reads {error}, which LEA's data lack")) from error
        finally:
            self.train()
        if len(reading.passes) != 1 or len(reading.scores) != 1:
            raise ValueError(self._refusal("its loss is not one cross-entropy of one forward"))
        (inputs, hidden), (scores, target) = reading.passes[0], reading.scores[0]
        self.inputs = tuple(names.get(id(value), "") for value in inputs)
        if not set(known).issuperset(self.inputs):
            raise ValueError(self._refusal("its forward takes more than items, length and user"))
        if any(not torch.equal(rows[name], value) for name, value in before.items()):
            raise ValueError(self._refusal("its forward changes its inputs, which LEA uses again"))
        if not isinstance(hidden, Tensor) or hidden.dim() != 2:
            raise ValueError(self._refusal("its forward does not give one vector a sequence"))
        if scores.shape != (2, self.n_items) or names.get(id(target)) != self.POS_ITEM_ID:
            raise ValueError(self._refusal("its loss is not over all items, of the next one"))
        if not torch.allclose(scores, ranking, atol=1e-4 * float(scores.abs().max())):
            raise ValueError(self._refusal("its ranking scores are not those of its loss"))
        self.hidden_width = hidden.shape[1]
        spread, mean = torch.std_mean(hidden, dim=1, correction=0)  # [2]
        self.normalised = bool(torch.stack([spread - 1, mean]).abs().max() < 1e-2)
        self.only_cross_entropy = rest is reading.zero

    @contextmanager
    def _read(self, hidden: Tensor | None = None) -> Iterator[Reading]:
        zero = torch.zeros((), device=self.device)
        self._reading = self.loss_fct.reading = Reading(zero, hidden)
        try:
            yield self._reading
        finally:
            self._reading = self.loss_fct.reading = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """RecBole's h_t [B, H]; while it is read, the given one."""
        if self._reading is None:
            return super().forward(*inputs)
        hidden = self._reading.hidden
        if hidden is None:
            hidden = super().forward(*inputs)
        self._reading.passes.append((inputs, hidden))
        return hidden

    def encode(self, fields: Mapping[str, Tensor]) -> Tensor:
        """h_t [B, H] of the fields named by ``inputs``."""
        return super().forward(*(fields[name] for name in self.inputs))

    def encode_by_length(self, fields: Mapping[str, Tensor]) -> Tensor:
        """``encode``; on a CPU, a causal backbone in parts of similar length without padding.

        Lengths may be [B] or, for two positions of one sequence, [B, 2] with the later one last:
        [B, H] or [B, 2, H].
        """
        lengths = fields[self.ITEM_SEQ_LEN]
        if lengths.is_cuda or self.backbone_class() not in CAUSAL:
            return self.encode(fields)
        longest = lengths if lengths.dim() == 1 else lengths[:, -1]
        order = longest.argsort()
        parts = []
        for rows in order.tensor_split(min(LENGTH_PARTS, len(order))):
            part = {name: fields[name][rows] for name in self.inputs}
            part[self.ITEM_SEQ] = part[self.ITEM_SEQ][:, : int(longest[rows[-1]])]
            parts.append(self.encode(part))
        return torch.cat(parts)[order.argsort()]

    def supervised(self, interaction, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """What RecBole's loss makes of a given h_t [B, H].

        Returns:
            Scores of all items (Eq. 7) [B, n_items]; the loss's other terms, a scalar.
        """
        with self._read(hidden) as reading:
            rest = super().calculate_loss(interaction)
        return reading.scores[0][0], rest.reshape(())

    def gather_indexes(self, output: Tensor, gather_index: Tensor) -> Tensor:
        """RecBole's [B, L, H] at [B] -> [B, H]; also at [B, k] -> [B, k, H]."""
        if gather_index.dim() == 1:
            return super().gather_indexes(output, gather_index)
        return output.gather(1, gather_index[:, :, None].expand(-1, -1, output.shape[-1]))


class Network(nn.Module):
    """One copy of (G, Q) of Algorithm 1: backbone, optional dense supervised head, Q head."""

    def __init__(self, backbone: Readable, q_head: QHead, output_head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.q_head = q_head
        self.output_head = output_head


class LEARecommender(Readable):
    """Mixed in before a RecBole backbone class; ``rl_loss`` is SNQN or SA2C.

    The model itself is the first copy of Algorithm 1 and the one that is evaluated; ``twin``
    is the second, separately initialised. Full-sort scores are the backbone's own (or the
    dense head's): no LLM, no Q head and no LE state at inference.
    """

    rl_loss: str

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        self.switches = switches(config, self.rl_loss)
        self.transform = config["transform"]
        self.q_weight = config["q_weight"]
        self.gamma = config["gamma"]
        self.td_scale = config["td_scale"]
        self.q_max_chunk = config["q_max_chunk"]
        self.r_pos, self.r_neg = float(config["r_pos"]), float(config["r_neg"])
        self.advantage_clip = tuple(config["advantage_clip"])
        self.w_ah, self.w_aq = config["w_ah"], config["w_aq"]
        self.warmed_up = False
        self.share: Share | None = None  # in a training in several processes
        # RecBole's id of an item is its place here; a checkpoint can so be used without the dataset
        self.item_tokens = [str(token) for token in dataset.field2id_token[dataset.iid_field]]
        self.other_parameter_name = ["warmed_up", "item_tokens"]
        # Negatives and coin flips have a stream of their own, and the additional modules take
        # nothing from the global one: with q_weight 0 a run equals plain RecBole's bit for bit.
        self._rng = torch.Generator().manual_seed(config["seed"])
        with torch.random.fork_rng():
            self._add_heads(config, dataset)
        if config["item_embedding_init"] == "le":
            copies = [self, *([self.twin.backbone] if self.twin else [])]
            init_item_embeddings(copies, dataset.lea_item_tokens, dataset.lea_item_ids)

    def _add_heads(self, config, dataset) -> None:
        dense = config["lea_output_head"] == "dense"
        width = self.hidden_width
        self.output_head = nn.Linear(width, self.n_items) if dense else None
        self.q_head = self.twin = None
        if self.q_weight == 0:
            return
        le_size = 0
        if self.switches.le_state:
            feedback = getattr(dataset, "lea_feedback", None)
            if feedback is None or feedback.state_dim is None:
                raise ValueError(_missing("state", config["transform"]))
            le_size = feedback.state_dim
        norm = config["state_layernorm"]
        # unbounded, h_t grows with Q until all histories look alike (deviation 61)
        norms = (norm, norm and not self.normalised)
        heads = [QHead(self.switches.state, width, le_size, self.n_items, *norms) for _ in range(2)]
        self.q_head = heads[0]
        twin_class = type("Twin", (Readable, self.backbone_class()), {})
        backbone = twin_class(config, dataset)
        self.twin = Network(backbone, heads[1], nn.Linear(width, self.n_items) if dense else None)

    def load_other_parameter(self, para) -> None:
        """RecBole's, for the same items alone.

        Raises:
            ValueError: the checkpoint's items are others, or have other ids.
        """
        tokens = (para or {}).get("item_tokens")
        if tokens is not None and tokens != self.item_tokens:
            raise ValueError(
                f"the checkpoint was trained on other items than this dataset's: "
                f"{difference(tokens, self.item_tokens)}"
            )
        super().load_other_parameter(para)

    @property
    def needs_warmup(self) -> bool:
        """See ``methods.needs_warmup``."""
        return needs_warmup(self.switches, self.rl_loss, self.q_weight)

    def _copies(self) -> list[tuple[Readable, QHead, nn.Linear | None]]:
        assert self.q_head is not None and self.twin is not None
        return [
            (self, self.q_head, self.output_head),
            (self.twin.backbone, self.twin.q_head, self.twin.output_head),
        ]

    def _supervised(
        self, backbone: Readable, output_head: nn.Linear | None, interaction, hidden: Tensor
    ) -> tuple[Tensor, Tensor | float]:
        """``Readable.supervised`` of one copy; a dense head has scores of its own."""
        if output_head is None:
            return backbone.supervised(interaction, hidden)
        rest = 0.0 if backbone.only_cross_entropy else backbone.supervised(interaction, hidden)[1]
        return output_head(hidden), rest

    def calculate_loss(self, interaction) -> Tensor | tuple[Tensor, ...]:
        """Eq. 13 and 16 on one batch.

        Returns:
            With the RL part off and no augmentation, the scalar of RecBole's backbone. Else
            the terms named by ``loss_names``, already weighted; RecBole sums them.
        """
        if self.q_weight != 0:
            return self._rl_loss(interaction)
        if self.output_head is None and not self.switches.augmented:
            return super().calculate_loss(interaction)
        hidden = self.encode(interaction)
        logits, rest = self._supervised(self, self.output_head, interaction, hidden)
        supervised = self.loss_fct(logits, interaction[self.POS_ITEM_ID]) + rest
        if not self.switches.augmented:
            return supervised
        chosen = self._chosen(interaction)
        losses = [supervised_loss(logits, actions[:, None]) for actions in chosen]
        return supervised, self._augmented_supervised(losses, logits)

    def _rl_loss(self, interaction) -> tuple[Tensor, ...]:
        positive = interaction[self.POS_ITEM_ID]
        first = torch.rand((), generator=self._rng).item() <= 0.5  # Algorithm 1, lines 7 and 8
        copies = self._copies() if first else self._copies()[::-1]
        (backbone, q_head, output_head), (other, other_q_head, _) = copies
        le_state = le_next_state = None
        if self.switches.le_state:
            le_state = self._field(interaction, "state")
            le_next_state = self._field(interaction, "next_state")

        next_hidden = other_hidden = other_next_hidden = None
        if self.switches.state == "LE":  # Q reads nothing of the backbone
            hidden = backbone.encode_by_length(interaction)  # [B, H]
        else:
            hidden, next_hidden = self._encode_pair(backbone, interaction)  # [B, H]
            with torch.no_grad():
                other_hidden, other_next_hidden = self._encode_pair(other, interaction)
        logits, rest = self._supervised(backbone, output_head, interaction, hidden)
        state = q_head.join(hidden, le_state)  # [B, S]
        going_on = 1 - interaction[DONE]  # [B]
        with torch.no_grad():
            other_state = other_q_head.join(other_hidden, le_state)
            online = q_head.pieces(state, self.q_max_chunk)
            value = double_q_value(online, partial(other_q_head.values, other_state))  # [B]
            next_state = q_head.join(next_hidden, le_next_state)
            other_next_state = other_q_head.join(other_next_hidden, le_next_state)
            rows = going_on.nonzero().squeeze(1)  # [n]: a session's end has no next value
            online = q_head.pieces(next_state[rows], self.q_max_chunk)
            next_values = double_q_value(
                online, partial(other_q_head.values, other_next_state[rows])
            )
            next_value = torch.zeros_like(value).index_copy(0, rows, next_values)  # [B]

        negative, reward, negative_reward = self._actions(interaction, positive)
        chosen = self._chosen(interaction)
        actions = torch.stack([positive, negative, *chosen], dim=1)
        q_positive, q_negative, *q_chosen = q_head.values(state, actions).unbind(1)  # [B] each
        discount = {"gamma": self.gamma, "td_scale": self.td_scale}
        q_loss = td_loss(q_positive, reward, next_value, **discount)
        q_loss = q_loss + td_loss(q_negative, negative_reward, value, **discount)
        actions = torch.stack([positive, *chosen], dim=1)
        supervised, *augmented = supervised_loss(logits, actions).unbind(1)  # [B] each
        if self.rl_loss == "SA2C" and self.warmed_up:
            supervised = supervised * advantage(q_positive, q_negative, self.advantage_clip)
        terms = [supervised.mean() + rest, self.q_weight * q_loss.mean()]
        if self.switches.augmentation in ("supervised", "both"):
            terms.append(self._augmented_supervised(augmented, logits))
        if self.switches.augmentation in ("Q", "both"):
            terms.append(self._augmented_q(q_chosen, next_value, interaction, discount))
        return tuple(terms)

    def _chosen(self, interaction) -> list[Tensor]:
        """The LE's choice [B]; nothing before the augmentation has started."""
        if not (self.switches.augmented and self.warmed_up):
            return []
        return [self._field(interaction, "augmented")]

    def _augmented_supervised(self, losses: list[Tensor], logits: Tensor) -> Tensor:
        """w_ah L_ah (Eq. 14); 0 before the augmentation has started."""
        return self.w_ah * losses[0].mean() if losses else logits.new_zeros(())

    def _augmented_q(self, q_chosen, next_value, interaction, discount) -> Tensor:
        """w_aq L_aq (Eq. 15); 0 before the augmentation has started."""
        if not q_chosen:
            return next_value.new_zeros(())
        reward = torch.full_like(next_value, self.r_pos)
        if self.switches.le_reward:
            reward = self._field(interaction, "augmented_reward")
        return self.w_aq * td_loss(q_chosen[0], reward, next_value, **discount).mean()

    def _actions(self, interaction, positive: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Negative action, reward of the positive and reward of the negative, each [B]."""
        if self.switches.le_reward:
            names = ("negative", "reward", "negative_reward")
            negative, reward, negative_reward = (self._field(interaction, name) for name in names)
            return negative, reward, negative_reward

        def draw(n: int) -> Tensor:
            return torch.randint(1, self.n_items - 1, (n,), generator=self._rng)

        draws = drawn(self.share, len(positive), draw).to(positive.device)
        negative = leave_out(positive, draws)  # uniform over the other items
        reward = torch.full(positive.shape, self.r_pos, device=positive.device)
        return negative, reward, torch.full_like(reward, self.r_neg)

    def _encode_pair(self, backbone: Readable, interaction) -> tuple[Tensor, Tensor]:
        """h_t = G(x_{1:t}) and, without gradient, h_{t+1} of one copy, [B, H] each.

        A causal backbone reads both from one pass over x_{1:t+1}, under the same dropout masks;
        where the window is full, and so slides, h_{t+1} takes a pass of its own.
        """
        now = {name: interaction[name] for name in backbone.inputs}
        seq, seq_len = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        next_seq, next_len = append_item(seq, seq_len, interaction[self.POS_ITEM_ID])
        later = now | {self.ITEM_SEQ: next_seq, self.ITEM_SEQ_LEN: next_len}
        if self.backbone_class() not in CAUSAL:
            hidden = backbone.encode(now)
            with torch.no_grad():
                return hidden, backbone.encode(later)
        full = seq_len == seq.shape[1]
        both = now | {
            self.ITEM_SEQ: torch.where(full[:, None], seq, next_seq),
            self.ITEM_SEQ_LEN: torch.stack([seq_len, next_len], dim=1),  # [B, 2]
        }
        hidden, next_hidden = backbone.encode_by_length(both).unbind(1)
        next_hidden = next_hidden.detach()
        rows = full.nonzero().squeeze(1)
        if len(rows):
            with torch.no_grad():
                slid = backbone.encode({name: value[rows] for name, value in later.items()})
            next_hidden = next_hidden.index_copy(0, rows, slid)
        return hidden, next_hidden

    def _field(self, interaction, name: str) -> Tensor:
        try:
            return interaction[FIELD_PREFIX + name]
        except KeyError:
            raise ValueError(_missing(name, self.transform)) from None

    @property
    def loss_names(self) -> list[str]:
        """Names of the terms of ``calculate_loss`` for the log."""
        names = ["L_h"] + ["L_q"] * (self.q_weight != 0)
        names += ["w_ah*L_ah"] * (self.switches.augmentation in ("supervised", "both"))
        return names + ["w_aq*L_aq"] * (self.switches.augmentation in ("Q", "both"))

    def predict(self, interaction) -> Tensor:
        """Supervised scores of given items [B]."""
        if self.output_head is None:
            return super().predict(interaction)
        scores = self.full_sort_predict(interaction)
        return scores.gather(1, interaction[self.ITEM_ID][:, None]).squeeze(1)

    def full_sort_predict(self, interaction) -> Tensor:
        """Supervised scores of all items [B, n_items]; the backbone and its head alone."""
        if self.output_head is None:
            return super().full_sort_predict(interaction)
        return self.output_head(self.encode(interaction))


@torch.no_grad()
def init_item_embeddings(copies: Sequence[nn.Module], tokens: np.ndarray, ids: Tensor) -> None:
    """Let item embeddings start from the LE's item tokens.

    Their principal components, as many as the embeddings are wide, scaled to the deviation of the
    start that RecBole has drawn. RecBole's padding item keeps its own.

    Args:
        copies: of one backbone, each with its ``item_embedding``.
        tokens: by LE item index [n, d].
        ids: RecBole's item ids by LE item index [n].

    Raises:
        ValueError: there are no such embeddings, or they are wider than the tokens allow.
    """
    tables: list[Any] = [getattr(backbone, "item_embedding", None) for backbone in copies]
    if not all(isinstance(table, nn.Embedding) for table in tables):
        raise ValueError("`item_embedding_init: le` needs a backbone with one item embedding table")
    width = tables[0].embedding_dim
    if width > min(tokens.shape):
        raise ValueError(
            f"`item_embedding_init: le`: embeddings of width {width} cannot be made from "
            f"{tokens.shape[0]} item tokens of width {tokens.shape[1]}: lower the embedding's width"
        )
    # the full decomposition holds more arrays of the tokens' size: gigabytes at a million items
    solver = "covariance_eigh" if len(tokens) > 10 * tokens.shape[1] else "full"
    parts = PCA(width, svd_solver=solver).fit_transform(tokens)  # [n, width]
    for table in tables:
        start, own = torch.from_numpy(parts).to(table.weight), ids.to(table.weight.device)
        table.weight[own] = start * (table.weight[own].std() / start.std())


def append_item(seq: Tensor, seq_len: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
    """x_{1:t} and a_t to x_{1:t+1}; a full window loses its oldest item.

    Args:
        seq: right-padded with 0 [B, L].
        seq_len: [B].
        item: [B].

    Returns:
        The next sequences [B, L] and their lengths [B].
    """
    length = seq.shape[1]
    full = (seq_len == length)[:, None]
    shifted = torch.where(full, seq.roll(-1, dims=1), seq)
    position = seq_len.clamp(max=length - 1)[:, None]
    return shifted.scatter(1, position, item[:, None]), (seq_len + 1).clamp(max=length)


def difference(saved: list[str], here: list[str]) -> str:
    """In words, how two lists of item tokens in the order of RecBole's ids differ."""
    pairs = enumerate(zip(saved, here, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(saved), len(here)))
    names = [repr(tokens[first]) if first < len(tokens) else "none" for tokens in (saved, here)]
    return (
        f"{len(saved) - 1} items in the checkpoint, {len(here) - 1} here; item {first} is "
        f"{names[0]} there and {names[1]} here"
    )


def _missing(name: str, transform: str | None) -> str:
    return (
        f"the method needs the LE's {name}, but the data carry none (`transform` is {transform}): "
        "set `transform: lea_feedback` (precomputed) or `transform: lea_live`"
    )

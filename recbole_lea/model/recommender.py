"""SNQN and SA2C with the LE's feedback (Algorithm 1), on a RecBole sequential recommender."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from recbole_lea import equations
from recbole_lea.le.sequences import leave_out
from recbole_lea.methods import switches
from recbole_lea.model.backbone import Backbone
from recbole_lea.model.fields import DONE
from recbole_lea.model.item_embeddings import init_item_embeddings
from recbole_lea.model.q_head import QHead

# The loss terms that the LE's choice adds, by ``lea_augmentation``.
AUGMENTED_TERMS = {"none": (), "supervised": ("L_ah",), "Q": ("L_aq",), "both": ("L_ah", "L_aq")}


class Network(nn.Module):
    """One copy of (G, Q) of Algorithm 1; ``output_head`` is the dense supervised head, if any."""

    def __init__(self, backbone: Backbone, q_head: QHead, output_head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.q_head = q_head
        self.output_head = output_head


class States(NamedTuple):
    """What one copy makes of a batch."""

    hidden: Tensor | None  # h_t [B, H]; None where the Q head is given the LE's state alone
    now: Tensor  # s_t [B, S]
    later: Tensor  # s_{t+1} [B, S], without gradient


class LEARecommender(Backbone):
    """Mixed in before a RecBole backbone class; ``rl_loss`` is SNQN or SA2C.

    The model itself is the first copy of Algorithm 1 and the one that is evaluated; ``twin`` is
    the second, separately initialised. Inference needs no LLM, no Q head and no LE state.
    """

    rl_loss: str
    is_twin = False  # a backbone alone

    def __init__(self, config, dataset) -> None:
        super().__init__(config, dataset)
        if self.is_twin:
            return
        self.switches = switches(config, self.rl_loss)
        self.q_weight, self.w_ah, self.w_aq = config["q_weight"], config["w_ah"], config["w_aq"]
        self.discount = {key: config[key] for key in ("gamma", "td_scale")}
        self.q_max_chunk = config["q_max_chunk"]
        self.r_pos, self.r_neg = float(config["r_pos"]), float(config["r_neg"])
        self.by_reward = config["lea_advantage"] == "reward"
        self.advantage_clip = tuple(config["advantage_clip"])
        self.warmed_up, self.updates = False, 0  # steps that have trained the first copy
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
            std = config["item_embedding_std"]
            init_item_embeddings(copies, dataset.lea_item_tokens, dataset.lea_item_ids, std)

    def _add_heads(self, config, dataset) -> None:
        dense, width = config["lea_output_head"] == "dense", self.hidden_width
        self.output_head = nn.Linear(width, self.n_items) if dense else None
        self.q_head: Any = None
        self.twin: Any = None
        if self.q_weight == 0:
            return
        feedback = getattr(dataset, "lea_feedback", None)
        le_size = getattr(feedback, "state_dim", None) if self.switches.le_state else 0
        if le_size is None:
            raise ValueError(
                "the method needs the LE's state, but the data carry none: set `transform: "
                "lea_feedback`, and make the loaders by RecBole's `data_preparation`"
            )
        norm = config["state_layernorm"]
        # unbounded, h_t grows with Q until all histories look alike (deviation 61)
        norms = (norm, norm and not self.normalised)
        heads = [QHead(self.switches.state, width, le_size, self.n_items, *norms) for _ in range(2)]
        self.q_head = heads[0]
        # what a class derived from ours changes, it changes in both
        backbone = type("Twin", (type(self),), {"is_twin": True})(config, dataset)
        self.twin = Network(backbone, heads[1], nn.Linear(width, self.n_items) if dense else None)

    def load_other_parameter(self, para) -> None:
        """RecBole's; a ValueError where the checkpoint's items are others or have other ids."""
        tokens = (para or {}).get("item_tokens", self.item_tokens)
        if tokens != self.item_tokens:
            what = difference(tokens, self.item_tokens)
            raise ValueError(f"the checkpoint was trained on other items than this data: {what}")
        super().load_other_parameter(para)

    @property
    def loss_names(self) -> list[str]:
        """Names in ``LossTerms`` of what ``calculate_loss`` returns."""
        augmented = AUGMENTED_TERMS[self.switches.augmentation]
        return ["L_h", *["L_q"] * (self.q_weight != 0), *augmented]

    def calculate_loss(self, interaction) -> Tensor | tuple[Tensor, ...]:
        """One step of Algorithm 1: the terms named by ``loss_names``, which RecBole sums and logs.

        A scalar where there is one term alone; with the tied head, the loss of RecBole's backbone.
        """
        first = self.q_weight == 0 or torch.rand((), generator=self._rng).item() <= 0.5
        self.updates += first
        if self.q_weight != 0:  # lines 7, 8 and 13
            own = Network(self, self.q_head, self.output_head)
            updated, other = (own, self.twin) if first else (self.twin, own)
            states = self._encode(updated, interaction)  # lines 5 and 6
            with torch.no_grad():
                other_states = self._encode(other, interaction)
                values = self._bootstrap(updated, other, states, other_states, interaction[DONE])
            terms = self._terms(updated, states, values, interaction)  # lines 10, 11, 15 and 16
        elif self.output_head is not None or self.switches.augmented or self.switches.le_reward:
            terms = self._terms_without_q(interaction)
        else:
            return super().calculate_loss(interaction)
        named = terms.named()
        return tuple(named.values()) if len(named) > 1 else terms.total

    def _encode(self, copy: Network, interaction) -> States:
        hidden = next_hidden = le_state = le_next_state = None
        if self.switches.state != "LE":
            hidden, next_hidden = copy.backbone.encode_pair(interaction)  # [B, H]
        if self.switches.le_state:
            le_state = interaction["lea_state"]  # [B, d]
            le_next_state = interaction["lea_next_state"]  # [B, d]
        with torch.no_grad():
            later = copy.q_head.join(next_hidden, le_next_state)
        return States(hidden, copy.q_head.join(hidden, le_state), later)

    def _bootstrap(
        self, updated: Network, other: Network, own: States, others: States, done: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Lines 9 and 14: V(s_t) and V(s_{t+1}), [B] each; at a session's end the latter is 0."""

        def value(state: Tensor, other_state: Tensor) -> Tensor:
            pieces = updated.q_head.pieces(state, self.q_max_chunk)
            return equations.double_q_value(pieces, partial(other.q_head.values, other_state))

        now = value(own.now, others.now)  # [B]
        rows = (1 - done).nonzero().squeeze(1)  # [n]
        later = value(own.later[rows], others.later[rows])  # [n]
        return now, torch.zeros_like(now).index_copy(0, rows, later)

    def _terms(
        self, copy: Network, states: States, values: tuple[Tensor, Tensor], interaction
    ) -> equations.LossTerms:
        (value, next_value), hidden = values, states.hidden  # [B], [B], [B, H]
        if hidden is None:
            hidden = copy.backbone.encode_by_length(interaction)
        scores, rest = copy.backbone.supervised(interaction, hidden, copy.output_head)
        positive = interaction[self.POS_ITEM_ID]  # [B]
        negative, reward, negative_reward = self._actions(interaction, positive)
        chosen = self._chosen(interaction)
        actions = torch.stack([positive, *chosen], dim=1)
        log_y, *log_y_chosen = equations.log_probabilities(scores, actions).unbind(1)  # [B] each
        actions = torch.stack([positive, negative, *chosen], dim=1)
        q, q_negative, *q_chosen = copy.q_head.values(states.now, actions).unbind(1)  # [B] each
        L_p = equations.positive_td_loss(q, reward, next_value, **self.discount)
        L_n = equations.negative_td_loss(q_negative, negative_reward, value, **self.discount)
        weight = None
        if self.rl_loss == "SA2C" and self.warmed_up:
            compared = (reward, negative_reward) if self.by_reward else (q, q_negative)
            weight = equations.advantage(*compared, self.advantage_clip)  # [B]
        return equations.LossTerms(
            equations.supervised_loss(log_y, weight) + rest,
            self.q_weight * (L_p + L_n).mean(),
            **self._augmented(interaction, log_y_chosen, q_chosen, next_value),
        )

    def _terms_without_q(self, interaction) -> equations.LossTerms:
        scores, rest = self.supervised(interaction, self.encode(interaction), self.output_head)
        positive = interaction[self.POS_ITEM_ID]  # [B]
        if self.switches.le_reward and self.warmed_up:  # lea_advantage: reward
            _, reward, negative_reward = self._actions(interaction, positive)
            weight = equations.advantage(reward, negative_reward, self.advantage_clip)  # [B]
            log_y_positive = equations.log_probabilities(scores, positive[:, None]).squeeze(1)
            own = equations.supervised_loss(log_y_positive, weight) + rest
        else:
            own = self.loss_fct(scores, positive) + rest
        chosen = self._chosen(interaction)
        log_y = [equations.log_probabilities(scores, actions[:, None]) for actions in chosen]
        return equations.LossTerms(own, **self._augmented(interaction, log_y))

    def _actions(self, interaction, positive: Tensor) -> tuple[Tensor, ...]:
        """Negative action, reward of the positive and reward of the negative, each [B]."""
        if self.switches.le_reward:
            names = ("lea_negative", "lea_reward", "lea_negative_reward")
            return tuple(interaction[name] for name in names)
        draws = torch.randint(1, self.n_items - 1, positive.shape, generator=self._rng)
        negative = leave_out(positive, draws.to(positive.device))  # uniform over the other items
        reward = torch.full(positive.shape, self.r_pos, device=positive.device)
        return negative, reward, torch.full_like(reward, self.r_neg)

    def _chosen(self, interaction) -> list[Tensor]:
        """The LE's choice [B]; an empty list before the augmentation has started."""
        started = self.switches.augmented and self.warmed_up
        return [interaction["lea_augmented"]] if started else []

    def _augmented(
        self, interaction, log_y: list[Tensor], q: list[Tensor] | None = None, next_value=None
    ) -> dict[str, Tensor]:
        """L_ah and L_aq where the method has them; 0 before the augmentation has started."""
        zero = torch.zeros((), device=self.device)
        terms = dict.fromkeys(AUGMENTED_TERMS[self.switches.augmentation], zero)
        if log_y and "L_ah" in terms:
            terms["L_ah"] = self.w_ah * equations.augmented_supervised_loss(log_y[0])
        if q and "L_aq" in terms:
            reward = torch.full_like(next_value, self.r_pos)
            if self.switches.le_reward:
                reward = interaction["lea_augmented_reward"]
            loss = equations.augmented_td_loss(q[0], reward, next_value, **self.discount)
            terms["L_aq"] = self.w_aq * loss.mean()
        return terms

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


def difference(saved: list[str], here: list[str]) -> str:
    """In words, how two lists of item tokens in the order of RecBole's ids differ."""
    pairs = enumerate(itertools.zip_longest(saved, here))
    first, (there, own) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return (
        f"{len(saved) - 1} items in the checkpoint, {len(here) - 1} here; item {first} is "
        f"{there!r} there and {own!r} here"
    )

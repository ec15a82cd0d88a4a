"""The models: invariants against RecBole's own, Algorithm 1, terminal handling."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import GRU4Rec
from recbole.utils import init_seed
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_lea.equations import LossTerms
from recbole_lea.experiments.plan import AUGMENTATIONS
from recbole_lea.model import MODELS
from recbole_lea.model.backbone import Backbone, append_item
from tests.model.helpers import (
    ALL,
    NO_DROPOUT,
    STOCK,
    build,
    force,
    one_batch,
    parts_by_length,
    watch_passes,
)


@ALL
@pytest.mark.parametrize("warmed_up", [False, True])
def test_q_weight_0_is_recbole_exactly(tiny_config, name, warmed_up):
    config = tiny_config(name, lea_method="base", q_weight=0)
    model, train, test = build(config)
    model.warmed_up = warmed_up
    init_seed(3, True)
    stock = STOCK[name[: -len("SNQNLEA")]](config, train._dataset)
    batch = one_batch(train)
    torch.manual_seed(5)
    loss = model.calculate_loss(batch)
    torch.manual_seed(5)
    expected = stock.calculate_loss(batch)
    assert torch.equal(loss, expected)
    loss.backward()
    expected.backward()
    ours = dict(model.named_parameters())
    assert set(ours) == {n for n, _ in stock.named_parameters()}
    for parameter, p in stock.named_parameters():
        assert torch.equal(ours[parameter].grad, p.grad), parameter
    model.eval()
    stock.eval()
    rows = one_batch(test)[0]
    assert torch.equal(model.full_sort_predict(rows), stock.full_sort_predict(rows))


@pytest.mark.parametrize("name", ["SASRecSNQNLEA", "GRU4RecSA2CLEA"])
@pytest.mark.parametrize("head", ["tied", "dense"])
@pytest.mark.parametrize("augmentation", ["none", "supervised"])
def test_without_the_rl_part_the_le_s_choice_joins_the_supervised_loss(
    tiny_config, name, head, augmentation
):
    """Table 3's "sv" on Normal, with either head."""
    keys = {"lea_method": "base", "lea_augmentation": augmentation, "lea_output_head": head}
    model, train, _ = build(tiny_config(name, q_weight=0, w_ah=0.3, **keys, **NO_DROPOUT))
    feedback = train._dataset.lea_feedback
    if augmentation != "none":
        feedback.augment(np.arange(feedback.sequences.n_transitions) % 19, None)
    batch = one_batch(train)
    hidden = model.forward(batch["item_id_list"], batch["item_length"])
    logits = hidden @ model.item_embedding.weight.T
    if head == "dense":
        logits = model.output_head(hidden)
    expected = F.cross_entropy(logits, batch["item_id"])
    if augmentation == "none":
        torch.testing.assert_close(model.calculate_loss(batch), expected)
        return
    supervised, chosen = model.calculate_loss(batch)
    torch.testing.assert_close(supervised, expected)
    assert chosen == 0  # before the warm-up is over
    model.warmed_up = True
    torch.testing.assert_close(model.calculate_loss(batch)[0], expected)
    own = 0.3 * F.cross_entropy(logits, batch["lea_augmented"])
    torch.testing.assert_close(model.calculate_loss(batch)[1], own)


@ALL
def test_heads_and_twin_leave_the_backbone_s_start_alone(tiny_config, name):
    """The same seed gives the same initial backbone, so full-sort scores equal RecBole's."""
    config = tiny_config(name, lea_method="base")
    model, train, test = build(config)
    init_seed(3, True)
    stock = STOCK[name[: -len("SNQNLEA")]](config, train._dataset)
    model.eval()
    stock.eval()
    rows = one_batch(test)[0]
    assert torch.equal(model.full_sort_predict(rows), stock.full_sort_predict(rows))
    torch.testing.assert_close(
        model.predict(rows), model.full_sort_predict(rows).gather(1, rows["item_id"][:, None])[:, 0]
    )


@ALL
def test_supervised_term_and_its_gradient_equal_recbole_s(tiny_config, name, monkeypatch):
    """Method base with SNQN's loss: L_h alone is RecBole's cross-entropy."""
    config = tiny_config(name, lea_method="base", **NO_DROPOUT)
    model, train, _ = build(config)
    init_seed(3, True)
    stock = STOCK[name[: -len("SNQNLEA")]](config, train._dataset)
    monkeypatch.setattr(torch, "rand", force(model, first=True))
    batch = one_batch(train)
    terms = model.calculate_loss(batch)
    expected = stock.calculate_loss(batch)
    torch.testing.assert_close(terms[0], expected)
    terms[0].backward()
    expected.backward()
    ours = dict(model.named_parameters())
    for parameter, p in stock.named_parameters():
        torch.testing.assert_close(ours[parameter].grad, p.grad)


@ALL
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("head", ["tied", "dense"])
def test_the_coin_trains_one_copy_only(tiny_config, name, first, head, monkeypatch):
    model, train, _ = build(tiny_config(name, lea_output_head=head))
    monkeypatch.setattr(torch, "rand", force(model, first))
    sum(model.calculate_loss(one_batch(train))).backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained
    assert all(n.startswith("twin.") != first for n in trained)
    assert any("q_head" in n for n in trained)
    assert any("item_embedding" in n for n in trained)
    assert any("output_head" in n for n in trained) is (head == "dense")


@ALL
def test_the_coin_is_fair(tiny_config, name):
    model, train, _ = build(tiny_config(name, lea_method="base"))
    batch, sides = one_batch(train), []
    for _ in range(100):
        model.zero_grad()
        sum(model.calculate_loss(batch)).backward()
        sides.append(model.twin.q_head.linear.weight.grad is not None)
    assert 35 <= sum(sides) <= 65  # 3 deviations


@ALL
def test_scores_depend_on_neither_q_head_nor_le_state(tiny_config, name):
    model, _, test = build(tiny_config(name))
    model.eval()
    rows = one_batch(test)[0]
    before = model.full_sort_predict(rows)
    with torch.no_grad():
        for parameter in [*model.q_head.parameters(), *model.twin.parameters()]:
            parameter.fill_(9.0)
    assert "lea_state" not in rows.interaction
    assert torch.equal(model.full_sort_predict(rows), before)


# No value is a default, no two are alike.
WEIGHTS = {"q_weight": 0.3, "gamma": 0.9, "td_scale": 0.7, "advantage_clip": [0.01, 0.03],
           "w_ah": 0.2, "w_aq": 0.03, "r_pos": 2.0, "r_neg": -0.5}  # fmt: skip


def naive_terms(model, batch, layernorm, first, negative, reward, negative_reward):
    """Eq. 13 and 16 as written: four passes, and Q of every action in every network and state."""
    seq, length, a = batch["item_id_list"], batch["item_length"], batch["item_id"]
    next_seq, next_len = append_item(seq, length, a)
    le, le_next = (batch[f"lea_{n}"] if model.switches.le_state else None for n in STATES)

    def q_of(backbone, head, items, lengths, le_state):
        parts = [] if le_state is None else [(le_state, head.norm)]
        if model.switches.state != "LE":
            own = head.hidden_norm if isinstance(model, GRU4Rec) else None
            parts.append((backbone.forward(items, lengths), own))
        if not layernorm:
            return head.linear(torch.cat([part for part, _ in parts], dim=1))
        return head.linear(torch.cat([
            part if norm is None else F.layer_norm(part, part.shape[1:], norm.weight, norm.bias)
            for part, norm in parts
        ], dim=1))  # fmt: skip

    copies = [(model, model.q_head), (model.twin.backbone, model.twin.q_head)]
    one, two = copies if first else copies[::-1]
    q, q_other = (q_of(*copy, seq, length, le) for copy in (one, two))
    q2, q2_other = (q_of(*copy, next_seq, next_len, le_next) for copy in (one, two))

    def at(values, actions):
        return values.gather(1, actions[:, None]).squeeze(1)

    alive = 1 - batch["lea_done"]
    v = at(q_other, q[:, 1:].argmax(1) + 1).detach()
    v2 = at(q2_other, q2[:, 1:].argmax(1) + 1).detach() * alive
    td_error = [(reward + 0.9 * v2, a), (negative_reward + 0.9 * v, negative)]
    q_loss = sum(0.7 * (target - at(q, actions)) ** 2 for target, actions in td_error)
    logits = one[0].forward(seq, length) @ one[0].item_embedding.weight.T
    supervised = F.cross_entropy(logits, a, reduction="none")
    if model.rl_loss == "SA2C":
        weight = ((at(q, a) - at(q, negative)) / 2).clamp(0.01, 0.03).detach()
        assert weight.min() == 0.01 and weight.max() == 0.03
        supervised = supervised * weight
    terms = [supervised.mean(), 0.3 * q_loss.mean()]
    if model.switches.augmented:
        chosen, reward = batch["lea_augmented"], torch.full_like(alive, 2)
        if model.switches.le_reward:
            reward = batch["lea_augmented_reward"]
        target = reward + 0.9 * v2
        if model.switches.augmentation != "Q":
            terms.append(0.2 * F.cross_entropy(logits, chosen))
        if model.switches.augmentation != "supervised":
            terms.append(0.03 * (0.7 * (target - at(q, chosen)) ** 2).mean())
    return terms


STATES = ("state", "next_state")
METHODS = ["base", "LEA", "LES", "LEASR", "LES'", "LEAS'R", "sv", "q"]
# SNQN refuses the LE's state alone
ALLOWED = [(n, m) for n in MODELS for m in METHODS if not ("SNQN" in n and "S'" in m)]


@pytest.mark.parametrize(("name", "method"), ALLOWED)
@pytest.mark.parametrize(
    ("causal", "layernorm", "first"),
    [(True, True, True), (False, True, False), (True, False, False)],
)
def test_loss_is_the_paper_s_sum(tiny_config, name, method, causal, layernorm, first, monkeypatch):
    """What the step leaves out changes neither the terms nor the gradients."""
    if not causal:
        monkeypatch.setattr(Backbone, "causal", False)
    keys = WEIGHTS | NO_DROPOUT | {"lea_method": method, "state_layernorm": layernorm}
    if method in AUGMENTATIONS:  # Table 3's
        keys |= {"lea_method": "base", "lea_augmentation": AUGMENTATIONS[method]}
    model, train, _ = build(tiny_config(name, **keys))
    model.double().warmed_up = True
    if model.switches.augmented:
        feedback = train._dataset.lea_feedback
        n = feedback.sequences.n_transitions
        feedback.augment(torch.arange(n).numpy() % 19, torch.arange(n).numpy() * 0.1)
    monkeypatch.setattr(torch, "rand", force(model, first))
    # ends of sessions and full windows among the batch, but not these alone
    batch = next(b for b in train if 0 < b["lea_done"].sum() < len(b["lea_done"]))
    assert set((batch["item_length"] == 5).tolist()) == {True, False}
    for field, value in batch.interaction.items():
        batch.interaction[field] = value.double() if value.is_floating_point() else value
    before = model._rng.get_state()
    terms = model.calculate_loss(batch)
    model._rng.set_state(before)
    torch.rand((), generator=model._rng)
    actions = model._actions(batch, batch["item_id"])
    expected = naive_terms(model, batch, layernorm, first, *actions)

    exact = {"rtol": 1e-9, "atol": 1e-12}
    assert len(terms) == len(model.loss_names) == len(expected)
    for found, wanted in zip(terms, expected, strict=True):
        torch.testing.assert_close(found, wanted, **exact)
    parameters = dict(model.named_parameters())
    found, wanted = (
        torch.autograd.grad(sum(t), parameters.values(), allow_unused=True, materialize_grads=True)
        for t in (terms, expected)
    )
    for parameter, f, w in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(f, w, **exact, msg=parameter)


@pytest.mark.parametrize("head", ["none", "recency"])
@pytest.mark.parametrize("name", ["SASRecSA2CLEA", "GRU4RecSNQNLEA"])
def test_le_states_are_the_llm_s_last_hidden_states(tiny_config, tiny_llm, name, head):
    """Eq. 3 with transformers alone, one history at a time: item tokens in, last hidden out.

    As in the paper, or by our default with the user prompt before them and the recency head.
    """
    default = head == "recency"
    keys = {"lea_method": "LES", "lea_state_input": "prompt" if default else "items"}
    keys |= {"lea_state_keys": "tokens", "lea_state_head": head}
    keys |= {"lea_finetune_lr": 0.05 if default else 1e-12}
    keys |= {"lea_reward_head": "none", "lea_max_history": 4, "MAX_ITEM_LIST_LENGTH": 12}
    keys |= {"lea_user_prompt": "The user has watched {history}", "train_batch_size": 99}
    # the start of the item embeddings is what the dataset gives the item tokens for
    keys |= {"item_embedding_init": "le", "hidden_size": 16, "embedding_size": 16}
    _, train, _ = build(tiny_config(name, **keys))
    dataset, batch = train._dataset, one_batch(train)
    tokens = torch.zeros(1 + len(dataset.lea_item_tokens), dataset.lea_item_tokens.shape[1])
    tokens[dataset.lea_item_ids] = torch.from_numpy(dataset.lea_item_tokens)
    llm = AutoModelForCausalLM.from_pretrained(tiny_llm, dtype=torch.float32).eval()
    (adapter,) = Path("lea_cache/tiny").glob("environment-*/adapter.safetensors")
    trained = load_file(adapter)
    with torch.no_grad():
        for key, down in trained.items():  # LoRA: W + 2 B A, alpha being twice the rank
            if "lora_A" in key:
                place = key.split("base_model.model.")[1].split(".lora_A")[0]
                up = trained[key.replace("lora_A", "lora_B")]
                llm.get_submodule(place).weight += 2 * up @ down
    words = AutoTokenizer.from_pretrained(tiny_llm)("The user has watched")["input_ids"]
    before = llm.get_input_embeddings().weight[words[: len(words) * default]]
    centred = tokens[dataset.lea_item_ids] - tokens[dataset.lea_item_ids].mean(0)
    u, s, v = torch.linalg.svd(centred, full_matrices=False)
    kept = s**2 > s[0] ** 2 * 1e-6
    own = torch.zeros_like(tokens)  # U S^(1/2) V^T, rows of length sqrt(d)
    own[dataset.lea_item_ids] = 32**0.5 * F.normalize(u[:, kept] * s[kept] ** 0.5 @ v[kept], dim=1)

    def state(items):
        with torch.no_grad():
            given = torch.cat([before, tokens[items[-4:]]])[None]
            hidden = llm(inputs_embeds=given, output_hidden_states=True).hidden_states[-1][0, -1]
            if not default:
                return hidden
            added = trained["state_head.weight"] @ F.layer_norm(hidden, (32,))
            newest = own[items[-4:].flip(0)]
            weights = trained["state_head.decay_logit"].sigmoid() ** torch.arange(len(newest))
            skipped = 32**0.5 * F.normalize(weights @ newest, dim=0)
            return 32**0.5 * F.normalize(trained["state_head.gain"] * skipped + added, dim=0)

    assert (batch["item_length"] > 4).any() and batch["lea_done"].any()
    if default:  # the head and the adapter are not where they started
        assert trained["state_head.weight"].norm() > 0.5
        assert max(t.norm() for key, t in trained.items() if "lora_B" in key) > 0.1
    sequences = zip(batch["item_id_list"], batch["item_length"], batch["item_id"], strict=True)
    for row, (items, length, item) in enumerate(sequences):
        history = items[:length]
        later = torch.cat([history, item[None]])
        for field, expected in (("lea_state", state(history)), ("lea_next_state", state(later))):
            # the cache holds float16
            torch.testing.assert_close(batch[field][row], expected, rtol=1e-3, atol=2e-3)


@ALL
def test_recbole_s_sum_of_the_terms_is_eq_16(tiny_config, name, monkeypatch):
    """Bit for bit, whichever way round the sum is written."""
    model, train, _ = build(tiny_config(name))
    made, named = [], LossTerms.named
    monkeypatch.setattr(LossTerms, "named", lambda self: made.append(self) or named(self))
    terms = model.calculate_loss(one_batch(train))
    assert list(made[0].named()) == model.loss_names == ["L_h", "L_q", "L_ah", "L_aq"]
    assert torch.equal(sum(terms), made[0].total)


def test_names_of_the_terms(tiny_config):
    model, _, _ = build(tiny_config())
    assert model.loss_names == ["L_h", "L_q", "L_ah", "L_aq"]


@pytest.mark.parametrize("name", ["SASRecSA2CLEA", "GRU4RecSA2CLEA"])
def test_the_le_s_state_alone_takes_one_pass(tiny_config, name, monkeypatch):
    model, train, _ = build(tiny_config(name, lea_method="LES'"))
    batch, shapes = one_batch(train), watch_passes(model, monkeypatch)
    model.calculate_loss(batch)
    assert shapes == parts_by_length(batch["item_length"])


def test_warm_up_has_neither_advantage_nor_augmentation(tiny_config, monkeypatch):
    model, train, _ = build(tiny_config(**NO_DROPOUT))
    monkeypatch.setattr(torch, "rand", force(model, first=True))
    batch = one_batch(train)
    supervised, _, ah, aq = model.calculate_loss(batch)
    logits = (
        model.forward(batch["item_id_list"], batch["item_length"]) @ model.item_embedding.weight.T
    )
    torch.testing.assert_close(supervised, F.cross_entropy(logits, batch["item_id"]))
    assert ah == aq == 0


def test_constant_rewards_and_fresh_negatives(tiny_config):
    model, train, _ = build(tiny_config(lea_method="base", r_pos=2.0, r_neg=-1.0))
    positive = torch.arange(1, 20).repeat(50)
    negative, reward, negative_reward = model._actions(Interaction({}), positive)
    assert (negative != positive).all()
    assert set(negative.tolist()) == set(range(1, model.n_items))
    assert set(reward.tolist()) == {2.0}
    assert set(negative_reward.tolist()) == {-1.0}


def test_rewards_given_as_whole_numbers_are_not_cut(tiny_config):
    model, _, _ = build(tiny_config(lea_method="base", r_pos=1, r_neg=-0.5))
    _, reward, negative_reward = model._actions(Interaction({}), torch.arange(1, 5))
    assert reward.tolist() == [1.0] * 4
    assert negative_reward.tolist() == [-0.5] * 4


@ALL
def test_dense_output_head(tiny_config, name):
    model, train, test = build(tiny_config(name, lea_output_head="dense", lea_method="base"))
    model.eval()
    rows = one_batch(test)[0]
    hidden = model.forward(rows["item_id_list"], rows["item_length"])
    expected = torch.nn.functional.linear(hidden, model.output_head.weight, model.output_head.bias)
    torch.testing.assert_close(model.full_sort_predict(rows), expected)
    torch.testing.assert_close(
        model.predict(rows), expected.gather(1, rows["item_id"][:, None])[:, 0]
    )
    sum(model.calculate_loss(one_batch(train))).backward()


def test_q_gradient_reaches_the_backbone_with_both_states_but_not_with_the_le_s_alone(
    tiny_config, monkeypatch
):
    for method, reached in (("LES", True), ("LES'", False)):
        model, train, _ = build(tiny_config("SASRecSA2CLEA", lea_method=method))
        monkeypatch.setattr(torch, "rand", force(model, first=True))
        model.calculate_loss(one_batch(train))[1].backward()
        grad = model.item_embedding.weight.grad
        assert (grad is not None and bool(grad.any())) is reached


def test_saving_and_loading_reproduces_scores_bit_for_bit(tiny_config, tmp_path):
    config = tiny_config()
    model, train, test = build(config)
    torch.save(model.state_dict(), tmp_path / "m.pth")
    other = MODELS[config["model"]](config, train._dataset)
    other.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    model.eval()
    other.eval()
    rows = one_batch(test)[0]
    assert torch.equal(model.full_sort_predict(rows), other.full_sort_predict(rows))


@pytest.mark.parametrize("q_weight", [0, 1.0])
def test_an_advantage_of_rewards_weighs_the_supervised_loss(tiny_config, q_weight, monkeypatch):
    keys = {"lea_method": "LER", "lea_advantage": "reward", "advantage_clip": [0.15, 10]}
    model, train, _ = build(tiny_config("SASRecSA2CLEA", q_weight=q_weight, **keys, **NO_DROPOUT))
    monkeypatch.setattr(torch, "rand", force(model, first=True))
    model.warmed_up = True
    batch = one_batch(train)
    terms = model.calculate_loss(batch)
    logits = model.forward(batch["item_id_list"], batch["item_length"])
    logits = logits @ model.item_embedding.weight.T
    weight = ((batch["lea_reward"] - batch["lea_negative_reward"]) / 2).clamp(0.15, 10)
    assert (weight == 0.15).any() and (weight > 0.15).any()
    expected = (weight * F.cross_entropy(logits, batch["item_id"], reduction="none")).mean()
    torch.testing.assert_close(terms[0] if q_weight else terms, expected)

"""The models: invariants against RecBole's own, Algorithm 1, terminal handling."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recbole.data import create_dataset, data_preparation
from recbole.data.interaction import Interaction
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from recbole.utils import init_seed

from recbole_lea.experiments.plan import AUGMENTATIONS
from recbole_lea.model import MODELS
from recbole_lea.model import recommender as lea
from recbole_lea.model.recommender import append_item, init_item_embeddings

STOCK = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}
ALL = pytest.mark.parametrize("name", MODELS)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}


def build(config):
    init_seed(3, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(3, True)
    model = MODELS[config["model"]](config, train._dataset)
    return model, train, test


def one_batch(loader):
    return next(iter(loader))


def force(model, first):
    """Make Algorithm 1's coin come up on one side."""
    draw = torch.rand

    def coin(*size, **kwargs):
        value = draw(*size, **kwargs)
        return (
            torch.tensor(0.1 if first else 0.9) if kwargs.get("generator") is model._rng else value
        )

    return coin


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


# none is a default, no two are alike
WEIGHTS = {"q_weight": 0.3, "gamma": 0.9, "td_scale": 0.7, "advantage_clip": [0.01, 0.03],
           "w_ah": 0.2, "w_aq": 0.03, "r_pos": 2.0, "r_neg": -0.5}  # fmt: skip


def plain_terms(model, batch, layernorm, negative, reward, negative_reward):
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

    one, two = (model, model.q_head), (model.twin.backbone, model.twin.q_head)
    q, q_other = (q_of(*copy, seq, length, le) for copy in (one, two))
    q2, q2_other = (q_of(*copy, next_seq, next_len, le_next) for copy in (one, two))

    def at(values, actions):
        return values.gather(1, actions[:, None]).squeeze(1)

    alive = 1 - batch["lea_done"]
    v = at(q_other, q[:, 1:].argmax(1) + 1).detach()
    v2 = at(q2_other, q2[:, 1:].argmax(1) + 1).detach() * alive
    td_error = [(reward + 0.9 * v2, a), (negative_reward + 0.9 * v, negative)]
    q_loss = sum(0.7 * (target - at(q, actions)) ** 2 for target, actions in td_error)
    logits = model.forward(seq, length) @ model.item_embedding.weight.T
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
@pytest.mark.parametrize(("causal", "layernorm"), [(True, True), (False, True), (True, False)])
def test_loss_is_the_paper_s_sum(tiny_config, name, method, causal, layernorm, monkeypatch):
    """What the step leaves out changes neither the terms nor the gradients."""
    if not causal:
        monkeypatch.setattr(lea, "CAUSAL", ())
    keys = WEIGHTS | NO_DROPOUT | {"lea_method": method, "state_layernorm": layernorm}
    if method in AUGMENTATIONS:  # Table 3's
        keys |= {"lea_method": "base", "lea_augmentation": AUGMENTATIONS[method]}
    model, train, _ = build(tiny_config(name, **keys))
    model.double().warmed_up = True
    if model.switches.augmented:
        feedback = train._dataset.lea_feedback
        n = feedback.sequences.n_transitions
        feedback.augment(torch.arange(n).numpy() % 19, torch.arange(n).numpy() * 0.1)
    monkeypatch.setattr(torch, "rand", force(model, first=True))
    # ends of sessions and full windows among the batch, but not these alone
    batch = next(b for b in train if 0 < b["lea_done"].sum() < len(b["lea_done"]))
    assert set((batch["item_length"] == 5).tolist()) == {True, False}
    for field, value in batch.interaction.items():
        batch.interaction[field] = value.double() if value.is_floating_point() else value
    before = model._rng.get_state()
    terms = model.calculate_loss(batch)
    model._rng.set_state(before)
    torch.rand((), generator=model._rng)
    expected = plain_terms(model, batch, layernorm, *model._actions(batch, batch["item_id"]))

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


def test_names_of_the_terms(tiny_config):
    model, _, _ = build(tiny_config())
    assert model.loss_names == ["L_h", "L_q", "w_ah*L_ah", "w_aq*L_aq"]


def watch_passes(model, monkeypatch):
    """A list that receives rows and columns of each of the encoder's passes."""
    forward, shapes = model.backbone_class().forward, []

    def watched(self, seq, length):
        shapes.append(tuple(seq.shape))
        return forward(self, seq, length)

    monkeypatch.setattr(model.backbone_class(), "forward", watched)
    return shapes


def parts_by_length(lengths):
    """Rows and columns of the passes over sequences of these lengths."""
    parts = lengths.sort().values.tensor_split(lea.LENGTH_PARTS)
    return [(len(part), int(part[-1])) for part in parts]


@ALL
def test_one_pass_gives_both_states_of_a_window_with_room(tiny_config, name, monkeypatch):
    monkeypatch.setattr(lea, "LENGTH_PARTS", 4)  # some rows of the tiny data in a part of their own
    model, train, _ = build(tiny_config(name, lea_method="base"))
    model.eval()
    batch, shapes = one_batch(train), watch_passes(model, monkeypatch)
    seq, length, item = batch["item_id_list"], batch["item_length"], batch["item_id"]
    window = seq.shape[1]
    n_full = int((length == window).sum())
    assert 0 < n_full < len(seq)
    parts = parts_by_length((length + 1).clamp(max=window))
    assert parts[0][1] < window
    for backbone in (model, model.twin.backbone):
        expected = backbone.forward(seq, length), backbone.forward(*append_item(seq, length, item))
        shapes.clear()
        pair = model._encode_pair(backbone, batch)
        assert shapes == [*parts, (n_full, window)]
        for found, wanted in zip(pair, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@ALL
def test_h_t_has_recbole_s_own_dropout(tiny_config, name, monkeypatch):
    """Reading a second position leaves h_t and its dropout masks as they are."""
    monkeypatch.setattr(lea.Readable, "encode_by_length", lea.Readable.encode)
    model, train, _ = build(tiny_config(name, lea_method="base"))
    batch = one_batch(train)
    seq, length = batch["item_id_list"], batch["item_length"]
    torch.manual_seed(5)
    found, next_hidden = model._encode_pair(model, batch)
    torch.manual_seed(5)
    torch.testing.assert_close(found, model.forward(seq, length))
    assert model.training and found.requires_grad and not next_hidden.requires_grad


@ALL
@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_smaller_than_its_parts_by_length(tiny_config, name, n):
    model, train, _ = build(tiny_config(name, lea_method="base", **NO_DROPOUT))
    batch = one_batch(train)[:n]
    found = model.encode_by_length(batch)
    torch.testing.assert_close(found, model.encode(batch), rtol=1e-5, atol=1e-6)


def test_q_of_given_actions_is_q_of_all_gathered(tiny_config):
    model, _, _ = build(tiny_config())
    state = torch.randn(3, model.q_head.linear.in_features)
    actions = torch.tensor([[1, 5], [0, 1], [7, 7]])
    with torch.no_grad():
        model.q_head.linear.bias.normal_()
    torch.testing.assert_close(
        model.q_head.values(state, actions), model.q_head(state).gather(1, actions)
    )


@pytest.mark.parametrize(
    ("name", "keys", "normalised"),
    [
        ("GRU4RecSA2CLEA", {}, True),
        ("SASRecSA2CLEA", {}, False),  # ends with a LayerNorm of its own
        ("GRU4RecSA2CLEA", {"state_layernorm": False}, False),
    ],
)
def test_an_unbounded_h_t_is_normalised_before_the_q_head(tiny_config, name, keys, normalised):
    model, _, _ = build(tiny_config(name, lea_method="base", **keys))
    hidden = torch.randn(3, model.hidden_width)
    for head in (model.q_head, model.twin.q_head):
        state, scaled = head.join(hidden, None), head.join(7 * hidden + 2, None)
        assert torch.allclose(state, scaled, atol=1e-4) is normalised
        assert torch.equal(state, hidden) is not normalised


@ALL
def test_the_maximum_over_actions_in_pieces_is_the_exact_one(tiny_config, name, monkeypatch):
    """Loss and gradients are those of all items at once, but Q of all items is never held."""
    widths, results, pieces = [], [], lea.QHead.pieces

    def watched(self, state, chunk):
        for piece in pieces(self, state, chunk):
            widths.append(piece.shape[1])
            yield piece

    monkeypatch.setattr(lea.QHead, "pieces", watched)
    in_cache = lea.CPU_PIECE
    for chunk, most, expected in (
        (None, in_cache, {21}),
        (65536, in_cache, {21}),
        (2, in_cache, {2, 1}),
        (6, in_cache, {6, 3}),
        (65536, 5, {5, 1}),
        (2, 5, {2, 1}),
    ):
        monkeypatch.setattr(lea, "CPU_PIECE", most)
        model, train, _ = build(tiny_config(name, q_max_chunk=chunk, **NO_DROPOUT))
        terms = model.calculate_loss(one_batch(train))
        sum(terms).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        results.append([*terms, *gradients])
        assert set(widths) == expected
        widths.clear()
    for other in results[1:]:
        for found, exact in zip(other, results[0], strict=True):
            torch.testing.assert_close(found, exact)


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


def test_append_item_slides_a_full_window():
    seq = torch.tensor([[1, 2, 0], [1, 2, 3]])
    found, length = append_item(seq, torch.tensor([2, 3]), torch.tensor([9, 8]))
    assert found.tolist() == [[1, 2, 9], [2, 3, 8]]
    assert length.tolist() == [3, 3]
    assert seq.tolist() == [[1, 2, 0], [1, 2, 3]]


def test_a_batch_without_feedback_names_the_key(tiny_config):
    model, train, _ = build(tiny_config())
    batch = copy.copy(one_batch(train))
    del batch.interaction["lea_state"]
    with pytest.raises(ValueError, match="transform: lea_feedback"):
        model.calculate_loss(batch)


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


@pytest.mark.parametrize("model", ["SASRecSA2CLEA", "GRU4RecSNQNLEA"])
@pytest.mark.parametrize("keys", [{"lea_method": "LEASR"}, {"lea_method": "base", "q_weight": 0}])
def test_item_embeddings_start_from_the_item_tokens(tiny_config, model, keys):
    keys = keys | {"hidden_size": 16, "embedding_size": 16}
    built, train, _ = build(tiny_config(model, item_embedding_init="le", **keys))
    plain, _, _ = build(tiny_config(model, **keys))
    dataset = train._dataset
    tokens = torch.from_numpy(dataset.lea_item_tokens)
    tokens = tokens - tokens.mean(0)
    copies = [(built, plain)]
    if built.twin is not None:
        copies.append((built.twin.backbone, plain.twin.backbone))
    for copy_, usual in copies:
        found, drawn = (m.item_embedding.weight.detach() for m in (copy_, usual))
        width = found.shape[1]
        _, s, v = torch.linalg.svd(tokens, full_matrices=False)
        parts = tokens @ v[:width].T  # signs are free: compare the similarities
        own = found[dataset.lea_item_ids]
        factor = (own @ own.T).trace() / (parts @ parts.T).trace()
        torch.testing.assert_close(own @ own.T, parts @ parts.T * factor, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(own.std(), drawn[1:].std(), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[0], drawn[0])


def test_item_embeddings_of_many_items_are_their_principal_components():
    """Beyond ten items a dimension by another decomposition, to the same result."""
    tokens = np.random.default_rng(0).standard_normal((400, 6)).astype(np.float32)
    tokens = tokens * np.arange(6, 0, -1, dtype=np.float32) + 1
    backbone = torch.nn.Module()
    backbone.item_embedding = torch.nn.Embedding(401, 3)
    init_item_embeddings([backbone], tokens, torch.arange(1, 401))
    centred = tokens - tokens.mean(0)
    parts = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
    found = backbone.item_embedding.weight[1:].detach().numpy()
    for d in range(3):
        assert abs(np.corrcoef(found[:, d], parts[:, d])[0, 1]) == pytest.approx(1, abs=1e-4)


def test_embeddings_wider_than_the_tokens_allow_are_refused():
    backbone = torch.nn.Module()
    backbone.item_embedding = torch.nn.Embedding(6, 8, padding_idx=0)
    with pytest.raises(ValueError, match="width 8 cannot be made from 5 item tokens of width 32"):
        init_item_embeddings([backbone], np.zeros((5, 32), dtype=np.float32), torch.arange(1, 6))
    with pytest.raises(ValueError, match="one item embedding table"):
        init_item_embeddings([torch.nn.Module()], np.zeros((5, 32)), torch.arange(1, 6))

"""Warm-up, augmentation, checkpoints and the record of a run."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_trainer, init_logger, init_seed

from recbole_lea.le.feedback import Feedback
from recbole_lea.le.sequences import Sequences
from recbole_lea.model import MODELS
from recbole_lea.model.fields import TRANSITION
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin.quick_start import prepare
from recbole_lea.plugin.top_items import top_items
from recbole_lea.plugin.trainer import LEATrainer
from recbole_lea.yaml_files import properties_folder


def train(config, before=None, **fit):
    init_seed(config["seed"], True)
    init_logger(config)
    loaders = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], True)
    model = MODELS[config["model"]](config, loaders[0]._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    if before:
        before(trainer)
    trainer.fit(loaders[0], loaders[1], verbose=False, **fit)
    return trainer, loaders


@pytest.mark.parametrize(
    ("warmup", "changes"), [("1 epochs", {}), ("2 steps", {}), ("2 steps", {"q_weight": 0})]
)
def test_augmentation_starts_when_the_evaluated_copy_is_warm(
    tiny_config, monkeypatch, log, warmup, changes
):
    own, seen = watch_copies(monkeypatch), []
    augment = LEATrainer._augment

    def watched(self):
        seen.append((sum(own), own[-1], self.model.warmed_up))
        augment(self)

    monkeypatch.setattr(LEATrainer, "_augment", watched)
    trainer, loaders = train(
        tiny_config(warmup=warmup, epochs=5, lea_method="LEAR", **changes),
        lambda trainer: own.clear(),  # the plan has timed a few steps
    )
    asked = len(loaders[0]) if warmup == "1 epochs" else 2
    assert seen == [(asked, True, True)]
    assert all(own) is bool(changes)
    assert f"`warmup: {warmup}` gives the evaluated network {asked} updates" in log.text
    assert "lea_augmented" in next(iter(loaders[0])).interaction


def watch_copies(monkeypatch):
    """A list that receives, in each step, whether it trains the copy that is evaluated."""
    own, encode, without_q = [], LEARecommender._encode, LEARecommender._terms_without_q

    def encoded(self, copy, interaction):
        if torch.is_grad_enabled():
            own.append(copy.backbone is self)
        return encode(self, copy, interaction)

    monkeypatch.setattr(LEARecommender, "_encode", encoded)
    monkeypatch.setattr(
        LEARecommender, "_terms_without_q", lambda *a: own.append(True) or without_q(*a)
    )
    return own


def test_a_long_warm_up_is_no_reason_to_warn(tiny_config, log):
    train(tiny_config(warmup="500 steps", epochs=1))
    assert "before the warm-up" in log.text
    assert "gives the evaluated network" not in log.text


def test_refresh_draws_the_top_5_anew(tiny_config, monkeypatch):
    drawn, augment, kept = [], LEATrainer._augment, Feedback.augment
    lists = []
    monkeypatch.setattr(
        Feedback, "augment", lambda self, *given: lists.append(given[-1]) or kept(self, *given)
    )

    def watched(self):
        augment(self)
        assert np.array_equal(lists[-1], top_items(self.model, self.config, self._dataset))
        drawn.append(len(self.train_loss_dict))  # epochs that are over

    monkeypatch.setattr(LEATrainer, "_augment", watched)
    config = tiny_config(epochs=6, augmentation_refresh=2, stopping_step=20, learning_rate=0.05)
    train(config, lambda trainer: lists.clear())  # the plan has timed a few steps
    assert drawn[1:] == [epoch for epoch in (2, 4) if epoch > drawn[0]] != []
    assert not np.array_equal(lists[0], lists[-1])


@pytest.mark.parametrize("method", ["base", "LER"])
def test_refresh_asks_nothing_for_a_method_without_augmentation(tiny_config, monkeypatch, method):
    monkeypatch.setattr(LEATrainer, "_augment", None)
    trainer, _ = train(tiny_config(lea_method=method, epochs=4, augmentation_refresh=1))
    assert trainer.model.warmed_up


def test_top_5_is_the_model_s_own_in_score_order(tiny_config):
    trainer, loaders = train(tiny_config(exclude_history=False))
    data, model = loaders[0]._dataset, trainer.model
    top = top_items(trainer.model, trainer.config, data)
    assert top.shape == (len(data), 5)
    model.eval()
    tokens = data.lea_pipeline.catalogue.tokens
    rows = data[torch.arange(len(data))]
    scores = model.full_sort_predict(rows)
    for r in range(len(data)):
        row_scores = scores[r].clone()
        row_scores[0] = -torch.inf
        k = int(rows[TRANSITION][r])
        listed = [data.field2token_id["item_id"][tokens[i]] for i in top[k]]
        # by score: in another batch, rounding may swap two that are nearly alike
        torch.testing.assert_close(row_scores[listed], row_scores.topk(5).values)
        assert len(set(listed)) == 5


def never_better(monkeypatch):
    """Each validation is worse than the one before."""
    validations(monkeypatch, range(1000, 0, -1))


def validations(monkeypatch, scores):
    """Let the validations have these scores, in thousandths."""
    from recbole.trainer import Trainer

    scores = iter(scores)
    monkeypatch.setattr(Trainer, "_valid_epoch", lambda *a, **k: (next(scores) / 1000, {}))


def test_early_stopping_waits_for_the_warm_up(tiny_config, monkeypatch):
    never_better(monkeypatch)
    ended, end = [], LEATrainer._end_warmup
    monkeypatch.setattr(
        LEATrainer, "_end_warmup", lambda self: ended.append(len(self.train_loss_dict)) or end(self)
    )
    config = tiny_config(epochs=30, warmup="5 epochs", stopping_step=1)
    trainer, _ = train(config)
    # the epoch in which the warm-up ends uses the patience of 1, the next one goes beyond it
    assert len(trainer.train_loss_dict) == ended[0] + 2 >= 7


def test_without_a_warm_up_early_stopping_is_recbole_s(tiny_config, monkeypatch):
    for name, q_weight in (("SASRecSA2CLEA", 0), ("SASRecSNQNLEA", 0), ("SASRecSNQNLEA", 1.0)):
        never_better(monkeypatch)
        config = tiny_config(name, epochs=30, warmup="20 epochs", stopping_step=1,
                             q_weight=q_weight, lea_method="base")  # fmt: skip
        trainer, _ = train(config)
        assert len(trainer.train_loss_dict) == 3


def test_a_best_model_of_the_warm_up_is_said(tiny_config, monkeypatch, caplog):
    caplog.set_level("INFO")
    never_better(monkeypatch)
    trainer, _ = train(tiny_config(epochs=6, warmup="1 epochs"))
    assert "best validation result is from the warm-up" in caplog.text
    assert trainer.record["best_is_warmup"] is True
    validations(monkeypatch, range(1000))
    trainer, _ = train(tiny_config(epochs=6, warmup="1 epochs"))
    assert trainer.record["best_is_warmup"] is False


def test_tensorboard_and_wandb_get_the_terms_by_name_and_the_fine_tuning(tiny_config):
    scalars, logged = [], []

    def watched(trainer):
        trainer.tensorboard.add_scalar = lambda tag, value, step: scalars.append((tag, step))
        trainer.wandblogger.log_metrics = lambda metrics, head="train", commit=True: logged.append(
            (head, set(metrics))
        )

    train(tiny_config(epochs=2), watched)
    terms = ("L_h", "L_q", "L_ah", "L_aq")
    assert {(f"Loss/Train/{name}", epoch) for name in terms for epoch in (0, 1)} <= set(scalars)
    assert ("LE/accuracy", 0) in scalars and ("LE/reward_loss", 0) in scalars
    assert ("train", {*terms, "train_step"}) in logged
    assert any(head == "LE" and {"accuracy", "le_step"} <= names for head, names in logged)


@pytest.mark.parametrize("epochs_before", [1, 4])
def test_training_goes_on_from_a_checkpoint(tiny_config, epochs_before):
    """Before and after the end of the warm-up."""
    first, _ = train(tiny_config(epochs=epochs_before, warmup="5 steps"), saved=True)
    assert first.model.warmed_up is (epochs_before == 4)
    first._save_checkpoint(epochs_before - 1, verbose=False)
    config = tiny_config(epochs=6, warmup="5 steps")
    loaders = data_preparation(config, create_dataset(config))
    model = MODELS[config["model"]](config, loaders[0]._dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.resume_checkpoint(first.saved_model_file)
    assert trainer.start_epoch == epochs_before
    trainer.fit(loaders[0], loaders[1], verbose=False)
    assert trainer.model.warmed_up
    assert sorted(trainer.train_loss_dict) == list(range(epochs_before, 6))


@pytest.mark.parametrize(
    "changes", [{}, {"lea_valid_steps": 3, "dropout_prob": 0.3, "augmentation_refresh": 2}]
)
@pytest.mark.parametrize("at", [0, 3])
@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_training_equals_an_uninterrupted_one(tiny_config, tmp_path, name, at, changes):
    """Resumed in the warm-up and after it; epochs, and chunks of three of an epoch's steps."""
    config = tiny_config(name, epochs=6, warmup="4 steps", negative_pool=3, **changes)
    saved = tmp_path / "middle.pth"

    def after(epoch, score):
        if epoch == at:
            first._save_checkpoint(epoch, verbose=False, saved_model_file=saved)

    def built():
        init_seed(config["seed"], True)
        loaders = data_preparation(config, create_dataset(config))
        model = MODELS[name](config, loaders[0]._dataset)
        return get_trainer(config["MODEL_TYPE"], name)(config, model), loaders

    first, loaders = built()
    result = first.fit(*loaders[:2], verbose=False, saved=False, callback_fn=after)
    assert first.model.warmed_up
    middle = torch.load(saved, weights_only=True)
    assert middle["other_parameter"]["warmed_up"] is (at == 3)
    second, again = built()
    torch.manual_seed(99)
    second.resume_checkpoint(saved)
    assert second.fit(*again[:2], verbose=False, saved=False) == result
    assert second.record["best_is_warmup"] == first.record["best_is_warmup"]
    for key, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[key]), key
    results = [
        t.evaluate(x[2], load_best_model=False) for t, x in ((first, loaders), (second, again))
    ]
    assert results[0] == results[1]


def test_a_resumed_training_without_a_better_epoch_has_the_best_one_s_result(tiny_config):
    first, _ = train(tiny_config(epochs=3), saved=True)
    again, loaders = prepare(tiny_config(epochs=3))
    first._save_checkpoint(2, verbose=False)
    again.resume_checkpoint(first.saved_model_file)
    score, result = again.fit(*loaders[:2], verbose=False)
    assert (score, result) == (first.best_valid_score, first.best_valid_result)
    assert again.record["best_valid_result"] == result != {}


def test_training_that_ends_before_the_warm_up_says_so(tiny_config, caplog):
    train(tiny_config(epochs=1, warmup="3 epochs"))
    assert "before the warm-up" in caplog.text


def test_a_resumed_training_ends_a_warm_up_that_has_become_shorter(tiny_config):
    trainer, _ = train(tiny_config(warmup="8 epochs", epochs=3))
    assert not trainer.model.warmed_up
    config = tiny_config(warmup="1 epochs", epochs=5)
    init_logger(config)
    loaders = data_preparation(config, create_dataset(config))
    again = get_trainer(config["MODEL_TYPE"], config["model"])(
        config, MODELS[config["model"]](config, loaders[0]._dataset)
    )
    again.resume_checkpoint(trainer.saved_model_file)
    again.fit(loaders[0], loaders[1], verbose=False)
    assert again.model.warmed_up


def test_a_method_that_asks_the_le_late_trains_alike_with_and_without_the_cache(tiny_config):
    """LEA needs neither states nor rewards: its LE is built within the training."""
    built, read = (train(tiny_config(lea_method="LEA"))[0].model.state_dict() for _ in range(2))
    assert all(torch.equal(built[name], read[name]) for name in built)


def test_same_seed_gives_the_same_result_with_and_without_the_cache(tiny_config):
    config = tiny_config(epochs=3)
    first, _ = train(config)
    second, _ = train(config)  # the LE now comes from the cache
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.mark.parametrize(("changes", "one_kernel"), [({}, True), ({"q_weight": 0}, None)])
def test_fused_adam_updates_as_recbole_s(tiny_config, changes, one_kernel):
    config = tiny_config(lea_method="base", weight_decay=0.1, **changes)
    model = MODELS[config["model"]](
        config, data_preparation(config, create_dataset(config))[0]._dataset
    )
    stock = copy.deepcopy(model)
    optimizer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model).optimizer
    assert {group["fused"] for group in optimizer.param_groups} == {one_kernel}
    expected = torch.optim.Adam(stock.parameters(), lr=config["learning_rate"], weight_decay=0.1)
    for _ in range(3):
        for p, q in zip(model.parameters(), stock.parameters(), strict=True):
            p.grad = q.grad = torch.randn_like(p)
        optimizer.step()
        expected.step()
    for p, q in zip(model.parameters(), stock.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("whole", [False, True])
def test_q_weight_0_trains_like_recbole_bit_for_bit(tiny_config, whole):
    """Also where the batches are whole: the sampler then draws once more as it ends."""
    from recbole.model.sequential_recommender import SASRec
    from recbole.trainer import Trainer

    config = tiny_config(lea_method="base", q_weight=0, epochs=3)
    rows = len(data_preparation(config, create_dataset(config))[0]._dataset)
    config["train_batch_size"] = next(n for n in range(5, 3 * rows) if (rows % n == 0) == whole)
    ours, _ = train(config)
    init_seed(config["seed"], True)
    loaders = data_preparation(config, create_dataset(config))
    init_seed(config["seed"], True)
    stock = SASRec(config, loaders[0]._dataset)
    Trainer(config, stock).fit(loaders[0], loaders[1], verbose=False)
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tensor, ours.model.state_dict()[name]), name


def test_checkpoint_is_plain_and_reproduces_scores(tiny_config):
    trainer, loaders = train(tiny_config())
    result = trainer.evaluate(loaders[2])
    checkpoint = torch.load(trainer.saved_model_file, weights_only=True)
    assert checkpoint["config"]["lea_method"] == "LEASR"
    other = MODELS["SASRecSA2CLEA"](trainer.config, loaders[0]._dataset)
    again = get_trainer(other.type, "SASRecSA2CLEA")(trainer.config, other)
    assert again.evaluate(loaders[2], model_file=trainer.saved_model_file) == result


@pytest.mark.parametrize("exclude", ["auto", True, False])
@pytest.mark.parametrize("repeating", [0.06, 0.05])
def test_the_history_may_be_left_out_of_the_top_5(
    tiny_config, monkeypatch, log, exclude, repeating
):
    monkeypatch.setattr(Sequences, "repeating", repeating)
    trainer, loaders = train(tiny_config(exclude_history=exclude))
    data = loaders[0]._dataset
    top, listed = top_items(trainer.model, trainer.config, data), []
    monkeypatch.undo()
    sequences = data.lea_pipeline.sequences
    for s, items in enumerate(sequences.items):
        for t in range(1, len(items)):
            row = top[sequences.transition_starts[s] + t - 1]
            assert len(set(row)) == 5
            listed.append(bool(set(row) & set(items[:t])))  # beyond the window of 5 as well
    without = exclude is True or (exclude == "auto" and repeating == 0.05)
    assert any(listed) != without
    what = "left out of" if without else "allowed in"
    said = f"{repeating:.1%} of the training sequences hold an item twice: the history's items are"
    assert (f"{said.replace('%', ' %')} {what} the top-5" in log.text) is (exclude == "auto")


def test_run_json_beside_the_log(tiny_config, log):
    trainer, loaders = train(tiny_config())
    result = trainer.evaluate(loaders[2])
    trainer.evaluate(loaders[1])  # looks at the validation once more
    logs = list(Path("log/SASRecSA2CLEA").glob("*.log"))
    record = json.loads((logs[0].with_suffix("") / "run.json").read_text())
    assert record["test_result"] == dict(result) != record["best_valid_result"]
    assert record["best_valid_result"]
    assert record["config"]["lea_method"] == "LEASR"
    assert record["seed"] == trainer.config["seed"]
    assert record["versions"]["recbole"] == "1.2.1"
    assert len(record["fingerprints"]["llm"]) == 64
    assert set(record["fingerprints"]["feedback"]) == {
        "items", "keys", "environment", "states", "rewards", "selection", "selection_rewards",
    }  # fmt: skip
    stages = record["stages"]
    said = "leave_one_out, split {'LS': 'valid_and_test'}, ranking full, window 5, batch 16"
    assert log.text.count(f"protocol: {said}, chosen by NDCG@10") == 1
    assert {"item tokenization", "LE fine-tuning", "states and rewards", "training"} <= set(stages)
    assert all(s["seconds"] >= 0 and s["peak_memory_mb"] > 0 for s in stages.values())
    assert record["le"]["n"] > 0


def test_loss_terms_are_logged_by_name(tiny_config):
    trainer, _ = train(tiny_config())
    line = trainer._generate_train_loss_output(0, 0.0, 1.0, (1.0, 2.0, 3.0, 4.0))
    assert "L_q\x1b[0m: 2.0000" in line.replace("\x1b[1;34m", "")
    assert "train_loss" not in line


@pytest.mark.parametrize("name", ["SASRecSA2CLEA", "GRU4RecSNQNLEA"])
def test_validation_every_n_steps(tiny_config, monkeypatch, name):
    """Chunks of 3 steps over a loader of 5 batches: no batch is lost or repeated early."""
    seen, at = [], []
    model_class = MODELS[name]
    loss = model_class.calculate_loss

    def watched(self, interaction):
        seen.append(sorted(interaction[TRANSITION].tolist()))
        return loss(self, interaction)

    monkeypatch.setattr(model_class, "calculate_loss", watched)
    config = tiny_config(name, lea_method="base", lea_valid_steps=3, epochs=4, warmup="2 steps",
                         train_batch_size=12)  # fmt: skip
    trainer, loaders = train(config, callback_fn=lambda epoch, score: at.append(len(seen)))
    n = len(loaders[0])
    assert n == 5
    assert at == [3, 6, 9, 12]
    for start in (0, 5):
        rows = [row for batch in seen[start : start + n] for row in batch]
        assert len(rows) == len(set(rows)) == len(loaders[0]._dataset)
    assert trainer.model.warmed_up


METHODS = ["base", "LER", "LES'", "LES", "LEA", "LEAR", "LEAS", "LEAS'R", "LEASR"]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["SASRecSA2CLEA", "GRU4RecSNQNLEA"])
def test_every_method_trains_and_ranks(tiny_config, name, method):
    if method in ("LES'", "LEAS'R") and "SNQN" in name:
        pytest.skip("refused, see test_methods")
    trainer, loaders, moved = trained_from(tiny_config(name, lea_method=method, epochs=3))
    result = trainer.evaluate(loaders[2])
    assert 0 <= result["ndcg@10"] <= 1
    assert any(n.startswith("item_embedding") for n in moved)
    assert any(n.startswith("q_head") for n in moved)


def trained_from(config):
    """Trainer, loaders, and which parameters the training has moved."""
    start = {}

    def remember(trainer):
        start.update({n: p.clone() for n, p in trainer.model.named_parameters()})

    trainer, loaders = train(config, before=remember)
    model = trainer.model
    return trainer, loaders, [n for n, p in model.named_parameters() if not p.equal(start[n])]


def test_live_feedback_trains(tiny_config):
    trainer, _, moved = trained_from(tiny_config(transform="lea_live", epochs=2))
    assert trainer.model.warmed_up
    assert any(n.startswith("q_head") for n in moved)


@pytest.mark.parametrize("name", MODELS)
def test_the_paper_s_own_setting_trains(tiny_config, name):
    """Nowhere else do the dense head, the pairwise loss and the labels' choice meet."""
    paper = yaml.safe_load((properties_folder() / "paper.yaml").read_text(encoding="utf-8"))
    short = {"warmup": "3 steps", "lea_item_iterations": 2, "lea_finetune_epochs": 1}
    _, _, moved = trained_from(tiny_config(name, **(paper | short | {"epochs": 3})))
    assert {"output_head.weight", "q_head.linear.weight"} <= set(moved)


@pytest.mark.parametrize("rate", [None, 0.0, 0.01])
@pytest.mark.parametrize("reset", [True, False])
def test_the_optimiser_can_start_anew_after_the_warm_up(tiny_config, monkeypatch, reset, rate):
    before, end = [], LEATrainer._end_warmup

    def watched(self):
        before.append(self.optimizer)
        end(self)
        assert (self.optimizer is before[0]) is not reset
        assert bool(self.optimizer.state) is not reset
        weights.append(copy.deepcopy(self.model.state_dict()))

    monkeypatch.setattr(LEATrainer, "_end_warmup", watched)
    weights: list = []
    keys = {"optimizer_reset": reset, "learning_rate_after_warmup": rate}
    trainer, _ = train(tiny_config(lea_method="base", epochs=3, learning_rate=0.02, **keys))
    (group,) = trainer.optimizer.param_groups
    assert group["lr"] == (0.02 if rate is None else rate)
    moved = [n for n, own in trainer.model.state_dict().items() if not own.equal(weights[0][n])]
    assert bool(moved) is (rate != 0)

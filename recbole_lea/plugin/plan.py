"""The plan of a run, said before the LE's first stage: its stages, and how long they take here."""

import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

from recbole_lea.le import plan
from recbole_lea.le.feedback import PrecomputedFeedback, RewardScale
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.methods import Switches
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin.trainer import fused

logger = logging.getLogger(__name__)

# One LEA step takes about so many of the plain backbone's (docs/performance.md).
STEPS_OF_PLAIN = 2.2

STEPS = 4  # that are timed, after a first one


def announce(
    loader: AbstractDataLoader, config: Config, chosen: Switches, n_valid: int, add: Callable
) -> list[plan.Step]:
    """The stages of this run, which are logged, cached or to compute; the log's lines number them.

    ``loader`` is the training loader, whose data have a ``lea_pipeline``; ``n_valid`` are the rows
    that are validated; ``add`` gives a batch its feedback.
    """
    pipeline, stop = loader._dataset.lea_pipeline, config["lea_stop_after"]
    # with all of it in the cache, a run does not load the LLM for an estimate
    stages = plan.steps(pipeline, _last(config, chosen), measured=False)
    more = plan.examples(pipeline)
    if stop == "plan" or not all(step.cached for step in stages if step.name in pipeline.keys):
        plan.measure(pipeline, stages)
    if any(step.name == "environment" and not step.cached for step in stages):
        more += plan.without_llm(pipeline)
    if stop in (None, "plan"):
        known = [step for step in stages if step.name in pipeline.keys]
        training = plan.Step("training", "training", f"at most {config['epochs']} epochs")
        if config["transform"] != "lea_live":
            width = pipeline.settings.state_dim
            if chosen.le_state and width is None:
                width = pipeline.llm_width
            training.seconds = _training_seconds(loader, config, chosen, n_valid, add, width)
        stages = [*known, training, *(step for step in stages if step not in known)]
        if config["lea_compare"]:
            beside = f"the plain {config.model_class.backbone_class().__name__} beside it"
            seconds = training.seconds and training.seconds / STEPS_OF_PLAIN
            stages.append(plan.Step("beside", beside, training.amount, seconds=seconds))
    places = {s.name: f"stage {i} of {len(stages)}, " for i, s in enumerate(stages, 1)}
    pipeline.cache.places = places
    timed = sum(step.seconds or 0.0 for step in stages)
    unknown = [s.title for s in stages if not s.cached and s.seconds is None]
    n, said = pipeline.sequences, f"{len(pipeline.catalogue):,} items"
    lines = [
        f"plan for {len(n):,} training sequences, {said}, {n.n_transitions:,} transitions: "
        f"{len(stages)} stages, about {plan.minutes(timed)} here"
    ]
    lines[0] += f", and {' and '.join(unknown)}, not measured" if unknown else ""
    lines += [f"  {number} {step}" for number, step in enumerate(stages, 1)]
    logger.info("\n".join([*lines, *(f"  {line}" for line in more)]))
    return stages


def _last(config: Config, chosen: Switches) -> list[str]:
    """What this run asks of the LE, by the names that ``plan.steps`` knows."""
    stop, by = config["lea_stop_after"], config["selection_by"]
    alone = {name: [name] for name in ("items", "states", "rewards")}
    alone["finetune"] = ["environment"]
    if stop in alone:
        return alone[stop]
    live = config["transform"] == "lea_live" and chosen.needs_le
    asked = {
        "items": config["item_embedding_init"] == "le",
        "keys": config["item_embedding_init"] == "le",
        "environment": live or (chosen.augmented and by != "state"),
        "states": (chosen.le_state and not live) or (chosen.augmented and by == "state"),
        "rewards": chosen.le_reward and not live,
        "selection": chosen.augmented and by != "state" and stop != "feedback",
        "selection_rewards": chosen.augmented and chosen.le_reward and by != "reward"
        and stop != "feedback",
    }  # fmt: skip
    return [name for name, wanted in asked.items() if wanted]


def _training_seconds(
    loader: AbstractDataLoader, config: Config, chosen: Switches, n_valid: int, add: Callable,
    width: int | None,
) -> float:  # fmt: skip
    """All epochs of the recommender with their validations, from a few steps of a model like it.

    ``width`` is that of the LE's states. What the LE will say is zeros; no number of the run draws
    from another place of a random stream.
    """
    train, device = loader._dataset, config["device"]
    before = {name: train.__dict__.get(name) for name in ("lea_feedback", "lea_item_tokens")}
    transform = loader.transform
    with torch.random.fork_rng():
        try:
            train.lea_feedback = _zeros(train, chosen, width)
            shape = (len(train.lea_item_ids), config["embedding_size"] or config["hidden_size"])
            train.lea_item_tokens = np.random.default_rng(0).standard_normal(shape)
            lookup = functools.partial(add, train.lea_feedback)
            loader.transform = lookup if chosen.needs_le else transform
            model = config.model_class(config, train).to(device)
            train_on = training_step(model)
            n = min(config["train_batch_size"], len(train))
            for step in range(STEPS + 1):
                if step == 1:
                    started = time.perf_counter()
                batch = loader.collate_fn(list(range(n))).to(device)
                train_on(batch)
            second = (time.perf_counter() - started) / STEPS
            model.eval()
            started = time.perf_counter()
            with torch.no_grad():
                model.full_sort_predict(batch).topk(min(max(config["topk"]), shape[0]))
            ranked = (time.perf_counter() - started) / n
        finally:
            loader.transform = transform
            for name, value in before.items():
                setattr(train, name, value)
    per_epoch = config["lea_valid_steps"] or len(loader)
    return config["epochs"] * (per_epoch * second + n_valid * ranked) + len(train) * ranked


def training_step(model: Any) -> Callable[[Any], None]:
    """What trains a model on a batch, with its trainer's optimizer; ours is past the warm-up."""
    optimizer = torch.optim.Adam(model.parameters())
    if isinstance(model, LEARecommender):
        model.warmed_up, optimizer = True, fused(optimizer)

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        losses = model.calculate_loss(batch)
        total: Any = sum(losses) if isinstance(losses, tuple) else losses
        total.backward()
        optimizer.step()

    return step


def _zeros(train: Any, chosen: Switches, width: int | None) -> PrecomputedFeedback:
    """Feedback of the right shapes that says nothing; it takes no memory."""
    le: Pipeline = train.lea_pipeline
    n, pool = le.sequences, le.negatives.shape[1]
    made = PrecomputedFeedback(
        states=np.broadcast_to(np.float16(0), (n.n_states, width or 1)),
        rewards=np.broadcast_to(np.float32(0), (n.n_transitions, 1 + pool)),
        negatives=le.negatives, sequences=n, n_items=len(le.catalogue), seed=0,
        scale=RewardScale("raw") if chosen.le_reward else None,
        state_dim=width if chosen.le_state else None, item_ids=train.lea_item_ids.numpy(),
    )  # fmt: skip
    if chosen.augmented:
        scores = np.broadcast_to(np.float32(0), (n.n_transitions,)) if chosen.le_reward else None
        made.augment(le.actions[:, 0], scores)
    return made

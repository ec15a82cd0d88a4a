"""Where the LE's feedback meets RecBole's training split."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.interaction import Interaction

from recbole_lea.console import StoppedAfter
from recbole_lea.engine.processes import processes
from recbole_lea.le.feedback import Feedback
from recbole_lea.le.pipeline import Pipeline
from recbole_lea.methods import Switches, switches
from recbole_lea.model.fields import FIELD_PREFIX, TRANSITION
from recbole_lea.plugin import plan, record

logger = logging.getLogger(__name__)

# What builds the LE up to a value of lea_stop_after
BUILDERS: dict[str, Callable[[Pipeline], Any]] = {
    "items": Pipeline.item_tokens, "finetune": Pipeline.environment,
    "states": Pipeline.states, "rewards": Pipeline.rewards,
}  # fmt: skip


def add_feedback(feedback: Feedback, dataset: Any, interaction: Interaction) -> Interaction:
    """RecBole's transform of training batches: ``Feedback.lookup`` as fields ``lea_NAME``."""
    transitions = interaction[TRANSITION].cpu().numpy()
    for name, value in feedback.lookup(transitions).items():
        interaction[FIELD_PREFIX + name] = value
    return interaction


def attach(loader: AbstractDataLoader, config: Config, n_valid: int = 0) -> None:
    """Give the training loader and its data what the method wants of the LE, built where it lacks.

    The plan, for which ``n_valid`` are the rows that are validated, is said before.

    Raises:
        ValueError: ``transform: lea_live`` in several processes.
        StoppedAfter: ``lea_stop_after`` is reached; ``run.json`` is written.
        SystemExit: one of accelerate's processes, beside the main one that trains the recommender.
    """
    train = loader._dataset
    chosen = switches(config, config.model_class.rl_loss)
    stop, from_items = config["lea_stop_after"], config["item_embedding_init"] == "le"
    if stop is not None or chosen.needs_le or from_items:
        if config["transform"] == "lea_live" and processes().num_processes > 1:
            raise ValueError(
                "transform: lea_live asks the LLM within the recommender's training, in one "
                "process: set transform: lea_feedback, or leave out accelerate"
            )
        pipeline = train.lea_pipeline = train.pipeline(train.training_sequences())
        ids = train.field2token_id[train.iid_field]
        train.lea_item_ids = torch.tensor([ids[token] for token in pipeline.catalogue.tokens])
        steps = plan.announce(loader, config, chosen, n_valid, add_feedback)
        if stop == "plan":
            raise StoppedAfter(steps)
        train.lea_feedback = _built(pipeline, train.lea_item_ids.numpy(), chosen, config)
        if stop is not None:
            _stop(train, config)
    if train.lea_feedback is not None:
        loader.transform = functools.partial(add_feedback, train.lea_feedback)
    if from_items:
        train.lea_item_tokens = train.lea_pipeline.item_keys()
    if not processes().is_main_process:
        if train.lea_pipeline is not None:
            train.lea_pipeline.assist()
        # an interpreter that ends around the group's threads may abort
        processes().destroy_process_group()
        raise SystemExit(0)


def _built(pipeline: Pipeline, item_ids: Any, chosen: Switches, config: Config) -> Feedback | None:
    """Run the LE's stages, as far as the method wants them and the cache lacks them."""
    stop, by_state = config["lea_stop_after"], config["selection_by"] == "state"
    if stop in BUILDERS:
        BUILDERS[stop](pipeline)
        return None
    asks_llm = config["lea_environment"] == "llm" and (chosen.le_reward or not by_state)
    if stop is None and chosen.augmented and asks_llm:
        pipeline.require_llm(
            f"lea_augmentation: {chosen.augmentation} (it asks the LLM after the warm-up)"
        )
    # item tokens alone need no LLM
    live = config["transform"] == "lea_live" and chosen.needs_le
    make = pipeline.live if live else pipeline.precomputed
    if chosen.le_reward and chosen.augmented and by_state and not (live or chosen.le_state):
        pipeline.states_and_rewards()
    feedback = make(chosen.le_state, chosen.le_reward, item_ids)
    # states come first: what they need shows before the training, not after its warm-up
    if chosen.augmented and (stop is not None or by_state):
        pipeline.prepare_selection()
    return feedback


def _stop(train: Any, config: Config) -> None:
    pipeline, stages = train.lea_pipeline, train.lea_stages
    if processes().is_main_process:
        content = record.start(config, train, pipeline, stages, pipeline.code)
        record.write(content, record.new_folder(config))
        logger.info(record.stage_report(stages.stages))
    logger.info(
        "lea_stop_after: %s: finished: %s; to go on elsewhere, copy the folder %s to the same "
        "place there", config["lea_stop_after"], ", ".join(pipeline.cache.used),
        pipeline.cache.folder,
    )  # fmt: skip
    raise StoppedAfter

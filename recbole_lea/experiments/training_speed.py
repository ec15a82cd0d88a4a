"""What a training step and scoring cost, against RecBole's own models in the same run."""

import statistics
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.interaction import Interaction
from recbole.utils import init_seed

from recbole_lea.model import MODELS
from recbole_lea.model.fields import FIELD_PREFIX
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.trainer import fused


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one run."""
    _synchronize()
    start = time.perf_counter()
    work()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def training_ratios(config: Config, state_dim: int, steps: int) -> dict[str, dict[str, float]]:
    """A training step and full-sort scoring of each model against its RecBole backbone.

    The step is that of the costliest method, LEASR after the warm-up: LE states beside h_t, LE
    rewards, both augmented losses. The LE's part is random numbers of the right shape: a step
    costs the same whatever they hold.

    Args:
        config: of a model of ours on the dataset.
        state_dim: width of the LE's states.
        steps: runs of each that the median is taken over.

    Returns:
        ``train_step_ratio`` and ``inference_ratio``: median ratios of seconds, ours over
        RecBole's, by model.
    """
    train_ratio, inference_ratio = {}, {}
    keys = dict(config.external_config_dict) | {"q_weight": 1.0}
    keys |= {"lea_state": None, "lea_reward": None, "lea_augmentation": None}
    for name, model_class in MODELS.items():
        cheapest, costliest = (
            Config(model=name, dataset=config["dataset"], config_dict=keys | {"lea_method": method})
            for method in ("base", "LEASR")  # base loads the data without an LE
        )
        init_seed(cheapest["seed"], True)
        loaders = data_preparation(cheapest, LEADataset(cheapest))
        data = loaders[0]._dataset
        batch, rows = next(iter(loaders[0])), next(iter(loaders[2]))[0]
        batch.update(_random_feedback(len(batch), state_dim, data.num(data.iid_field)))
        data.lea_feedback = SimpleNamespace(state_dim=state_dim)
        ours = model_class(costliest, data)
        stock = model_class.backbone_class()(cheapest, data)
        ours.warmed_up = True
        adam = torch.optim.Adam
        step = training_step(ours, fused(adam(ours.parameters())))  # as LEATrainer's
        stock_step = training_step(stock, adam(stock.parameters()))
        train_ratio[name] = _ratio(partial(step, batch), partial(stock_step, batch), steps)
        inference_ratio[name] = _ratio(
            partial(_score, ours, rows), partial(_score, stock, rows), steps
        )
    return {"train_step_ratio": train_ratio, "inference_ratio": inference_ratio}


def _random_feedback(rows: int, state_dim: int, n_items: int) -> Interaction:
    """What the transform adds to a batch under LEASR, as random numbers."""
    numbers = ("reward", "negative_reward", "augmented_reward")
    values = {name: torch.randn(rows) for name in numbers}
    values |= {name: torch.randint(1, n_items, (rows,)) for name in ("negative", "augmented")}
    values |= {name: torch.randn(rows, state_dim) for name in ("state", "next_state")}
    return Interaction({FIELD_PREFIX + name: value for name, value in values.items()})


def training_step(model: Any, optimizer: torch.optim.Optimizer) -> Callable[[Any], None]:
    """What trains a model on one batch."""

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        loss: Any = model.calculate_loss(batch)
        loss = sum(loss) if isinstance(loss, tuple) else loss
        loss.backward()
        optimizer.step()

    return step


@torch.no_grad()
def _score(model: Any, rows: Any) -> None:
    model.eval()
    model.full_sort_predict(rows)


def _ratio(ours: Callable[[], Any], theirs: Callable[[], Any], n: int) -> float:
    """Median ratio of alternating runs."""
    ours()
    theirs()
    return statistics.median(timed(ours) / timed(theirs) for _ in range(n))

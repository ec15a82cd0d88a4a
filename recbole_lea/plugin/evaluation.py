"""RecBole's test, row by row."""

import functools
from typing import Any

import numpy as np


def evaluate_rows(trainer: Any, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """RecBole's test of the best model on the test loader, and what each row contributes to it.

    These are the same names with values [n_rows], in ``data._dataset``'s order.
    """
    rows: dict[str, np.ndarray] = {}
    metrics = trainer.evaluator.metric_class.values()

    # here RecBole's metrics average over the rows
    def keeping_rows(metric: Any, name: str, value: np.ndarray) -> dict[str, float]:
        rows.update({f"{name}@{k}": value[:, k - 1] for k in metric.topk})
        return type(metric).topk_result(metric, name, value)

    for metric in metrics:
        metric.topk_result = functools.partial(keeping_rows, metric)
    result = dict(trainer.evaluate(data))
    for metric in metrics:
        del metric.topk_result
    return result, rows

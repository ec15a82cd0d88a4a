"""RecBole's test, row by row."""

import functools
from typing import Any

import numpy as np


def evaluate_rows(trainer: Any, data: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """RecBole's test of the best model, and what each row contributes to it.

    RecBole's metrics average over the rows in ``TopkMetric.topk_result``.

    Args:
        trainer: after ``fit``.
        data: the test loader.

    Returns:
        The test result, and the same names with values [n_rows], in the order of
        ``data._dataset``.
    """
    rows: dict[str, np.ndarray] = {}
    metrics = trainer.evaluator.metric_class.values()

    def keeping_rows(metric: Any, name: str, value: np.ndarray) -> dict[str, float]:
        rows.update({f"{name}@{k}": value[:, k - 1] for k in metric.topk})
        return type(metric).topk_result(metric, name, value)

    for metric in metrics:
        metric.topk_result = functools.partial(keeping_rows, metric)
    try:
        return dict(trainer.evaluate(data)), rows
    finally:
        for metric in metrics:
            del metric.topk_result

"""The end of a run in about ten lines: results, what the LE is worth, cost, places, what next."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_lea.le.quality import worth
from recbole_lea.plugin.record import RECOMMENDER_STAGES

# Which keys to tune first where a model of ours is below the plain backbone
FIRST_KEYS = ("learning_rate", "q_weight", "w_ah")


def summary(
    config: Any, content: Mapping[str, Any], folder: Path, beside: Mapping[str, float] | None
) -> str:
    """The closing lines of a run, for the log.

    Args:
        config: RecBole's, of our model.
        content: what ``run.json`` in ``folder`` holds, with its test result.
        beside: the test result of the plain backbone, if it was trained too.
    """
    own, model = content["test_result"], config["model"]
    # by the cut-off of the metric that chose the model; RecBole has logged all of them
    cut = str(config["valid_metric"]).partition("@")[2]
    names = [name for name in own if name.partition("@")[2] == cut] or list(own)
    rows = {f"{model} ({config['lea_method']})": [f"{own[name]:.4f}" for name in names]}
    if beside:
        rows[_plain(config)] = [f"{beside[name]:.4f}" for name in names]
        rows["gain"] = [_gain(own[name], beside[name]) for name in names]
    width = max(map(len, rows)) + 2
    lines = [f"{config['dataset']}, test".ljust(width) + "".join(f"{n:>10}" for n in names)]
    lines += [who.ljust(width) + "".join(f"{v:>10}" for v in row) for who, row in rows.items()]
    chosen = str(config["valid_metric"]).lower()
    if beside and chosen in own and own[chosen] < beside[chosen]:
        # a backbone calls its dropouts by other names
        dropouts = [key for key in sorted(config.final_config_dict) if key.endswith("dropout_prob")]
        keys = ", ".join([FIRST_KEYS[0], *dropouts, *FIRST_KEYS[1:]])
        lines.append(
            f"below the plain backbone: tune these first: {keys} (python run_hyper.py "
            f"--model={model} --dataset={config['dataset']})"
        )
    if content["le"]:
        lines.append(worth(content["le"]))
    checkpoint, log = content["checkpoint"], config["log_file"]
    python = "python -m recbole_lea."
    return "\n".join([
        *lines,
        _cost(content["stages"]),
        f"files: {checkpoint}, {folder / 'run.json'}, {log}",
        f"look at it: {python}inspect {checkpoint}",
        f"use it: {python}export {checkpoint} --to recbole",
    ])  # fmt: skip


def _plain(config: Any) -> str:
    dense = " (tied head)" * (config["lea_output_head"] == "dense")
    return f"{config.model_class.backbone_class().__name__}, plain{dense}"


def _gain(own: float, beside: float) -> str:
    return f"{100 * (own / beside - 1):+.1f} %" if beside else "-"


def _cost(stages: Mapping[str, Mapping[str, float]]) -> str:
    """Seconds of the LE and of the recommender, and the most memory."""
    training = sum(stages[name]["seconds"] for name in RECOMMENDER_STAGES if name in stages)
    le = sum(entry["seconds"] for entry in stages.values()) - training
    memory = max(entry["peak_memory_mb"] for entry in stages.values()) / 1024
    return f"cost: LE {le:.0f} s, training {training:.0f} s, at most {memory:.1f} GB of memory"

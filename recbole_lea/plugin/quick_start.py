"""RecBole's ``run_recbole`` step by step, and the plain backbone beside a model of ours."""

import logging
from typing import Any

from recbole.config import Config
from recbole.data import data_preparation
from recbole.trainer import Trainer
from recbole.utils import argument_list, get_model, init_seed, set_color

from recbole_lea import arguments
from recbole_lea.keys import PAPER_EVAL_ARGS, PROTOCOL_KEYS, WHOLE_SEQUENCES, backbone_keys
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.model.registry import REFUSED, stock
from recbole_lea.plugin import record
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.summary import summary
from recbole_lea.plugin.trainer import LEATrainer, StepTrainer
from recbole_lea.yaml_files import internal_files, read_files

logger = logging.getLogger(__name__)

# What the plain run has in common, beside the backbone's own hyperparameters
SHARED_KEYS = (
    *PROTOCOL_KEYS, "seed", "reproducibility", "shuffle", "enable_amp", "enable_scaler", "encoding",
    *argument_list.dataset_arguments, *argument_list.training_arguments,
    *argument_list.evaluation_arguments,
)  # fmt: skip


def protocol_keys(model: str, dataset: str, files: list[str]) -> dict[str, Any]:
    """What a backbone of RecBole's takes over of our YAML files; nothing for another model."""
    if model not in stock() or model in REFUSED:
        return {}
    given = read_files(files) | arguments.given_keys()
    values = read_files(list(map(str, internal_files(model, dataset)))) | given
    if values["eval_protocol"] in WHOLE_SEQUENCES:
        values.setdefault("eval_args", PAPER_EVAL_ARGS)
    if values.get("loss_type", "CE") != "CE":  # RecBole's own loss, which draws negatives
        del values["train_neg_sample_args"]
    return {key: values[key] for key in SHARED_KEYS if key in values}


def report(model: str, dataset: str, files: list[str], keys: dict[str, Any]) -> None:
    """Log how the run that has just ended went (``summary``), and ``lea_note``.

    Under ``lea_compare``, the plain backbone is trained here, on the same data, splits and budget.
    Of a model of RecBole's, which ran with these ``keys``, log how it was measured.
    """
    config = Config(model, dataset, files or None, keys)
    if record.last is None or not issubclass(config.model_class, LEARecommender):
        logger.info(record.protocol(config))
        return
    content, folder = record.last
    beside = None
    if config["lea_compare"]:
        plain = backbone_config(config, files)
        logger.info("training the plain %s beside it", plain["model"])
        trainer, loaders = prepare(plain)
        trainer.fit(loaders[0], loaders[1], show_progress=config["show_progress"])
        beside = trainer.evaluate(loaders[2], load_best_model=True)
    config["log_file"] = content["config"]["log_file"]
    lines = set_color("summary", "yellow") + f"\n{summary(config, content, folder, beside)}"
    logger.info(lines)
    if config["lea_note"]:
        logger.info(config["lea_note"])


def backbone_config(config: Config, files: list[str]) -> Config:
    """The config of the plain RecBole backbone beside an LEA model's config and YAML files."""
    name = config.model_class.backbone_class().__name__
    keys = {key: config[key] for key in (*SHARED_KEYS, *backbone_keys(name))}
    stock = Config(
        model=name, dataset=config["dataset"], config_file_list=files or None,
        config_dict=keys | {"train_neg_sample_args": None},
    )  # fmt: skip
    stock["transform"] = None
    return stock


def prepare(config: Config) -> tuple[Trainer, tuple]:
    """RecBole's ``run_recbole`` up to the training: trainer and loaders of the three parts."""
    init_seed(config["seed"], config["reproducibility"])
    loaders = data_preparation(config, LEADataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    trainer_class = LEATrainer if isinstance(model, LEARecommender) else StepTrainer
    return trainer_class(config, model), loaders

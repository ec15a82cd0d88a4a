"""RecBole's ``run_recbole`` step by step, and the plain backbone beside a model of ours."""

import logging

from recbole.config import Config
from recbole.data import data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed, set_color

from recbole_lea.keys import backbone_keys
from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin import record
from recbole_lea.plugin.dataset import LEADataset
from recbole_lea.plugin.summary import summary
from recbole_lea.plugin.trainer import LEATrainer, StepTrainer

logger = logging.getLogger(__name__)

# What the plain run has in common, beside the backbone's own hyperparameters
SHARED_KEYS = (
    "load_col", "lea_newest", "eval_protocol", "lea_split_seed", "eval_args", "lea_valid_steps",
    "metrics", "metric_decimal_place", "topk", "valid_metric", "epochs", "stopping_step",
    "train_batch_size", "eval_batch_size", "learning_rate", "MAX_ITEM_LIST_LENGTH", "seed",
)  # fmt: skip


def report(model: str, dataset: str, files: list[str]) -> None:
    """Log how the run that has just ended went (``summary``), and ``lea_note``.

    Under ``lea_compare``, the plain backbone is trained here, on the same data, splits and budget.
    """
    config = Config(model=model, dataset=dataset, config_file_list=files or None)
    if record.last is None or not issubclass(config.model_class, LEARecommender):
        return
    content, folder = record.last
    beside = None
    if config["lea_compare"]:
        stock = backbone_config(config, files)
        logger.info("training the plain %s beside it", stock["model"])
        trainer, loaders = prepare(stock)
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

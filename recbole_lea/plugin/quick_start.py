"""The command line: one model on one dataset, by RecBole's own ``run``."""

import argparse
import contextlib
import logging
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

try:
    from recbole.config import Config
except ModuleNotFoundError as error:
    if error.name != "recbole":
        raise
    raise ModuleNotFoundError(
        "RecBole is not installed: pip install --no-deps recbole==1.2.1", name="recbole"
    ) from None
from recbole.data import data_preparation
from recbole.quick_start import run
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed, set_color
from torch.multiprocessing import ProcessRaisedException

from recbole_lea.model.recommender import LEARecommender
from recbole_lea.plugin.dataset import LEADataset, StoppedAfter
from recbole_lea.plugin.distributed import MISTAKES, mistake, mistake_in
from recbole_lea.plugin.keys import backbone_keys
from recbole_lea.plugin.trainer import LEATrainer, StepTrainer
from recbole_lea.yaml_files import find_config_files

logger = logging.getLogger(__name__)


def main() -> dict[str, Any]:
    """RecBole's ``run_recbole.py`` for our models: the same flags, any ``--key=value``.

    Like RecBole's, it reads ``sys.argv``.

    Returns:
        RecBole's result; empty after ``lea_stop_after``.
    """
    parser = argparse.ArgumentParser(
        prog="run_recbole_lea.py",
        description="Train and test a model of recbole_lea (or of RecBole). Every key of the "
        "YAML files can be given as --key=value.",
    )
    parser.add_argument(
        "--model", "-m", default="SASRecSA2CLEA",
        help="SASRec, GRU4Rec, Caser ..., then SNQN or SA2C, then LEA (docs/backbones.md)",
    )  # fmt: skip
    parser.add_argument("--dataset", "-d", default="ml-100k", help="name of the dataset")
    parser.add_argument(
        "--config_files", default=None, help="YAML files, separated by blanks; later ones win"
    )
    parser.add_argument("--nproc", type=int, default=1, help="processes on this machine")
    parser.add_argument(
        "--world_size", type=int, default=-1, help="processes on all machines; default: nproc"
    )
    parser.add_argument("--ip", default="localhost", help="address of the first machine")
    parser.add_argument(
        "--port", default=None, help="a free port there; with one machine it is found, else 5678"
    )
    parser.add_argument(
        "--group_offset", type=int, default=0, help="processes on the machines before this one"
    )
    options, _ = parser.parse_known_args()
    files = find_config_files(options.config_files or "")
    several = _several(options)
    if several:
        # the log is the main process's
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        result = run(options.model, options.dataset, config_file_list=files or None, **several)
        if result is None:  # the processes have ended well, without one
            raise StoppedAfter
    except StoppedAfter:
        logger.info("go on by: %s", shlex.join(_without_stop(sys.argv)))
        return {}
    if options.group_offset == 0:
        _report(options.model, options.dataset, files, result)
    return result


def _several(options: argparse.Namespace) -> dict[str, Any]:
    """RecBole's arguments for several processes; none for one."""
    here, offset = options.nproc, options.group_offset
    everywhere = options.world_size if options.world_size > 0 else here
    if here == 1 and options.world_size <= 0:
        return {}
    if not (here > 0 and 0 <= offset <= everywhere - here):
        raise ValueError(
            f"--nproc={here} --group_offset={offset} --world_size={everywhere}: the processes of "
            "this machine and those before it have to be some of the `world_size` in all"
        )
    port = options.port or ("5678" if everywhere > here else str(_free_port()))
    return {
        "nproc": here, "world_size": everywhere, "ip": options.ip, "port": port,
        "group_offset": offset,
    }  # fmt: skip


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def _without_stop(arguments: list[str]) -> list[str]:
    """The command line that goes on where ``lea_stop_after`` ended."""
    if arguments[0].endswith(".py"):
        arguments = ["python", *arguments]
    kept = [a for a in arguments if not a.startswith("--lea_stop_after=")]
    # it stands in a YAML file, which the command line overrides
    return kept if len(kept) < len(arguments) else [*kept, "--lea_stop_after=None"]


def console(function: Callable[[], Any] = main) -> None:
    """``main`` for the shell: a mistake in the input is one line, not a traceback.

    So are Ctrl-C and SIGTERM, with the exit codes by which shells know them, 130 and 143.
    """
    with _stopped_by(signal.SIGINT, signal.SIGTERM):
        _one_line(function)


def _one_line(function: Callable[[], Any]) -> None:
    try:
        function()
    except (*MISTAKES, ProcessRaisedException) as error:
        found = mistake(error) if isinstance(error, MISTAKES) else mistake_in(str(error))
        if os.environ.get("LEA_TRACEBACK") or found is None:
            raise
        sys.exit(f"error: {found} (LEA_TRACEBACK=1 shows where)")


@contextlib.contextmanager
def _stopped_by(*numbers: int) -> Iterator[None]:
    """Let signals end the block as Ctrl-C does; ray, which RecBole imports, has its own way."""
    timers: list[threading.Timer] = []
    met: list[int] = []

    def stop(number: int, _: Any) -> None:
        met.append(number)
        # Python swallows what is raised within a finalizer: then once more
        timers.append(threading.Timer(1, os.kill, [os.getpid(), number]))
        timers[-1].daemon = True
        timers[-1].start()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except KeyboardInterrupt:
        print("stopped: the same command goes on with what the cache holds", file=sys.stderr)
        sys.exit(128 + (met or [signal.SIGINT])[0])
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(model: str, dataset: str, files: list[str], result: dict[str, Any]) -> None:
    config = Config(model=model, dataset=dataset, config_file_list=files or None)
    if issubclass(config.model_class, LEARecommender) and config["lea_compare"]:
        stock = train_backbone(config, files)
        lines = [f"  {model:<20}{_line(result['test_result'])}"]
        name = stock["model"]
        if config["lea_output_head"] == "dense":
            name += " (tied head)"
        lines.append(f"  {name:<20}{_line(stock['test_result'])}")
        logger.info(
            set_color("test result beside plain RecBole", "yellow") + ":\n" + "\n".join(lines)
        )
    if config["lea_note"]:
        logger.info(config["lea_note"])


def _line(metrics: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def train_backbone(config: Config, files: list[str]) -> dict[str, Any]:
    """Train and test the plain RecBole backbone on the same data, splits and budget.

    Args:
        config: of the LEA model.
        files: its YAML files.

    Returns:
        ``model`` and ``test_result``.
    """
    stock = backbone_config(config, files)
    trainer, loaders = prepare(stock)
    trainer.fit(loaders[0], loaders[1], verbose=False, show_progress=False)
    result = trainer.evaluate(loaders[2], load_best_model=True)
    return {"model": stock["model"], "test_result": result}


def backbone_config(config: Config, files: list[str]) -> Config:
    """The config of the plain RecBole backbone that an LEA model's config compares with.

    Args:
        config: of the LEA model.
        files: its YAML files.
    """
    name = config.model_class.backbone_class().__name__
    keys = {key: config[key] for key in (*SHARED_KEYS, *backbone_keys(name))}
    stock = Config(
        model=name, dataset=config["dataset"], config_file_list=files or None,
        config_dict=keys | {"train_neg_sample_args": None},
    )  # fmt: skip
    stock["transform"] = None
    return stock


def prepare(config: Config) -> tuple[Trainer, tuple]:
    """RecBole's ``run_recbole`` up to the training: data, model and trainer.

    Args:
        config: of an LEA model, or a plain one from ``backbone_config``.

    Returns:
        The trainer, and the loaders of training, validation and test data.
    """
    init_seed(config["seed"], config["reproducibility"])
    loaders = data_preparation(config, LEADataset(config))
    init_seed(config["seed"], config["reproducibility"])
    model = get_model(config["model"])(config, loaders[0]._dataset).to(config["device"])
    trainer_class = LEATrainer if isinstance(model, LEARecommender) else StepTrainer
    return trainer_class(config, model), loaders


# What the plain run must have in common beside the backbone's own hyperparameters: data, splits,
# budget and measures.
SHARED_KEYS = (
    "load_col", "lea_newest", "eval_protocol", "lea_split_seed", "eval_args", "lea_valid_steps",
    "metrics", "metric_decimal_place", "topk", "valid_metric", "epochs", "stopping_step",
    "train_batch_size", "eval_batch_size", "learning_rate", "MAX_ITEM_LIST_LENGTH", "seed",
)  # fmt: skip

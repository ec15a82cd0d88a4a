"""RecBole's trainer with a warm-up, the LE's augmentation at its end, and a ``run.json``."""

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer
from recbole.utils import set_color

from recbole_lea.engine.versions import code_version
from recbole_lea.keys import warmup_updates
from recbole_lea.methods import needs_warmup
from recbole_lea.plugin import checkpoints, record
from recbole_lea.plugin.top_items import top_items

# Of the warm-up: an audit found its top-5 poor after 392 on Industrial.
FEW_UPDATES = 500


def fused(optimizer: Any) -> Any:
    """The same optimiser; Adam as one kernel, without temporary arrays the size of the Q head."""
    if isinstance(optimizer, torch.optim.Adam):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def _passes(steps: int, per_pass: int) -> str:
    """Steps as passes over the training data: "1 pass", "about 2.5 passes"."""
    whole = steps % per_pass == 0
    number = f"{steps / per_pass:,.{0 if whole or steps > 10 * per_pass else 1}f}"
    return f"{'' if whole else 'about '}{number} pass{'' if steps == per_pass else 'es'}"


class Batches:
    """The next ``n`` batches of endless passes through a loader, which RecBole takes for it.

    Attributes:
        generator_state: of the loader's shuffling when the present pass began.
        taken: batches of the present pass so far.
    """

    def __init__(self, loader: Any, n: int, before_batch: Callable[[], None]) -> None:
        self.loader = loader
        self._n = n
        self._before_batch = before_batch
        self.generator_state, self.taken = loader.generator.get_state(), 0
        self._passes = self._endless()

    def _endless(self) -> Iterator:
        while True:
            self.generator_state, self.taken = self.loader.generator.get_state(), 0
            for batch in self.loader:
                self.taken += 1
                yield batch

    def go_on(self, generator_state: torch.Tensor, taken: int) -> None:
        """Go on in a pass that began so; what it has taken is read without the LE's feedback."""
        self.loader.generator.set_state(generator_state)
        self.generator_state = generator_state
        transform, self.loader.transform = self.loader.transform, lambda dataset, batch: batch
        try:
            for _ in range(taken):
                next(self._passes)
        finally:
            self.loader.transform = transform

    def __len__(self) -> int:
        return self._n

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator:
        for _ in range(self._n):
            self._before_batch()
            yield next(self._passes)


class StepTrainer(Trainer):
    """RecBole's trainer that can validate every N steps (``lea_valid_steps``).

    Epochs, ``eval_step`` and ``stopping_step`` then count chunks of N steps.
    """

    _batches: Batches
    _epoch = ""  # the terminal's line of the present one, up to its validation

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        # RecBole's name is the second by the clock: of two runs one would lose its model
        path = Path(self.saved_model_file)
        self.saved_model_file: str = str(path.with_stem(f"{path.stem}-{secrets.token_hex(3)}"))

    def fit(self, train_data: AbstractDataLoader, *args: Any, **kwargs: Any) -> Any:
        """RecBole's ``fit``, in chunks of ``lea_valid_steps`` batches if that is set."""
        n = self.config["lea_valid_steps"] or len(train_data)
        self._batches = Batches(train_data, n, self._before_batch)
        self._prepare()
        self.logger.info(self._budget())
        return super().fit(self._batches, *args, **kwargs)

    def _prepare(self) -> None:
        """Called before the first epoch."""

    def _named(self, losses: float | tuple[float, ...]) -> dict[str, float]:
        """The terms of a loss by their names."""
        values = losses if isinstance(losses, tuple) else (losses,)
        return {f"loss {number}": value for number, value in enumerate(values, 1)}

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        """RecBole's line, for the log file; the terminal gets one line an epoch."""
        terms = ", ".join(f"{name} {value:.4f}" for name, value in self._named(losses).items())
        self._epoch = f"epoch {epoch_idx}: {e_time - s_time:.1f} s, {terms}"
        if self.eval_step <= 0 or (epoch_idx + 1) % self.eval_step:  # no validation now
            self.logger.info(self._epoch)
        return super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)

    def _is_best(self, score: float) -> bool:
        best = self.best_valid_score
        return score >= best if self.valid_metric_bigger else score <= best

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        mark = "best so far" if self._is_best(score) else f"best {self.best_valid_score:.4f}"
        metric = self.config["valid_metric"]
        self.logger.info("%s; valid %s %.4f, %s", self._epoch, metric, score, mark)
        return score, result

    def _budget(self) -> str:
        """How long the training is: an epoch of ``lea_valid_steps`` is no pass over the data."""
        n, per_pass = len(self._batches), len(self._batches.loader)
        passes = _passes(self.epochs * n, per_pass)
        return f"epochs {self.epochs}: {self.epochs} x {n:,} steps, {passes} over the training data"

    def _before_batch(self) -> None:
        """Called before each training batch is collated."""


class LEATrainer(StepTrainer):
    """Trains an ``LEARecommender``: a warm-up without SA2C's advantage and augmentation, then both.

    When the warm-up ends, the patience of early stopping starts, and the model's top-5 for every
    training transition go to the LE (section 3.4).
    """

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        self.record: dict = {}
        self._best_result: dict[str, float] | None = None
        self._resumed: dict | None = None
        self._dataset: Any = None  # the training split, once ``fit`` has begun
        self._valid_data: Any = None

    def _build_optimizer(self, **kwargs):
        optimizer = super()._build_optimizer(**kwargs)
        # under q_weight 0 every bit is RecBole's
        return fused(optimizer) if self.model.q_weight != 0 else optimizer

    def fit(self, train_data: AbstractDataLoader, valid_data: Any = None, **kwargs: Any) -> Any:
        """RecBole's ``fit``, timed; leaves the ``run.json`` beside the log."""
        code = code_version()  # the files may change meanwhile
        self.logger.info("autograd's anomaly detection, which RecBole leaves on, is off")
        self._dataset, self._valid_data = train_data._dataset, valid_data
        stages, pipeline = self._dataset.lea_stages, self._dataset.lea_pipeline
        self.record = {}
        if pipeline:
            self._log_finetuning(pipeline.history())
            place = pipeline.cache.places.get("training", "")
            self.logger.info("%straining: at most %d epochs", place, self.epochs)
        try:
            with stages.stage("training"):
                result = super().fit(train_data, valid_data, **kwargs)
        finally:
            if pipeline:
                pipeline.release()
        if not self.model.warmed_up:
            self.logger.warning(
                "training ended before the warm-up, after %d of %d updates of the evaluated "
                "network: raise `epochs`, or shorten it", self.model.updates, self._warmup_updates,
            )  # fmt: skip
        elif self._best_is_warmup:
            self.logger.info("the best validation result is from the warm-up: so is what is tested")
        self.record = record.start(self.config, self._dataset, pipeline, stages, code)
        self.record["best_valid_result"] = dict(result[1] or {})
        self.record["checkpoint"] = self.saved_model_file
        self.record["best_is_warmup"] = self._best_is_warmup
        self.record_folder = record.new_folder(self.config)
        record.write(self.record, self.record_folder)
        return result

    def _prepare(self) -> None:
        """Where the warm-up stands, at the start or after ``resume_checkpoint``."""
        per_epoch = len(self._batches.loader)
        self._warmup_updates = warmup_updates(self.config["warmup"], per_epoch)
        # checkpoints from before `updates` was kept have counted all steps
        self.model.updates = self.start_epoch * len(self._batches)
        self._best_is_warmup = False
        if not needs_warmup(self.model.switches, self.model.rl_loss, self.model.q_weight):
            self.model.warmed_up = True
        elif not self.model.warmed_up:
            # early stopping has no say before the warm-up is over
            self.stopping_step = self.epochs + 1
            if self._warmup_updates < FEW_UPDATES:
                self.logger.warning(
                    "`warmup: %s` gives the evaluated network %d updates: after fewer than %d its "
                    "top-5 and Q may say little; lengthen it, or lower `train_batch_size`",
                    self.config["warmup"], self._warmup_updates, FEW_UPDATES,
                )  # fmt: skip
        if self._resumed:
            checkpoints.restore(self, self._resumed)
            self._resumed = None
        elif self.model.warmed_up and self.model.switches.augmented:
            self._augment()

    def _budget(self) -> str:
        if self.model.warmed_up:
            return super()._budget()
        per_pass = len(self._batches.loader)
        # of two networks the coin picks one a step
        steps = self._warmup_updates * (1 if self.model.q_weight == 0 else 2)
        return f"{super()._budget()}; warm-up {_passes(steps, per_pass)}"

    def resume_checkpoint(self, resume_file) -> None:
        """RecBole's; the next ``fit`` then equals the rest of an uninterrupted one."""
        super().resume_checkpoint(resume_file)
        content = torch.load(self.saved_model_file, map_location=self.device, weights_only=True)
        self._resumed = content.get("resume")

    def _save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
        # outside of a `fit` there is nothing to resume
        resume = checkpoints.resume_state(self) if self._dataset is not None else None
        checkpoints.save(self, epoch, verbose, kwargs.get("saved_model_file"), resume)

    def evaluate(
        self, eval_data: AbstractDataLoader, load_best_model: bool = True, **kwargs: Any
    ) -> dict[str, float] | None:
        """RecBole's ``evaluate``; after ``fit``, the test result goes into the ``run.json``."""
        result = super().evaluate(eval_data, load_best_model=load_best_model, **kwargs)
        if self.record and result is not None and eval_data is not self._valid_data:
            self.record["test_result"] = dict(result)
            record.write(self.record, self.record_folder)
            self.logger.info(record.protocol(self.config))
            stages = record.stage_report(self._dataset.lea_stages.stages)
            self.logger.info(stages, extra={"for_the_file": True})
        return result

    def _train_epoch(self, train_data, epoch_idx, *args: Any, **kwargs: Any):
        refresh, model = self.config["augmentation_refresh"], self.model
        if refresh and epoch_idx % refresh == 0 and model.warmed_up and model.switches.augmented:
            self._augment()
        return super()._train_epoch(train_data, epoch_idx, *args, **kwargs)

    def _before_batch(self) -> None:
        if self.model.updates >= self._warmup_updates and not self.model.warmed_up:
            self._end_warmup()

    def _end_warmup(self) -> None:
        self.model.warmed_up = True
        self.cur_step = 0
        self.stopping_step = self.config["stopping_step"]
        done = f" after {self.model.updates} updates"
        self.logger.info(set_color("warm-up ends", "green") + done)
        if self.config["optimizer_reset"]:
            self.optimizer = self._build_optimizer()
        if (rate := self.config["learning_rate_after_warmup"]) is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
        if self.model.switches.augmented:
            self._augment()

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        if self._is_best(score):
            self._best_is_warmup = not self.model.warmed_up
            self._best_result = {name: float(value) for name, value in result.items()}
        return score, result

    def _augment(self) -> None:
        """The LE picks one of the model's top-5 for every training transition."""
        dataset, scored = self._dataset, self.model.switches.le_reward
        with dataset.lea_stages.stage("top-5 of the warm-up model"):
            candidates = top_items(self.model, self.config, dataset)
        # a run that builds the LE only here must go on with the same draws as one that reads it
        with torch.random.fork_rng():
            actions, scores = dataset.lea_pipeline.select(candidates, want_rewards=scored)
        dataset.lea_feedback.augment(actions, scores, candidates)

    def _named(self, losses: float | tuple[float, ...]) -> dict[str, float]:
        """The paper's names of the terms of a loss, with their values."""
        values = losses if isinstance(losses, tuple) else (losses,)
        return dict(zip(self.model.loss_names, values, strict=True))

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        """RecBole's line, with the paper's names for the terms."""
        output = super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        if isinstance(losses, tuple):
            for number, name in enumerate(self.model.loss_names, 1):
                output = output.replace(f"train_loss{number}", name)
        return output

    def _add_train_loss_to_tensorboard(self, epoch_idx, losses, tag="Loss/Train"):
        """Each term of the loss by its name, for TensorBoard and wandb."""
        terms = self._named(losses)
        for name, value in terms.items():
            self.tensorboard.add_scalar(f"{tag}/{name}", value, epoch_idx)
        self.wandblogger.log_metrics({**terms, "train_step": epoch_idx}, "train", commit=False)

    def _log_finetuning(self, history: list[dict[str, float]]) -> None:
        """What the LE's fine-tuning recorded after each epoch, for TensorBoard and wandb."""
        if self.config["log_wandb"]:
            self.wandblogger._wandb.define_metric("LE/*", step_metric="le_step")
        for epoch, entry in enumerate(history):
            values = {name: value for name, value in entry.items() if name not in ("epoch", "n")}
            for name, value in values.items():
                self.tensorboard.add_scalar(f"LE/{name}", value, epoch)
            self.wandblogger.log_metrics({**values, "le_step": epoch}, "LE")

"""RecBole's trainer with a warm-up, the LE's augmentation at its end, and a ``run.json``."""

import logging
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer
from recbole.utils import set_color

from recbole_lea.engine.processes import from_main, processes
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.engine.versions import code_version
from recbole_lea.keys import N_PROCESSES, warmup_steps
from recbole_lea.model.fields import TRANSITION
from recbole_lea.plugin import checkpoints, record
from recbole_lea.plugin.top_items import top_items

logger = logging.getLogger(__name__)


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimiser; Adam as one kernel, without temporary arrays the size of the Q head."""
    if isinstance(optimizer, torch.optim.Adam):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


class Batches:
    """The next ``n`` batches of passes through the training loader, which RecBole takes for it.

    An iteration goes on with the pass that the last one has left.

    Attributes:
        batch: the last one.
        generator_state: of the loader's shuffling when the present pass began.
        taken: batches of the present pass so far.
    """

    def __init__(self, loader: Any, n: int, before_batch: Callable[[], None]) -> None:
        self.loader = loader
        self._n = n
        self._before_batch = before_batch
        self.batch: Any = None
        self._start_pass()

    def _start_pass(self) -> None:
        self.generator_state = self.loader.generator.get_state()
        self.taken = 0
        self._rest: Iterator | None = None

    def _end_pass(self, rest: Iterator) -> None:
        if self.taken == len(self.loader):
            next(rest, None)  # as RecBole's own loop: a sampler may draw once more as it ends
            self._start_pass()

    def go_on(self, generator_state: torch.Tensor, taken: int) -> None:
        """Go on in a pass that began so; what it has taken is read without the LE's feedback."""
        self.loader.generator.set_state(generator_state)
        self._start_pass()
        self._rest = iter(self.loader)
        transform, self.loader.transform = self.loader.transform, lambda dataset, batch: batch
        try:
            for _ in range(taken):
                next(self._rest)
        finally:
            self.loader.transform = transform
        self.taken = taken
        self._end_pass(self._rest)

    def __len__(self) -> int:
        return self._n

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator:
        for _ in range(self._n):
            self._before_batch()
            rest = self._rest = self._rest or iter(self.loader)
            self.batch = next(rest)
            self.taken += 1
            yield self.batch
            self._end_pass(rest)


class StepTrainer(Trainer):
    """RecBole's trainer that can validate every N steps (``lea_valid_steps``).

    Epochs, ``eval_step`` and ``stopping_step`` then count chunks of N steps.
    """

    _batches: Batches | None = None

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        # RecBole's name is the second by the clock: of two runs one would lose its model
        path = Path(self.saved_model_file)
        name = str(path.with_stem(f"{path.stem}-{secrets.token_hex(3)}"))
        self.saved_model_file: str = from_main(name) if config[N_PROCESSES] else name

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        batches = self._batches_of(train_data)
        return super()._train_epoch(batches, epoch_idx, loss_func, show_progress)

    def _batches_of(self, loader) -> Batches:
        if self._batches is None or self._batches.loader is not loader:
            n = self.config["lea_valid_steps"] or len(loader)
            self._batches = Batches(loader, n, self._before_batch)
        return self._batches

    def _before_batch(self) -> None:
        """Called before each training batch is collated."""


class LEATrainer(StepTrainer):
    """Trains an ``LEARecommender``.

    Until the warm-up is over, SA2C's advantage is off and there is no augmentation; the
    patience of early stopping starts when it ends. Then the model's top-5 for every training
    transition go to the LE (section 3.4). With ``nproc`` all processes run this in step.
    """

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        self.stages = StageLog()
        self.steps = 0
        self.record: dict = {}
        self._best_result: dict[str, float] | None = None
        self._resumed: dict | None = None
        self._train_data: Any = None
        self._valid_data: Any = None

    def _build_optimizer(self, **kwargs):
        optimizer = super()._build_optimizer(**kwargs)
        # under q_weight 0 every bit is RecBole's
        return fused(optimizer) if self.model.q_weight != 0 else optimizer

    def fit(
        self,
        train_data: AbstractDataLoader,
        valid_data: AbstractDataLoader | None = None,
        **kwargs: Any,
    ) -> tuple[float, dict[str, float] | None]:
        """RecBole's ``fit``, timed; leaves the ``run.json`` beside the log."""
        code = code_version()  # the files may change meanwhile
        self.logger.info("autograd's anomaly detection, which RecBole leaves on, is off")
        self._train_data, self._valid_data = train_data, valid_data
        self.record = {}
        dataset = train_data._dataset
        self.model.share = train_data.share
        if dataset.lea_feedback is not None:
            dataset.lea_feedback.share = train_data.share
        self.stages = dataset.lea_stages
        try:
            self._prepare(train_data)
            with self.stages.stage("training"):
                result = super().fit(train_data, valid_data, **kwargs)
        finally:
            if dataset.lea_pipeline and not self.config[N_PROCESSES]:
                dataset.lea_pipeline.release()
        if not self.model.warmed_up:
            self.logger.warning(
                "training ended before the warm-up (%s): raise `epochs` or lower `warmup`",
                self.config["warmup"],
            )
        elif self._best_is_warmup:
            self.logger.info(
                "the best validation result is from the warm-up: what is tested has seen neither "
                "the advantage nor the augmentation"
            )
        self.record = record.start(self.config, dataset, dataset.lea_pipeline, self.stages, code)
        self.record["best_valid_result"] = dict(result[1] or {})
        self.record["best_is_warmup"] = self._best_is_warmup
        if processes().is_main_process:
            self.record_folder = record.new_folder(self.config)
            record.write(self.record, self.record_folder)
        return result

    def _prepare(self, train_data) -> None:
        """Where the warm-up stands, at the start or after ``resume_checkpoint``."""
        per_epoch = len(train_data)
        self._warmup_steps = warmup_steps(self.config["warmup"], per_epoch)
        self.steps = self.start_epoch * (self.config["lea_valid_steps"] or per_epoch)
        self._warm_epoch = self._epoch = self.start_epoch
        self._best_is_warmup = False
        if not self.model.needs_warmup:
            self.model.warmed_up = True
        elif not self.model.warmed_up:
            # early stopping has no say before the warm-up is over
            self.stopping_step = self.epochs + 1
        elif self.model.switches.augmented and not self._resumed:
            if train_data._dataset.lea_feedback.augmented is None:
                self._augment()
        self._batches_of(train_data)
        if self._resumed:
            checkpoints.restore(self, self._resumed)
            self._resumed = None

    def resume_checkpoint(self, resume_file) -> None:
        """RecBole's; the next ``fit`` then equals the rest of an uninterrupted one."""
        super().resume_checkpoint(resume_file)
        content = torch.load(self.saved_model_file, map_location=self.device, weights_only=True)
        self._resumed = content.get("resume")

    def _save_checkpoint(self, epoch, verbose=True, **kwargs) -> None:
        # outside of a `fit` there is nothing to resume
        resume = checkpoints.resume_state(self) if self._train_data is not None else None
        path = kwargs.get("saved_model_file")
        checkpoints.save(self, epoch, verbose, path, resume)

    def evaluate(
        self, eval_data: AbstractDataLoader, load_best_model: bool = True, **kwargs: Any
    ) -> dict[str, float] | None:
        """RecBole's ``evaluate``; after ``fit``, the test result goes into the ``run.json``."""
        result = super().evaluate(eval_data, load_best_model=load_best_model, **kwargs)
        tested = self.record and result is not None and eval_data is not self._valid_data
        if tested and processes().is_main_process:
            self.record["test_result"] = dict(result)
            record.write(self.record, self.record_folder)
            self.logger.info(record.stage_report(self.stages.stages))
        return result

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        refresh = self.config["augmentation_refresh"]
        due = refresh and (epoch_idx - self._warm_epoch) % refresh == 0
        if due and self.model.warmed_up and self.model.switches.augmented:
            self._augment()
        self._epoch = epoch_idx
        return super()._train_epoch(train_data, epoch_idx, loss_func, show_progress)

    def _check_nan(self, loss) -> None:
        """RecBole's, for infinite losses too; says which transitions made it, and what is left.

        Raises:
            ValueError: the loss is not finite. No weight has been touched by it.
        """
        if torch.isfinite(loss):
            return
        assert self._batches is not None
        transitions = self._batches.batch[TRANSITION].tolist()
        saved = Path(self.saved_model_file)
        left = f"the best model so far is in {saved}" if saved.is_file() else "no model is saved"
        raise ValueError(
            f"the training loss is {loss.item()} at step {self.steps}, in the batch of the "
            f"transitions {transitions}; {left}. Lower `learning_rate` or `q_weight`, or set "
            "`clip_grad_norm`"
        )

    def _before_batch(self) -> None:
        if self.steps >= self._warmup_steps and not self.model.warmed_up:
            self._end_warmup()
        self.steps += 1

    def _end_warmup(self) -> None:
        self.model.warmed_up = True
        self._warm_epoch = self._epoch
        self.cur_step = 0
        self.stopping_step = self.config["stopping_step"]
        self.logger.info(set_color("warm-up ends", "green") + f" after {self.steps} steps")
        if self.config["optimizer_reset"]:
            self.optimizer = self._build_optimizer()
        if self.model.switches.augmented:
            self._augment()

    def _valid_epoch(self, valid_data, show_progress=False):
        score, result = super()._valid_epoch(valid_data, show_progress)
        best = self.best_valid_score
        if score >= best if self.valid_metric_bigger else score <= best:
            self._best_is_warmup = not self.model.warmed_up
            self._best_result = {name: float(value) for name, value in result.items()}
        return score, result

    def _augment(self) -> None:
        """The LE picks one of the model's top-5 for every training transition."""
        dataset = self._train_data._dataset
        with self.stages.stage("top-5 of the warm-up model"):
            candidates = top_items(self.model, self.config, dataset)
        # a run that builds the LE only here must go on with the same draws as one that reads it
        with torch.random.fork_rng():
            actions, scores = dataset.lea_pipeline.select(
                candidates, want_rewards=self.model.switches.le_reward
            )
        dataset.lea_feedback.augment(actions, scores, candidates)

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        """RecBole's line, with the paper's names for the terms."""
        output = super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        if isinstance(losses, tuple):
            for number, name in enumerate(self.model.loss_names, 1):
                output = output.replace(f"train_loss{number}", name)
        return output

"""RecBole's trainer with a warm-up, the LE's augmentation at its end, and a ``run.json``."""

import copy
import logging
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer
from recbole.utils import set_color

from recbole_lea.engine.processes import collected, from_main, processes
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.engine.versions import code_version
from recbole_lea.model.fields import ROW
from recbole_lea.plugin import checkpoints as resume
from recbole_lea.plugin import record
from recbole_lea.plugin.keys import warmup_steps

logger = logging.getLogger(__name__)


def fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimiser; Adam as one kernel, without temporary arrays the size of the Q head."""
    if isinstance(optimizer, torch.optim.Adam):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


class _Batches:
    """The training loader; calls ``before_batch`` before each batch is collated.

    Attributes:
        batch: the last one.
    """

    def __init__(self, loader, before_batch) -> None:
        self._loader = loader
        self._before_batch = before_batch
        self.batch: Any = None

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator:
        batches = iter(self._loader)
        for _ in range(len(self._loader)):
            self._before_batch()
            self.batch = next(batches)
            yield self.batch
        next(batches, None)  # as RecBole's own loop: a sampler may draw once more as it ends


class _Chunk:
    """The next ``n`` batches of an endless run through the training loader.

    Attributes:
        generator_state: of the loader's shuffling when the present pass began.
        taken: batches of this pass so far.
    """

    def __init__(self, loader, n: int) -> None:
        self._loader = loader
        self._n = n
        self._start_pass()

    def _start_pass(self) -> None:
        self.generator_state = self._loader.generator.get_state()
        self.taken = 0
        self._batches = iter(self._loader)

    def skip(self, n: int) -> None:
        """Go on after the first ``n`` batches of a pass, without the LE's feedback to them."""
        transform = self._loader.transform
        self._loader.transform = lambda dataset, interaction: interaction
        try:
            for _ in range(n):
                next(self._batches)
        finally:
            self._loader.transform = transform
        self.taken = n

    def __len__(self) -> int:
        return self._n

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator:
        for _ in range(self._n):
            try:
                batch = next(self._batches)
            except StopIteration:
                self._start_pass()
                batch = next(self._batches)
            self.taken += 1
            yield batch


class StepTrainer(Trainer):
    """RecBole's trainer that can validate every N steps (``lea_valid_steps``).

    Epochs, ``eval_step`` and ``stopping_step`` then count chunks of N steps.
    """

    _chunk: _Chunk | None = None

    def __init__(self, config, model) -> None:
        super().__init__(config, model)
        # RecBole's name is the second by the clock: of two runs one would lose its model
        path = Path(self.saved_model_file)
        name = str(path.with_stem(f"{path.stem}-{secrets.token_hex(3)}"))
        self.saved_model_file: str = from_main(name) if config["ranks"] else name

    def _train_epoch(self, train_data, epoch_idx, loss_func=None, show_progress=False):
        if self.config["lea_valid_steps"]:
            train_data = self._open_chunk(train_data)
        return super()._train_epoch(self._watched(train_data), epoch_idx, loss_func, show_progress)

    def _open_chunk(self, train_data) -> _Chunk:
        if self._chunk is None or self._chunk._loader is not train_data:
            self._chunk = _Chunk(train_data, self.config["lea_valid_steps"])
        return self._chunk

    def _watched(self, batches):
        return batches


class LEATrainer(StepTrainer):
    """Trains an ``LEARecommender``.

    Until the warm-up is over, SA2C's advantage is off and there is no augmentation; the
    patience of early stopping starts when it ends. Then the model's top-5 for every training
    transition go to the LE (section 3.4).

    With RecBole's ``nproc`` every process runs this with its share of each batch: all end the
    warm-up, choose the copy to train and stop at the same step.
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

    @property
    def has_begun(self) -> bool:
        """Whether there is anything for ``resume_state`` to tell."""
        return self._train_data is not None

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
        self.stages = getattr(dataset, "lea_stages", self.stages)
        try:
            self._prepare(train_data)
            with self.stages.stage("training"):
                result = super().fit(train_data, valid_data, **kwargs)
        finally:
            pipeline = getattr(dataset, "lea_pipeline", None)
            if pipeline and not self.config["ranks"]:
                pipeline.release()
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
        self.record = record.start(self.config, dataset, self.stages, code)
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
        elif (
            self.model.switches.augmented
            and not self._resumed
            and train_data._dataset.lea_feedback.augmented is None
        ):
            self._augment()
        if self._resumed:
            self._go_on(train_data, self._resumed)
            self._resumed = None

    def resume_checkpoint(self, resume_file) -> None:
        """RecBole's; the next ``fit`` then equals the rest of an uninterrupted one."""
        super().resume_checkpoint(resume_file)
        content = torch.load(self.saved_model_file, map_location=self.device, weights_only=True)
        self._resumed = content.get("resume")

    def resume_state(self) -> dict:
        """What ``resume_checkpoint`` needs beside RecBole's checkpoint; within a ``fit``.

        With ``nproc`` all processes have to call it.
        """
        random = [resume.random_state(self)]
        state = {
            "warm_epoch": self._warm_epoch,
            "best_is_warmup": self._best_is_warmup,
            "best_valid_result": self._best_result,
            "random": collected(random) if self.config["ranks"] else random,
            "loader": self._train_data.generator.get_state(),
            "taken": 0,
        }
        if self._chunk is not None:
            state |= {"loader": self._chunk.generator_state, "taken": self._chunk.taken}
        if chosen := resume.augmentation(self):
            state["augmentation"] = chosen
        return state

    def _go_on(self, train_data, state: dict) -> None:
        here, there = self.config["ranks"] or 1, len(state["random"])
        if here != there:
            raise ValueError(
                f"{self.saved_model_file} was written by a training in {there} processes, this is "
                f"one in {here}: resume it with --nproc (or nodes) for {there}"
            )
        self._warm_epoch = state["warm_epoch"]
        self._best_is_warmup = state["best_is_warmup"]
        # RecBole's checkpoint has its score alone
        self._best_result = self.best_valid_result = state.get("best_valid_result")
        train_data.generator.set_state(state["loader"].cpu())
        if "augmentation" in state:
            resume.set_augmentation(self, state["augmentation"])
        if self.config["lea_valid_steps"]:
            self._chunk = None
            self._open_chunk(train_data).skip(state["taken"])
        rank = processes().process_index if self.config["ranks"] else 0
        resume.set_random_state(self, state["random"][rank])

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

    def _watched(self, batches):
        self._batches = _Batches(batches, self._before_batch)
        return self._batches

    def _check_nan(self, loss) -> None:
        """RecBole's, for infinite losses too; says which rows made it, and what is left.

        Raises:
            ValueError: the loss is not finite. No weight has been touched by it.
        """
        if torch.isfinite(loss):
            return
        rows = self._batches.batch[ROW].tolist()
        saved = Path(self.saved_model_file)
        left = f"the best model so far is in {saved}" if saved.is_file() else "no model is saved"
        raise ValueError(
            f"the training loss is {loss.item()} at step {self.steps}, in the batch of the data's "
            f"rows {rows}; {left}. Lower `learning_rate` or `q_weight`, or set `clip_grad_norm`"
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
        bigger = self.valid_metric_bigger
        best = self.best_valid_score
        if score >= best if bigger else score <= best:
            self._best_is_warmup = not self.model.warmed_up
            self._best_result = {name: float(value) for name, value in result.items()}
        return score, result

    def _augment(self) -> None:
        """The LE picks one of the model's top-5 for every training transition."""
        dataset = self._train_data._dataset
        with self.stages.stage("top-5 of the warm-up model"):
            candidates = self._top_k(dataset)
        # a run that builds the LE only here must go on with the same draws as one that reads it
        with torch.random.fork_rng():
            actions, scores = dataset.lea_pipeline.select(
                candidates, want_rewards=self.model.switches.le_reward
            )
        dataset.lea_feedback.augment(actions, scores, candidates)

    @torch.no_grad()
    def _top_k(self, dataset, k: int = 5) -> np.ndarray:
        """Top-k items in score order for each training transition, as LE item indices [n, k]."""
        plain = copy.copy(dataset)
        plain.lea_feedback = None  # scores need no feedback
        loader = FullSortEvalDataLoader(self.config, plain, None)
        item_ids = dataset.lea_item_ids
        le_index = torch.zeros(int(item_ids.max()) + 1, dtype=torch.int64)
        le_index[item_ids] = torch.arange(len(item_ids))
        without_history = self.config["exclude_history"]
        sequences = dataset.lea_pipeline.sequences
        left = len(item_ids) - max(map(len, sequences.items))  # at least, and the next item
        if without_history == "auto":
            without_history = left >= k and not sequences.repeats
        k = min(k, left if without_history else len(item_ids) - 1)
        if k < 1:
            raise ValueError(
                f"`exclude_history: True`: a history may hold all {len(item_ids)} items: set it to "
                "auto or False"
            )
        result = np.zeros((len(dataset), k), dtype=np.int64)
        found = []
        was_training = self.model.training
        self.model.eval()
        for interaction, _, _, target in loader:
            scores = self.model.full_sort_predict(interaction.to(self.device))
            scores[:, 0] = -torch.inf
            rows = dataset.lea_transitions[interaction[ROW].cpu().numpy()]
            if without_history:  # all of it: the model's window may have its newest part alone
                pairs = zip(*sequences.locate(rows), strict=True)
                histories = [sequences.history(s, t) for s, t in pairs]
                owner = np.repeat(np.arange(len(rows)), [len(items) for items in histories])
                scores[owner, item_ids[np.concatenate(histories)]] = -torch.inf
            if self.config["exclude_target"]:
                scores[torch.arange(len(target)), target.to(scores.device)] = -torch.inf
            top = scores.topk(k, dim=1).indices.cpu()
            found.append((rows, le_index[top].numpy()))
        self.model.train(was_training)
        for rows, top in collected(found) if self.config["ranks"] else found:
            result[rows] = top
        return result

    def _generate_train_loss_output(self, epoch_idx, s_time, e_time, losses):
        """RecBole's line, with the paper's names for the terms."""
        output = super()._generate_train_loss_output(epoch_idx, s_time, e_time, losses)
        if isinstance(losses, tuple):
            for number, name in enumerate(self.model.loss_names, 1):
                output = output.replace(f"train_loss{number}", name)
        return output

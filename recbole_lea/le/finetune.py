"""Fine-tune the LE: reward model (Eq. 1) and state model (Eq. 2) share one adapter."""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from recbole_lea.engine.memory import add_gradients
from recbole_lea.engine.packing import PackedBatch, pack_snugly
from recbole_lea.engine.processes import from_main, own_part, processes, sum_gradients
from recbole_lea.engine.progress import PromptBar
from recbole_lea.equations import (
    reward_loss,
    selection_loss,
    state_pairwise_loss,
    state_softmax_loss,
)
from recbole_lea.le.adapter import load_trained_state, trained_state
from recbole_lea.le.environment import Environment, PromptEnds
from recbole_lea.le.quality import Pairs, comparisons, evaluate, selection_accuracy, selections
from recbole_lea.le.sequences import Sequences, uniform_except
from recbole_lea.le.settings import LESettings
from recbole_lea.store.files import read_record, read_tensors, write_bytes, write_record

logger = logging.getLogger(__name__)

# Consecutive transitions of one user that stand in a batch together, so that they share
# their history's tokens. More saves little and makes batches less diverse.
SEGMENT = 5

CHECKPOINT = "checkpoint.json"


def split_sequences(sequences: Sequences, settings: LESettings) -> tuple[list[int], list[int]]:
    """Draw the sequences the LE learns from and those it is measured on; their indices.

    ``lea_finetune_fraction`` of all (at least one), and from the rest as many as give
    ``lea_finetune_eval`` transitions. A fraction above .9 learns from nine tenths, so that there
    is something to measure (deviation 19).
    """
    rng = np.random.default_rng([settings.seed, 1])
    order = [s for s in rng.permutation(len(sequences)) if len(sequences.items[s]) > 1]
    if not order:
        raise ValueError("no training sequence has two items: the LE has nothing to learn from")
    n_learn = max(1, round(settings.finetune_fraction * len(order)))
    n_learn = min(n_learn, max(1, len(order) - math.ceil(len(order) / 10)))
    measured, n = [], 0
    for s in order[n_learn:]:
        if n >= settings.finetune_eval:
            break
        measured.append(int(s))
        n += len(sequences.items[s]) - 1
    return [int(s) for s in order[:n_learn]], measured


def epoch_batches(
    sequences: Sequences, learned: list[int], batch_size: int, rng: np.random.Generator
) -> list[Pairs]:
    """Shuffled batches of transitions (sequence, t), in segments that share their history."""
    segments = []
    for s in learned:
        pairs = [(s, t) for t in range(1, len(sequences.items[s]))]
        segments += [pairs[i : i + SEGMENT] for i in range(0, len(pairs), SEGMENT)]
    flat = [pair for i in rng.permutation(len(segments)) for pair in segments[i]]
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


def finetune(
    environment: Environment,
    sequences: Sequences,
    settings: LESettings,
    folder: Path,
    progress_bar: bool = True,
) -> list[dict]:
    """Train adapter, score head and state head; the environment holds the result.

    After each epoch a checkpoint is written, from which a killed run goes on to the same
    result. Several processes share each batch and sum their gradients.

    Returns:
        One record per epoch: mean losses and the evaluation on held-out sequences.
    """
    learned, measured = split_sequences(sequences, settings)
    logger.info(
        "LE fine-tuning on %d of %d training sequences, measured on %d others",
        len(learned), len(sequences), len(measured),
    )  # fmt: skip
    parameters = [p for p in environment.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.finetune_lr, fused=True)
    history = _load_checkpoint(environment, optimizer, folder)
    from_main(None)  # the main process deletes the checkpoint when all is done: all have read it
    pairs = [(s, t) for s in measured for t in range(1, len(sequences.items[s]))]
    pairs = pairs[: settings.finetune_eval]
    for epoch in range(len(history), settings.finetune_epochs):
        rng = np.random.default_rng([settings.seed, 2, epoch])
        batches = epoch_batches(sequences, learned, settings.finetune_batch_size, rng)
        record = _epoch(environment, optimizer, sequences, batches, rng, epoch, progress_bar)
        if pairs:
            record |= _measure(environment, sequences, pairs, record, progress_bar)
        history.append(record)
        if processes().is_main_process:
            step = (epoch + 1) * len(batches)
            _save_checkpoint(environment, optimizer, step, history, folder)
    return history


def _epoch(environment, optimizer, sequences, batches, rng, epoch, progress_bar) -> dict:
    """All steps of an epoch; its mean losses."""
    settings, totals = environment.settings, np.zeros(3)
    n_steps = settings.finetune_epochs * len(batches)
    bar = tqdm(batches, desc=f"LE fine-tuning {epoch}", unit="step", disable=not progress_bar)
    # the same stream of dropout masks, whether or not the run was interrupted before
    torch.manual_seed((settings.seed * 1000 + epoch) * 1000 + processes().process_index)
    for step, batch in enumerate(bar, epoch * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = settings.finetune_lr * _schedule(step, n_steps, settings)
        losses = _train_step(environment, optimizer, sequences, batch, rng, settings)
        totals += np.array(losses) * len(batch)
        bar.set_postfix(reward=f"{losses[0]:.3f}", state=f"{losses[1]:.3f}")
    means = totals / sum(map(len, batches))
    names = ("reward_loss", "state_loss", "train_accuracy")
    return {"epoch": epoch} | dict(zip(names, means, strict=True))


def _measure(environment, sequences, pairs, record, progress_bar) -> dict:
    """The LE on held-out transitions, after an epoch with this record."""
    settings, epoch = environment.settings, record["epoch"]
    with PromptBar(f"LE evaluation {epoch}", 3 * len(pairs), progress_bar) as bar:
        found = evaluate(environment, sequences, pairs, settings.seed, bar)
    logger.info(
        "LE epoch %(epoch)d: reward loss %(reward_loss).4f, state loss %(state_loss).4f; held out "
        "(%(n)d transitions): reward accuracy %(accuracy).3f, margin %(margin).3f, "
        "state hit@10 %(hit_10).4f, ndcg@10 %(ndcg_10).4f", record | found,
    )  # fmt: skip
    if settings.selection_weight:
        with PromptBar(f"LE selection {epoch}", len(pairs), progress_bar) as bar:
            right = selection_accuracy(environment, sequences, pairs, settings, bar)
        logger.info("LE epoch %d: selection accuracy %.3f", epoch, right)
        found["selection_accuracy"] = right
    return found


def _schedule(step: int, n_steps: int, settings: LESettings) -> float:
    """Factor of the learning rate: linear warm-up, then constant or cosine to zero."""
    warmup = min(settings.finetune_warmup, n_steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    if settings.finetune_schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


class _Lesson(NamedTuple):
    """What a step learns from."""

    items: Tensor  # the next items [B]
    prompts: list[list[list[int]]]  # of each transition: 1 + K rewards, state, selection if wanted
    places: Tensor | None  # where the next items stand in the lists of the selection prompts [B]


def _lesson(environment, sequences, batch, rng, settings) -> _Lesson:
    positives = np.array([sequences.action(s, t) for s, t in batch])
    shape = (len(batch), settings.finetune_negatives)
    negatives = uniform_except(rng, positives[:, None], len(environment.item_tokens), shape)
    prompts = comparisons(environment, sequences, batch, positives, negatives)
    device, places = environment.device, None
    if settings.selection_weight:
        lists, asked = selections(environment, sequences, batch, positives, rng)
        places = torch.from_numpy((lists == positives[:, None]).argmax(1)).to(device)
        prompts = [[*group, prompt] for group, prompt in zip(prompts, asked, strict=True)]
    return _Lesson(torch.from_numpy(positives).to(device), prompts, places)


def _train_step(
    environment: Environment,
    optimizer: torch.optim.Optimizer,
    sequences: Sequences,
    batch: Pairs,
    rng: np.random.Generator,
    settings: LESettings,
) -> tuple[float, ...]:
    """One optimiser step; returns mean reward loss, state loss and pairwise accuracy."""
    environment.train()
    lesson = _lesson(environment, sequences, batch, rng, settings)
    own = own_part(range(len(batch)))
    prompts = lesson.prompts[own.start : own.stop]
    parameters = [p for p in environment.parameters() if p.requires_grad]
    optimizer.zero_grad()

    def learn(packed: PackedBatch) -> Tensor:
        """Add the gradient of some rows; sums of the two losses and of the right pairs [3]."""
        loss, sums = _losses(environment, lesson, packed, own.start, settings)
        if not torch.isfinite(loss):
            raise ValueError(f"LE fine-tuning: the loss is {loss.item()}; lower lea_finetune_lr")
        add_gradients(loss, parameters)
        return sums.detach()

    totals = torch.zeros(3, device=environment.device)
    for packed in pack_snugly(prompts, settings.row_length, settings.batch_rows):
        totals += sum(environment.within_memory(packed, learn))
    totals = sum_gradients(parameters, totals)
    if settings.finetune_clip:
        torch.nn.utils.clip_grad_norm_(parameters, settings.finetune_clip)
    optimizer.step()
    return tuple((totals / len(batch)).tolist())


def _losses(environment, lesson, packed, first, settings) -> tuple[Tensor, Tensor]:
    """The loss of some rows, whose transitions count from ``first``; and sums for the log [3]."""
    ends = environment.ends(packed, environment.hidden(packed))
    size, k = len(lesson.prompts[0]), settings.finetune_negatives  # prompts of a transition
    rows = first + packed.prompts[0::size] // size
    target = lesson.items[rows]  # [N]

    def prompts(place: int) -> PromptEnds:
        return PromptEnds(ends.hidden[place::size], ends.items[place::size])

    rewards = environment.reward_of(ends).view(-1, size)  # [N, 1 + K + ...]
    positive, negative = rewards[:, :1], rewards[:, 1 : 1 + k]
    reward = reward_loss(positive, negative).mean(1)  # [N]
    head = environment.state_head
    states = head.query(environment.state_of(prompts(1 + k)))  # [N, d]
    if settings.state_loss == "pairwise":
        state = state_pairwise_loss(states, head.keys, target, lesson.items)
    else:
        state = state_softmax_loss(states, head.keys, target)
    loss = (reward + settings.state_weight * state).sum() / len(lesson.items)
    if lesson.places is not None:
        n_items = len(environment.item_tokens)
        scores = environment.label_scores_of(prompts(size - 1))[:, :n_items]
        selection = selection_loss(scores, lesson.places[rows])
        loss = loss + settings.selection_weight * selection.sum() / len(lesson.items)
    right = (positive > negative).float().mean(1).sum()
    return loss, torch.stack([reward.sum(), state.sum(), right])


def _save_checkpoint(environment, optimizer, step: int, history: list[dict], folder: Path) -> None:
    state = trained_state(environment)
    for i, moments in optimizer.state_dict()["state"].items():
        for name in ("exp_avg", "exp_avg_sq"):
            state[f"optimizer.{i}.{name}"] = moments[name].cpu().contiguous()
    name = f"checkpoint-{len(history)}.safetensors"
    write_bytes(folder / name, save(state))
    write_record(folder / CHECKPOINT, {"step": step, "history": history}, [name])
    for older in folder.glob("checkpoint-*.safetensors"):
        if older.name != name:
            older.unlink()


def _load_checkpoint(environment, optimizer, folder: Path) -> list[dict]:
    """Restore the last finished epoch; the records so far: none if it was altered."""
    record = read_record(folder / CHECKPOINT)
    if record is None:
        return []
    (name,) = record["files"]
    state = read_tensors(folder / name)
    load_trained_state(
        environment, {k: v for k, v in state.items() if not k.startswith("optimizer.")}
    )
    restored = optimizer.state_dict()
    restored["state"] = {
        i: {"step": torch.tensor(float(record["step"]))}
        | {moment: state[f"optimizer.{i}.{moment}"] for moment in ("exp_avg", "exp_avg_sq")}
        for i in range(len(restored["param_groups"][0]["params"]))
    }
    optimizer.load_state_dict(restored)
    logger.info("LE fine-tuning goes on after epoch %d", len(record["history"]) - 1)
    return record["history"]

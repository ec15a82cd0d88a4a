"""Fine-tune the LE: reward model (Eq. 1) and state model (Eq. 2) share one adapter."""

import itertools
import logging
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from recbole_lea.engine.memory import within_memory
from recbole_lea.engine.packing import pack_snugly
from recbole_lea.engine.processes import from_main, own_part, processes, sum_gradients
from recbole_lea.equations import reward_loss, state_pairwise_loss, state_softmax_loss
from recbole_lea.le.environment import (
    Environment,
    PromptEnds,
    load_trained_state,
    trained_state,
)
from recbole_lea.le.quality import Pairs, comparisons, evaluate
from recbole_lea.le.sequences import Sequences, popular_except, uniform_except
from recbole_lea.le.settings import LESettings
from recbole_lea.store.files import read_record, read_tensors, write_bytes, write_record

logger = logging.getLogger(__name__)

# Consecutive transitions of one user that stand in a batch together, so that they share
# their history's tokens. More saves little and makes batches less diverse.
SEGMENT = 5

HISTORY = "history.json"
CHECKPOINT, MOMENTS = "checkpoint.json", ("exp_avg", "exp_avg_sq")  # Adam's


def split_sequences(sequences: Sequences, settings: LESettings) -> tuple[list[int], list[int]]:
    """Draw the sequences the LE learns from and those it is measured on; their indices.

    ``lea_finetune_fraction`` of all (at least one), and from the rest as many as give
    ``lea_finetune_eval`` transitions. A fraction above .9 learns from nine tenths, so that there
    is something to measure (deviation 19).
    """
    rng = np.random.default_rng([settings.seed, 1])
    order = [int(s) for s in rng.permutation(len(sequences)) if len(sequences.items[s]) > 1]
    if not order:
        raise ValueError("no training sequence has two items: the LE has nothing to learn from")
    n_learn = max(1, round(settings.finetune_fraction * len(order)))
    n_learn = min(n_learn, max(1, len(order) - math.ceil(len(order) / 10)))
    learned, rest = order[:n_learn], order[n_learn:]
    before = itertools.accumulate((len(sequences.items[s]) - 1 for s in rest), initial=0)
    return learned, [s for s, n in zip(rest, before, strict=False) if n < settings.finetune_eval]


def held_out(sequences: Sequences, settings: LESettings) -> Pairs:
    """The training transitions that the LE does not learn from and is measured on."""
    _, measured = split_sequences(sequences, settings)
    pairs = [(s, t) for s in measured for t in range(1, len(sequences.items[s]))]
    return pairs[: settings.finetune_eval]


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
    environment: Environment, sequences: Sequences, folder: Path, progress_bar: bool = True
) -> list[dict]:
    """Train adapter, score head and state head; the environment holds the result.

    After each epoch a checkpoint is written, from which a killed run goes on to the same
    result. Several processes share each batch and sum their gradients. Returns one record per
    epoch: mean losses and the evaluation on held-out sequences.
    """
    settings = environment.settings
    learned, measured = split_sequences(sequences, settings)
    logger.info("LE fine-tuning on %d of %d training sequences", len(learned), len(sequences))
    parameters = [p for p in environment.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=settings.finetune_lr, fused=True)
    history = _load_checkpoint(environment, optimizer, folder)
    from_main(None)  # the main process deletes the checkpoint when all is done: all have read it
    pairs = held_out(sequences, settings)
    for epoch in range(len(history), settings.finetune_epochs):
        record = _epoch(environment, optimizer, sequences, learned, epoch, progress_bar)
        if pairs:
            record |= evaluate(environment, sequences, pairs, settings.seed)
        # docs/code.md says what the names mean
        logger.info("LE: %s", ", ".join(f"{name} {value:.4g}" for name, value in record.items()))
        history.append(record)
        if processes().is_main_process:
            _save_checkpoint(environment, optimizer, history, folder)
    return history


def _epoch(environment, optimizer, sequences, learned, epoch, progress_bar) -> dict:
    """All steps of an epoch; its mean losses."""
    settings, totals = environment.settings, np.zeros(3)
    rng = np.random.default_rng([settings.seed, 2, epoch])
    batches = epoch_batches(sequences, learned, settings.finetune_batch_size, rng)
    n_steps = settings.finetune_epochs * len(batches)
    bar = tqdm(batches, desc=f"LE fine-tuning {epoch}", unit="step", disable=not progress_bar)
    # the same stream of dropout masks, whether or not the run was interrupted before
    torch.manual_seed((settings.seed * 1000 + epoch) * 1000 + processes().process_index)
    for step, batch in enumerate(bar, epoch * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = settings.finetune_lr * _schedule(step, n_steps, settings)
        losses = _train_step(environment, optimizer, sequences, batch, rng)
        totals += np.array(losses) * len(batch)
        reward, state = (f"{loss:.3f}" for loss in losses[:2])
        bar.set_postfix(reward=reward, state=state, refresh=False)
    means = totals / sum(map(len, batches))
    names = ("reward_loss", "state_loss", "train_accuracy")
    return {"epoch": epoch} | dict(zip(names, means, strict=True))


def _schedule(step: int, n_steps: int, settings: LESettings) -> float:
    """Factor of the learning rate: linear warm-up, then constant or cosine to zero."""
    warmup = min(settings.finetune_warmup, n_steps // 5)
    if step < warmup or settings.finetune_schedule == "constant":
        return min(1.0, (step + 1) / max(1, warmup))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, n_steps - warmup)))


@within_memory()
def _train_step(environment, optimizer, sequences, batch, rng) -> tuple[float, ...]:
    """One optimiser step; returns mean reward loss, state loss and pairwise accuracy."""
    environment.train()
    settings = environment.settings
    positives = np.array([sequences.action(s, t) for s, t in batch])
    shape = (len(batch), settings.finetune_negatives)
    if settings.negative_distribution == "popularity":
        negatives = popular_except(rng, positives[:, None], sequences, shape)
    else:
        negatives = uniform_except(rng, positives[:, None], len(environment.item_tokens), shape)
    items, own = torch.from_numpy(positives).to(environment.device), own_part(range(len(batch)))
    prompts = comparisons(environment, sequences, batch, np.c_[positives, negatives])
    prompts = prompts[own.start : own.stop]
    parameters = [p for p in environment.parameters() if p.requires_grad]
    optimizer.zero_grad()
    totals = torch.zeros(3, device=environment.device)
    for packed in pack_snugly(prompts, settings.row_length, settings.batch_rows):
        loss, sums = _losses(environment, packed, items, own.start)
        if not torch.isfinite(loss):
            raise ValueError(f"LE fine-tuning: the loss is {loss.item()}; lower lea_finetune_lr")
        loss.backward()
        totals += sums.detach()
    totals = sum_gradients(parameters, totals)
    if settings.finetune_clip:
        torch.nn.utils.clip_grad_norm_(parameters, settings.finetune_clip)
    optimizer.step()
    return tuple((totals / len(batch)).tolist())


def _losses(environment, packed, items, first) -> tuple[Tensor, Tensor]:
    """The loss of some of the batch's rows, with sums of losses and right pairs for the log [3].

    ``items`` are the next items of the batch [B]; the rows' transitions count from ``first``.
    """
    ends = environment.ends(packed, environment.hidden(packed))
    settings, k = environment.settings, environment.settings.finetune_negatives
    size = k + 2  # prompts of a transition: the next item's reward, K negatives', the state
    target = items[first + packed.prompts[0::size] // size]  # [N]
    rewards = environment.reward_of(ends).view(-1, size)  # [N, K + 2]
    positive, negative = rewards[:, :1], rewards[:, 1 : 1 + k]
    reward = reward_loss(positive, negative).mean(1)  # [N]
    head = environment.state_head
    at_state = PromptEnds(ends.hidden[k + 1 :: size], ends.items[k + 1 :: size])
    states = head.query(environment.state_of(at_state))  # [N, d]
    if settings.state_loss == "pairwise":
        state = state_pairwise_loss(states, head.keys, target, items)
    else:
        state = state_softmax_loss(states, head.keys, target)
    loss = (reward + settings.state_weight * state).sum() / len(items)
    right = (positive > negative).float().mean(1).sum()
    return loss, torch.stack([reward.sum(), state.sum(), right])


def _save_checkpoint(environment, optimizer, history: list[dict], folder: Path) -> None:
    state, moments = trained_state(environment), optimizer.state_dict()["state"]
    for i, own in moments.items():
        state |= {f"optimizer.{i}.{name}": own[name].cpu() for name in MOMENTS}
    name = f"checkpoint-{len(history)}.safetensors"
    write_bytes(folder / name, save(state))
    record = {"step": int(moments[0]["step"]), "history": history}
    write_record(folder / CHECKPOINT, record, [name])
    (folder / f"checkpoint-{len(history) - 1}.safetensors").unlink(missing_ok=True)


def _load_checkpoint(environment, optimizer, folder: Path) -> list[dict]:
    """Restore the last finished epoch; the records so far: none if it was altered."""
    record = read_record(folder / CHECKPOINT)
    if record is None:
        return []
    (name,) = record["files"]
    state = read_tensors(folder / name)
    load_trained_state(environment, state)
    restored = optimizer.state_dict()
    for i in range(len(restored["param_groups"][0]["params"])):
        own = {moment: state[f"optimizer.{i}.{moment}"] for moment in MOMENTS}
        restored["state"][i] = own | {"step": torch.tensor(float(record["step"]))}
    optimizer.load_state_dict(restored)
    logger.info("LE fine-tuning goes on after epoch %d", len(record["history"]) - 1)
    return record["history"]

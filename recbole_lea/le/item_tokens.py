"""Item tokenization (paper section 3.2): condense an item's text into one input embedding.

The LLM stays as it is. For each item, a vector in the place of ``{item}`` is optimised so
that the LLM, given only that vector, generates the rest of the item's sentence.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor
from tqdm import tqdm

from recbole_lea.engine.attention import next_word_logits
from recbole_lea.engine.llm import LLM
from recbole_lea.engine.memory import within_memory
from recbole_lea.engine.packing import PackedBatch, pack
from recbole_lea.engine.processes import own_part, processes
from recbole_lea.equations import sentence_loss
from recbole_lea.le.environment import Environment
from recbole_lea.le.prompts import AT_ONCE, bos_ids, following, ids_of
from recbole_lea.store.arrays import ArrayStore, pieces
from recbole_lea.store.files import write_array

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

logger = logging.getLogger(__name__)

# Of item vectors without an LLM
TFIDF_WIDTH = 256

TOKENIZATION, TOKENS = "item tokenization", "tokens.npy"

# Items that are tokenized together: what a kill can lose, against the optimiser's batch.
BUCKET = 256


def tokenize(le: "Pipeline", llm: LLM | None, folder: Path) -> dict[str, Any]:
    """Compute the stage ``items``: write ``TOKENS`` [n_items, d] into its folder.

    Returns the mean sentence loss before and after: None without iterations.
    """
    settings = le.settings
    if llm is None:
        if processes().is_main_process:
            write_array(folder / TOKENS, tfidf(le.sentences, settings.seed))
        return {"losses": None}
    environment = Environment(llm, torch.zeros(1, llm.width), settings, adapted=False)
    ids, cut = sentence_ids(le.sentences, environment, llm.tokenizer)
    if cut:
        logger.log(
            logging.WARNING if cut > 0.1 * len(ids) else logging.INFO,
            "%d of %d item sentences (%.0f %%) were cut to %d tokens: what stands last is lost; "
            "raise lea_item_max_tokens, or put what counts first in lea_item_sentence",
            cut, len(ids), 100 * cut / len(ids), settings.item_max_tokens,
        )  # fmt: skip
    start = initial_tokens(ids, environment)
    if settings.item_iterations == 0:  # measuring the losses alone would take minutes
        if processes().is_main_process:
            write_array(folder / TOKENS, start.numpy())
        return {"losses": None}
    # items of similar length together; the order decides nothing else
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    bounds = [*range(0, len(ids), BUCKET), len(ids)]
    arrays = {"ordered": ((len(ids), llm.width), "float32"), "losses": ((len(ids), 2), "float32")}
    store = ArrayStore(folder, arrays, bounds, le.keys["items"])
    _fill(store, environment, ids, order, start, le.progress_bar)
    if not processes().is_main_process:
        return {}
    losses = store.array("losses").mean(0)
    logger.info("item tokenization: mean sentence loss %.3f -> %.3f", *losses)
    tokens = np.empty((len(ids), llm.width), dtype=np.float32)
    for part, place in zip(pieces(store.array("ordered")), pieces(np.array(order)), strict=True):
        tokens[place] = part
    write_array(folder / TOKENS, tokens)
    return {"losses": losses.tolist()}


def _fill(store, environment, ids, order, start, progress_bar) -> None:
    """Tokenize the missing buckets, one in each process at a time."""
    vocab_size, missing = environment.vocab_size, store.missing()
    steps = range(0, len(missing), at_once := processes().num_processes)
    for first in tqdm(steps, TOKENIZATION, unit=f" {BUCKET} items", disable=not progress_bar):
        made = []
        for bucket in own_part(missing[first : first + at_once]):
            members = order[slice(*store.bounds[bucket : bucket + 2])]
            local = [
                [vocab_size + i if t >= vocab_size else t for t in ids[item]]
                for i, item in enumerate(members)
            ]
            made.append((bucket, *tokenize_bucket(environment, local, start[members])))
        for bucket, vectors, losses in gather_object(made):
            store.write(bucket, {"ordered": vectors, "losses": losses})


def sentence_ids(
    sentences: list[str], environment: Environment, tokenizer: Any
) -> tuple[list[list[int]], int]:
    """Token ids of each sentence, the item being the virtual token of its position.

    Longer ones than ``lea_item_max_tokens`` are cut; also returned is how many were.
    """
    limit, bos = environment.settings.item_max_tokens, bos_ids(tokenizer)
    ids: list[list[int]] = []
    cut = 0
    for first in range(0, len(sentences), AT_ONCE):
        parts = [sentence.partition("{item}") for sentence in sentences[first : first + AT_ONCE]]
        # as in ``Template``: a word after the item carries its own leading space
        befores = ids_of(tokenizer, [before.rstrip(" ") for before, _, _ in parts], foreign=True)
        afters = following(tokenizer, [after for _, _, after in parts], foreign=True)
        for before, after in zip(befores, afters, strict=True):
            full = [*bos, *before, environment.vocab_size + len(ids), *after]
            cut += len(full) > limit
            # a long text before the item loses its start: item and a word after it have to stay
            start = max(0, len(bos) + len(before) + 2 - limit)
            ids.append(full[start : start + limit])
    return ids, cut


def tfidf(sentences: list[str], seed: int) -> np.ndarray:
    """``lea_item_init: tfidf``: principal directions of the sentences' TF-IDF [n_items, d].

    d is ``TFIDF_WIDTH``, or what the words allow; float32.
    """
    texts = [sentence.replace("{item}", "") for sentence in sentences]
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+").fit_transform(texts)
    svd = TruncatedSVD(max(1, min(TFIDF_WIDTH, *(n - 1 for n in words.shape))), random_state=seed)
    return svd.fit_transform(words).astype(np.float32)


def initial_tokens(ids: list[list[int]], environment: Environment) -> Tensor:
    """Start vectors [n_items, d], float32.

    ``text``: the mean of the sentence's token embeddings, minus what all items share, scaled to the
    vocabulary's mean norm (deviation 21). ``random``: normal with its deviation (the paper).
    """
    vocabulary, settings = environment.words(), environment.settings
    if settings.item_init == "random":
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (len(ids), vocabulary.shape[1])
        return torch.randn(shape, generator=generator) * vocabulary.std()
    means = torch.empty(len(ids), vocabulary.shape[1])
    for mean, row in zip(means, ids, strict=True):
        mean[:] = vocabulary[[token for token in row if token < environment.vocab_size]].mean(0)
    if len(ids) > 1:
        means -= means.mean(0)
    # an item whose words are just the common ones would be scaled from (almost) nothing
    norms = means.norm(dim=1, keepdim=True).clamp(min=1e-6)
    return means.div_(norms).mul_(vocabulary.norm(dim=1).mean())


def tokenize_bucket(
    environment: Environment, ids: list[list[int]], start: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """Optimise the vectors of some items together; each leaves when its loss stops falling.

    In ``ids`` the items are numbered from 0 within the bucket; ``start`` are the initial vectors
    [n, d]. Returns the best vectors and the first and best loss of each item [n, 2], float32.
    """
    settings = environment.settings
    table = start.to(environment.device).clone().requires_grad_()
    optimizer = torch.optim.Adam([table], lr=settings.item_lr)
    best = start.clone()
    first_loss, best_loss = torch.full((2, len(ids)), torch.inf)
    stale = torch.zeros(len(ids), dtype=torch.long)  # steps without a lower loss
    active, patience = torch.arange(len(ids)), settings.item_patience
    for iteration in range(settings.item_iterations + 1):
        last = iteration == settings.item_iterations
        optimizer.zero_grad()
        losses = _losses(environment, [ids[i] for i in active], table, backward=not last)
        values = losses[active]
        if iteration == 0:
            first_loss[active] = values
        improved = values < best_loss[active] * (1 - 1e-3)
        stale[active] = torch.where(improved, 0, stale[active] + 1)
        lower = active[values < best_loss[active]]
        best_loss[lower], best[lower] = losses[lower], table.detach().cpu()[lower]
        if patience is not None:
            active = active[stale[active] < patience]
        if last or not len(active):
            break
        optimizer.step()
    return best.numpy(), torch.stack([first_loss, best_loss], dim=1).numpy()


@within_memory()
def _losses(
    environment: Environment, ids: list[list[int]], table: Tensor, backward: bool
) -> Tensor:
    """Mean next-token loss per item [len(table)], on the CPU; NaN for items not in ``ids``.

    With ``backward``, the gradient of their sum is left in ``table.grad``, one batch at a time: the
    logits of a whole bucket would not fit into a laptop's memory.
    """
    settings = environment.settings
    result = torch.full((len(table),), torch.nan)
    for batch in pack([[row] for row in ids], settings.row_length, settings.batch_rows):
        present, values = batch_losses(environment, batch, table, backward)
        result[present] = values
    return result


def batch_losses(
    environment: Environment, batch: PackedBatch, table: Tensor, backward: bool
) -> tuple[Tensor, Tensor]:
    """Which items [len(table)] a batch holds, and their losses; see ``_losses``."""
    nodes, owners = _predicted(batch, environment.vocab_size)
    targets = torch.from_numpy(batch.ids.flat[nodes]).to(table.device)
    owner = torch.from_numpy(owners).to(table.device)
    with torch.set_grad_enabled(backward):
        hidden = environment.hidden(batch, table)[batch.parents.flat[nodes]]
        logits = next_word_logits(environment.llm, hidden).to(table.device)  # [N, V]
        counts = torch.bincount(owner, minlength=len(table))
        sums = torch.zeros(len(table), device=table.device)
        sums = sums.index_add(0, owner, sentence_loss(logits, targets))
        losses = sums / counts.clamp(min=1)
    if backward:
        losses.sum().backward()
    present = counts.cpu() > 0
    return present, losses.detach().cpu()[present]


def _predicted(batch: PackedBatch, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions of the words after an item token, and the item each belongs to."""
    words = np.flatnonzero(batch.ids < vocab_size)
    items = batch.item_above(words, vocab_size)
    return words[items >= 0], batch.ids.flat[items[items >= 0]] - vocab_size

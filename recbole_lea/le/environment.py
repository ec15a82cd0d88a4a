"""The LE: one adapted LLM that gives states, rewards and selections (paper section 3.2).

peft is imported where it is used: it imports bitsandbytes where that is installed, which looks for
GPUs, and CUDA would start before RecBole has hidden those that `gpu_id` does not name.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from recbole_lea.engine.attention import last_hidden, next_word_logits
from recbole_lea.engine.llm import LLM
from recbole_lea.engine.memory import within_memory
from recbole_lea.engine.packing import PackedBatch, pack
from recbole_lea.engine.processes import processes
from recbole_lea.equations import le_state, reward
from recbole_lea.le.heads import STATE_HEADS
from recbole_lea.le.prompts import Prompts, title_ids
from recbole_lea.le.settings import LESettings

# Quantization methods whose integer weights are no parameters, and into which peft cannot merge.
UNMERGED = ("gptq", "awq")

HEADS = ("score_head", "state_head")


class PromptEnds(NamedTuple):
    """What the LLM has at the end of each of N prompts."""

    hidden: Tensor  # last hidden state there [N, d], float32
    items: Tensor  # the item that stands there, and those before it [N, H]; negative for none
    # under ``reward_head: state``; they mean nothing for a prompt without such items
    actions: Tensor | None = None  # the newest item up to there: a reward prompt's action [N]
    before: Tensor | None = None  # last hidden state at the item before the action, x_t [N, d]
    before_items: Tensor | None = None  # that item, and those before it [N, H]


class Environment(nn.Module):
    """LLM + LoRA adapter (phi) + score head (theta) + state head + item tokens.

    ``item_tokens`` [n_items, d], float32, are not trained here. Item tokenization needs an LLM that
    is not ``adapted``. With the ``titles`` of all items (``prompt_items: title``), it reads words
    alone. The states are compared with ``keys`` [n_items, d], or with the tokens.
    """

    item_tokens: Tensor  # what the LLM reads where an item ends [n_items, d]: its token or a word

    def __init__(
        self, llm: LLM, item_tokens: Tensor, settings: LESettings, adapted: bool = True,
        titles: Sequence[str] | None = None, keys: Tensor | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings, self.vocab_size, self.adapted = settings, llm.vocab_size, adapted
        self.llm = with_adapter(llm.model, settings) if adapted else llm.model
        self.decoder = llm.model.get_decoder()
        ends, words = item_tokens, None
        if titles is not None:
            words = title_ids(llm.tokenizer, titles, settings.item_max_tokens)
            ends = self.words()[[ids[-1] for ids in words]]
        self.prompts = Prompts(llm.tokenizer, llm.vocab_size, settings, words)
        self.device = llm.model.device
        self.register_buffer("item_tokens", ends.to(self.device), persistent=False)
        self.score_head = nn.Linear(llm.width, 1, device=self.device)
        compared = item_tokens if keys is None else keys
        self.state_head = STATE_HEADS[settings.state_head](compared).to(self.device)

    def embed(self, ids: Tensor, item_tokens: Tensor) -> Tensor:
        """Embeddings of words and items: ids [B, L] -> [B, L, d] in the LLM's dtype."""
        words = self.llm.get_input_embeddings()(ids.clamp(max=self.vocab_size - 1))
        is_item = ids >= self.vocab_size
        items = item_tokens[(ids - self.vocab_size).clamp(min=0)].to(words.dtype)
        return torch.where(is_item[..., None], items, words)

    def words(self) -> Tensor:
        """Embeddings of the vocabulary as the decoder gets them [vocab_size, d], float32, CPU."""
        # Gemma scales them after the look-up: the matrix itself would be too small
        embedding = self.llm.get_input_embeddings()
        ids = torch.arange(self.vocab_size, device=self.llm.device).split(4096)
        with torch.no_grad():
            return torch.cat([embedding(part).float().cpu() for part in ids])

    def hidden(
        self, batch: PackedBatch, item_tokens: Tensor | None = None, layer: int | None = None
    ) -> Tensor:
        """Last hidden state of every token of a packed batch [B * L, d], or that behind a layer."""
        table = self.item_tokens if item_tokens is None else item_tokens
        with self.precision():
            embedded = self.embed(torch.from_numpy(batch.ids).to(self.device), table)
            hidden = last_hidden(self.decoder, embedded, batch, layer)
        return hidden.flatten(0, 1).to(self.device)  # a device_map may end on another one

    @contextlib.contextmanager
    def precision(self) -> Iterator[None]:
        """The adapter's weights are float32 for the optimiser and multiply in the LLM's dtype."""
        dtype = self.llm.dtype
        if not self.adapted or dtype == torch.float32:
            yield
            return
        # peft casts every layer's input up to float32, which took a quarter of a step
        from peft.helpers import disable_input_dtype_casting

        with disable_input_dtype_casting(self.llm), torch.autocast(self.device.type, dtype):
            yield

    def merge(self) -> "Environment":
        """Fold the trained adapter, which triples the matrix products, into the LLM's weights.

        An LLM whose weights are stored as integers is left as it is.
        """
        # ``is_quantized`` is also true of a GGUF file, whose weights are floats once loaded
        floats = all(p.is_floating_point() for p in self.llm.parameters())
        if self.adapted and floats and getattr(self.llm, "quantization_method", "") not in UNMERGED:
            self.llm = self.llm.merge_and_unload()
            self.decoder = self.llm.get_decoder()
            self.adapted = False
            # fine-tuning has used up the graphs that torch.compile makes of one function
            torch.compiler.reset()
        return self.eval()

    def ends(self, batch: PackedBatch, hidden: Tensor) -> PromptEnds:
        """What stands at the end of each prompt of a batch, of ``hidden``'s states [B * L, d]."""

        def at(nodes: np.ndarray) -> tuple[Tensor, Tensor]:
            chain = [nodes]
            while (chain[-1] >= 0).any():
                chain.append(batch.item_above(chain[-1], self.vocab_size))
            above = np.stack(chain, axis=1)  # [N, H]
            items = np.where(above < 0, -1, batch.ids.flat[above] - self.vocab_size)
            states = le_state(hidden, torch.from_numpy(nodes).to(self.device)).float()
            return states, torch.from_numpy(items).to(self.device)

        last = batch.ends
        if self.settings.reward_head == "none":
            return PromptEnds(*at(last))
        is_item = batch.ids.flat[last] >= self.vocab_size
        actions = np.where(is_item, last, batch.item_above(last, self.vocab_size))
        before, before_items = at(batch.item_above(actions, self.vocab_size))
        return PromptEnds(*at(last), at(actions)[1][:, 0], before, before_items)

    def reward_of(self, ends: PromptEnds) -> Tensor:
        """Score head (Eq. 1 and 5): rewards [N].

        ``reward_head: state`` adds how near the action is to the state s'_t: the score head then
        learns what the state model does not say.
        """
        rewards = reward(ends.hidden, self.score_head.weight, self.score_head.bias)
        if self.settings.reward_head == "state":
            _, _, actions, before, before_items = ends
            assert actions is not None and before is not None and before_items is not None
            states = self.state_head(before, before_items)
            keys = self.state_head.keys[actions.clamp(min=0)]
            rewards = rewards + (self.state_head.query(states) * keys).sum(-1)
        return rewards

    def state_of(self, ends: PromptEnds) -> Tensor:
        """State head: states s'_t [N, d] of prompts that end at x_t, not at a word (Eq. 3)."""
        return self.state_head(ends.hidden, ends.items)

    def state_scores(self, states: Tensor) -> Tensor:
        """How near every item is to states s'_t: [N, d] -> [N, n_items] (Eq. 2)."""
        return self.state_head.query(states) @ self.state_head.keys.T

    def label_scores_of(self, ends: PromptEnds) -> Tensor:
        """Log-probabilities of the label words as the next token [N, n_labels]."""
        logits = next_word_logits(self.llm, ends.hidden).to(self.device)  # [N, vocab_size]
        return logits.float().log_softmax(-1)[:, self.prompts.labels]

    @within_memory()
    @torch.inference_mode()
    def answer(
        self, groups: Iterable[Sequence[Sequence[int]]], head: Callable[[PromptEnds], Tensor]
    ) -> np.ndarray:
        """Run prompts, each group in one row, and apply a head to what the LLM has at their ends.

        With several processes, each runs its share of the batches and gets all results. ``head``
        is such as ``reward_of``: of N prompts -> [N, ...]. Returns float32, in the given order.
        """
        self.eval()
        state, parts = processes(), []
        packed = pack(groups, self.settings.row_length, self.settings.batch_rows)
        for number, batch in enumerate(packed):
            if number % state.num_processes == state.process_index:
                values = head(self.ends(batch, self.hidden(batch)))
                parts.append((batch.prompts, values.float().cpu().numpy()))
        parts = gather_object(parts)
        if not parts:
            return np.zeros((0,), dtype=np.float32)
        prompts, found = map(np.concatenate, zip(*parts, strict=True))
        return found[prompts.argsort()]


def check_targets(model: Any, targets: tuple[str, ...] | str) -> None:
    """Compare ``lea_lora_targets`` with the linear layers that the LLM's decoder repeats.

    Raises:
        ValueError: one fits none of them, or something else as well; gives the names that fit.
    """
    if targets == "all-linear":
        return
    modules = {name: own for name, own in model.named_modules() if name}
    repeated = [name for name in modules if re.search(r"\.\d+\.", name)]
    # nf: of GPT-2's layers
    linear = {
        n for n in repeated if hasattr(modules[n], "in_features") or hasattr(modules[n], "nf")
    }
    for target in [targets] if isinstance(targets, str) else targets:
        # as peft reads them: a text is a pattern of the whole name, a list has ends of names
        pattern = target if isinstance(targets, str) else rf"(.*\.)?{re.escape(target)}"
        try:
            found = {name for name in modules if re.fullmatch(pattern, name)}
        except re.error as error:
            raise ValueError(f"lea_lora_targets: {target!r} is no pattern: {error}") from error
        if not found or found - linear:
            fit = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
            raise ValueError(
                f"lea_lora_targets: {target!r} fits {min(found - linear, default='nothing')} of "
                f"this LLM, but has to fit linear layers of its decoder: use all-linear or [{fit}]"
            )


def with_adapter(model: Any, settings: LESettings) -> Any:
    """The LLM with a LoRA adapter, drawn from the LE's seed."""
    from peft import LoraConfig, get_peft_model

    targets = settings.lora_targets
    config = LoraConfig(
        r=settings.lora_r, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
    )  # fmt: skip
    torch.manual_seed(settings.seed)
    return get_peft_model(model, config)


def trained_state(environment: Any) -> dict[str, Tensor]:
    """Adapter and heads of an ``Environment``: the tensors that fine-tuning changes."""
    from peft import get_peft_model_state_dict

    parts = {"adapter": get_peft_model_state_dict(environment.llm)}
    parts |= {head: getattr(environment, head).state_dict() for head in HEADS}
    return {
        f"{part}.{name}": tensor.detach().cpu().contiguous()
        for part, own in parts.items()
        for name, tensor in own.items()
    }


def load_trained_state(environment: Any, state: dict[str, Tensor]) -> None:
    """The inverse of ``trained_state``; a KeyError where a tensor is missing."""
    missing = set(trained_state(environment)) - set(state)
    if missing:
        raise KeyError(f"the saved LE lacks {min(missing)} ({len(missing)} tensors)")
    from peft import set_peft_model_state_dict

    def own(part: str) -> dict[str, Tensor]:
        start = f"{part}."
        return {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}

    set_peft_model_state_dict(environment.llm, own("adapter"))
    for head in HEADS:
        getattr(environment, head).load_state_dict(own(head))

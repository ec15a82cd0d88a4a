"""The LE: one adapted LLM that gives states, rewards and selections (paper section 3.2)."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_lea.le.llm import LLM
from recbole_lea.le.packing import PackedBatch, pack
from recbole_lea.le.progress import PromptBar
from recbole_lea.le.prompts import Prompts
from recbole_lea.le.settings import LESettings


class Environment(nn.Module):
    """LLM + LoRA adapter (phi) + score head (theta) + item tokens.

    Args:
        llm: the frozen LLM.
        item_tokens: item tokenization's result [n_items, d], float32; not trained here.
        settings: prompts, LoRA and packing.
        adapted: add the LoRA adapter and train it; item tokenization needs none.
    """

    def __init__(
        self, llm: LLM, item_tokens: Tensor, settings: LESettings, adapted: bool = True
    ) -> None:
        super().__init__()
        self.settings = settings
        self.prompts = Prompts(llm.tokenizer, llm.vocab_size, settings)
        self.vocab_size = llm.vocab_size
        self.llm = llm.model
        if adapted:
            targets = settings.lora_targets
            config = LoraConfig(
                r=settings.lora_r,
                lora_alpha=settings.lora_alpha,
                lora_dropout=settings.lora_dropout,
                target_modules=targets if isinstance(targets, str) else list(targets),
            )
            torch.manual_seed(settings.seed)
            self.llm = get_peft_model(llm.model, config)
        self.decoder = llm.model.get_decoder()
        self.register_buffer("item_tokens", item_tokens.to(llm.model.device), persistent=False)
        self.score_head = nn.Linear(llm.width, 1, device=llm.model.device)

    @property
    def device(self) -> torch.device:
        """Where the LLM runs."""
        return self.item_tokens.device

    def embed(self, ids: Tensor, item_tokens: Tensor) -> Tensor:
        """Embeddings of words and items: ids [B, L] -> [B, L, d] in the LLM's dtype."""
        words = self.llm.get_input_embeddings()(ids.clamp(max=self.vocab_size - 1))
        is_item = ids >= self.vocab_size
        items = item_tokens[(ids - self.vocab_size).clamp(min=0)].to(words.dtype)
        return torch.where(is_item[..., None], items, words)

    def hidden(self, batch: PackedBatch, item_tokens: Tensor | None = None) -> Tensor:
        """Last hidden state of every token of a packed batch [B * L, d]."""
        table = self.item_tokens if item_tokens is None else item_tokens
        output = self.decoder(
            inputs_embeds=self.embed(torch.from_numpy(batch.ids).to(self.device), table),
            attention_mask=self._attention_mask(batch),
            position_ids=torch.from_numpy(batch.positions).to(self.device),
            use_cache=False,
        )
        return output.last_hidden_state.flatten(0, 1)

    def _attention_mask(self, batch: PackedBatch) -> Tensor:
        """Ancestor mask as an additive bias [B, 1, L, L], which every attention kernel takes."""
        visible = torch.from_numpy(batch.mask).to(self.device)
        bias = torch.zeros(visible.shape, dtype=self.llm.dtype, device=self.device)
        return bias.masked_fill_(~visible, torch.finfo(self.llm.dtype).min)

    def at_reads(self, batch: PackedBatch, hidden: Tensor) -> Tensor:
        """Hidden state at the end of each prompt of the batch, float32 [N, d]."""
        return hidden[torch.from_numpy(batch.reads).to(self.device)].float()

    def reward_of(self, hidden: Tensor) -> Tensor:
        """Score head: last hidden states [N, d] -> rewards [N] (Eq. 1)."""
        return self.score_head(hidden).squeeze(-1)

    def label_scores_of(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the label words as the next token [N, d] -> [N, n_labels]."""
        logits = self.llm.get_output_embeddings()(hidden.to(self.llm.dtype)).float()
        return logits.log_softmax(-1)[:, self.prompts.labels]

    @torch.inference_mode()
    def read(
        self,
        groups: Iterable[Sequence[Sequence[int]]],
        readout: Callable[[Tensor], Tensor],
        progress: PromptBar | None = None,
    ) -> np.ndarray:
        """Run prompts and apply ``readout`` to the hidden state at the end of each.

        Args:
            groups: groups of prompts; those of one group share a row.
            readout: [N, d] float32 -> [N, ...].
            progress: advanced by each batch.

        Returns:
            One row per prompt, in the given order, float32.
        """
        self.eval()
        results = []
        for batch in pack(groups, self.settings.row_length, self.settings.batch_rows):
            hidden = self.at_reads(batch, self.hidden(batch))
            results.append(readout(hidden).float().cpu().numpy())
            if progress is not None:
                progress.advance(len(batch.prompts), batch.n_tokens)
        return np.concatenate(results) if results else np.zeros((0,), dtype=np.float32)

    def trained_state(self) -> dict[str, Tensor]:
        """Adapter and score head, the tensors that fine-tuning changes."""
        state = {f"adapter.{k}": v for k, v in get_peft_model_state_dict(self.llm).items()}
        state |= {f"score_head.{k}": v for k, v in self.score_head.state_dict().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """The inverse of ``trained_state``.

        Raises:
            KeyError: a tensor is missing.
        """
        adapter = {
            name.removeprefix("adapter."): tensor
            for name, tensor in state.items()
            if name.startswith("adapter.")
        }
        expected = set(self.trained_state())
        missing = expected - set(state)
        if missing:
            raise KeyError(f"the saved LE lacks {sorted(missing)[0]} ({len(missing)} tensors)")
        set_peft_model_state_dict(self.llm, adapter)
        self.score_head.load_state_dict(
            {name: state[f"score_head.{name}"] for name in ("weight", "bias")}
        )

    def save(self, path: Path) -> None:
        """Adapter and score head together, as safetensors, atomically."""
        partial = path.with_suffix(".partial")
        save_file(self.trained_state(), partial)
        partial.replace(path)

    def load(self, path: Path) -> None:
        """Read what ``save`` wrote."""
        self.load_trained_state(load_file(path))

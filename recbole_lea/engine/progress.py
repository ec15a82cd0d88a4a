"""A progress bar over prompts that shows the LLM's throughput."""

from tqdm import tqdm


class PromptBar(tqdm):
    """Counts the prompts of a stage, drawn if ``shown``, with the LLM's tokens per second."""

    def __init__(self, title: str, total: int, shown: bool) -> None:
        super().__init__(desc=title, total=total, unit=" prompts", disable=not shown)
        self._tokens = 0

    def advance(self, prompts: int, tokens: int) -> None:
        """Count a batch."""
        self._tokens += tokens
        if not self.disable:
            rate = self._tokens / max(self.format_dict["elapsed"], 1e-9)
            self.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
        self.update(prompts)

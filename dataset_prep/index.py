"""Numbers for ids that are text."""

import numpy as np


class Index:
    """Numbers tokens from 0 in the order they appear."""

    def __init__(self) -> None:
        """Start with no token."""
        self._numbers: dict[str, int] = {}

    def number(self, token: str) -> int:
        """Return the number of ``token``, the next one where the token is new."""
        return self._numbers.setdefault(token, len(self._numbers))

    def __len__(self) -> int:
        """Return how many tokens there are."""
        return len(self._numbers)

    def tokens(self) -> np.ndarray:
        """Return every token, in the order of their numbers."""
        return np.array(list(self._numbers), dtype=object)

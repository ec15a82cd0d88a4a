"""Progress bars."""

from pathlib import Path

from tqdm import tqdm


def progress(path: Path, doing: str) -> tqdm:
    """Return a progress bar over the bytes of ``path``, silent where no terminal watches."""
    return tqdm(
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        desc=f"{doing} {path.name}",
        disable=None,
    )

"""Arrays on disk that are filled shard by shard: memory-mapped, resumable, checksummed."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is either the old or the new one, never half of it."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(path)


class ArrayStore:
    """A folder with one ``.npy`` per array and a manifest of the finished shards.

    A shard covers the same range number in every array; the arrays may have different
    lengths (states and transitions of the same sequences).

    Args:
        folder: created if needed.
        arrays: name -> (shape, dtype).
        bounds: name -> row at which each shard starts, and the end [n_shards + 1].
        meta: recorded in the manifest; a folder with other contents is refused.

    Raises:
        ValueError: the folder holds arrays of other shapes or other ``meta``.
    """

    def __init__(
        self,
        folder: Path,
        arrays: Mapping[str, tuple[tuple[int, ...], str]],
        bounds: Mapping[str, Sequence[int]],
        meta: Mapping[str, Any],
    ) -> None:
        self.folder = folder
        self.bounds = {name: [int(b) for b in rows] for name, rows in bounds.items()}
        spec = {name: [list(shape), dtype] for name, (shape, dtype) in arrays.items()}
        self.n_shards = len(next(iter(self.bounds.values()))) - 1
        folder.mkdir(parents=True, exist_ok=True)
        manifest_path = folder / MANIFEST
        fresh = {"arrays": spec, "bounds": self.bounds, "meta": dict(meta), "shards": {}}
        self.manifest = fresh
        if manifest_path.is_file():
            self.manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
            for part in ("arrays", "bounds", "meta"):
                if json.loads(json.dumps(fresh[part])) != self.manifest[part]:
                    raise ValueError(
                        f"{manifest_path}: {part} differ from this run's; delete {folder}"
                    )
        self._missing: list[int] | None = None
        self._maps = {}
        for name, (shape, dtype) in arrays.items():
            path = folder / f"{name}.npy"
            if not path.is_file():
                self.manifest["shards"] = {}
                partial = path.with_suffix(".partial")
                np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
                partial.replace(path)
            self._maps[name] = np.lib.format.open_memmap(path, mode="r+")
            if self._maps[name].shape != tuple(shape) or self._maps[name].dtype != np.dtype(dtype):
                raise ValueError(f"{path}: shape or dtype differ from the manifest; delete it")
        write_json(manifest_path, self.manifest)

    def _checksum(self, shard: int) -> str:
        digest = hashlib.sha256()
        for name in sorted(self.bounds):
            start, end = self.bounds[name][shard : shard + 2]
            digest.update(np.ascontiguousarray(self._maps[name][start:end]).tobytes())
        return digest.hexdigest()

    def missing(self) -> list[int]:
        """Shards to be computed: unfinished ones, and finished ones that were altered since."""
        if self._missing is None:  # the checksums read all data: once
            self._missing = [shard for shard in range(self.n_shards) if not self._valid(shard)]
        return list(self._missing)

    def _valid(self, shard: int) -> bool:
        recorded = self.manifest["shards"].get(str(shard))
        if recorded is not None and recorded != self._checksum(shard):
            logger.warning("%s: shard %d fails its checksum, again", self.folder, shard)
            recorded = None
        return recorded is not None

    def write(self, shard: int, values: Mapping[str, np.ndarray]) -> None:
        """Fill a shard; it counts as finished once its data are on disk.

        Values are brought into the array's shape and dtype.

        Raises:
            ValueError: a value is not finite, or too large for the array's dtype.
        """
        for name, value in values.items():
            start, end = self.bounds[name][shard : shard + 2]
            rows = self._maps[name][start:end]
            with np.errstate(over="ignore"):
                value = np.asarray(value).reshape(rows.shape).astype(rows.dtype)
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(
                    f"{self.folder}: {name} of shard {shard} holds NaN or infinity; "
                    "check the LLM's weights and lea_llm_dtype"
                )
            rows[...] = value
            self._maps[name].flush()
        self.manifest["shards"][str(shard)] = self._checksum(shard)
        self._missing = [other for other in self.missing() if other != shard]
        write_json(self.folder / MANIFEST, self.manifest)

    def array(self, name: str) -> np.ndarray:
        """A read-only memory map."""
        return np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)

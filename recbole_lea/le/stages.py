"""Seconds and peak memory of each stage of a run."""

import contextlib
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class StageLog:
    """Collects ``{stage: {"seconds", "peak_memory_mb", "peak_gpu_memory_mb"}}``."""

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; entering the same name again adds to its seconds."""
        _reset_peak()
        start = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            old = self.stages.get(name, {})
            entry = {
                "seconds": round(old.get("seconds", 0.0) + seconds, 2),
                "peak_memory_mb": max(old.get("peak_memory_mb", 0.0), _peak_mb()),
            }
            if torch.cuda.is_available():
                entry["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
            self.stages[name] = entry


def _reset_peak() -> None:
    """Restart the kernel's high-water mark where it allows that (Linux)."""
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> float:
    """Peak resident memory since the last reset; since the start where there is no reset."""
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)

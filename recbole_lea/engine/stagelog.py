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
    """Collects ``{stage: {"seconds", "peak_memory_mb", "peak_gpu_memory_mb"}}``.

    A stage within another one interrupts it: its seconds and memory are not the outer one's.
    """

    def __init__(self) -> None:
        self.stages: dict[str, dict[str, float]] = {}
        self._open: list[str] = []
        self._start = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; entering the same name again adds to its seconds."""
        self._record()
        self._open.append(name)
        try:
            yield
        finally:
            self._record()
            self._open.pop()

    def _record(self) -> None:
        """Book the time and memory since the last call on the innermost open stage."""
        now = time.perf_counter()
        if self._open:
            entry = self.stages.setdefault(self._open[-1], {"seconds": 0.0, "peak_memory_mb": 0.0})
            entry["seconds"] = round(entry["seconds"] + now - self._start, 3)
            entry["peak_memory_mb"] = max(entry["peak_memory_mb"], _peak_mb())
            if torch.cuda.is_available():
                gpu = round(torch.cuda.max_memory_allocated() / 2**20, 1)
                entry["peak_gpu_memory_mb"] = max(entry.get("peak_gpu_memory_mb", 0.0), gpu)
        _reset_peak()
        self._start = now


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

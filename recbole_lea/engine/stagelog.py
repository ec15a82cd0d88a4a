"""Seconds and peak memory of each stage of a run."""

import contextlib
import re
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch


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
        """Book the time and the peaks since the last call on the innermost open stage."""
        now, peaks = time.perf_counter(), _peaks()
        if self._open:
            entry = self.stages.setdefault(self._open[-1], {"seconds": 0.0})
            entry["seconds"] = round(entry["seconds"] + now - self._start, 3)
            entry |= {name: max(peak, entry.get(name, 0.0)) for name, peak in peaks.items()}
        self._start = now


def _peaks() -> dict[str, float]:
    """Most memory since the last call, in MB; of the process since its start if not on Linux."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text()):
            kilobytes = int(found[1])
        Path("/proc/self/clear_refs").write_text("5")
    peaks = {"peak_memory_mb": round(kilobytes / 1024, 1)}
    if torch.cuda.is_available():
        peaks["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
        torch.cuda.reset_peak_memory_stats()
    return peaks

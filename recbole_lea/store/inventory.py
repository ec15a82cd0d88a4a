"""What a cache holds, and what of it nothing in it needs any more."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from recbole_lea.store.files import DONE, FORMAT, MANIFEST, clear_errors_at

# As ``Cache.path`` names them; ``llm`` stands beside the datasets and serves all of them.
_STAGES = (
    "items keys environment states projection rewards selection selection_rewards sequences llm"
).split()
_NAME = re.compile(rf"({'|'.join(_STAGES)})-([0-9a-f]{{16}})")

# Of fine-tuning that has not ended
_CHECKPOINTS = ("checkpoint*.json", "checkpoint*.safetensors")


class Held:
    """A folder of a cache: a stage, the sequences of stages, or an unpacked LLM.

    Attributes:
        dataset: its name; "" for an LLM, which all datasets share.
        stage, key: the parts of the folder's name.
        record: what its record says; empty where there is none that can be read.
        files: those that recbole_lea wrote, but for the lock; others are nobody's business here.
        size: bytes of these files.
        finished: its record says that all of it was computed.
        used: when a run last asked for it, in seconds since 1970.
    """

    def __init__(self, folder: Path, stage: str, key: str) -> None:
        self.folder, self.stage, self.key = folder, stage, key
        self.dataset = "" if stage == "llm" else folder.parent.name
        self.record = _record(folder / MANIFEST) | _record(folder / DONE)
        shards = self.record.get("shards", ())
        self.finished = bool(self.record) and all(shards)
        names = {DONE, MANIFEST, *self.record.get("files", ())}
        names |= {f"{name}.npy" for name in self.record.get("arrays", ())}
        found = [path for kind in (*_CHECKPOINTS, "*.partial") for path in folder.glob(kind)]
        # a name alone: a record may be altered
        found += [folder / name for name in names if Path(name).name == name]
        self.files = sorted({path for path in found if path.is_file() or path.is_symlink()})
        self.size = sum(path.lstat().st_size for path in self.files)
        times = [path.lstat().st_mtime for path in (folder / "lock", *self.files) if path.exists()]
        self.used = times[0] if times else folder.stat().st_mtime

    @property
    def llm(self) -> str:
        """The LLM's name and dtype, or "" where no record tells them."""
        if self.stage == "llm":
            return self.record.get("llm", "")
        dtype = self.record.get("llm_dtype", "")
        return f"{self.record.get('settings', {}).get('llm', '')} {dtype}".strip()

    def is_of(self, other: "Held") -> bool:
        """Whether it was made from the other, as its record says."""
        made_from = dict(self.record.get("fingerprints") or {})
        made_from["environment"] = self.record.get("environment")
        if other.stage == "sequences":
            return self.record.get("sequences") == other.folder.name
        same_place = other.stage == "llm" or self.dataset == other.dataset
        return same_place and str(made_from.get(other.stage) or "")[:16] == other.key

    def remove(self) -> bool:
        """Delete its files, and the folder unless others are in it; False while a run holds it."""
        with clear_errors_at(self.folder):
            try:
                with FileLock(self.folder / "lock", timeout=0):
                    for path in (*self.files, self.folder / "lock"):
                        path.unlink(missing_ok=True)
            except Timeout:
                return False
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        return True


def inventory(cache: Path) -> list[Held]:
    """What stands in a folder ``lea_cache_dir``, by dataset, stage and last use.

    Raises a FileNotFoundError if there is no such folder.
    """
    if not cache.is_dir():
        raise FileNotFoundError(f"{cache}: no such folder; --lea_cache_dir=DIR names the cache")
    found = []
    for path in [*cache.glob("llm-*"), *cache.glob("*/*-*")]:
        name = _NAME.fullmatch(path.name)
        right_place = name and (name[1] == "llm") == (path.parent == cache)
        if name and right_place and path.is_dir() and not path.is_symlink():
            held = Held(path, name[1], name[2])
            if held.files or {other.name for other in path.iterdir()} <= {"lock"}:
                found.append(held)  # else all that is in it is somebody else's
    return sorted(found, key=lambda held: (held.dataset, _STAGES.index(held.stage), held.used))


def needless(held: list[Held]) -> Iterator[tuple[Held, str]]:
    """What nothing in the cache, and no later stage, is made from, and why it is not.

    States, rewards and choices are what training reads: they stay, and so does what they are made
    from. A newer version's stages stay too.
    """
    rest = []
    for one in held:
        if not one.files:
            yield one, "nothing was computed in it"
        elif one.record.get("format", FORMAT) < FORMAT:
            yield one, "an older version wrote it, and this one computes it again"
        else:
            rest.append(one)
    # in this order: item tokens may be there for an environment alone that nobody needs
    for stage in ("environment", "keys", "items"):
        for one in [one for one in rest if one.stage == stage]:
            others = [other for other in rest if other is not one]
            newer = (
                (other.dataset, other.stage) == (one.dataset, stage) and other.used > one.used
                for other in others
            )
            if any(newer) and not any(other.is_of(one) for other in others):
                rest = others
                yield one, "nothing was made from it, and one of its kind was used later"
    for one in [one for one in rest if one.stage in ("sequences", "llm")]:
        # what goes on does not say yet what it is made from
        here = [other for other in rest if one.dataset in ("", other.dataset)]
        if all(other.finished and not other.is_of(one) for other in here):
            yield one, "no stage was made from it"


def _record(path: Path) -> dict[str, Any]:
    """A record as it stands, without the checksums of what lies beside it; {} if it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

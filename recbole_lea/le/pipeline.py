"""The front door to the LE: its stages on demand, and what training looks up."""

import dataclasses
import logging
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from tqdm import tqdm

from recbole_lea.engine.llm import LLM
from recbole_lea.engine.processes import from_main, processes
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.engine.versions import code_version
from recbole_lea.le import quality, selection
from recbole_lea.le.answers import fit_projection
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment, check_targets, load_trained_state, trained_state
from recbole_lea.le.feedback import LiveFeedback, PrecomputedFeedback, RewardScale
from recbole_lea.le.finetune import finetune, held_out
from recbole_lea.le.item_tokens import TOKENS
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.le.stages import ADAPTER, HISTORY, both, origin, table
from recbole_lea.le.text import TextEnvironment
from recbole_lea.store.cache import Cache, Stage, held
from recbole_lea.store.files import read_array, read_json, read_tensors, write_bytes, write_json
from recbole_lea.store.llms import identify_llm, load_unpacked

logger = logging.getLogger(__name__)

# Transitions from which on compiling the LLM (under a minute) pays.
WORTH_COMPILING = 10_000

NAMED = 100  # of the items without text, in the log


class Pipeline:
    """Item tokenization -> fine-tuning -> states, rewards -> selections.

    A stage runs when it is first asked for, and is read back from the cache if it was
    finished under the same key before. ``sequences`` are the TRAINING sequences: nothing else
    ever reaches the LLM. ``dataset`` names the cache's sub-folder, and ``stages`` gets seconds and
    memory.

    Raises a FileNotFoundError if something that the cache lacks needs the LLM, which is not here; a
    ValueError if no item has a text, unless ``allow_no_text``; ``DiskFull`` (what is finished is
    kept); ``ReadOnly`` if the cache lacks something.
    """

    def __init__(
        self,
        settings: LESettings, catalogue: Catalogue, sequences: Sequences, dataset: str,
        stages: StageLog | None = None, progress_bar: bool = True,
    ) -> None:  # fmt: skip
        if settings.environment == "text":  # what asks the LLM is left out
            settings = dataclasses.replace(settings, item_iterations=0, state_keys="tokens")
        self.settings, self.catalogue, self.sequences = settings, catalogue, sequences
        self.stages = stages or StageLog()
        self._main = processes().is_main_process
        self.progress_bar = progress_bar and self._main
        self.device = processes().device
        self.code = code_version()  # before any stage: the files may change meanwhile
        drawn = sample_negatives(sequences, len(catalogue), settings.negative_pool, settings.seed)
        following = np.concatenate([items[1:] for items in sequences.items])
        self.actions = np.c_[following, drawn]  # [n_transitions, 1 + pool]
        self.negatives = self.actions[:, 1:]
        self.measured: dict[str, Any] = {}  # of the LE's rewards and selections, in this run
        self._llm: LLM | None = None
        self._environment: Any = None
        self._reported = False
        s, folder = settings, Path(settings.cache_dir).expanduser() / dataset
        asked = (s.llm, s.llm_dtype, s.llm_options, folder, self.device)
        identity: Any = (None, None, "lea_item_init: tfidf uses none")
        if s.item_init != "tfidf":
            identity = from_main(identify_llm(*asked) if self._main else None)
        self.llm_fingerprint, self.llm_dtype, self._no_llm = identity
        self.sentences, without_text = catalogue.sentences(s.item_sentence)
        self.titles = catalogue.titles(s.title) if s.prompt_items == "title" else None
        _check_texts(without_text, len(catalogue), s.allow_no_text)
        self.cache = Cache(folder, table(self), partial(origin, self), self.stages)

    @property
    def keys(self) -> dict[str, str]:
        """Stage -> cache key."""
        return {name: stage.key for name, stage in self.cache.table.items()}

    def bar(self, title: str) -> partial[tqdm]:
        """Makes the progress bar of a stage's shards."""
        return partial(tqdm, desc=title, unit=" shards", disable=not self.progress_bar)

    def require_llm(self, purpose: str) -> None:
        """Raise a FileNotFoundError that names the purpose unless the LLM is on this machine."""
        if self._no_llm is not None:
            raise FileNotFoundError(f"{purpose} needs the LLM: {self._no_llm}")

    def llm(self) -> LLM:
        """The LLM, loaded on first use."""
        if self._llm is None:
            self.require_llm(f"what the cache {self.cache.folder} lacks")
            s, worth = self.settings, self.sequences.n_transitions >= WORTH_COMPILING
            compiled = worth if s.compile == "auto" else bool(s.compile)
            folder = Path(s.cache_dir).expanduser() / f"llm-{self.llm_fingerprint[:16]}"
            asked = (s.llm, self.llm_dtype, self.device, s.llm_options, compiled)
            with self.stages.stage("load LLM"):
                self._llm = load_unpacked(folder, *asked)
            check_targets(self._llm.model, s.lora_targets)
        return self._llm

    @property
    def llm_width(self) -> int:
        """Width d of the LLM, without loading it where item tokens are there."""
        there = self.settings.item_init == "tfidf" or self.cache.is_built("items")
        return self.item_tokens(mapped=True).shape[1] if there else self.llm().width

    def item_tokens(self, mapped: bool = False) -> np.ndarray:
        """Item tokens [n_items, d], float32, in catalogue order; ``mapped`` leaves them on disk."""
        return read_array(self.cache.run(self.cache.table["items"]) / TOKENS, mapped)

    def item_keys(self, mapped: bool = False) -> np.ndarray:
        """What states are compared with [n_items, d]; otherwise as ``item_tokens``."""
        if self.settings.state_keys == "tokens":
            return self.item_tokens(mapped)
        with torch.random.fork_rng():  # as for the environment
            return read_array(self.cache.run(self.cache.table["keys"]) / "keys.npy", mapped)

    def environment(self) -> Any:
        """The fine-tuned ``Environment``, or ``TextEnvironment``, which answers alike."""
        if self._environment is None:
            self.item_tokens(mapped=True), self.item_keys(mapped=True)
            if self.settings.environment == "llm":
                self.llm()
            self._save_sequences()
            # a run that reads the LE from the cache must draw the same numbers afterwards
            with torch.random.fork_rng():
                folder = self.cache.run(self.cache.table["environment"])
                environment = self.adapted
            if isinstance(environment, Environment):
                load_trained_state(environment, read_tensors(folder / ADAPTER))
                environment = environment.merge()
            self._environment = environment
            self._report()
        return self._environment

    @cached_property
    def adapted(self) -> Any:
        """The LE before its adapter is merged: the LLM takes only one. Its twin has none."""
        tokens = torch.from_numpy(self.item_tokens())
        if self.settings.environment == "text":
            return TextEnvironment(tokens, self.settings)
        keys = torch.from_numpy(self.item_keys())
        return Environment(self.llm(), tokens, self.settings, titles=self.titles, keys=keys)

    def finetune(self, llm: LLM, folder: Path) -> dict[str, Any]:
        """Compute the stage ``environment``."""
        history = finetune(self.adapted, self.sequences, folder, self.progress_bar)
        if self._main:
            write_json(folder / HISTORY, history)
            write_bytes(folder / ADAPTER, save(trained_state(self.adapted)))
        return {}

    def diagnostics(self) -> dict[str, Any]:
        """The fine-tuning's last record and the code that made it, if it is done; ``measured``."""
        # no collective: under accelerate the other processes have left when the record is written
        if (made := self.cache.made("environment")) is None:
            return self.measured
        return self.history()[-1] | {"code": made.get("code")} | self.measured

    def history(self) -> list[dict[str, Any]]:
        """What the fine-tuning recorded after each epoch; empty unless it is done."""
        path = self.cache.path("environment") / HISTORY
        return read_json(path) if path.is_file() else []

    def states(self, and_rewards: bool = False) -> np.ndarray:
        """States of all prefixes [n_states, d or state_dim], float16.

        ``and_rewards``: the rewards too, as in ``states_and_rewards``.
        """
        dim, n = self.settings.state_dim, self.sequences.n_states
        if dim is not None and dim > min(n, width := self.llm_width):
            raise ValueError(
                f"state_dim is {dim}, but {n} states of width {width} allow at most {min(n, width)}"
            )
        if and_rewards:
            self.states_and_rewards()
        return self.full_states() if dim is None else self.array(self.cache.table["projection"])

    def states_and_rewards(self) -> None:
        """Compute both in one pass over the prompts that they share, where neither is there."""
        asked = [name for name in self.cache.table if name in ("states", "rewards", "projection")]
        if not any(map(self.cache.is_built, asked)):
            with held(self.cache.path("states")):
                self.array(both(self))

    def full_states(self) -> np.ndarray:
        """States of all prefixes before ``state_dim`` [n_states, d], float16."""
        return self.array(self.cache.table["states"])

    def like_training(self, states: np.ndarray) -> np.ndarray:
        """New states [n, d] as the training ones are looked up: [n, d or state_dim]."""
        dim = self.settings.state_dim
        return states if dim is None else fit_projection(self.full_states(), dim).transform(states)

    def rewards(self) -> np.ndarray:
        """Reward scores [n_transitions, 1 + negative_pool], float32."""
        return self.array(self.cache.table["rewards"])

    def array(self, stage: Stage) -> np.ndarray:
        """A stage's array, memory-mapped; the sequences by which its rows are found are saved."""
        self._save_sequences()
        folder = self.cache.run(stage)
        self._report()
        return read_array(folder / f"{stage.array}.npy", mapped=True)

    def _save_sequences(self) -> None:
        self.cache.keep(self.sequences.name, self.sequences.save, "the sequences")

    def _report(self) -> None:
        """Say once in every run, the LE built or reused, how good it is on held-out sequences."""
        if not self._reported:
            self._reported = True
            quality.report(self.diagnostics())
            pairs = held_out(self.sequences, self.settings)
            if pairs and self.settings.environment == "llm":
                text = TextEnvironment(torch.from_numpy(self.item_tokens()), self.settings)
                asked = (self.sequences, pairs, text, self.settings.seed)
                self.measured |= quality.without_llm(*asked)

    def prepare_selection(self) -> None:
        """Build what ``select`` needs and no list of candidates changes."""
        (self.full_states if self.settings.selection_by == "state" else self.environment)()

    def select(
        self, candidates: np.ndarray, want_rewards: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The LE's choice among each transition's candidates [n_transitions, k <= 5] (section 3.4).

        Candidates and choices are LE item indices; also returned are the choices' reward scores,
        if wanted. The other processes either call this too, and get the main one's, or are in
        ``assist``.
        """
        candidates = np.ascontiguousarray(candidates, dtype=np.int64)
        return selection.select(self, *from_main((candidates, want_rewards)))

    def assist(self) -> None:
        """In the other processes: take part in ``select`` until the main one says ``release``."""
        while (asked := from_main(None)) is not None:
            selection.select(self, *asked)

    def release(self) -> None:
        """In the main process: let the others go."""
        from_main(None)

    def precomputed(
        self, want_states: bool, want_rewards: bool, item_ids: np.ndarray | None = None
    ) -> PrecomputedFeedback:
        """Feedback read from disk, computed first where it is not there.

        ``item_ids`` are what the caller calls the items, by LE index [n_items].
        """
        states = self.states(and_rewards=want_rewards) if want_states else None
        rewards, scale = None, None
        if want_rewards:
            rewards = self.rewards()
            scale = RewardScale.fit(self.settings.reward_scale, rewards)
            self.measured["reward_popularity"] = quality.popularity_correlation(self, rewards)
        options = self._options(scale, None if states is None else states.shape[1], item_ids)
        return PrecomputedFeedback(states, rewards, self.negatives, **options)

    def live(
        self, want_states: bool, want_rewards: bool, item_ids: np.ndarray | None = None
    ) -> LiveFeedback:
        """Feedback computed by the LLM during training; ``item_ids`` as for ``precomputed``."""
        self.require_llm("transform lea_live")
        width = self.llm().width if want_states else None
        live = LiveFeedback(self.environment(), **self._options(None, width, item_ids))
        if want_rewards:
            live.fit_scale(self.settings.reward_scale)
        return live

    def _options(self, scale, state_dim, item_ids) -> dict[str, Any]:
        """Of every ``Feedback``."""
        return {
            "sequences": self.sequences, "n_items": len(self.catalogue),
            "seed": self.settings.seed, "shuffle": self.settings.shuffle,
            "scale": scale, "state_dim": state_dim, "item_ids": item_ids,
        }  # fmt: skip


def _check_texts(without: list[str], n_items: int, allowed: bool) -> None:
    """Refuse a catalogue of ``n_items`` in which all are ``without`` text; name those that are."""
    if len(without) == n_items and not allowed:
        raise ValueError(
            f"not one of the {n_items} items has a text, so the LE can know nothing of them: give "
            "NAME.item fields that `lea_item_sentence` names (docs/data.md), or set "
            "lea_allow_no_text: True"
        )
    if without:
        text = "%d of %d items have no text and are described by their token, such as %s"
        logger.warning(text, len(without), n_items, ", ".join(without[:NAMED]))

"""The front door to the LE: its stages in the paper's order, and what training looks up."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from recbole_lea.engine.llm import LLM, load_llm, pick_device
from recbole_lea.engine.processes import from_main, processes
from recbole_lea.engine.progress import PromptBar
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.engine.versions import code_version, versions
from recbole_lea.le import answers, quality, selection
from recbole_lea.le.adapter import load_trained_state, trained_state
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment
from recbole_lea.le.feedback import LiveFeedback, PrecomputedFeedback, RewardScale
from recbole_lea.le.finetune import finetune
from recbole_lea.le.item_tokens import tokenize
from recbole_lea.le.projection import check_dim, fit_projection, project, projection_bounds
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.le.stages import digest, environment_parts, item_parts, parts, selection_parts
from recbole_lea.store.arrays import pieces
from recbole_lea.store.cache import Cache, Layout, Stage
from recbole_lea.store.files import read_array, read_json, read_tensors, write_bytes, write_json
from recbole_lea.store.known_llms import identify_llm

logger = logging.getLogger(__name__)

# Transitions from which on compiling the LLM (under a minute) pays.
WORTH_COMPILING = 10_000

# Items without text that the log names.
NAMED = 100

TOKENS, ADAPTER, HISTORY = "tokens.npy", "adapter.safetensors", "history.json"


class Pipeline:
    """Item tokenization -> fine-tuning -> states, rewards -> selections.

    A stage runs when it is first asked for, and is read back from the cache if it was
    finished under the same key before.

    Raises:
        FileNotFoundError: the LLM is neither here nor known from the cache; or a stage that the
            cache lacks needs it.
        DiskFull: the cache's disk has no room; what is finished is kept.
        ReadOnly: the cache lacks something and cannot be written to.

    Attributes:
        cache: what is finished.
        measured: what this run has seen of the LE's rewards and selections.

    Args:
        settings: all LE settings.
        catalogue: the items.
        sequences: TRAINING sequences; nothing else ever reaches the LLM.
        dataset: name of the cache's sub-folder.
        stages: seconds and memory are recorded there.
        progress_bar: show progress bars.
    """

    def __init__(
        self,
        settings: LESettings,
        catalogue: Catalogue,
        sequences: Sequences,
        dataset: str,
        stages: StageLog | None = None,
        progress_bar: bool = True,
    ) -> None:
        self.settings, self.catalogue, self.sequences = settings, catalogue, sequences
        self.stages = stages or StageLog()
        self._main = processes().is_main_process
        self.progress_bar = progress_bar and self._main
        self.device = pick_device()
        self.code = code_version()  # before any stage: the files may change meanwhile
        drawn = sample_negatives(sequences, len(catalogue), settings.negative_pool, settings.seed)
        self.actions = np.c_[sequences.actions, drawn]  # that are scored [n, 1 + negative_pool]
        self.negatives = self.actions[:, 1:]
        self.measured: dict[str, Any] = {}
        self._llm: LLM | None = None
        self._finetuned: Environment | None = None  # by this run, its adapter not merged
        self._environment: Environment | None = None
        self._reported = False
        folder = Path(settings.cache_dir) / dataset
        known = (settings.llm, settings.llm_dtype, settings.llm_options)
        identity = identify_llm(*known, folder, self.device) if self._main else None
        self.llm_fingerprint, self.llm_dtype, self._no_llm = from_main(identity)
        self.sentences, without_text = catalogue.sentences(settings.item_sentence)
        by_title = settings.prompt_items == "title"
        self.titles = catalogue.titles(settings.title) if by_title else None
        if without_text:
            more = len(without_text) - NAMED
            logger.warning(
                "%d of %d items have no text and are described by their token: %s%s",
                len(without_text), len(catalogue), ", ".join(without_text[:NAMED]),
                f" and {more} more" if more > 0 else "",
            )  # fmt: skip
        self.cache = Cache(folder, self._table(), self._origin, self.stages)

    def _table(self) -> dict[str, Stage]:
        """The stages that no list of candidates changes, in the paper's order."""
        s, n = self.settings, self.sequences
        items = Stage(
            "items", "item tokenization",
            item_parts(s, self.llm_fingerprint, self.catalogue.tokens, self.sentences),
            self.llm, self._tokenize, files=(TOKENS,),
        )  # fmt: skip
        environment = Stage(
            "environment", "LE fine-tuning",
            environment_parts(s, items.key, n.fingerprint, self.titles),
            self.llm, self._finetune, files=(ADAPTER, HISTORY),
        )  # fmt: skip
        states = Stage(
            "states", "states", parts(environment=environment.key),
            self.environment, partial(answers.states, n, self._bar("states")), array="states",
            layout=lambda: self._layout(n.state_starts, self.llm_width, "float16"),
        )  # fmt: skip
        nothing = np.broadcast_to(np.float32(np.nan), self.actions.shape)
        rewards = self._rewards_of(
            self.actions, "rewards", "rewards",
            parts(environment=environment.key, negative_pool=s.negative_pool), known=nothing,
        )  # fmt: skip
        stages = [items, environment, states, rewards]
        if (dim := s.state_dim) is not None:
            layout = Layout((n.n_states, dim), "float16", projection_bounds(n.n_states, dim))
            stages += [Stage(
                "projection", f"projection to {dim}", parts(states=states.key, state_dim=dim),
                self._full_states, partial(project, dim), array="states", layout=lambda: layout,
            )]  # fmt: skip
        return {stage.name: stage for stage in stages}

    def _rewards_of(
        self,
        actions: np.ndarray,
        name: str,
        title: str,
        made_of: dict[str, Any],
        known: np.ndarray | None = None,
    ) -> Stage:
        """Rewards of actions [n_transitions, k]; by default what the cache holds is ``known``."""

        def needs() -> tuple[Environment | None, np.ndarray]:
            found = known
            if found is None:
                found = self._known_rewards(actions)
                share = 100 * (1 - np.isnan(found).mean())
                logger.info("%s: %.0f %% of the rewards are in the cache", title, share)
            return self.environment() if np.isnan(found).any() else None, found

        compute = partial(answers.rewards, self.sequences, actions, self._bar(title))
        return self._about(actions, name, title, made_of, needs, compute, "rewards")

    def _about(self, actions, name, title, made_of, needs, compute, array) -> Stage:
        """Something of actions [n_transitions, k], which are stored beside it."""
        starts = self.sequences.transition_starts
        return Stage(
            name, title, made_of, needs, compute, array=array,
            layout=lambda: self._layout(starts, actions.shape[1], "float32", actions),
        )  # fmt: skip

    def _layout(
        self, starts: np.ndarray, width: int, dtype: str, actions: np.ndarray | None = None
    ) -> Layout:
        beside = {} if actions is None else {"actions": actions.astype(np.int32)}
        bounds = starts[answers.shard_bounds(self.sequences)]
        return Layout((int(starts[-1]), width), dtype, bounds.tolist(), beside)

    def _bar(self, title: str) -> answers.Bar:
        return partial(PromptBar, title, shown=self.progress_bar)

    @property
    def keys(self) -> dict[str, str]:
        """Stage -> cache key."""
        return {name: stage.key for name, stage in self.cache.table.items()}

    def require_llm(self, purpose: str) -> None:
        """Raise a FileNotFoundError that names the purpose unless the LLM is on this machine."""
        if self._no_llm is not None:
            raise FileNotFoundError(f"{purpose} needs the LLM: {self._no_llm}")

    def llm(self) -> LLM:
        """The LLM, loaded on first use."""
        if self._llm is None:
            self.require_llm(f"what the cache {self.cache.folder} lacks")
            with self.stages.stage("load LLM"):
                s = self.settings
                compiled = bool(s.compile)
                if s.compile == "auto":
                    compiled = self.sequences.n_transitions >= WORTH_COMPILING
                self._llm = load_llm(s.llm, self.llm_dtype, self.device, s.llm_options, compiled)
        return self._llm

    @property
    def llm_width(self) -> int:
        """Width d of the LLM, without loading it where item tokens are there."""
        if not self.cache.is_recorded("items"):
            return self.llm().width
        return self.item_tokens(mapped=True).shape[1]

    def item_tokens(self, mapped: bool = False) -> np.ndarray:
        """Item tokens [n_items, d], float32, in catalogue order; ``mapped`` leaves them on disk."""
        return read_array(self.cache.run(self.cache.table["items"]) / TOKENS, mapped)

    def _tokenize(self, llm: LLM, folder: Path) -> dict[str, Any]:
        key, shown = self.keys["items"], self.progress_bar
        return {"losses": tokenize(llm, self.sentences, self.settings, folder, key, shown)}

    def environment(self) -> Environment:
        """The fine-tuned LE."""
        if self._environment is None:
            self.item_tokens(mapped=True)
            self.llm()
            self._save_sequences()
            # a run that reads the LE from the cache must draw the same numbers afterwards
            with torch.random.fork_rng():
                folder = self.cache.run(self.cache.table["environment"])
                environment = self._finetuned or self._untrained()
            load_trained_state(environment, read_tensors(folder / ADAPTER))
            self._environment = environment.merge()
            self._report_quality()
        return self._environment

    def _untrained(self) -> Environment:
        tokens = torch.from_numpy(self.item_tokens())
        return Environment(self.llm(), tokens, self.settings, titles=self.titles)

    def _finetune(self, llm: LLM, folder: Path) -> dict[str, Any]:
        environment = self._untrained()
        history = finetune(environment, self.sequences, self.settings, folder, self.progress_bar)
        if self._main:
            write_json(folder / HISTORY, history)
            write_bytes(folder / ADAPTER, save(trained_state(environment)))
        self._finetuned = environment
        return {}

    def diagnostics(self) -> dict[str, Any]:
        """The fine-tuning's last record and the code that made it, if it is done; ``measured``."""
        # no collective: under accelerate the other processes have left when the record is written
        made = self.cache.made("environment")
        if made is None:
            return self.measured
        last = read_json(self.cache.path("environment") / HISTORY)[-1]
        return last | {"code": made.get("code")} | self.measured

    def _report_quality(self) -> None:
        """Say once in every run, the LE built or reused, how good it is on held-out sequences."""
        if self._reported:
            return
        self._reported = True
        built = self.cache.is_recorded("environment")
        if built and self._no_llm is None and not self.cache.is_built("environment"):
            self.environment()  # its files were altered since the feedback was computed
        quality.report(self.diagnostics(), built, self.cache.path("environment"))

    def states(self) -> np.ndarray:
        """States of all prefixes [n_states, d or state_dim], float16."""
        dim = self.settings.state_dim
        if dim is None:
            return self._full_states()
        check_dim(dim, self.sequences.n_states, self.llm_width)
        return self._array(self.cache.table["projection"])

    def _full_states(self) -> np.ndarray:
        return self._array(self.cache.table["states"])

    def like_training(self, states: np.ndarray) -> np.ndarray:
        """New states [n, d] as the training ones are looked up: [n, d or state_dim]."""
        dim = self.settings.state_dim
        return states if dim is None else fit_projection(self._full_states(), dim).transform(states)

    def rewards(self) -> np.ndarray:
        """Reward scores [n_transitions, 1 + negative_pool], float32."""
        return self._array(self.cache.table["rewards"])

    def _known_rewards(self, actions: np.ndarray) -> np.ndarray:
        """What finished stages of this LE say of actions [n_transitions, k]; NaN for nothing."""
        le = self.keys["environment"]
        stores = self.cache.stores({"actions", "rewards"}, environment=le)
        return answers.known_rewards(stores, actions)

    def _array(self, stage: Stage) -> np.ndarray:
        """A stage's array, memory-mapped, with what its readers need beside it."""
        self._save_sequences()
        folder = self.cache.run(stage)
        self._report_quality()
        return read_array(folder / f"{stage.array}.npy", mapped=True)

    def prepare_selection(self) -> None:
        """Build what ``select`` needs and no list of candidates changes."""
        if self.settings.selection_by == "state":
            self._full_states()
        else:
            self.environment()

    def select(
        self, candidates: np.ndarray, want_rewards: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The LE's choice among each transition's candidates (section 3.4).

        The other processes either call this too, and get the main one's, or are in ``assist``.

        Args:
            candidates: LE item indices in the list's order [n_transitions, k <= 5].
            want_rewards: also score the chosen actions.

        Returns:
            Chosen LE item indices [n_transitions] and their reward scores or None.
        """
        candidates = np.ascontiguousarray(candidates, dtype=np.int64)
        return self._select(*from_main((candidates, want_rewards)))

    def assist(self) -> None:
        """In the other processes: take part in ``select`` until the main one says ``release``."""
        while (asked := from_main(None)) is not None:
            self._select(*asked)

    def release(self) -> None:
        """In the main process: let the others go."""
        from_main(None)

    def _select(
        self, candidates: np.ndarray, want_rewards: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        s, by = self.settings, self.settings.selection_by
        scores = self._selection_scores(candidates)
        calibration = s.selection_calibration if by == "label" else "none"
        chosen, share = selection.choose(scores, candidates, calibration)
        truth = self.actions[:, 0]
        self.measured |= selection.outcome(s, truth, candidates, chosen, share)
        if not want_rewards:
            return chosen, None
        if by == "reward":
            return chosen, np.max(scores, axis=1)
        made_of = parts(environment=self.keys["environment"], actions=digest(chosen))
        title = "rewards of the chosen actions"
        stage = self._rewards_of(chosen[:, None], "selection_rewards", title, made_of)
        return chosen, self._array(stage)[:, 0]

    def _selection_scores(self, candidates: np.ndarray) -> np.ndarray:
        """What the LE picks from candidates by [n_transitions, k]."""
        s, n, title = self.settings, self.sequences, "augmentation"
        if s.selection_by == "state":
            with self.stages.stage(title):
                given = self.item_tokens(), self._full_states()
                return selection.nearness(s, n, *given, candidates)
        made_of = selection_parts(s, self.keys["environment"], candidates)
        if s.selection_by == "reward":
            return self._array(self._rewards_of(candidates, "selection", title, made_of))
        compute = partial(selection.label_scores, n, candidates, self._bar(title))
        return self._array(
            self._about(
                candidates, "selection", title, made_of, self.environment, compute, "label_scores"
            )
        )

    def precomputed(
        self, want_states: bool, want_rewards: bool, item_ids: np.ndarray | None = None
    ) -> PrecomputedFeedback:
        """Feedback read from disk, computed first where it is not there.

        Args:
            want_states: of the LE.
            want_rewards: of the LE.
            item_ids: what the caller calls the items, by LE index [n_items].
        """
        states = self.states() if want_states else None
        rewards = self.rewards() if want_rewards else None
        scale = None
        if rewards is not None:
            scale = RewardScale.fit(self.settings.reward_scale, rewards)
            right = sum(int((part[:, :1] > part[:, 1:]).sum()) for part in pieces(rewards))
            logger.info(
                "rewards: mean %.3f, deviation %.3f; positive above negative in %.3f",
                scale.mean, scale.deviation, right / rewards[:, 1:].size,
            )  # fmt: skip
            self.measured["reward_popularity"] = self._popularity_correlation(rewards)
        return PrecomputedFeedback(
            states, rewards, self.negatives, scale=scale,
            state_dim=None if states is None else states.shape[1], **self._common(item_ids),
        )  # fmt: skip

    def _popularity_correlation(self, rewards: np.ndarray) -> float | None:
        n_items, seed = len(self.catalogue), self.settings.seed
        return quality.popularity_correlation(
            rewards, self.negatives, self.sequences, n_items, seed
        )

    def live(
        self, want_states: bool, want_rewards: bool, item_ids: np.ndarray | None = None
    ) -> LiveFeedback:
        """Feedback computed by the LLM during training; arguments as those of ``precomputed``."""
        if self.settings.state_dim is not None:
            raise ValueError("state_dim needs all states beforehand: use transform lea_feedback")
        self.require_llm("transform lea_live")
        environment = self.environment()
        width = self.llm().width if want_states else None
        live = LiveFeedback(environment, scale=None, state_dim=width, **self._common(item_ids))
        if want_rewards:
            live.fit_scale(self.settings.reward_scale)
        return live

    def _common(self, item_ids: np.ndarray | None) -> dict[str, Any]:
        return {
            "sequences": self.sequences,
            "n_items": len(self.catalogue),
            "seed": self.settings.seed,
            "shuffle": self.settings.shuffle,
            "item_ids": item_ids,
        }

    def _origin(self, stage: str) -> dict[str, Any]:
        """What a stage's record tells about where it comes from."""
        settings = dataclasses.asdict(self.settings)
        del settings["cache_dir"]  # a cache may be copied
        keys, alone = self.keys, stage == "items"
        return {
            "stage": stage,
            "key": keys[stage],
            "environment": None if alone else keys["environment"],
            "sequences": None if alone else self._sequences_name,
            "fingerprints": {
                "llm": self.llm_fingerprint,
                "items": keys["items"],
                "sequences": None if alone else self.sequences.fingerprint,
            },
            "llm_dtype": self.llm_dtype,
            "settings": settings,
            "versions": versions(),
            "code": self.code,
        }

    @property
    def _sequences_name(self) -> str:
        return f"sequences-{self.sequences.fingerprint[:16]}"

    def _save_sequences(self) -> None:
        """Write the users, items and sequences by which the stages' rows are found."""
        self.cache.keep(self._sequences_name, self.sequences.save, "the sequences")

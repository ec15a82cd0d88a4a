"""The LE's stages in the paper's order, each cached under a key of all it depends on."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from scipy.stats import spearmanr
from tqdm import tqdm

from recbole_lea.engine.llm import LLM, PLACEMENT, load_llm, pick_device
from recbole_lea.engine.processes import collected, from_main, own_part, processes
from recbole_lea.engine.progress import PromptBar
from recbole_lea.engine.stagelog import StageLog
from recbole_lea.engine.versions import code_version, versions
from recbole_lea.le import feedback as fb
from recbole_lea.le import item_tokens as tokenization
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment
from recbole_lea.le.finetune import better_than_chance, finetune
from recbole_lea.le.heads import STATE_HEADS, fit_projection, project, projection_bounds
from recbole_lea.le.prompts import action_prompt
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.store.arrays import ArrayStore, pieces, take
from recbole_lea.store.cache import Cache
from recbole_lea.store.files import read_array, read_json, write_array, write_json
from recbole_lea.store.known_llms import identify_llm

logger = logging.getLogger(__name__)

# Bumped when a stage computes something else from the same inputs.
FORMAT = 3

# Transitions from which on compiling the LLM (under a minute) pays.
WORTH_COMPILING = 10_000

# Rewards that the correlation with popularity is taken from: ranks need them all in memory.
CORRELATED = 10**6

# Items without text that the log names.
NAMED = 100

# Items that are tokenized together: what a kill can lose, against the optimiser's batch.
BUCKET = 256


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
        keys: stage -> cache key.
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
        self.settings = settings
        self.catalogue = catalogue
        self.sequences = sequences
        self.stages = stages or StageLog()
        self.progress_bar = progress_bar and processes().is_main_process
        self.device = pick_device()
        self.code = code_version()  # before any stage: the files may change meanwhile
        self.negatives = sample_negatives(
            sequences, len(catalogue), settings.negative_pool, settings.seed
        )
        self._llm: LLM | None = None
        self._environment: Environment | None = None
        self.measured: dict[str, Any] = {}
        self._reported = False
        self._main = processes().is_main_process
        folder = Path(settings.cache_dir) / dataset
        known = (settings.llm, settings.llm_dtype, settings.llm_options)
        identity = identify_llm(*known, folder, self.device) if self._main else None
        self.llm_fingerprint, self.llm_dtype, self._no_llm = from_main(identity)
        self.keys = self._stage_keys()
        self.cache = Cache(folder, self.keys, self._origin, self.stages)

    def require_llm(self, purpose: str) -> None:
        """Make sure that the LLM is on this machine.

        Args:
            purpose: what needs it, for the message.

        Raises:
            FileNotFoundError: it is not.
        """
        if self._no_llm is not None:
            raise FileNotFoundError(f"{purpose} needs the LLM: {self._no_llm}")

    def _stage_keys(self) -> dict[str, str]:
        """Stage -> cache key, each over its own inputs and the stages before it."""
        s = self.settings
        sentences, self.without_text = self.catalogue.sentences(s.item_sentence)
        self.sentences = sentences
        self.titles = self.catalogue.titles(s.title) if s.prompt_items == "title" else None
        if self.without_text:
            logger.warning(
                "%d of %d items have no text and are described by their token: %s",
                len(self.without_text), len(self.catalogue), _named(self.without_text),
            )  # fmt: skip
        options = {k: v for k, v in (s.llm_options or {}).items() if k not in PLACEMENT}
        items = _key(
            llm=self.llm_fingerprint,
            tokens=self.catalogue.tokens,
            sentences=sentences,
            settings=_subset(s, "item_"),
            quantization=options.pop("quantization_config", None),
            seed=s.seed if s.item_init == "random" else None,
            **({"llm_options": options} if options else {}),
        )
        prompts = {
            "prompt": s.user_prompt,
            "max_history": s.max_history,
            "history_hop": s.history_hop,
        }
        if self.titles is not None:
            prompts["titles"] = self.titles
        learning = _subset(s, "finetune_")
        del learning["finetune_eval"]  # it measures only
        if s.selection_weight:
            learning["selection"] = {
                "weight": s.selection_weight,
                "prompt": s.selection_prompt + s.selection_suffix,
                "labels": s.selection_labels,
            }
        environment = _key(
            items=items,
            sequences=self.sequences.fingerprint,
            prompts=prompts | {"action": action_prompt(s)[0], "state_input": s.state_input},
            settings=learning | _subset(s, "lora_") | _subset(s, "state_loss"),
            state_weight=s.state_weight,
            state_head=s.state_head,
            reward_head=s.reward_head,
            seed=s.seed,
        )
        keys = {
            "items": items,
            "environment": environment,
            "states": _key(environment=environment),
            "rewards": _key(environment=environment, negative_pool=s.negative_pool),
        }
        if s.state_dim is not None:
            keys["projection"] = _key(states=keys["states"], state_dim=s.state_dim)
        return keys

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
        with self.cache.stage("items", "item tokenization", self.llm) as folder:
            if folder is not None:
                self.cache.finish("items", losses=self._tokenize(folder))
        return read_array(self.cache.path("items") / "tokens.npy", mapped)

    def _tokenize(self, folder: Path) -> list[float] | None:
        """Write ``tokens.npy``.

        Returns:
            The mean sentence loss before and after, in the main process; None without iterations.
        """
        llm, s, n = self.llm(), self.settings, len(self.catalogue)
        plain = Environment(llm, torch.zeros(1, llm.width), s, adapted=False)
        ids, cut = tokenization.sentence_ids(self.sentences, plain, llm.tokenizer)
        if cut:
            logger.info("%d item sentences were cut to %d tokens", cut, s.item_max_tokens)
        start = tokenization.initial_tokens(ids, plain, s)
        if s.item_iterations == 0:  # measuring the losses alone would take minutes
            if self._main:
                write_array(folder / "tokens.npy", start.numpy())
            return None
        # items of similar length together; the order decides nothing else
        order = sorted(range(n), key=lambda i: (len(ids[i]), i))
        starts = list(range(0, n, BUCKET))
        arrays = {"ordered": ((n, llm.width), "float32"), "losses": ((n, 2), "float32")}
        store = ArrayStore(folder, arrays, [*starts, n], self.keys["items"])
        missing = store.missing()
        total = sum(min(BUCKET, n - starts[b]) for b in missing) * (s.item_iterations + 1)
        with tqdm(
            desc="item tokenization", unit=" item-steps", total=total, disable=not self.progress_bar
        ) as bar:

            def tokenized(b: int) -> tuple[int, np.ndarray, np.ndarray]:
                members = order[starts[b] : starts[b] + BUCKET]
                local = [
                    [llm.vocab_size + i if t >= llm.vocab_size else t for t in ids[item]]
                    for i, item in enumerate(members)
                ]
                return b, *tokenization.tokenize_bucket(plain, local, start[members], s, bar)

            at_once = processes().num_processes
            for first in range(0, len(missing), at_once):
                own = own_part(missing[first : first + at_once])
                for b, vectors, losses in collected([tokenized(b) for b in own]):
                    store.write(b, {"ordered": vectors, "losses": losses})
        if not self._main:
            return None
        losses = store.array("losses").mean(0)
        logger.info("item tokenization: mean sentence loss %.3f -> %.3f over %d items", *losses, n)
        tokens = np.empty((n, llm.width), dtype=np.float32)
        places = pieces(np.array(order))
        for part, place in zip(pieces(store.array("ordered")), places, strict=True):
            tokens[place] = part
        write_array(folder / "tokens.npy", tokens)
        return losses.tolist()

    def environment(self) -> Environment:
        """The fine-tuned LE."""
        if self._environment is not None:
            return self._environment
        tokens = torch.from_numpy(self.item_tokens())
        llm = self.llm()
        self._save_sequences()
        title = "LE fine-tuning"
        # a run that reads the LE from the cache must draw the same numbers afterwards
        with torch.random.fork_rng(), self.cache.stage("environment", title, self.llm) as folder:
            environment = Environment(llm, tokens, self.settings, titles=self.titles)
            if folder is not None:
                history = finetune(
                    environment, self.sequences, self.settings, folder, self.progress_bar
                )
                if self._main:
                    write_json(folder / "history.json", history)
                    environment.save(folder / "adapter.safetensors")
                self.cache.finish("environment")
        environment.load(self.cache.path("environment") / "adapter.safetensors")
        self._environment = environment.merge()
        self._report_quality()
        return environment

    def diagnostics(self) -> dict[str, Any]:
        """The fine-tuning's last record and the code that made it, if it is done; ``measured``."""
        folder = self.cache.path("environment")
        # no collective: under accelerate the other processes have left when the record is written
        made = self.cache.made("environment")
        if made is None:
            return self.measured
        return read_json(folder / "history.json")[-1] | {"code": made.get("code")} | self.measured

    def _report_quality(self) -> None:
        """Say once in every run, the LE built or reused, how good it is on held-out sequences."""
        if self._reported:
            return
        self._reported = True
        built = self.cache.is_recorded("environment")
        if built and self._no_llm is None and not self.cache.is_built("environment"):
            self.environment()  # its files were altered since the feedback was computed
        record = self.diagnostics()
        if "accuracy" not in record:
            logger.warning(
                "the LE was not measured: %s",
                "it was built with lea_finetune_eval: 0, or no training sequence was left"
                if built
                else f"the cache lacks {self.cache.path('environment').name}",
            )
            return
        logger.info(
            "LE on %d held-out training transitions: reward accuracy %.3f, state hit@10 %.4f",
            record["n"], record["accuracy"], record["hit_10"],
        )  # fmt: skip
        if not better_than_chance(record["accuracy"], record["n"]):
            logger.warning(
                "the reward model is no better than chance (held-out accuracy %.3f on %d pairs): "
                "its rewards carry no information; train longer (lea_finetune_epochs), raise "
                "lea_finetune_lr, or use a larger LLM", record["accuracy"], record["n"],
            )  # fmt: skip

    def states(self) -> np.ndarray:
        """States of all prefixes [n_states, d or state_dim], float16."""
        dim = self.settings.state_dim
        return self._full_states() if dim is None else self._projected(dim)

    def _full_states(self) -> np.ndarray:
        return self._computed(
            "states", "states", "states", (self.sequences.n_states, self.llm_width),
            fb.Computation.states, dtype="float16",
        )  # fmt: skip

    def _projected(self, dim: int) -> np.ndarray:
        """PCA of the training states to ``state_dim`` (row 17)."""
        n, width = self.sequences.n_states, self.llm_width
        if dim > min(n, width):
            raise ValueError(
                f"state_dim is {dim}, but {n} states of width {width} allow at most {min(n, width)}"
            )
        return self._filled(
            "projection", f"projection to {dim}", "states", (n, dim), "float16",
            projection_bounds(n, dim), self._full_states,
            lambda store: project(self._full_states(), store),
        )  # fmt: skip

    def like_training(self, states: np.ndarray) -> np.ndarray:
        """New states [n, d] as the training ones are looked up: [n, d or state_dim]."""
        dim = self.settings.state_dim
        if dim is None:
            return states
        full = self._full_states()
        return fit_projection(full, projection_bounds(len(full), dim), dim).transform(states)

    def rewards(self) -> np.ndarray:
        """Reward scores [n_transitions, 1 + negative_pool], float32."""
        positives = self.sequences.actions
        actions = np.concatenate([positives[:, None], self.negatives], axis=1)
        nothing = np.broadcast_to(np.float32(np.nan), actions.shape)
        return self._judged("rewards", "rewards", actions, nothing)

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
        return self._selected(*from_main((candidates, want_rewards)))

    def prepare_selection(self) -> None:
        """Build what ``select`` needs and no list of candidates changes."""
        if self.settings.selection_by == "state":
            self._full_states()
        else:
            self.environment()

    def assist(self) -> None:
        """In the other processes: take part in ``select`` until the main one says ``release``."""
        while (asked := from_main(None)) is not None:
            self._selected(*asked)

    def release(self) -> None:
        """In the main process: let the others go."""
        from_main(None)

    def _selected(
        self, candidates: np.ndarray, want_rewards: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        s, by = self.settings, self.settings.selection_by
        asked: dict[str, Any] = {"by": by}
        if by == "label":
            asked = {
                "prompt": s.selection_prompt + s.selection_suffix,
                "labels": s.selection_labels,
            }
        self.keys["selection"] = _key(
            environment=self.keys["environment"],
            candidates=hashlib.sha256(candidates.data).hexdigest(),
            **asked,
        )
        calibration = "none"
        if by == "state":
            with self.stages.stage("augmentation"):
                scores = self._nearness(candidates)
        elif by == "reward":
            scores = self._judged("selection", "augmentation", candidates)
        else:
            calibration = s.selection_calibration
            scores = self._computed(
                "selection", "augmentation", "label_scores", candidates.shape,
                lambda computation: computation.label_scores(candidates), actions=candidates,
            )  # fmt: skip
        chosen, share = fb.choose(scores, candidates, calibration)
        shares = ", ".join(
            f"{label} {part:.2f}" for label, part in zip(s.selection_labels, share, strict=False)
        )
        truth = self.sequences.actions
        listed = float((candidates == truth[:, None]).any(1).mean())
        right = float((chosen == truth).mean())
        self.measured |= {
            "positions_chosen": share.tolist(), "true_item_listed": listed,
            "true_item_chosen": right,
        }  # fmt: skip
        logger.info(
            "augmentation: share of positions chosen: %s; the true next item is in %.3f of the "
            "lists and is chosen in %.3f", shares, listed, right,
        )  # fmt: skip
        if not want_rewards:
            return chosen, None
        if by == "reward":
            return chosen, np.max(scores, axis=1)
        self.keys["selection_rewards"] = _key(
            environment=self.keys["environment"], actions=hashlib.sha256(chosen.data).hexdigest()
        )
        title = "rewards of the chosen actions"
        return chosen, self._judged("selection_rewards", title, chosen[:, None])[:, 0]

    def _nearness(self, candidates: np.ndarray) -> np.ndarray:
        """How near each candidate is to the transition's state, up to a factor [n, k].

        x_t itself, which by the skip connection is near whatever the user wants, comes last.
        """
        tokens = torch.from_numpy(self.item_tokens())
        head = STATE_HEADS[self.settings.state_head](tokens)
        states = self._full_states()
        # a user's last state has no transition
        rows = np.delete(np.arange(len(states)), self.sequences.state_starts[1:] - 1)
        newest = np.concatenate([items[:-1] for items in self.sequences.items])
        scores = np.empty(candidates.shape, dtype=np.float32)
        parts = (pieces(array, 2**12) for array in (scores, rows, candidates, newest))
        for part, own, listed, last in zip(*parts, strict=True):
            query = head.query(torch.from_numpy(take(states, own).astype(np.float32)))  # [m, d]
            near = head.keys[torch.from_numpy(listed)] @ query[:, :, None]  # [m, k, 1]
            part[:] = near.squeeze(2).detach().numpy()
            part[listed == last[:, None]] = -np.inf
        return scores

    def _judged(
        self, stage: str, title: str, actions: np.ndarray, known: np.ndarray | None = None
    ) -> np.ndarray:
        """Rewards of given actions [n_transitions, k], float32.

        Those that are ``known`` are not computed; by default what the cache holds already, of the
        logged actions or from other lists, which is the same up to the rounding of another row's
        layout.
        """

        def needs() -> None:
            nonlocal known
            if known is None:
                known = self._known_rewards(actions)
                share = 100 * (1 - np.isnan(known).mean())
                logger.info("%s: %.0f %% of the rewards are in the cache", title, share)
            if np.isnan(known).any():
                self.environment()

        return self._computed(
            stage, title, "rewards", actions.shape,
            lambda computation: computation.rewards(actions, cast(np.ndarray, known)),
            actions=actions, needs=needs,
        )  # fmt: skip

    def _known_rewards(self, actions: np.ndarray) -> np.ndarray:
        """What finished stages of this LE say of actions [n_transitions, k]; NaN for nothing."""
        known = np.full(actions.shape, np.nan, dtype=np.float32)
        le = self.keys["environment"]
        for store in self.cache.stores({"actions", "rewards"}, environment=le):
            arrays = (known, actions, store.array("actions"), store.array("rewards"))
            parts = zip(*map(pieces, arrays), strict=True)
            for part, wanted, judged, scores in parts:
                for column in range(judged.shape[1]):
                    same = wanted == judged[:, column, None]  # [m, k]
                    np.copyto(part, scores[:, column, None], where=same & np.isnan(part))
        return known

    def _computed(
        self,
        stage: str,
        title: str,
        array: str,
        shape: tuple[int, ...],
        compute: Callable[[fb.Computation], None],
        dtype: str = "float32",
        actions: np.ndarray | None = None,
        needs: Callable[[], Any] | None = None,
    ) -> np.ndarray:
        """One array of the LE's answers, memory-mapped; missing or altered shards are computed.

        The actions that were judged are stored beside it. ``needs`` is called before that, by
        default to load the LE.
        """
        starts = self.sequences.state_starts
        if array != "states":
            starts = self.sequences.transition_starts
        rows = starts[fb.shard_bounds(self.sequences)]
        given = {} if actions is None else {"actions": actions.astype(np.int32)}

        def fill(store: ArrayStore) -> None:
            prompts = int(np.diff(rows)[store.missing()].sum())
            if array == "rewards":
                prompts *= shape[1]
            with PromptBar(title, prompts, self.progress_bar) as bar:
                compute(fb.Computation(self.environment, self.sequences, store, bar))

        return self._filled(
            stage, title, array, shape, dtype, rows, needs or self.environment, fill, given
        )  # fmt: skip

    def precomputed(
        self, want_states: bool, want_rewards: bool, item_ids: np.ndarray | None = None
    ) -> fb.PrecomputedFeedback:
        """Feedback read from disk, computed first where it is not there."""
        states = self.states() if want_states else None
        rewards = self.rewards() if want_rewards else None
        scale = None
        if rewards is not None:
            scale = fb.RewardScale.fit(self.settings.reward_scale, rewards)
            right = sum(int((part[:, :1] > part[:, 1:]).sum()) for part in pieces(rewards))
            logger.info(
                "rewards: mean %.3f, deviation %.3f; positive above negative in %.3f",
                scale.mean, scale.deviation, right / rewards[:, 1:].size,
            )  # fmt: skip
            self.measured["reward_popularity"] = self._popularity_correlation(rewards)
        return fb.PrecomputedFeedback(
            states, rewards, self.negatives, scale=scale,
            state_dim=None if states is None else states.shape[1], **self._common(item_ids),
        )  # fmt: skip

    def _popularity_correlation(self, rewards: np.ndarray) -> float | None:
        """Spearman correlation of a negative's reward with its item's count in training.

        Of the negatives, as they are drawn uniformly and not by popularity; of a random
        ``CORRELATED`` of them where there are more.
        """
        n = CORRELATED // self.negatives.shape[1]
        rows = np.arange(len(rewards))
        if len(rows) > n:
            rows = np.random.default_rng([self.settings.seed, 6]).choice(rows, n, replace=False)
        counts = np.bincount(np.concatenate(self.sequences.items), minlength=len(self.catalogue))
        correlation = float(
            spearmanr(take(rewards, rows)[:, 1:], counts[self.negatives[rows]], axis=None).statistic
        )
        return None if np.isnan(correlation) else correlation

    def live(
        self, want_states: bool, want_rewards: bool, item_ids: np.ndarray | None = None
    ) -> fb.LiveFeedback:
        """Feedback computed by the LLM during training."""
        if self.settings.state_dim is not None:
            raise ValueError("state_dim needs all states beforehand: use transform lea_feedback")
        self.require_llm("transform lea_live")
        environment = self.environment()
        live = fb.LiveFeedback(
            environment, scale=None, state_dim=self.llm().width if want_states else None,
            **self._common(item_ids),
        )  # fmt: skip
        if want_rewards:
            live.fit_scale(self.settings.reward_scale)
        return live

    def _common(self, item_ids: np.ndarray | None) -> dict[str, Any]:
        return {
            "item_ids": item_ids,
            "sequences": self.sequences,
            "n_items": len(self.catalogue),
            "seed": self.settings.seed,
            "shuffle": self.settings.shuffle,
        }

    def _filled(self, *arguments: Any, **more: Any) -> np.ndarray:
        """``Cache.filled``, with what the readers of the array need beside it."""
        self._save_sequences()
        array = self.cache.filled(*arguments, **more)
        self._report_quality()
        return array

    def _origin(self, stage: str) -> dict[str, Any]:
        """What a stage's record tells about where it comes from."""
        settings = dataclasses.asdict(self.settings)
        del settings["cache_dir"]  # a cache may be copied
        return {
            "stage": stage,
            "key": self.keys[stage],
            "environment": None if stage == "items" else self.keys["environment"],
            "sequences": None if stage == "items" else self._sequences_name,
            "fingerprints": {
                "llm": self.llm_fingerprint,
                "items": self.keys["items"],
                "sequences": None if stage == "items" else self.sequences.fingerprint,
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


def _named(tokens: list[str]) -> str:
    more = len(tokens) - NAMED
    return ", ".join(tokens[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _subset(settings: LESettings, prefix: str) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name.startswith(prefix)}


def _key(**parts: Any) -> str:
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()

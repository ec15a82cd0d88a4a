"""The LE's stages in the paper's order, each cached under a key of all it depends on."""

import contextlib
import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from sklearn.decomposition import IncrementalPCA
from tqdm import tqdm

from recbole_lea.le import feedback as fb
from recbole_lea.le import tokenization
from recbole_lea.le.catalogue import Catalogue
from recbole_lea.le.environment import Environment
from recbole_lea.le.finetune import evaluation_of, finetune
from recbole_lea.le.llm import LLM, fingerprint, load_llm, pick_device, pick_dtype
from recbole_lea.le.progress import PromptBar
from recbole_lea.le.prompts import action_prompt
from recbole_lea.le.sequences import Sequences, sample_negatives
from recbole_lea.le.settings import LESettings
from recbole_lea.le.stages import StageLog
from recbole_lea.le.store import ArrayStore, write_json

logger = logging.getLogger(__name__)

# Bumped when a stage computes something else from the same inputs.
FORMAT = 1

# Items that are tokenized together: what a kill can lose, against the optimiser's batch.
BUCKET = 256


class Pipeline:
    """Item tokenization -> fine-tuning -> states, rewards -> selections.

    A stage runs when it is first asked for, and is read back from the cache if it was
    finished under the same key before.

    Attributes:
        keys: stage -> cache key.
        used: the same for the stages that this run has asked for.

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
        self.progress_bar = progress_bar
        self.folder = Path(settings.cache_dir) / dataset
        self.device = pick_device()
        self.negatives = sample_negatives(
            sequences, len(catalogue), settings.negative_pool, settings.seed
        )
        self._llm: LLM | None = None
        self._environment: Environment | None = None
        self.used: dict[str, str] = {}
        self.keys = self._stage_keys()

    def __getstate__(self) -> dict[str, Any]:
        """Without the LLM, which is loaded again when it is needed."""
        return self.__dict__ | {"_llm": None, "_environment": None}

    def _stage_keys(self) -> dict[str, str]:
        """Stage -> cache key, each over its own inputs and the stages before it."""
        s = self.settings
        self.llm_fingerprint = fingerprint(s.llm, str(pick_dtype(s.llm_dtype, self.device)))
        sentences, self.without_text = self.catalogue.sentences(s.item_sentence)
        self.sentences = sentences
        if self.without_text:
            logger.warning(
                "%d of %d items have no text and are described by their token: %s",
                len(self.without_text), len(self.catalogue), ", ".join(self.without_text),
            )  # fmt: skip
        items = _key(
            llm=self.llm_fingerprint,
            tokens=self.catalogue.tokens,
            sentences=sentences,
            settings=_subset(s, "item_"),
            seed=s.seed if s.item_init == "random" else None,
        )
        prompts = {"prompt": s.user_prompt, "max_history": s.max_history}
        learning = _subset(s, "finetune_")
        del learning["finetune_eval"]  # it measures only
        environment = _key(
            items=items,
            sequences=self.sequences.fingerprint(),
            prompts=prompts | {"action": action_prompt(s)[0], "state_input": s.state_input},
            settings=learning | _subset(s, "lora_") | _subset(s, "state_loss"),
            state_weight=s.state_weight,
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
            with self.stages.stage("load LLM"):
                self._llm = load_llm(self.settings.llm, self.settings.llm_dtype, self.device)
        return self._llm

    @property
    def llm_width(self) -> int:
        """Width d of the LLM, without loading it where item tokens are there."""
        return self.item_tokens().shape[1]

    def item_tokens(self) -> np.ndarray:
        """Item tokens [n_items, d], float32, in catalogue order."""
        with self._stage("items", "item tokenization", self.llm) as folder:
            if folder is not None:
                self._tokenize(folder)
        return np.load(self._folder("items") / "tokens.npy", allow_pickle=False)

    def _tokenize(self, folder: Path) -> None:
        llm, s, n = self.llm(), self.settings, len(self.catalogue)
        plain = Environment(llm, torch.zeros(n, llm.width), s, adapted=False)
        ids, cut = tokenization.sentence_ids(self.sentences, plain, llm.tokenizer)
        if cut:
            logger.info("%d item sentences were cut to %d tokens", cut, s.item_max_tokens)
        start = tokenization.initial_tokens(ids, plain, s)
        # items of similar length together; the order decides nothing else
        order = sorted(range(n), key=lambda i: (len(ids[i]), i))
        starts = list(range(0, n, BUCKET))
        bounds = {name: [*starts, n] for name in ("ordered", "losses")}
        store = ArrayStore(
            folder,
            {"ordered": ((n, llm.width), "float32"), "losses": ((n, 2), "float32")},
            bounds,
            {"key": self.keys["items"]},
        )
        missing = store.missing()
        total = sum(min(BUCKET, n - starts[b]) for b in missing) * (s.item_iterations + 1)
        with tqdm(
            desc="item tokenization", unit=" item-steps", total=total, disable=not self.progress_bar
        ) as bar:
            for b in missing:
                members = order[starts[b] : starts[b] + BUCKET]
                local = [
                    [llm.vocab_size + i if t >= llm.vocab_size else t for t in ids[item]]
                    for i, item in enumerate(members)
                ]
                vectors, losses = tokenization.tokenize_bucket(plain, local, start[members], s, bar)
                store.write(b, {"ordered": vectors, "losses": losses})
        losses = store.array("losses").mean(0)
        logger.info("item tokenization: mean sentence loss %.3f -> %.3f over %d items", *losses, n)
        tokens = np.empty((n, llm.width), dtype=np.float32)
        tokens[order] = store.array("ordered")
        partial = folder / "tokens.partial.npy"
        np.save(partial, tokens)
        partial.replace(folder / "tokens.npy")

    def environment(self) -> Environment:
        """The fine-tuned LE."""
        if self._environment is not None:
            return self._environment
        tokens = torch.from_numpy(self.item_tokens())
        llm = self.llm()
        title = "LE fine-tuning"
        # a run that reads the LE from the cache must draw the same numbers afterwards
        with torch.random.fork_rng(), self._stage("environment", title, self.llm) as folder:
            environment = Environment(llm, tokens, self.settings)
            if folder is not None:
                history = finetune(
                    environment, self.sequences, self.settings, folder, self.progress_bar
                )
                write_json(folder / "history.json", history)
                environment.save(folder / "adapter.safetensors")
        environment.load(self._folder("environment") / "adapter.safetensors")
        self._environment = environment.eval()
        return environment

    def diagnostics(self) -> dict[str, Any]:
        """The last epoch's record of the fine-tuning, if the LE has been built."""
        path = self._folder("environment") / "history.json"
        return json.loads(path.read_text(encoding="utf-8"))[-1] if path.is_file() else {}

    def _report_quality(self) -> None:
        """Say in every run, the LE built or reused, how good it is on held-out sequences."""
        record = self.diagnostics()
        if "accuracy" not in record:
            logger.warning("no training sequence was left to measure the LE on")
            return
        logger.info(
            "LE on %d held-out training transitions: reward accuracy %.3f, state hit@10 %.4f",
            record["n"], record["accuracy"], record["hit_10"],
        )  # fmt: skip
        if not evaluation_of(record).better_than_chance:
            logger.warning(
                "the reward model is no better than chance (held-out accuracy %.3f on %d pairs): "
                "its rewards carry no information; train longer (lea_finetune_epochs), raise "
                "lea_finetune_lr, or use a larger LLM", record["accuracy"], record["n"],
            )  # fmt: skip

    def states(self) -> np.ndarray:
        """States of all prefixes [n_states, d or state_dim], float16."""
        full = self._computed(
            "states", "states", "states", (self.sequences.n_states, self.llm_width),
            fb.Computation.states, dtype="float16",
        )  # fmt: skip
        dim = self.settings.state_dim
        return full if dim is None else self._projected(full, dim)

    def _projected(self, full: np.ndarray, dim: int) -> np.ndarray:
        """PCA of the training states to ``state_dim`` (row 17)."""
        if dim > min(full.shape):
            raise ValueError(
                f"state_dim is {dim}, but {full.shape[0]} states of width {full.shape[1]} "
                f"allow at most {min(full.shape)}"
            )
        path = self._folder("projection") / "states.npy"
        with self._stage("projection", f"projection to {dim}", lambda: None) as folder:
            if folder is not None:
                project(full, dim, path)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def rewards(self) -> np.ndarray:
        """Reward scores [n_transitions, 1 + negative_pool], float32."""
        positives = np.concatenate([items[1:] for items in self.sequences.items])
        actions = np.concatenate([positives[:, None], self.negatives], axis=1)
        return self._computed(
            "rewards", "rewards", "rewards", actions.shape,
            lambda computation: computation.rewards(actions),
        )  # fmt: skip

    def select(
        self, candidates: np.ndarray, want_rewards: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The LE's choice among each transition's candidates (section 3.4).

        Args:
            candidates: LE item indices in the list's order [n_transitions, k <= 5].
            want_rewards: also score the chosen actions.

        Returns:
            Chosen LE item indices [n_transitions] and their reward scores or None.
        """
        s = self.settings
        candidates = np.ascontiguousarray(candidates, dtype=np.int64)
        self.keys["selection"] = _key(
            environment=self.keys["environment"],
            prompt=s.selection_prompt + s.selection_suffix,
            labels=s.selection_labels,
            candidates=hashlib.sha256(candidates.tobytes()).hexdigest(),
        )
        scores = self._computed(
            "selection", "augmentation", "label_scores", candidates.shape,
            lambda computation: computation.label_scores(candidates),
        )  # fmt: skip
        chosen, share = fb.choose(scores, candidates, s.selection_calibration)
        shares = ", ".join(
            f"{label} {part:.2f}" for label, part in zip(s.selection_labels, share, strict=False)
        )
        truth = np.concatenate([items[1:] for items in self.sequences.items])
        logger.info(
            "augmentation: share of positions chosen: %s; the true next item is in %.3f of the "
            "lists and is chosen in %.3f", shares, (candidates == truth[:, None]).any(1).mean(),
            (chosen == truth).mean(),
        )  # fmt: skip
        if not want_rewards:
            return chosen, None
        self.keys["selection_rewards"] = _key(
            selection=self.keys["selection"], calibration=s.selection_calibration
        )
        rewards = self._computed(
            "selection_rewards", "rewards of the chosen actions", "action_rewards", chosen.shape,
            lambda computation: computation.rewards(chosen[:, None]),
        )  # fmt: skip
        return chosen, rewards

    def _computed(
        self,
        stage: str,
        title: str,
        array: str,
        shape: tuple[int, ...],
        compute: Callable[[fb.Computation], None],
        dtype: str = "float32",
    ) -> np.ndarray:
        """One array of the LE's answers, memory-mapped; missing or altered shards are computed."""
        starts = self.sequences.state_starts
        if array != "states":
            starts = self.sequences.transition_starts
        rows = starts[fb.shard_bounds(self.sequences)]

        def open_store(folder: Path) -> ArrayStore:
            meta = {"users": len(self.sequences), "format": FORMAT}
            return ArrayStore(folder, {array: (shape, dtype)}, {array: rows}, meta)

        def finished(folder: Path) -> bool:
            return not open_store(folder).missing()

        with self._stage(stage, title, self.environment, finished) as folder:
            if folder is not None:
                store = open_store(folder)
                prompts = int(np.diff(rows)[store.missing()].sum())
                if array == "rewards":
                    prompts *= shape[1]
                with PromptBar(title, prompts, self.progress_bar) as bar:
                    compute(fb.Computation(self.environment(), self.sequences, store, bar))
        path = self._folder(stage) / f"{array}.npy"
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def precomputed(self, want_states: bool, want_rewards: bool) -> fb.PrecomputedFeedback:
        """Feedback read from disk, computed first where it is not there."""
        states = self.states() if want_states else None
        rewards = self.rewards() if want_rewards else None
        if states is not None or rewards is not None:
            self._report_quality()
        scale = None
        if rewards is not None:
            scale = fb.RewardScale.fit(self.settings.reward_scale, rewards)
            logger.info(
                "rewards: mean %.3f, deviation %.3f; positive above negative in %.3f",
                scale.mean, scale.deviation, float((rewards[:, :1] > rewards[:, 1:]).mean()),
            )  # fmt: skip
        return fb.PrecomputedFeedback(
            states, rewards, self.negatives, scale=scale,
            state_dim=None if states is None else states.shape[1], **self._common(),
        )  # fmt: skip

    def live(self, want_states: bool, want_rewards: bool) -> fb.LiveFeedback:
        """Feedback computed by the LLM during training."""
        if self.settings.state_dim is not None:
            raise ValueError("state_dim needs all states beforehand: use transform lea_feedback")
        environment = self.environment()
        live = fb.LiveFeedback(
            environment, scale=None, state_dim=self.llm().width if want_states else None,
            **self._common(),
        )  # fmt: skip
        self._report_quality()
        if want_rewards:
            live.fit_scale(self.settings.reward_scale)
        return live

    def _common(self) -> dict[str, Any]:
        return {
            "sequences": self.sequences,
            "n_items": len(self.catalogue),
            "seed": self.settings.seed,
        }

    def _folder(self, stage: str) -> Path:
        return self.folder / f"{stage}-{self.keys[stage][:16]}"

    @contextlib.contextmanager
    def _stage(
        self,
        stage: str,
        title: str,
        needs: Callable[[], Any],
        finished: Callable[[Path], bool] = lambda folder: (folder / "done.json").is_file(),
    ) -> Iterator[Path | None]:
        """Yield the stage's folder if there is work to do, None if it is finished.

        ``needs`` is called before the stage's clock starts, so that no stage counts another.
        """
        self.used[stage] = self.keys[stage]
        folder = self._folder(stage)
        done = folder / "done.json"
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if finished(folder):
                logger.info("%s: reused from %s", title, folder)
                yield None
                return
            needs()
            logger.info("%s: computing into %s", title, folder)
            with self.stages.stage(title):
                yield folder
            content = {"key": self.keys[stage], "settings": dataclasses.asdict(self.settings)}
            write_json(done, content)


def project(full: np.ndarray, dim: int, path: Path) -> None:
    """Write the first ``dim`` principal components of ``full`` [n, d], float16, part by part."""
    pca = IncrementalPCA(dim)
    step = max(4096, dim)
    # the last part is never smaller than the number of components
    cuts = [*range(0, max(1, len(full) - step), step), len(full)]
    parts = list(zip(cuts[:-1], cuts[1:], strict=True))
    for start, end in parts:
        pca.partial_fit(np.asarray(full[start:end], dtype=np.float32))
    kept = 100 * pca.explained_variance_ratio_.sum()
    logger.info("state_dim %d keeps %.1f %% of the states' variance", dim, kept)
    partial = path.with_suffix(".partial")
    projected = np.lib.format.open_memmap(partial, "w+", np.float16, (len(full), dim))
    for start, end in parts:
        projected[start:end] = pca.transform(np.asarray(full[start:end], dtype=np.float32))
    projected.flush()
    partial.replace(path)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the stage's folder; the operating system frees the lock of a killed run."""
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another run is computing %s: waiting for it", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _subset(settings: LESettings, prefix: str) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    return {name: value for name, value in values.items() if name.startswith(prefix)}


def _key(**parts: Any) -> str:
    text = json.dumps({"format": FORMAT, **parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

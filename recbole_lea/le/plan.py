"""What an LE will cost, told before its first stage: what the cache holds, what is computed, time.

The speed is measured on this machine, with one batch of each kind of work.
"""

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_lea.engine.memory import within_memory
from recbole_lea.engine.packing import PackedBatch, PromptRow, pack
from recbole_lea.engine.processes import from_main, processes
from recbole_lea.le import answers, finetune, item_tokens, quality
from recbole_lea.le.catalogue import item_fields
from recbole_lea.le.environment import Environment
from recbole_lea.le.prompts import action_prompt
from recbole_lea.le.settings import BARE_KEYS
from recbole_lea.le.stages import table
from recbole_lea.le.text import TextEnvironment
from recbole_lea.store.files import DONE, MANIFEST

if TYPE_CHECKING:
    from recbole_lea.le.pipeline import Pipeline

SAMPLE = 64  # sequences, or sentences times ten, whose prompts are counted in rows
ENOUGH = 0.5  # seconds of passes after which no further one is timed

LONGEST = 500  # characters of an example

# Text similarity is told before there is an LE of so many pairs, and for so many items: of fewer
# it says nothing, and more take minutes.
FEWEST, LARGEST = 50, 50_000

# Settings that the pipeline has already put to use in its sentences and titles.
WORDING = ("item_sentence", "prompt_items", "title")


@dataclasses.dataclass
class Step:
    """A stage of a run, and what it will take."""

    name: str  # of the cache's stage
    title: str
    amount: str  # such as "1,127 sentences"
    cached: bool = False
    left: float = 1.0  # the share that the cache lacks
    seconds: float | None = None  # None where it was not measured
    why: str = ""  # what has changed since an older one was computed

    def __str__(self) -> str:
        if self.cached:
            return f"{self.title}: cached"
        amount = f"the last {self.left:.0%} of {self.amount}" if self.left < 1 else self.amount
        time_needed = "" if self.seconds is None else f", about {minutes(self.seconds)}"
        return f"{self.title}: to compute: {amount}{time_needed}{self.why and f' ({self.why})'}"


def minutes(seconds: float) -> str:
    """Such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def steps(le: "Pipeline", last: list[str], measured: bool = True) -> list[Step]:
    """What the LE needs for some stages, in their order, each with its seconds if ``measured``.

    ``last`` names stages of the cache's table, or what is asked once the recommender's lists are
    known: ``selection`` (the choice) and ``selection_rewards`` (the chosen actions' rewards).
    """
    n, s = le.sequences, le.settings
    learned, _ = finetune.split_sequences(n, s)
    pairs = sum(len(n.items[i]) - 1 for i in learned)
    tuned = f"{s.finetune_epochs} x {pairs:,} transitions"
    made = [
        Step("items", "item tokenization", f"{len(le.catalogue):,} sentences"),
        Step("keys", "item keys", f"{len(le.catalogue):,} sentences"),
        Step("environment", le.cache.table["environment"].title, tuned),
        Step("states", "states", f"{n.n_states:,} prompts"),
        Step("rewards", "rewards", f"{n.n_transitions * le.actions.shape[1]:,} prompts"),
        Step("selection", "augmentation", f"{n.n_transitions:,} prompts"),
        Step(
            "selection_rewards", "rewards of the chosen actions",
            f"at most {n.n_transitions:,} prompts",
        ),
    ]  # fmt: skip
    if s.state_keys == "tokens":
        made = [step for step in made if step.name != "keys"]
    first = [step.name for step in made].index("environment") + 1
    for step in made:
        if step.name in le.cache.table:
            step.cached = le.cache.is_built(step.name)
            step.left = from_main(le.cache.left(step.name))
    after = [step for step in made[first:] if step.name in last]
    lacking = [step for step in after if not step.cached]
    wanted = [step for step in made[:first] if lacking or step.name in last] + after
    told: set[str] = set()
    for step in wanted:
        if not step.cached and step.name in le.cache.table:
            step.why = from_main(changed(le, step.name, told))
    if measured:
        measure(le, wanted)
    return wanted


def measure(le: "Pipeline", wanted: list[Step]) -> None:
    """Fill in the seconds of what is not cached; text similarity takes none worth telling."""
    missing = {step.name for step in wanted if not step.cached}
    if missing and le.settings.environment == "llm":
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            _Meter(le, missing).measure(wanted)


class _Meter:
    """Times one batch of each kind of work; the LLM is as before when it is done."""

    def __init__(self, le: "Pipeline", missing: set[str]) -> None:
        self.le, self.missing, llm = le, missing, le.llm()
        self.tokens = torch.randn(len(le.catalogue), llm.width)  # the real ones may not be there
        self.plain = Environment(llm, self.tokens, le.settings, adapted=False, titles=le.titles)
        self.plain.eval()
        picked = np.linspace(0, len(le.sequences) - 1, SAMPLE).astype(int)
        self.sample = sorted({int(i) for i in picked})

    @within_memory()
    def measure(self, wanted: list[Step]) -> None:
        """Fill in the seconds of each step that is not cached."""
        states, n = self._groups(whole=True), self.le.sequences.n_transitions
        rows = self._rows([[self.plain.prompts.state(history)] for _, history in states])
        second = self._forward(self.plain, rows[:1])
        found = {"states": self._cost(rows, len(states), self.le.sequences.n_states) * second}
        actions = {"rewards": self.le.actions, "selection_rewards": self.le.actions[:, :1]}
        five = np.arange(5) % len(self.le.catalogue)
        reward, select = self.plain.prompts.reward, self.plain.prompts.select
        groups = self._groups()
        for name in self.missing & {"rewards", "selection", "selection_rewards"}:
            if name == "selection" and self.le.settings.selection_by == "label":
                asked = [[select(history, five)] for _, history in groups]
            elif name == "selection":
                asked = [[reward(history, a) for a in five] for _, history in groups]
            else:
                asked = [[reward(h, a) for a in actions[name][row]] for row, h in groups]
            found[name] = self._cost(self._rows(asked), len(groups), n) * second
        if {"states", "rewards"} <= self.missing:  # one pass, of which each has its part
            le = (self.le.sequences, self.le.actions, self.plain.prompts)
            both = [g for i in self.sample for g in answers.shared_prompts(*le, i, i + 1)]
            cost = self._cost(self._rows(both), len(both), self.le.sequences.n_states) * second
            part = cost / (found["states"] + found["rewards"])
            found |= {name: part * found[name] for name in ("states", "rewards")}
        if self.missing & {"items", "keys"}:
            found["items"], found["keys"] = self._tokenization(second)
        if "environment" in self.missing:
            found["environment"] = self._finetuning()
        for step in wanted:
            if not step.cached:
                step.seconds = found[step.name] * step.left / processes().num_processes

    def _groups(self, whole: bool = False) -> list[tuple[int, np.ndarray]]:
        """Number and history of the sample's transitions; ``whole``: of its states."""
        sequences = self.le.sequences
        return [pair for i in self.sample for pair in sequences.histories(i, i + 1, whole)]

    def _rows(self, groups: Iterable[list[list[int]]]) -> list[PromptRow]:
        settings = self.le.settings
        batches = pack(groups, settings.row_length, settings.batch_rows)
        return [row for batch in batches for row in batch.rows if row.ids]

    def _cost(self, rows: list[PromptRow], part: int, whole: int) -> float:
        """Rows of ``lea_row_length`` that all prompts take, of which ``rows`` are a part."""
        tokens = sum(row.length for row in rows)
        return tokens / self.le.settings.row_length * whole / max(part, 1)

    def _batch(self, rows: list[PromptRow]) -> tuple[PackedBatch, float]:
        """A batch of a row, or as an accelerator gets it, and its rows of ``lea_row_length``."""
        settings = self.le.settings
        n = 1 if self.plain.device.type == "cpu" else settings.batch_rows
        return PackedBatch(rows[:1] * n), n * rows[0].length / settings.row_length

    @torch.inference_mode()
    def _forward(self, environment: Environment, rows: list[PromptRow]) -> float:
        """Seconds of a row of ``lea_row_length``."""
        batch, n = self._batch(rows)

        def answer() -> None:
            environment.reward_of(environment.ends(batch, environment.hidden(batch))).sum().item()

        return _timed(answer) / n

    def _tokenization(self, forward: float) -> tuple[float, float]:
        """All iterations of all sentences, and a forward pass; one with gradient is timed."""
        le, settings, llm = self.le, self.le.settings, self.le.llm()
        step = max(1, len(le.sentences) // (10 * SAMPLE))
        ids, _ = item_tokens.sentence_ids(le.sentences[::step], self.plain, llm.tokenizer)
        rows = self._rows([[row] for row in ids])
        batch, n = self._batch(rows)
        table = torch.randn(len(ids), llm.width, device=self.plain.device, requires_grad=True)
        passes = settings.item_iterations and settings.item_iterations + 1
        cost = self._cost(rows, len(ids), len(le.sentences))
        if not passes:
            return 1.0, cost * forward  # the mean of its words' embeddings is read

        def learn() -> None:
            item_tokens.batch_losses(self.plain, batch, table, backward=True)

        second = _timed(learn) / n
        # the last pass has no gradient, which is two thirds of the work
        return cost * second * (passes - 2 / 3), cost * forward

    def _finetuning(self) -> float:
        """All steps, and after each epoch the evaluation; one of each is timed."""
        le, settings = self.le, self.le.settings
        learned, _ = finetune.split_sequences(le.sequences, settings)
        rng = np.random.default_rng(0)
        batches = finetune.epoch_batches(le.sequences, learned, settings.finetune_batch_size, rng)
        adapted = Environment(le.llm(), self.tokens, settings, titles=le.titles)
        parameters = [p for p in adapted.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr=0.0, fused=True)
        try:
            step = _timed(
                lambda: finetune._train_step(adapted, optimizer, le.sequences, batches[0], rng)
            )
            seconds = step * len(batches) * processes().num_processes  # they share each step
            if pairs := finetune.held_out(le.sequences, settings):
                asked = quality.drawn(le.sequences, pairs, len(le.catalogue), settings.seed)
                groups = quality.comparisons(adapted, le.sequences, pairs, np.column_stack(asked))
                rows = self._rows(groups)
                seconds += self._cost(rows, 1, 1) * self._forward(adapted.eval(), rows)
        finally:
            model = adapted.llm.unload()
            if hasattr(model, "peft_config"):  # peft would warn of a second adapter
                del model.peft_config
            model.requires_grad_(False).eval()
        return seconds * settings.finetune_epochs


def _timed(work: Callable[[], Any]) -> float:
    """Mean seconds of a few passes after the first, or of the first where that takes long."""
    passes: list[float] = []
    several = processes().num_processes > 1  # all have to take part in as many
    while len(passes) < 2 if several else sum(passes) < ENOUGH and len(passes) < 5:
        started = time.perf_counter()
        work()
        passes.append(time.perf_counter() - started)
    return float(np.mean(passes[1:] or passes))


def changed(le: "Pipeline", stage: str, told: set[str]) -> str:
    """What differs from the newest folder of that stage in the cache; "" if there is none.

    What ``told`` holds was said of an earlier stage; what is said now joins it.
    """
    name = MANIFEST if le.cache.table[stage].layout else DONE
    record = _newest(le.cache.folder, stage, name)
    if record is None:
        return ""
    found, prints = [], record.get("fingerprints", {})
    if prints.get("llm") not in (None, le.llm_fingerprint):
        formats = (record.get("llm_dtype"), le.llm_dtype)
        same = formats[0] == formats[1]
        found.append("another LLM" if same else "lea_llm_dtype was {}, is {}".format(*formats))
    if prints.get("sequences") not in (None, le.sequences.fingerprint):
        found.append("other training sequences")
    for name, old in _differing(le, record.get("settings", {})):
        if _key_with(le, stage, name, old) != le.keys[stage]:
            key = name if name in BARE_KEYS else f"lea_{name}"
            found.append(f"{key} was {old}, is {getattr(le.settings, name)}")
    new = [reason for reason in found if reason not in told]
    told.update(new)
    if new:
        return "computed again as " + "; ".join(new)
    return "computed again as an earlier stage is" if told else (
        "computed again as the items or their texts have changed"
    )  # fmt: skip


def _newest(folder: Path, stage: str, name: str) -> dict[str, Any] | None:
    """The record, a file of that name, of a stage's newest folder; its files are not read."""
    paths = sorted(folder.glob(f"{stage}-*/{name}"), key=lambda path: path.stat().st_mtime)
    try:
        return json.loads(paths[-1].read_text(encoding="utf-8")) if paths else None
    except (OSError, ValueError):  # a damaged one is reported when it is read in earnest
        return None


def _differing(le: "Pipeline", settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings, and their values in an older record, where they are others now."""
    for field in dataclasses.fields(le.settings):
        now = json.loads(json.dumps(getattr(le.settings, field.name)))
        if field.name in settings and settings[field.name] != now:
            yield field.name, settings[field.name]


def _key_with(le: "Pipeline", stage: str, name: str, value: Any) -> str:
    """The key that a stage would have under another value of one setting."""
    twin = copy.copy(le)
    try:
        value = tuple(value) if isinstance(value, list) else value
        twin.settings = dataclasses.replace(le.settings, **{name: value})
        if name in WORDING:
            s = twin.settings
            twin.sentences, _ = le.catalogue.sentences(s.item_sentence)
            twin.titles = le.catalogue.titles(s.title) if s.prompt_items == "title" else None
    except ValueError:  # a field that the .item file no longer has, or what goes with other values
        return ""
    return table(twin)[stage].key


def without_llm(le: "Pipeline") -> list[str]:
    """What popularity and texts alone tell of held-out pairs, as a line; none where none can."""
    s, pairs = le.settings, finetune.held_out(le.sequences, le.settings)
    told = s.environment == "llm" and s.item_init == "text" and len(le.catalogue) <= LARGEST
    if not told or len(pairs) < FEWEST:
        return []
    llm = le.llm()
    with torch.random.fork_rng():
        environment = Environment(llm, torch.zeros(1, llm.width), s, adapted=False)
    ids, _ = item_tokens.sentence_ids(le.sentences, environment, llm.tokenizer)
    text = TextEnvironment(item_tokens.initial_tokens(ids, environment), s)
    found, n = quality.without_llm(le.sequences, pairs, text, s.seed), len(pairs)
    by_text = f"text {found['text_accuracy']:.3f}"
    if not quality.better_than_chance(found["text_accuracy"], n):
        by_text += ", no better than chance: an LLM that reads these texts may learn little else"
    known = f"popularity {found['popularity_accuracy']:.3f}, {by_text}"
    return [f"ranked right without an LLM, of {n} held-out pairs: {known}"]


def examples(le: "Pipeline") -> list[str]:
    """One item's sentence and one reward prompt as lines, and the fields that no template uses."""
    s, tokens = le.settings, le.catalogue.tokens
    items = next(items for items in le.sequences.items if len(items) > 1)
    names = le.titles or [f"[{token}]" for token in tokens]
    joined = (", " if le.titles else " ").join(names[i] for i in items[:-1][-s.max_history :])
    prompt = s.user_prompt.replace("{history}", joined)
    prompt += action_prompt(s).replace("{item}", names[items[-1]])
    first = items[0]
    lines = [
        "item sentence: " + le.sentences[first].replace("{item}", f"[{tokens[first]}]"),
        f"prompt: {prompt}",
    ]
    used = item_fields(s.item_sentence + (s.title if s.prompt_items == "title" else ""))
    unused = {name for text in le.catalogue.texts for name in text}.difference(used)
    if unused:
        lines.append(f"fields of .item that no template uses: {', '.join(sorted(unused))}")
    return [line if len(line) <= LONGEST else f"{line[:LONGEST]} ..." for line in lines]

"""What each table and figure of the paper compares (section 5), and the search all methods get."""

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_lea.keys import backbone_keys
from recbole_lea.methods import Switches, switches
from recbole_lea.yaml_files import read_files

BACKBONES = ("SASRec", "GRU4Rec")  # the paper's

# Keys of the search that every method has; the others depend on its losses.
COMMON = ("learning_rate", "dropout")
OPTIONAL = ("q_weight", "w_ah", "w_aq")

# Table 3's names for the losses that the LE's choice joins.
AUGMENTATIONS = {"sv": "supervised", "q": "Q", "sv+q": "both"}

# RecBole's own class stands first: where the output head is tied, Normal has to equal it.
TABLES: dict[int, dict[str, tuple[str, ...]]] = {
    2: {"none": ("RecBole", "Normal"), "SNQN": ("SNQN", "LEAR", "LEAS", "LEASR"),
        "SA2C": ("SA2C", "LEAR", "LEAS", "LEAS'R", "LEASR")},
    3: {"none": ("RecBole", "Normal", "sv"), "SA2C": ("SA2C", "sv", "q", "sv+q")},
    4: {"none": ("RecBole",), "SA2C": ("SA2C", "LER", "LEA", "LEAR")},
    5: {"none": ("RecBole",), "SA2C": ("SA2C", "LES'", "LES")},
    # not the paper's: what item embeddings that start from the LE's item tokens have to do with it
    6: {"none": ("RecBole", "Normal", "Normal with LE embeddings"),
        "SNQN": ("SNQN", "LEASR", "LEASR with LE embeddings"),
        "SA2C": ("SA2C", "LEASR", "LEASR with LE embeddings")},
    # a control: whether it matters what the LE says of a transition
    7: {"none": ("RecBole",), "SNQN": ("SNQN", "LEASR", "LEASR shuffled"),
        "SA2C": ("SA2C", "LEASR", "LEASR shuffled", "LES", "LES shuffled")},
}  # fmt: skip
BOTH_BACKBONES = (2, 5, 6)
VARIANTS: dict[str, dict[str, Any]] = {
    " with LE embeddings": {"item_embedding_init": "le"},
    " shuffled": {"lea_shuffle": True},
}


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of a table, or one point of a figure."""

    backbone: str  # "SASRec" or "GRU4Rec"
    framework: str  # "none", "SNQN" or "SA2C"
    name: str  # as the paper has it; "RecBole" is RecBole's own class
    keys: Mapping[str, Any]  # what makes the method, as RecBole config keys; they are tuned
    baseline: str | None = None  # label of the row that it is compared with
    # keys set after tuning: the point of a sweep or an ablation
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    missing: str | None = None  # why it cannot be run, if so

    @property
    def label(self) -> str:
        """Unique within a table or figure."""
        framework = "" if self.framework in ("none", self.name) else f"{self.framework} "
        return f"{self.backbone} {framework}{self.name}"

    @property
    def stock(self) -> bool:
        """Whether it is RecBole's own class."""
        return self.name == "RecBole"

    @property
    def model(self) -> str:
        """The model class; with the RL part off, SNQN's and SA2C's are the same."""
        return f"{self.backbone}{'SNQN' if self.framework == 'none' else self.framework}LEA"

    @property
    def switches(self) -> Switches:
        """What the LE contributes to training."""
        config = dict.fromkeys(("lea_state", "lea_reward", "lea_augmentation", "lea_advantage"))
        return switches({"q_weight": 1.0} | config | dict(self.keys), self.framework)

    @property
    def le_wants(self) -> dict[str, str]:
        """Keys under which a run builds all that the method needs of the LE."""
        used, start = self.switches, "item_embedding_init"
        wants: dict[str, Any] = {
            "lea_state": used.le_state and "both", "lea_reward": used.le_reward and "LE",
            "lea_augmentation": used.augmented and "both",
            start: self.keys.get(start),  # they start from the LE's item tokens
        }  # fmt: skip
        return {key: value for key, value in wants.items() if value}


@functools.cache
def dropout_keys(backbone: str) -> tuple[str, ...]:
    """RecBole's keys of a backbone's dropout."""
    return tuple(key for key in backbone_keys(backbone) if key.endswith("dropout_prob"))


def table(number: int) -> list[Method]:
    """The rows of a table of the paper, each baseline before what is compared with it."""
    backbones = BACKBONES if number in BOTH_BACKBONES else BACKBONES[:1]
    return linked(
        method(backbone, framework, name)
        for backbone in backbones
        for framework, names in TABLES[number].items()
        for name in names
    )


def linked(rows: Iterable[Method]) -> list[Method]:
    """The rows, those without a baseline whose baseline is no row."""
    found = {row.label: row for row in rows}
    return [
        row if row.baseline in found else dataclasses.replace(row, baseline=None)
        for row in found.values()
    ]


def over_recbole() -> int:
    """How many methods the tables compare with RecBole's own class: they are one family."""
    rows = [row for number in TABLES for row in table(number) if not row.stock]
    return len({(row.model, *sorted(row.keys.items())) for row in rows})


def method(backbone: str, framework: str, name: str) -> Method:
    """The row that a table of the paper, or one of ours, calls ``name``."""
    for suffix, change in VARIANTS.items():
        if name.endswith(suffix):
            same = method(backbone, framework, name.removesuffix(suffix))
            keys = {**same.keys, **change}
            return dataclasses.replace(same, name=name, keys=keys, baseline=same.label)
    keys, baseline = {"lea_method": name}, framework
    if name in ("Normal", "RecBole"):
        keys, baseline = {"lea_method": "base", "q_weight": 0}, ""
    elif framework == "none":
        keys, baseline = {"lea_method": "base", "q_weight": 0}, "Normal"
    elif name == framework:
        keys, baseline = {"lea_method": "base"}, "Normal"
    if name == "sv+q":  # on the paper's Industry data, Table 3's sv+q is Table 4's LEA
        keys = {"lea_method": "LEA"}
    elif name in AUGMENTATIONS:
        keys |= {"lea_method": "base", "lea_augmentation": AUGMENTATIONS[name]}
    return Method(backbone, framework, name, keys, f"{backbone} {baseline}" if baseline else None)


def figure(number: int, sweeps: Mapping[str, Any]) -> list[Method]:
    """The points of figure 4 or 5 of the paper, SA2C on SASRec, with ``Search.sweeps``' values."""
    base, lear, les = (method("SASRec", "SA2C", name) for name in ("SA2C", "LEASR", "LES"))
    base = dataclasses.replace(base, baseline=None)

    def point(
        parent: Method, what: str, changes: dict[str, Any], baseline: Method = base
    ) -> Method:
        name = f"{parent.name} {what}"
        return dataclasses.replace(parent, name=name, changes=changes, baseline=baseline.label)

    if number == 4:
        weights = [(key, value) for key in ("w_ah", "w_aq") for value in sweeps[key]]
        return [base, *(point(lear, f"{k}={v:g}", {k: v}) for k, v in weights)]
    share, other = "lea_finetune_fraction", sweeps["other_llm"]
    second = point(lear, "other LLM", {"lea_llm": other}, lear)
    no_llm = "no second LLM is named: set other_llm in the benchmark's YAML file"
    return [
        base,
        *(point(lear, f"{v:.0%} of the data", {share: v}) for v in sweeps[share]),
        lear,
        point(lear, "-IT", {"lea_prompt_items": "title"}, lear),
        dataclasses.replace(second, missing=None if other else no_llm),
        les,
        point(les, "-SM", {"lea_state_weight": 0.0}, les),
    ]


@dataclasses.dataclass(frozen=True)
class Search:
    """The search on validation that every method gets, baselines included."""

    trials: int = 1  # configurations tried for each method
    tuning_seed: int = 2020  # of all trials; never a reported seed
    # key -> values, or values by backbone; "dropout" stands for the backbone's own dropout keys
    grid: Mapping[str, list | Mapping[str, list]] = dataclasses.field(default_factory=dict)
    sweeps: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of figures 4 and 5

    @classmethod
    def read(
        cls, path: str | Path, fixed: Collection[str] = (), backbones: Iterable[str] = BACKBONES
    ) -> "Search":
        """Read a YAML file such as ``properties/benchmark.yaml``; ``sweeps`` may be missing.

        Raises:
            ValueError: a part is missing or unknown, or there are fewer points than trials. Keys
                that the user has ``fixed`` for all runs leave the grid.
        """
        content = {"sweeps": {}} | read_files([str(path)])
        parts = {field.name for field in dataclasses.fields(cls)}
        if set(content) != parts:
            raise ValueError(f"{path} has to have exactly the keys {', '.join(sorted(parts))}")
        unknown = set(content["grid"]) - {*COMMON, *OPTIONAL}
        if unknown:
            raise ValueError(
                f"{path}: the grid has the unknown key {sorted(unknown)[0]}; it may have "
                f"{', '.join((*COMMON, *OPTIONAL))}"
            )
        dropouts = {key for backbone in backbones for key in dropout_keys(backbone)}
        absent = {*fixed, *(["dropout"] if dropouts & set(fixed) else [])}
        grid = {key: values for key, values in content["grid"].items() if key not in absent}
        search = cls(**content | {"grid": grid})
        for backbone in backbones:
            points = len(search._common(backbone))
            if not isinstance(search.trials, int) or not 1 <= search.trials <= points:
                raise ValueError(
                    f"{path}: trials is {search.trials}, but has to be 1 or more, and "
                    f"{' and '.join(COMMON)} have only {points} combinations for {backbone} (keys "
                    "given on the command line leave the grid); a baseline would get fewer trials "
                    "than the methods: lower trials or add values"
                )
        return search

    def points(self, method: Method) -> list[dict[str, Any]]:
        """The method's trials, as RecBole keys.

        Trial i has the same learning rate and dropout for every method of a backbone, drawn
        without replacement; a loss weight takes each of its values equally often.
        """
        rng, grid = np.random.default_rng(self.tuning_seed), self._grid(method.backbone)
        common = self._common(method.backbone)
        chosen = [common[i] for i in rng.permutation(len(common))[: self.trials]]
        augmentation = method.switches.augmentation
        used = {
            "q_weight": method.framework != "none",
            "w_ah": augmentation in ("supervised", "both"),
            "w_aq": augmentation in ("Q", "both"),
        }
        for key in (key for key in OPTIONAL if used[key] and key in grid):
            rng = np.random.default_rng([self.tuning_seed, zlib.crc32(key.encode())])
            n = len(grid[key])
            spread = [i for _ in range(0, self.trials, n) for i in rng.permutation(n)]
            for point, i in zip(chosen, spread, strict=False):
                point[key] = grid[key][i]
        for point in chosen:
            if "dropout" in point:
                point |= dict.fromkeys(dropout_keys(method.backbone), point.pop("dropout"))
        return chosen

    def _grid(self, backbone: str) -> dict[str, list[Any]]:
        found = {}
        for key, values in self.grid.items():
            if isinstance(values, Mapping) and backbone not in values:
                raise ValueError(f"the search's grid has no values of {key} for {backbone}")
            if key == "dropout" and not dropout_keys(backbone):
                raise ValueError(f"{backbone} has no dropout: take it out of the search's grid")
            found[key] = values[backbone] if isinstance(values, Mapping) else values
        return found

    def _common(self, backbone: str) -> list[dict[str, Any]]:
        grid = self._grid(backbone)
        keys = [key for key in COMMON if key in grid]
        points = itertools.product(*(grid[key] for key in keys))
        return [dict(zip(keys, point, strict=True)) for point in points]

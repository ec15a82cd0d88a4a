"""What each table and figure of the paper compares (section 5), and the search all methods get."""

import dataclasses
import itertools
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recbole_lea.methods import Switches, switches
from recbole_lea.yaml_files import read_files

DROPOUT = {"SASRec": ("hidden_dropout_prob", "attn_dropout_prob"), "GRU4Rec": ("dropout_prob",)}

# Keys of the search that every method has; the others depend on its losses.
COMMON = ("learning_rate", "dropout")
OPTIONAL = ("q_weight", "w_ah", "w_aq")

# Table 3's names for the losses that the LE's choice joins.
AUGMENTATIONS = {"sv": "supervised", "q": "Q", "sv+q": "both"}

TABLES: dict[int, dict[str, tuple[str, ...]]] = {
    2: {"none": ("Normal",), "SNQN": ("SNQN", "LEAR", "LEAS", "LEASR"),
        "SA2C": ("SA2C", "LEAR", "LEAS", "LEAS'R", "LEASR")},
    3: {"none": ("Normal", "sv"), "SA2C": ("SA2C", "sv", "q", "sv+q")},
    4: {"SA2C": ("SA2C", "LER", "LEA", "LEAR")},
    5: {"SA2C": ("SA2C", "LES'", "LES")},
    # not the paper's: what item embeddings that start from the LE's item tokens have to do with it
    6: {"none": ("Normal", "Normal with LE embeddings"),
        "SNQN": ("SNQN", "LEASR", "LEASR with LE embeddings"),
        "SA2C": ("SA2C", "LEASR", "LEASR with LE embeddings")},
    # a control: whether it matters what the LE says of a transition
    7: {"SNQN": ("SNQN", "LEASR", "LEASR shuffled"),
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
    baseline: str | None = None  # the row that it is compared with, on the same backbone
    # keys set after tuning: the point of a sweep or an ablation
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    missing: str | None = None  # why it cannot be run, if so

    @property
    def label(self) -> str:
        """Unique within a table or figure."""
        framework = "" if self.framework in ("none", self.name) else f"{self.framework} "
        return f"{self.backbone} {framework}{self.name}"

    @property
    def baseline_label(self) -> str | None:
        """The baseline's label."""
        return self.baseline and f"{self.backbone} {self.baseline}"

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
        config = dict.fromkeys(("lea_state", "lea_reward", "lea_augmentation"))
        return switches({"q_weight": 1.0} | config | dict(self.keys), self.framework)

    @property
    def le_wants(self) -> dict[str, str]:
        """Keys under which a run builds all that the method needs of the LE."""
        used, start = self.switches, "item_embedding_init"
        wants = {
            "lea_state": ("both", used.le_state),
            "lea_reward": ("LE", used.le_reward),
            "lea_augmentation": ("both", used.augmented),
            start: ("le", self.keys.get(start) == "le"),  # they start from the LE's item tokens
        }
        return {key: value for key, (value, wanted) in wants.items() if wanted}


def table(number: int) -> list[Method]:
    """The rows of a table of the paper, each baseline before what is compared with it.

    Plain RecBole stands first: where the output head is tied, ``Normal`` has to equal it.
    """
    rows = []
    for backbone in DROPOUT if number in BOTH_BACKBONES else ("SASRec",):
        rows.append(_method(backbone, "none", "RecBole"))
        for framework, names in TABLES[number].items():
            rows += [_method(backbone, framework, name) for name in names]
    known = {row.label for row in rows}
    return [
        dataclasses.replace(r, baseline=None) if r.baseline_label not in known else r for r in rows
    ]


def _method(backbone: str, framework: str, name: str) -> Method:
    for suffix, change in VARIANTS.items():
        if name.endswith(suffix):
            same = _method(backbone, framework, name.removesuffix(suffix))
            baseline: str | None = same.label.removeprefix(f"{backbone} ")
            keys: dict[str, Any] = {**same.keys, **change}
            return dataclasses.replace(same, name=name, keys=keys, baseline=baseline)
    if framework == "none":
        keys = {"lea_method": "base", "q_weight": 0}
        baseline = None if name in ("Normal", "RecBole") else "Normal"
    else:
        keys, baseline = {"lea_method": name}, framework
        if name == framework:
            keys, baseline = {"lea_method": "base"}, "Normal"
    if name == "sv+q":  # on the paper's Industry data, Table 3's sv+q is Table 4's LEA
        keys = {"lea_method": "LEA"}
    elif name in AUGMENTATIONS:
        keys |= {"lea_method": "base", "lea_augmentation": AUGMENTATIONS[name]}
    return Method(backbone, framework, name, keys, baseline)


def figure(number: int, sweeps: Mapping[str, Any]) -> list[Method]:
    """The points of a figure of the paper: SA2C on SASRec.

    Args:
        number: 4 or 5.
        sweeps: the values, as ``Search.sweeps`` has them.
    """
    base, lear, les = (_method("SASRec", "SA2C", name) for name in ("SA2C", "LEASR", "LES"))
    base = dataclasses.replace(base, baseline=None)

    def point(parent: Method, what: str, changes: dict[str, Any], baseline: str) -> Method:
        name = f"{parent.name} {what}"
        return dataclasses.replace(parent, name=name, changes=changes, baseline=baseline)

    if number == 4:
        weights = [(key, value) for key in ("w_ah", "w_aq") for value in sweeps[key]]
        return [base, *(point(lear, f"{k}={v:g}", {k: v}, "SA2C") for k, v in weights)]
    share, other = "lea_finetune_fraction", sweeps["other_llm"]
    second = point(lear, "other LLM", {"lea_llm": other}, "SA2C LEASR")
    no_llm = "no second LLM is named: set other_llm in the benchmark's YAML file"
    return [
        base,
        *(point(lear, f"{v:.0%} of the data", {share: v}, "SA2C") for v in sweeps[share]),
        lear,
        point(lear, "-IT", {"lea_prompt_items": "title"}, "SA2C LEASR"),
        dataclasses.replace(second, missing=None if other else no_llm),
        les,
        point(les, "-SM", {"lea_state_weight": 0.0}, "SA2C LES"),
    ]


@dataclasses.dataclass(frozen=True)
class Search:
    """The search on validation that every method gets, baselines included."""

    trials: int  # configurations tried for each method
    tuning_seed: int  # of all trials; never a reported seed
    # key -> values, or values by backbone; "dropout" stands for the backbone's own dropout keys
    grid: Mapping[str, list | Mapping[str, list]]
    sweeps: Mapping[str, Any]  # values of figures 4 and 5

    @classmethod
    def read(cls, path: str | Path, fixed: Collection[str] = ()) -> "Search":
        """Read the YAML file.

        Args:
            path: such as ``properties/benchmark.yaml``.
            fixed: keys that the user set for all runs; they leave the grid.

        Raises:
            ValueError: a part is missing or unknown, or there are fewer points than trials.
        """
        content = read_files([str(path)])
        parts = {field.name for field in dataclasses.fields(cls)}
        if set(content) != parts:
            raise ValueError(f"{path} has to have exactly the keys {', '.join(sorted(parts))}")
        unknown = set(content["grid"]) - {*COMMON, *OPTIONAL}
        if unknown:
            raise ValueError(
                f"{path}: the grid has the unknown key {sorted(unknown)[0]}; it may have "
                f"{', '.join((*COMMON, *OPTIONAL))}"
            )
        dropouts = {key for keys in DROPOUT.values() for key in keys}
        absent = {*fixed, *(["dropout"] if dropouts & set(fixed) else [])}
        grid = {key: values for key, values in content["grid"].items() if key not in absent}
        search = cls(**content | {"grid": grid})
        for backbone in DROPOUT:
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
        rng = np.random.default_rng(self.tuning_seed)
        common = self._common(method.backbone)
        chosen = [common[i] for i in rng.permutation(len(common))[: self.trials]]
        augmentation = method.switches.augmentation
        used = {
            "q_weight": method.framework != "none",
            "w_ah": augmentation in ("supervised", "both"),
            "w_aq": augmentation in ("Q", "both"),
        }
        weights = [key for key in OPTIONAL if used[key] and key in self.grid]
        extra = {key: self._spread(key, method.backbone) for key in weights}
        points = []
        for i, point in enumerate(chosen):
            dropout = point.pop("dropout", None)
            names = DROPOUT[method.backbone] if dropout is not None else ()
            weights_i = {key: values[i] for key, values in extra.items()}
            points.append(point | weights_i | dict.fromkeys(names, dropout))
        return points

    def _values(self, key: str, backbone: str) -> list[Any]:
        values = self.grid[key]
        if isinstance(values, Mapping) and backbone not in values:
            raise ValueError(f"the search's grid has no values of {key} for {backbone}")
        return values[backbone] if isinstance(values, Mapping) else values

    def _common(self, backbone: str) -> list[dict[str, Any]]:
        keys = [key for key in COMMON if key in self.grid]
        values = itertools.product(*(self._values(key, backbone) for key in keys))
        return [dict(zip(keys, point, strict=True)) for point in values]

    def _spread(self, key: str, backbone: str) -> list[Any]:
        rng = np.random.default_rng([self.tuning_seed, zlib.crc32(key.encode())])
        values = self._values(key, backbone)
        blocks = -(-self.trials // len(values))
        return [values[i] for _ in range(blocks) for i in rng.permutation(len(values))]

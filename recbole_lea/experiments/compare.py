"""``python -m recbole_lea.compare``: methods side by side on anyone's data, beside RecBole's class.

``--dataset mine --methods base,LEAR,LEASR --seeds 3`` does the runs that are not finished yet,
prints a table and writes the report, its pictures and ``runs.jsonl`` into ``results/mine/``.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from recbole_lea import arguments
from recbole_lea.experiments.benchmark import add_options, carry_out, listed, parsed, prepared
from recbole_lea.keys import check_model_name, nearest
from recbole_lea.methods import METHODS
from recbole_lea.yaml_files import find_config_file

if TYPE_CHECKING:
    from recbole_lea.experiments.plan import Method

# Rows that know no SNQN or SA2C: RecBole's own class, and ours with the RL part off
PLAIN = ("RecBole", "Normal")


def main() -> None:
    """Parse the command line, do the runs and report them."""
    options = parsed(_parser())
    methods = rows(listed(options.models), listed(options.methods), options.rows)
    from recbole_lea.experiments.plan import Search
    from recbole_lea.experiments.report import COMPARISON

    search = Search()
    if options.search:
        given, backbones = list(arguments.given_keys()), {own.backbone for own in methods}
        search = Search.read(find_config_file(options.search), given, sorted(backbones))
    carry_out(prepared(COMPARISON, methods, search, options), COMPARISON, options)


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m recbole_lea.compare",
        "Methods side by side on a dataset, and RecBole's own class beside them: means over seeds, "
        "gains and their significance. Any key of the YAML files goes to all runs.",
    )
    add = parser.add_argument
    add("--dataset", "-d", required=True, help="name of the dataset")
    names = f"separated by commas: {', '.join([*METHODS, *PLAIN])}; default base,LEASR"
    add("--methods", default="base,LEASR", help=names)
    more = (
        "YAML file of further rows, name: {key: value, ...}, each with its keys beside the others"
    )
    add("--rows", type=arguments.path, help=more)
    models = "separated by commas, such as SASRecSA2CLEA,GRU4RecSNQNLEA; default SASRecSA2CLEA"
    add("--models", "--model", "-m", default="SASRecSA2CLEA", help=models)
    search = "YAML file of a search that each method gets, such as properties/benchmark.yaml"
    add("--search", help=f"{search}; default: none, all have the keys that are given")
    add_options(parser, seeds=3)
    return parser


def rows(models: Sequence[str], methods: Iterable[str], more: str | None = None) -> list["Method"]:
    """RecBole's own class of each model, then the methods; each is compared with ``base``.

    ``more`` is a YAML file of further rows: their names, and the keys that make them.

    Raises:
        ValueError: a model is none of ours, a method is unknown, or a further row has no keys.
    """
    from recbole_lea.experiments.plan import Method, linked, method
    from recbole_lea.yaml_files import read_files

    further = read_files([more]) if more else {}
    for name, keys in further.items():
        if not isinstance(keys, dict):
            raise ValueError(f"{more}: the row {name!r} needs keys, such as {{w_ah: 0.3}}")

    for name in methods:
        if name not in METHODS and name not in PLAIN:
            raise ValueError(
                f"--methods: unknown method {name}{nearest(name, [*METHODS, *PLAIN])} (there are "
                f"{', '.join([*METHODS, *PLAIN])})"
            )
    found = []
    for model in models:
        check_model_name(model)
        parts = re.fullmatch("(.+)(SNQN|SA2C)LEA", model)
        if parts is None:
            raise ValueError(f"--models: {model} is none of recbole_lea, such as {model}SA2CLEA")
        backbone, framework = parts.groups()
        found += [method(backbone, "none", name) for name in PLAIN if name in ("RecBole", *methods)]
        base = method(backbone, framework, framework)
        for name in methods:
            if name == "base":
                found.append(dataclasses.replace(base, name=name))
            elif name not in PLAIN:
                own = method(backbone, framework, name)
                found.append(dataclasses.replace(own, baseline=f"{base.label} base"))
        compared = f"{base.label} base"
        found += [Method(backbone, framework, n, keys, compared) for n, keys in further.items()]
    return linked(found)

"""YAML files: where ours stand, in a checkout or the installed package, and how any is read."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C: ten times faster


class YAMLLoader(_SafeLoader):
    """YAML's plain values alone; RecBole's FullLoader also looks up names of Python modules."""


# RecBole's addition to YAML 1.1, where 1e-3 would be a text
YAMLLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.[\d_]+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def properties_folder() -> Path:
    """``properties/``: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "properties"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "properties"


def find_config_file(name: str) -> str:
    """A path to a YAML file; ``properties/...`` is also looked up in the installed package.

    Raises a FileNotFoundError if neither exists.
    """
    for path in (Path(name).expanduser(), properties_folder().parent / name):
        if path.is_file():
            return str(path)
    raise FileNotFoundError(f"config file {name}: not found here and not in {properties_folder()}")


def find_config_files(names: Sequence[str]) -> list[str]:
    """``find_config_file`` of each name; a text may hold several, separated by blanks."""
    return [find_config_file(name) for text in names for name in text.split()]


def internal_files(model: str, dataset: str) -> list[Path]:
    """Our YAML files for a model and dataset, later ones overriding earlier ones."""
    folder = properties_folder()
    names = ["lea.yaml", f"dataset/{dataset}.yaml", f"model/{model}.yaml"]
    return [folder / name for name in names if (folder / name).is_file()]


def read_files(files: Sequence[str]) -> dict[str, Any]:
    """Keys of YAML files, later ones overriding earlier ones.

    Raises a ValueError if a file is not YAML, or not a mapping of keys to plain values.
    """
    values: dict[str, Any] = {}
    for file in files:
        try:
            content = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=YAMLLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{file}: not YAML with plain values: {error}") from error
        content = {} if content is None else content
        if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
            raise ValueError(f"{file}: has to hold lines `key: value`")
        values |= content
    return values

"""Where our YAML files stand: ``properties/`` of a checkout, or inside the installed package."""

from pathlib import Path


def properties_folder() -> Path:
    """``properties/``: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "properties"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "properties"


def find_config_file(name: str) -> str:
    """A path to a YAML file; ``properties/...`` is also looked up in the installed package.

    Raises:
        FileNotFoundError: neither exists.
    """
    path = Path(name)
    if path.is_file():
        return str(path)
    parts = path.parts[1:] if path.parts and path.parts[0] == "properties" else path.parts
    packaged = properties_folder().joinpath(*parts)
    if packaged.is_file():
        return str(packaged)
    raise FileNotFoundError(f"config file {name}: not found here and not in {properties_folder()}")


def find_config_files(names: str) -> list[str]:
    """``find_config_file`` of each of several names, separated by blanks."""
    return [find_config_file(name) for name in names.split()]


def internal_files(model: str, dataset: str) -> list[Path]:
    """Our YAML files for a model and dataset, later ones overriding earlier ones."""
    folder = properties_folder()
    names = ["lea.yaml", f"dataset/{dataset}.yaml", f"model/{model}.yaml"]
    return [folder / name for name in names if (folder / name).is_file()]

"""All that touches RecBole.

RecBole is imported first: ``recbole_lea`` registers the modules of this package by then.
"""

try:
    import recbole  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "recbole":
        raise
    raise ModuleNotFoundError(
        "RecBole is not installed: pip install --no-deps recbole==1.2.1", name="recbole"
    ) from None

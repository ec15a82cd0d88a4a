"""``python -m recbole_lea.benchmark``: see ``recbole_lea.experiments.benchmark``."""

from recbole_lea.console import console
from recbole_lea.experiments.benchmark import main

if __name__ == "__main__":
    console(main)

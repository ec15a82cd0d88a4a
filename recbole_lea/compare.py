"""``python -m recbole_lea.compare``: see ``recbole_lea.experiments.compare``."""

from recbole_lea.console import console
from recbole_lea.experiments.compare import main

if __name__ == "__main__":
    console(main)

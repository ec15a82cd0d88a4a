"""``python -m recbole_lea.benchmark``: see ``recbole_lea.experiments.benchmark``."""

from recbole_lea.experiments.benchmark import main
from recbole_lea.plugin.quick_start import console

if __name__ == "__main__":
    console(main)

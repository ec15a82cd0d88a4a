"""``python -m recbole_lea.export``: see ``recbole_lea.serve.export``."""

from recbole_lea.console import console
from recbole_lea.serve.export import main

if __name__ == "__main__":
    console(main)

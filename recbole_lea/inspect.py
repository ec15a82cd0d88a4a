"""``python -m recbole_lea.inspect``: see ``recbole_lea.serve.inspect``."""

from recbole_lea.console import console
from recbole_lea.serve.inspect import main

if __name__ == "__main__":
    console(main)

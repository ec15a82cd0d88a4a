"""Train and test a model: ``python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

from recbole_lea.console import console
from recbole_lea.run import main


def script() -> None:
    """The command ``run_recbole_lea``."""
    console(main)


if __name__ == "__main__":
    script()

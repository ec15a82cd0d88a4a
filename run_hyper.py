"""Search hyperparameters: ``python run_hyper.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

from recbole_lea.console import console
from recbole_lea.experiments.tune import main

if __name__ == "__main__":
    console(main)

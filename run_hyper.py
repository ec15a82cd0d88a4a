"""Search hyperparameters: ``python run_hyper.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

import recbole_lea  # noqa: F401
from recbole_lea.quick_start import console
from recbole_lea.tune import main

if __name__ == "__main__":
    console(main)

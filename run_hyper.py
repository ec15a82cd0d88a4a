"""Search hyperparameters: ``python run_hyper.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

import recbole_lea  # noqa: F401
from recbole_lea.experiments.tune import main
from recbole_lea.plugin.quick_start import console

if __name__ == "__main__":
    console(main)

"""Search hyperparameters: ``python run_hyper.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

import os

# the variable counts only before torch is imported; run_recbole_lea.py says why
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import recbole_lea  # noqa: E402, F401
from recbole_lea.quick_start import console  # noqa: E402
from recbole_lea.tune import main  # noqa: E402

if __name__ == "__main__":
    console(main)

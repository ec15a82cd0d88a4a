"""Train and test a model: ``python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

import os

# Two OpenMP threads that spin while they wait starve each other beside any other process;
# the variable counts only before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import recbole_lea  # noqa: E402, F401
from recbole_lea.quick_start import console  # noqa: E402

if __name__ == "__main__":
    console()

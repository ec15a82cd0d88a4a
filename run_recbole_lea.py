"""Train and test a model: ``python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

import recbole_lea  # noqa: F401
from recbole_lea.plugin.quick_start import console

if __name__ == "__main__":
    console()

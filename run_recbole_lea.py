"""Train and test a model: ``python run_recbole_lea.py --model=SASRecSA2CLEA --dataset=ml-100k``."""

from recbole_lea.console import console

if __name__ == "__main__":
    console()

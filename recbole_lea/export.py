"""``python -m recbole_lea.export CHECKPOINT --to recbole|onnx|safetensors``: a model to take away.

What is heavy is imported late: ``--help`` and mistakes need neither torch nor RecBole.
"""

import argparse

from recbole_lea.arguments import set_given
from recbole_lea.console import console


def main() -> None:
    """Parse the command line and export."""
    parser = argparse.ArgumentParser(
        prog="python -m recbole_lea.export",
        description="Write the trained sequential model in a form that other programs read.",
    )
    parser.add_argument("checkpoint", help="a .pth file that training has saved")
    parser.add_argument("--to", required=True, choices=("recbole", "onnx", "safetensors"))
    parser.add_argument("--output", help="folder; default: beside the checkpoint")
    options = parser.parse_args()
    set_given([])  # nothing of this is for RecBole
    from recbole_lea.serve.export import export

    print(f"written: {export(**vars(options))}")


if __name__ == "__main__":
    console(main)

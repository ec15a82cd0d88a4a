"""``python -m recbole_lea.export CHECKPOINT --to recbole|onnx|safetensors``: a model to take away.

What is heavy is imported late: ``--help`` and mistakes need neither torch nor RecBole.
"""

from recbole_lea.arguments import Parser, existing, path
from recbole_lea.console import console


def main() -> None:
    """Parse the command line and export."""
    parser = Parser(
        "python -m recbole_lea.export",
        "Write the trained sequential model in a form that other programs read.",
        keys=False,
    )
    parser.add_argument("checkpoint", type=existing, help="a .pth file that training has saved")
    parser.add_argument("--to", required=True, choices=("recbole", "onnx", "safetensors"))
    parser.add_argument("--output", type=path, help="folder; default: beside the checkpoint")
    options = parser.read()
    from recbole_lea.serve.export import export

    print(f"written: {export(**vars(options))}")


if __name__ == "__main__":
    console(main)

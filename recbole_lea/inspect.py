"""``python -m recbole_lea.inspect CHECKPOINT --user U``: one recommendation as model and LE see it.

It prints the history, the top-10 with Q values and the LE's rewards, the LE's choice among the
top-5, and where the true next item stood. ``--plot FILE.png`` draws the LE's states of held-out
histories. The LE comes from ``lea_cache_dir``; nothing is trained here. What is heavy is
imported late: ``--help`` and mistakes need neither torch nor RecBole.
"""

import logging
from pathlib import Path

from recbole_lea.arguments import Parser, existing, path
from recbole_lea.console import console


def main() -> None:
    """Parse the command line, print and draw."""
    parser = Parser(
        "python -m recbole_lea.inspect",
        "One recommendation as model and LE see it. Keys of the YAML files, such as "
        "--data_path=DIR or --lea_cache_dir=DIR, say where things are if they have moved.",
    )
    parser.add_argument("checkpoint", type=existing, help="a .pth file that training has saved")
    who = parser.add_mutually_exclusive_group()
    who.add_argument("--user", help="user token: the history before the held-out test item")
    who.add_argument("--history", help="item tokens, oldest first, separated by |")
    parser.add_argument("--plot", type=path, metavar="FILE.png", help="draw the LE's states")
    parser.add_argument("--category", help="--plot: the field of the .item file that colours")
    options = parser.read()
    if options.user is None and options.history is None and options.plot is None:
        parser.error("give --user, --history or --plot")
    if options.plot and Path(options.plot).suffix.lower() != ".png":
        parser.error(f"--plot {options.plot}: the file has to end with .png")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    from recbole_lea.serve.inspector import Inspector

    inspector = Inspector(options.checkpoint)
    if options.user is not None:
        print(inspector.user(options.user).text())
    elif options.history is not None:
        print(inspector.look(options.history.split("|")).text())
    if options.plot:
        Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
        inspector.draw(options.category).savefig(options.plot, dpi=150)
        print(f"picture: {options.plot}")


if __name__ == "__main__":
    console(main)

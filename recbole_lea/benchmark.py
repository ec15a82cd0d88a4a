"""``python -m recbole_lea.benchmark --speed``: measurements, kept beside the code they measure."""

import argparse
import json
import logging
import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> None:
    """Parse the command line and print the result as one JSON object on the last line."""
    parser = argparse.ArgumentParser(prog="python -m recbole_lea.benchmark", description=__doc__)
    parser.add_argument("--speed", action="store_true", required=True, help="measure speed")
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--rows", type=int, default=400, help="training transitions to sample")
    options, _ = parser.parse_known_args()
    sys.argv = sys.argv[:1]  # RecBole would read them as its own

    from recbole.config import Config

    import recbole_lea  # noqa: F401
    from recbole_lea import speed

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = Config(
        "SASRecSA2CLEA",
        options.dataset,
        config_dict={"lea_method": "base", "show_progress": False},
    )
    print(json.dumps(speed.run(config, options.rows)))


if __name__ == "__main__":
    main()

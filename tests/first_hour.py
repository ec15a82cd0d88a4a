"""README's first hour as a newcomer has it: its commands in a fresh clone, and how they end.

``python tests/first_hour.py`` installs into a new environment, which needs pip's index, and takes
10 to 20 minutes; ``--here`` uses the environment that runs it. It prints what the terminal shows,
of pip only what is wrong, and no bars.
"""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(heading: str, kind: str) -> str:
    """The first code block of a kind under a heading of the README."""
    part = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"```{kind}\n(.*?)```", part, re.DOTALL)[1]


def form(line: str) -> str:
    """A line without its numbers, names of files, and verdict on the LE."""
    line = re.sub(r"\): (better|worse|cannot) .*", ")", line)
    line = re.sub(r"(saved|log)/\S+?(\.pth|\.json|\.log)", r"\1/*\2", line)
    return " ".join(re.sub(r"[-+]?\d[\d.,]*", "#", line).split())


def main() -> None:
    """Run the README's commands; the exit code says whether they end as it says."""
    places, commands = [os.environ["PATH"]], [block("Quick start", "bash")]
    if "--here" in sys.argv:
        places.insert(0, str(Path(sys.executable).parent))
    else:
        commands.insert(0, block("Install", "bash"))
    typed = [f"echo {shlex.quote(f'$ {command.strip()}')}\n{command}" for command in commands]
    environment = os.environ | {"PATH": os.pathsep.join(places), "PIP_QUIET": "1"}
    shown = []
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", str(ROOT), folder], check=True)
        with subprocess.Popen(
            ["bash", "-ec", "".join(typed)], cwd=folder, text=True, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as running:  # fmt: skip
            for line in running.stdout:
                if line.strip() and not re.search(r"\d%\|", line):  # a bar
                    shown.append(line)
                    print(line, end="", flush=True)
    ends = {form(line) for line in shown}
    wrong = [line for line in block("Quick start", "text").splitlines() if form(line) not in ends]
    if running.returncode or wrong:
        sys.exit("\n".join([f"ended with code {running.returncode}; not as README:", *wrong]))


if __name__ == "__main__":
    main()

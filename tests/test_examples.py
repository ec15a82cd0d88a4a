import json
import subprocess
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parent.parent / "examples" / "lea.ipynb"


def test_the_notebook_runs_top_to_bottom(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    checks = "assert 'hit@10' in result and len(answer.items) == 5 and len(found) == 5"
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, checks])],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "'accuracy'" in done.stdout  # the LE was measured

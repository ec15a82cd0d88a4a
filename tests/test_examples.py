import json
import re
import subprocess
import sys

from tests.conftest import ROOT

NOTEBOOK = ROOT / "examples" / "lea.ipynb"

# the preset's keys that take the time; those of a command line go before those of YAML files
BRIEF = (
    "--lea_llm_dtype=float32", "--lea_newest=4", "--lea_finetune_epochs=1",
    "--lea_finetune_negatives=1", "--lea_finetune_eval=60", "--epochs=3", "--warmup=1 epochs",
)  # fmt: skip


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_runs_top_to_bottom(tmp_path, tiny_llm):
    code = ["".join(cell["source"]) for cell in code_cells()]
    checks = """
assert list(table) == ["SASRecSA2CLEA", "SASRec"] and list(table.index) == names
assert len(curve) == len(plain_curve) == 3 and curve != plain_curve
assert [bar.get_height() for bar in bars.patches] == [*table.T.to_numpy().ravel()]
assert view.items["LE reward"].notna().all() and (view.items[""] == " <- the LE's choice").any()
assert len(answer.items) == 5 and not set(answer.items) & set(history)
"""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join([*code, checks]), f"--lea_llm={tiny_llm}", *BRIEF],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "LE: reward accuracy" in done.stdout


def test_the_notebook_s_outputs_are_stored_and_say_nothing_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 400_000
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    tables = ["".join(data["text/html"]) for data in shown if "text/html" in data]
    results, films = tables
    for name in ("SASRecSA2CLEA", "SASRec", "hit@10", "ndcg@10", "mrr@10", "gain"):
        assert name in results
    assert len(re.findall(r"<td>0\.\d{4}</td>", results)) == 6
    assert "the LE's choice" in films and "the true next item" in films
    said = "".join("".join(output["text"]) for output in outputs if "text" in output)
    assert "plan for 943 training sequences" in said and "LE: reward accuracy" in said
    assert all(output.get("name") != "stderr" for output in outputs)  # bars and warnings
    assert not re.search(r"/(root|home|tmp|work)/", text)
    assert [cell["execution_count"] for cell in code_cells()] == [*range(1, len(code_cells()) + 1)]

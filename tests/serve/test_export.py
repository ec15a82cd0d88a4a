"""What leaves the project gives the same scores elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from recbole_lea import recommend
from recbole_lea.console import console
from recbole_lea.export import main
from recbole_lea.serve.export import export
from tests.conftest import ROOT

NAMES = ["SASRecSA2CLEA", "GRU4RecSNQNLEA"]
# RecBole alone: this package is not imported
STOCK = """
import json, sys, torch, numpy as np
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model
for name in ("SASRec", "GRU4Rec"):
    given = np.load(f"{name}.npz")
    config = Config(name, "tiny", [f"{name}/recbole.yaml"])
    loaders = data_preparation(config, create_dataset(config))
    tokens = list(loaders[0]._dataset.field2id_token["item_id"])
    assert tokens == json.load(open(f"{name}/items.json"))
    fresh = lambda: get_model(name)(config, loaders[0]._dataset)
    file = f"{name}/{name}.pth"
    content = torch.load(file, weights_only=True)
    model = fresh()
    model.load_state_dict(content["state_dict"])
    fields = {n: torch.from_numpy(given[n]) for n in ("item_id_list", "item_length")}
    with torch.no_grad():
        scores = model.eval().full_sort_predict(fields).numpy()
    assert np.array_equal(scores, given["scores"])
    result = Trainer(config, fresh()).evaluate(loaders[2], load_best_model=True, model_file=file)
    assert Trainer(config, model).evaluate(loaders[2], load_best_model=False) == result
assert not [m for m in sys.modules if m.startswith("recbole_lea")]
"""


def items_of(folder):
    return json.loads((folder / "items.json").read_text(encoding="utf-8"))


def test_recbole_alone_scores_and_evaluates(trained):
    for name in NAMES:
        model, backbone = trained(name, lea_method="base"), name[:-7]
        export(model.path, "recbole", backbone)
        fields = {name: model.rows[name].numpy() for name in ("item_id_list", "item_length")}
        np.savez(f"{backbone}.npz", scores=model.scores.numpy(), **fields)
    done = subprocess.run(
        [sys.executable, "-c", STOCK], capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_recbole_s_loader_reads_what_was_written_after_our_import(trained, tmp_path):
    from recbole.quick_start import load_data_and_model
    from recbole.trainer import Trainer

    model = trained()
    folder = export(model.path, "recbole", tmp_path / "out")
    for path in (model.path, folder / "SASRec.pth", tmp_path / "again.pth"):
        config, loaded, _, _, _, test = load_data_and_model(str(path))
        with torch.no_grad():
            scores = loaded.eval().full_sort_predict(test._dataset.inter_feat)
        assert torch.equal(scores, model.scores)
        Trainer(config, loaded)._save_checkpoint(0, saved_model_file=tmp_path / "again.pth")
    assert config["model"] == "SASRec"


def test_the_dense_head_has_no_place_in_plain_recbole(trained, monkeypatch):
    model = trained(lea_method="base", lea_output_head="dense")
    monkeypatch.setattr(sys, "argv", ["export", str(model.path), "--to", "recbole"])
    with pytest.raises(SystemExit, match="lea_output_head: dense.*has no such head"):
        console(main)
    assert not Path(f"{model.path.with_suffix('')}-recbole").exists()


def test_data_that_recbole_alone_would_not_build_are_warned_of(trained, caplog):
    export(trained(lea_method="base", lea_newest=5).path, "recbole", "out")
    assert "lea_newest: 5 is unknown to plain RecBole" in caplog.text
    assert "lea_newest" not in yaml.safe_load(Path("out/recbole.yaml").read_text())


# each backbone and each head once: the head is one matrix product after either backbone
@pytest.mark.parametrize(("name", "head"), zip(NAMES, ["tied", "dense"], strict=True))
def test_onnxruntime_gives_torch_s_scores(trained, name, head):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"pip install {package}")
    import onnxruntime

    model = trained(name, lea_method="base", lea_output_head=head)
    folder = export(model.path, "onnx", "out")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for n in (1, 2, 7, len(model.rows)):
        ids = model.rows["item_id_list"][:n]
        given = {"item_ids": ids.numpy(), "lengths": model.rows["item_length"][:n].numpy()}
        (scores,) = session.run(["scores"], given)
        np.testing.assert_allclose(scores, model.scores[:n].numpy(), rtol=0, atol=1e-5)
    assert items_of(folder) == list(model.test._dataset.field2id_token["item_id"])


# the package itself, whose import patches RecBole, is not what is looked at here
HELP = """
import sys, types
package = types.ModuleType("recbole_lea")
package.__path__ = [sys.argv.pop()]
sys.modules["recbole_lea"] = package
from recbole_lea import export, inspect
heavy = {"torch", "recbole", "matplotlib", "sklearn", "transformers"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
for command, *arguments in ((export, "--help"), (inspect, "--help"), (export, "x"), (inspect, "x")):
    sys.argv = ["command", *arguments]
    try:
        command.main()
    except (SystemExit, ValueError):
        continue
    raise AssertionError("goes on")
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def test_help_and_mistakes_need_neither_torch_nor_recbole():
    done = subprocess.run(
        [sys.executable, "-c", HELP, str(ROOT / "recbole_lea")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("usage: python -m recbole_lea.") == 2


def test_a_missing_package_is_named_with_the_remedy(trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    model = trained(lea_method="base")
    monkeypatch.setattr(sys, "argv", ["export", str(model.path), "--to", "onnx"])
    with pytest.raises(SystemExit, match=r"onnxscript: pip install 'recbole_lea\[export\]'"):
        console(main)


@pytest.mark.parametrize("head", ["tied", "dense"])
@pytest.mark.parametrize("name", NAMES)
def test_safetensors_serve_like_the_checkpoint(trained, name, head):
    model = trained(name, lea_method="base", lea_output_head=head)
    folder = export(model.path, "safetensors")
    assert folder == model.path.with_name(f"{model.path.stem}-safetensors")
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "items.json", "model.safetensors",
    ]  # fmt: skip
    histories = model.histories()
    assert recommend(folder, histories, k=19) == recommend(model.path, histories, k=19)
    from safetensors.torch import load_file

    names = set(load_file(folder / "model.safetensors"))
    assert not [n for n in names if n.startswith(("q_head", "twin"))]


def test_a_broken_export_is_said(trained):
    folder = export(trained(lea_method="base").path, "safetensors", "out")
    (folder / "items.json").write_text("[")
    with pytest.raises(ValueError, match="out was not made by --to safetensors"):
        recommend(folder, [["i1"]])
    for config in ({"model": "SASRec"}, {}, ["SASRec"]):
        (folder / "config.json").write_text(json.dumps({"config": config}))
        (folder / "items.json").write_text("[]")
        with pytest.raises(ValueError, match="out holds .* model.*has to hold one of recbole_lea"):
            recommend(folder, [["i1"]])


def test_a_checkpoint_of_other_items_is_refused(trained):
    """RecBole would load it silently where the number of items agrees."""
    model = trained(lea_method="base")
    content = torch.load(model.path, weights_only=True)
    tokens = content["other_parameter"]["item_tokens"]
    tokens[3], tokens[4] = tokens[4], tokens[3]
    torch.save(content, "other.pth")
    with pytest.raises(ValueError, match="on other items than this data.*item 3 is 'i"):
        model.trainer.evaluate(model.test, model_file="other.pth")

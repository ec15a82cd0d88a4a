"""What the script says of itself, and that it starts nothing unasked."""

from pathlib import Path

import pytest

from recbole_lea import run
from recbole_lea.arguments import set_given


def answer(capsys, *arguments):
    set_given(arguments)
    assert run.main() == {}
    return capsys.readouterr().out


def test_versions_are_those_that_an_issue_needs(capsys):
    import torch

    lines = answer(capsys, "--version").splitlines()
    for name in ("python", "recbole_lea", "recbole", "transformers", "peft", "accelerate", "numpy"):
        assert any(line.startswith(f"{name} ") for line in lines)
    assert f"torch {torch.__version__}" in lines
    assert lines[-2].endswith(" cores") and lines[-1].startswith("GPU: ")


def test_models_methods_and_datasets_are_listed(tiny_dataset, capsys):
    (tiny_dataset.parent / "half").mkdir()
    out = answer(capsys, "--list")
    assert "SASRec SINE" in out and "BERT4Rec" not in out
    assert "  base LER LES' LES LEA LEAR LEAS LEAS'R LEASR\n" in out
    assert "datasets in dataset/\n  tiny\ndatasets with prompts\n" in out
    assert "  ml-100k: in RecBole\n" in out + "\n"
    assert "  lfm: not prepared: python -m dataset_prep lfm" in out
    tiny_dataset.rename(tiny_dataset.parent / "lfm")
    (tiny_dataset.parent / "lfm" / "tiny.inter").rename(tiny_dataset.parent / "lfm" / "lfm.inter")
    (tiny_dataset.parent).rename("elsewhere")
    out = answer(capsys, "--list", "--data_path=elsewhere")
    assert "datasets in elsewhere/\n  lfm\n" in out and "  lfm: ready\n" in out


@pytest.mark.parametrize("given", [[], ["-m", "SASRecSA2CLEA"], ["--dataset=ml-100k"]])
def test_model_and_dataset_are_asked_for(capsys, given):
    set_given(given)
    with pytest.raises(SystemExit) as end:
        run.main()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1
    assert run.EXAMPLE in error
    readme = Path(__file__).parent.parent / "README.md"
    assert run.EXAMPLE in readme.read_text(encoding="utf-8")

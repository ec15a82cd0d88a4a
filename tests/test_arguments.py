"""What is typed becomes what RecBole reads, or an error."""

import pytest

from recbole_lea import arguments
from recbole_lea.arguments import Parser, set_given


def parser():
    made = Parser("program", "What it does.")
    made.add_argument("checkpoint", nargs="?")
    made.add_argument("--model", "-m")
    made.add_argument("--config_files", **arguments.CONFIG_FILES)
    return made


def test_blanks_and_equal_signs_are_the_same():
    typed = (
        "-m GRU4RecSNQNLEA --config_files a.yaml b.yaml --lea_method LEAR --epochs=3 --r_neg -1 "
        "--data_path here file.pth --config_files=c.yaml"
    )
    set_given(
        [*typed.split(), "--lea_item_sentence", "{item} has = and blanks.", "--metrics=['Hit']"]
    )
    options = parser().read()
    assert (options.model, options.checkpoint) == ("GRU4RecSNQNLEA", "file.pth")
    assert options.config_files == ["a.yaml", "b.yaml", "c.yaml"]
    assert set(vars(options)) == {"model", "checkpoint", "config_files"}
    assert arguments.given_keys() == {
        "lea_method": "LEAR", "epochs": 3, "r_neg": -1, "data_path": "here",
        "lea_item_sentence": "{item} has = and blanks.", "metrics": ["Hit"],
    }  # fmt: skip
    assert all("=" in argument for argument in arguments.given())


def test_a_list_of_files_may_differ_from_call_to_call():
    for name in ("a.yaml", "b.yaml"):
        set_given(["--config_files", name])
        assert parser().read().config_files == [name]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("--lea_methd LEAR", "--lea_methd: not an option, nor a key that anybody reads; did you"
         " mean `lea_method`?"),
        ("--modell=SASRec", "did you mean `model`?"),
        ("x y", "y: not an option, nor a key that anybody reads (--help"),
        ("-d tiny", "-d: not an option"),
        ("--epochs", "argument --epochs: expected one argument"),
        ("--epochs 3 --epochs=4", "`epochs` is given twice: --epochs=3 and --epochs=4"),
        ("--worker 0 --nb=1", "--nb: not an option"),
    ],
)  # fmt: skip
def test_what_nobody_reads_is_one_line_and_code_2(capsys, typed, message):
    set_given(typed.split())
    with pytest.raises(SystemExit) as end:
        parser().read()
    out = capsys.readouterr()
    assert end.value.code == 2 and not out.out
    assert message in out.err and out.err.count("\n") == 1


def test_a_key_of_another_model_is_unread(capsys):
    set_given(["--n_heads", "2"])
    made = parser()
    made.read()
    made.refuse_unread("SASRecSA2CLEA")
    made.refuse_unread("SASRec")
    with pytest.raises(SystemExit):
        made.refuse_unread("GRU4RecSA2CLEA")
    assert "--n_heads: GRU4RecSA2CLEA reads no such key" in capsys.readouterr().err


def test_a_program_may_have_no_keys(capsys):
    set_given(["--epochs=3"])
    with pytest.raises(SystemExit):
        Parser("program", "What it does.", keys=False).read()
    assert "--epochs: not an option" in capsys.readouterr().err


def test_a_file_that_is_missing_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.pth").touch()
    made = Parser("program", "What it does.", keys=False)
    made.add_argument("file", type=arguments.existing)
    set_given(["~/x.pth"])
    assert made.read().file == str(tmp_path / "x.pth")
    set_given(["~/y.pth"])
    with pytest.raises(SystemExit):
        made.read()
    assert "argument file: ~/y.pth: no such file or folder" in capsys.readouterr().err

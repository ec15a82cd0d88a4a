"""The terminal shows what matters, all warnings that are not known among it; the file all."""

import logging
import warnings

import pytest

from recbole_lea.plugin import terminal

KNOWN = {
    "recbole/data/dataset/dataset.py":
        (FutureWarning, "A value is trying to be set on a copy of a DataFrame or Series through"),
    "recbole/trainer/trainer.py":
        (FutureWarning, "`torch.cuda.amp.GradScaler(args...)` is deprecated."),
    "ray/_private/parameter.py": (UserWarning, "pkg_resources is deprecated as an API. See"),
    "transformers/modeling_utils.py":
        (FutureWarning, "`is_gradient_checkpointing` is deprecated and will be removed in v6."),
    "peft/utils/save_and_load.py": (UserWarning, "Could not find a config file in /x - will"),
    "torch/_inductor/lowering.py": (UserWarning, "\nOnline softmax is disabled on the fly"),
}  # fmt: skip


@pytest.fixture
def handlers(tmp_path):
    """What RecBole's ``init_logger`` leaves, with a list in the place of the terminal."""
    shown = []

    class Lines:
        write = staticmethod(shown.append)
        flush = staticmethod(lambda: None)

    root, level = logging.getLogger(), logging.getLogger().level
    before = root.handlers[:]
    root.handlers[:] = [logging.StreamHandler(Lines()), logging.FileHandler(tmp_path / "run.log")]
    root.setLevel(logging.INFO)
    terminal.keep_quiet(ours=True)
    yield shown, tmp_path / "run.log"
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)


def test_known_warnings_are_for_the_file_and_others_are_shown(handlers):
    shown, file = handlers
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)  # catch_warnings puts its own way of showing them
        for place, (kind, text) in KNOWN.items():
            warnings.warn_explicit(text, kind, f"/env/site-packages/{place}", 7)
        assert not shown
        for place, (kind, text) in KNOWN.items():
            for unknown in (
                (f"another {text}", kind, f"/env/site-packages/{place}"),
                (text, RuntimeWarning, f"/env/site-packages/{place}"),
                (text, kind, "/home/me/own.py"),
            ):
                shown.clear()
                warnings.warn_explicit(*unknown, 7)
                assert text in "".join(shown), unknown
    assert len(terminal.KNOWN_WARNINGS) == len(KNOWN)
    content = file.read_text()
    assert all(content.count(text) == 4 for _, text in KNOWN.values())


def test_recbole_s_dumps_are_for_the_file(handlers):
    shown, file = handlers
    logger = logging.getLogger()
    hidden = (
        ["run_recbole_lea.py"], "\n\x1b[1;35mGeneral Hyper Parameters:\n\x1b[0mgpu_id = 0",
        "\x1b[1;32mepoch 3 training\x1b[0m [\x1b[1;34mtime\x1b[0m: 1s]",
        "\x1b[1;34mFLOPs\x1b[0m: 9",
        "\x1b[1;34mvalid result\x1b[0m: \nhit@5 : 0.1", "SASRec(\n  (item): Embedding",
        "run.json: x",
    )  # fmt: skip
    for message in hidden:
        logger.info(message)
    logger.info("a table", extra={"for_the_file": True})
    assert not shown
    for number, message in enumerate(("epoch 3: 1 s, L_h 2.1", "plan: 6 stages", "test result: x")):
        logger.info(message)
        assert len(shown) == number + 1
    logger.warning("epoch 3 training [")
    assert "epoch 3 training [" in shown[-1]
    assert len(file.read_text().splitlines()) >= len(hidden) + 5

"""What the terminal shows of a run: what a user waits for. The log file keeps all."""

import logging
import re
from functools import partial

# Colours, which RecBole puts into its messages
_COLOUR = re.compile(r"\x1B\[[0-9;]*m")

# RecBole's messages that are for the file
FOR_THE_FILE = re.compile(
    r"\["  # sys.argv, and the loaders' settings
    r"|\s*General Hyper Parameters|.*\nThe number of users|\w+\(\n|FLOPs: |The running environment"
    r"|epoch \d+ training |valid result: |Saving current: |run\.json: "
)
# an epoch of our trainers is a line of their own (plugin/trainer.py)
OURS_FOR_THE_FILE = re.compile(r"epoch \d+ evaluating ")

# Warnings of packages about their own insides, which no user can act on: file, kind and text
KNOWN_WARNINGS = tuple(
    re.compile(rf"[^\n]*\b{place}:\d+: {text}", re.DOTALL)
    for place, text in (
        (r"recbole/data/dataset/dataset\.py",
         "FutureWarning: (A value is trying to be set on a copy|ChainedAssignmentError)"),
        (r"recbole/trainer/trainer\.py", r"FutureWarning: `torch\.cuda\.amp\.GradScaler"),
        (r"ray/_private/\w+\.py", "UserWarning: pkg_resources is deprecated as an API"),
        (r"transformers/modeling_utils\.py",
         "FutureWarning: `is_gradient_checkpointing` is deprecated"),
        (r"peft/utils/save_and_load\.py", "UserWarning: Could not find a config file in"),
        (r"torch/_inductor/\S+\.py", "UserWarning: (\n)?Online softmax is disabled"),
    )
)  # fmt: skip


def for_the_terminal(record: logging.LogRecord, ours: bool = True) -> bool:
    """Whether a message is shown: all that is above INFO, but for ``KNOWN_WARNINGS``.

    ``ours`` is whether one of our trainers runs.
    """
    text = _COLOUR.sub("", record.getMessage())
    if record.name == "py.warnings":
        return not any(known.match(text.replace("\\", "/")) for known in KNOWN_WARNINGS)
    if record.levelno > logging.INFO:
        return True
    hidden = FOR_THE_FILE.match(text) or (ours and OURS_FOR_THE_FILE.match(text))
    return not (hidden or getattr(record, "for_the_file", False))


def keep_quiet(ours: bool) -> None:
    """Let the terminal's handler, which RecBole has made, pass on only what is for it.

    Python's warnings become messages, so that the file holds those that the terminal does not show.
    """
    handlers = logging.getLogger().handlers
    if not any(isinstance(handler, logging.FileHandler) for handler in handlers):
        return  # a program with a logging of its own
    for handler in handlers:
        if type(handler) is logging.StreamHandler:
            handler.addFilter(partial(for_the_terminal, ours=ours))
    logging.captureWarnings(True)

"""Makes ``fed9a18.zip``: what commit fed9a18 wrote, and the answers it gave.

::

    git worktree add /tmp/fed9a18 fed9a18
    PYTHONPATH=/tmp/fed9a18 OMP_NUM_THREADS=1 python tests/old/make.py

The archive is a working directory: ``llm/`` and ``dataset/tiny/`` (cache keys are made from their
content), ``lea_cache/tiny/`` (``FORMAT`` 3), ``NAME.pth`` (a checkpoint from the middle of a
training, after the warm-up), ``SASRecSA2CLEA-safetensors/`` (an export), and the answers:
``expected.json``, and ``expected.npz`` with an array ``NAME.what`` each.
"""

import json
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import torch
from recbole.config import Config
from recbole.utils import init_logger

# isort: off
# names of that commit, not of this one
from recbole_lea import recommend
from recbole_lea.export import export
from recbole_lea.le.versions import code_version
from recbole_lea.quick_start import prepare
from tests.conftest import tiny_keys, write_tiny_dataset, write_tiny_llm
# isort: on

COMMIT = "fed9a18"
ARCHIVE = Path(__file__).parent / f"{COMMIT}.zip"

# Each model: its keys, and the epoch (under lea_valid_steps: chunk) after which the checkpoint is
# written. Together they use every stage of the cache, both output heads, epochs and chunks, and
# three ways to select.
MODELS = {
    "SASRecSA2CLEA": (
        {"n_layers": 1, "n_heads": 2, "hidden_size": 16, "inner_size": 16, "epochs": 4},
        1,
    ),
    "GRU4RecSNQNLEA": (
        {
            "embedding_size": 16, "hidden_size": 16, "num_layers": 1, "lea_output_head": "dense",
            "state_dim": 8, "selection_by": "reward", "lea_valid_steps": 3, "epochs": 8,
        },
        4,
    ),
    "CaserSA2CLEA": ({"embedding_size": 16, "selection_by": "state", "epochs": 4}, 1),
}  # fmt: skip


def main() -> None:
    """Work in a temporary folder, and pack it."""
    code = code_version()
    assert code["commit"].startswith(COMMIT) and code["clean"], code
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        write_tiny_llm(Path("llm"))
        write_tiny_dataset(Path())
        answers: dict = {"models": {}}
        arrays: dict[str, np.ndarray] = {}
        for name, (keys, at) in MODELS.items():
            keys = tiny_keys("./llm") | {"stopping_step": 20} | keys
            answers["models"][name] = train(name, keys, at, answers, arrays)
        export("SASRecSA2CLEA.pth", "safetensors")
        Path("expected.json").write_text(json.dumps(answers, indent=1), encoding="utf-8")
        np.savez_compressed("expected.npz", **arrays)
        pack()


def train(name: str, keys: dict, at: int, answers: dict, arrays: dict) -> dict:
    """Train a model with a checkpoint on the way; the answers of both."""
    config = Config(name, "tiny", config_dict=keys)
    init_logger(config)
    trainer, (train, valid, test) = prepare(config)
    pipeline = train._dataset.lea_pipeline
    lists = []
    select = pipeline.select

    def watched(candidates, want_rewards):
        chosen = select(candidates, want_rewards)
        lists.append((candidates, *chosen))
        return chosen

    pipeline.select = watched
    checkpoint = Path(f"{name}.pth")

    def after(epoch: int, score: float) -> None:
        if epoch == at:
            trainer._save_checkpoint(epoch, verbose=False, saved_model_file=checkpoint)

    score, result = trainer.fit(train, valid, callback_fn=after, verbose=False)
    ((candidates, chosen, chosen_rewards),) = lists
    rows = test._dataset.inter_feat
    end_scores = scores(trainer, rows)
    at_result = trainer.evaluate(test, model_file=checkpoint)  # loads it
    given = {
        "states": pipeline.states(),
        "rewards": pipeline.rewards(),
        "negatives": pipeline.negatives,
        "candidates": candidates,
        "chosen": chosen,
        "chosen_rewards": chosen_rewards,
        "scores": scores(trainer, rows),  # of all test rows, from the checkpoint
        "end_scores": end_scores,
    }
    arrays |= {f"{name}.{what}": value for what, value in given.items()}
    sequences = pipeline.sequences
    items = pipeline.catalogue.tokens
    answers["sequences"] = {
        user: [items[i] for i in ids]
        for user, ids in zip(sequences.users, sequences.items, strict=True)
    }
    tokens = test._dataset.field2id_token["item_id"]
    pairs = zip(rows["item_id_list"], rows["item_length"], strict=True)
    histories = [[str(tokens[i]) for i in ids[:n]] for ids, n in pairs]
    return {
        "keys": keys,
        "epoch": at,
        "stages": pipeline.cache.used,
        "histories": histories,
        "recommended": []
        if name.startswith("Caser")  # it needs the user: not served
        else [vars(one) for one in recommend(checkpoint, histories, k=19)],
        "test_result": at_result,
        "losses": {str(epoch): loss for epoch, loss in trainer.train_loss_dict.items()},
        "best_valid_score": float(score),
        "best_valid_result": result,
    }


def scores(trainer, rows) -> np.ndarray:
    """Full-sort scores of the rows [n_rows, n_items]."""
    with torch.no_grad():
        return trainer.model.eval().full_sort_predict(rows).numpy()


def pack() -> None:
    """All but logs and locks, by name. Made again, it differs by a file name in the configs."""
    left_out = {"log", "log_tensorboard", "saved"}
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(Path().rglob("*")):
            if path.is_file() and path.parts[0] not in left_out and path.name != "lock":
                info = zipfile.ZipInfo(str(path))
                archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED, 9)


if __name__ == "__main__":
    main()

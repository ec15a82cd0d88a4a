"""Training in several processes on this machine, on CPUs."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.quick_start import run
from recbole.trainer import Trainer
from recbole.utils import get_model, get_trainer, init_seed

from recbole_lea import console
from recbole_lea import run as program
from recbole_lea.engine.processes import Share, collected, drawn, processes
from recbole_lea.plugin import distributed, quick_start
from tests.conftest import ROOT, tiny_keys


@pytest.fixture
def start(tiny_dataset, tiny_llm, monkeypatch):
    """The command line's ``main``, with the tiny data and LLM."""
    keys = tiny_keys(tiny_llm) | {
        "hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0,
        "train_batch_size": 15, "eval_batch_size": 7, "metric_decimal_place": 8,
        "metrics": ["Hit", "NDCG", "ItemCoverage", "TailPercentage"],
    }  # fmt: skip
    Path("tiny.yaml").write_text(yaml.safe_dump(keys), encoding="utf-8")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def main(model, *arguments):
        given = [f"--model={model}", "--dataset=tiny", "--config_files=tiny.yaml", *arguments]
        monkeypatch.setattr(sys, "argv", ["run_recbole_lea.py", *given])
        return program.main()

    return main


def only(folder, pattern):
    (found,) = Path(folder).glob(pattern)
    return found


def test_two_processes_train_and_measure_as_one(start, capfd):
    """Batches of 15, 8 and 7 rows a process; the last ones are smaller, of train and test data."""
    options = ["--epochs=4", "--lea_valid_steps=3", "--warmup=5 steps", "--negative_pool=3",
               "--clip_grad_norm={'max_norm': 0.5}", "--stopping_step=1"]  # fmt: skip
    model = "SASRecSA2CLEA"
    alone = start(model, *options, "--checkpoint_dir=one")
    capfd.readouterr()
    together = start(model, *options, "--checkpoint_dir=two", "--nproc=2")
    output = "".join(capfd.readouterr())
    saved = [torch.load(only(f, "*.pth"), weights_only=True) for f in ("one", "two")]
    one, two = (content["state_dict"] for content in saved)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
    assert saved[0]["epoch"] == saved[1]["epoch"]
    for part in ("best_valid_result", "test_result"):
        assert dict(together[part]) == pytest.approx(dict(alone[part]), abs=1e-6)
    # one process says and writes what happens
    assert output.count("test result") == 1
    assert output.count("augmentation: share of positions chosen") == 1
    assert len(list(Path("log", model).glob("*/run.json"))) == 2
    assert len(list(Path("log_tensorboard").iterdir())) == 2
    # the checkpoint gives in one process what it gave in two
    config = Config(model, "tiny", ["tiny.yaml"])
    trainer, loaders = quick_start.prepare(config)
    trainer.eval_collector.data_collect(loaders[0])
    again = trainer.evaluate(loaders[2], model_file=only("two", "*.pth"))
    assert dict(together["test_result"]) == pytest.approx(dict(again), abs=1e-6)


def test_two_machines_build_the_le_and_train_together(start):
    port = program.free_port()
    shared = ["--nproc=1", "--world_size=2", "--ip=127.0.0.1", f"--port={port}"]
    model = "GRU4RecSNQNLEA"
    second = subprocess.Popen(
        [sys.executable, str(ROOT / "run_recbole_lea.py"), f"--model={model}", "--dataset=tiny",
         "--config_files=tiny.yaml", *shared, "--group_offset=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ,
    )  # fmt: skip
    try:
        result = start(model, *shared, "--group_offset=0")
        output, _ = second.communicate(timeout=120)
    finally:
        second.kill()
    assert second.returncode == 0, output[-3000:]
    assert "INFO" not in output
    assert 0 <= result["test_result"]["hit@10"] <= 1
    only("saved", "*.pth")
    only("log", f"{model}/*/run.json")


@pytest.mark.parametrize(("method", "shuffle"), [("base", False), ("LER", False), ("LER", True)])
def test_negatives_do_not_depend_on_the_number_of_processes(tiny_config, method, shuffle):
    """Drawn by the model, or by the LE's feedback from a pool."""
    keys = {"lea_method": method, "lea_shuffle": shuffle, "negative_pool": 3}
    trainer, loaders = quick_start.prepare(tiny_config(**keys))
    model, data = trainer.model, loaders[0]._dataset

    def negatives(share, rows=slice(None)):
        model.share, model._rng = share, torch.Generator().manual_seed(3)
        if feedback := data.lea_feedback:
            feedback.share, feedback.rng = share, np.random.default_rng(3)
        for _ in range(2):  # what one batch draws, the next one does not
            batch = loaders[0].transform(data, data[torch.arange(20)[rows]])
        return model._actions(batch, batch["item_id"])[0]

    whole = negatives(None)
    for own in (slice(0, None, 2), slice(1, None, 2)):
        assert torch.equal(negatives(SimpleNamespace(size=20, own=own), own), whole[own])


def resumed(rank, port, keys):
    """In each of two processes: a resumed training equals an uninterrupted one, on all alike."""
    together = {"local_rank": rank, "nproc": 2, "world_size": 2, "offset": 0, "port": port,
                "ip": "localhost"}  # fmt: skip

    def built(model, **more):
        config = Config(model, "tiny", config_dict=keys | together | more)
        assert config["device"] == torch.device("cpu")
        assert config["show_progress"] is False
        init_seed(config["seed"] + rank, True)
        loaders = data_preparation(config, create_dataset(config))
        network = get_model(model)(config, loaders[0]._dataset)
        time.sleep(1.1 * rank)  # RecBole's name of the checkpoint holds the second
        trainer = get_trainer(config["MODEL_TYPE"], model)(config, network)
        assert len(set(collected([trainer.saved_model_file]))) == 1
        return trainer, loaders

    def after(epoch, score):
        if epoch == 2:
            first._save_checkpoint(epoch, verbose=False, saved_model_file="middle.pth")

    first, loaders = built("SASRecSA2CLEA")
    first.fit(*loaders[:2], verbose=False, saved=False, callback_fn=after)
    assert first.steps > 6  # the augmentation has begun
    second, again = built("SASRecSA2CLEA")
    torch.manual_seed(99)
    second.resume_checkpoint("middle.pth")
    second.fit(*again[:2], verbose=False, saved=False)
    for name, tensor in first.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    stock, loaders = built("SASRec", train_neg_sample_args=None)
    stock.fit(*loaders[:2], verbose=False)
    stock.evaluate(loaders[2])
    for trainer in (first, stock):
        mine, other = collected([trainer.model.state_dict()])
        for name, tensor in mine.items():
            assert torch.equal(tensor, other[name]), name
    draws = collected([torch.rand(3)])
    assert not torch.equal(*draws)  # dropout is each process's own
    processes().wait_for_everyone()
    processes().destroy_process_group()


def test_a_training_in_two_processes_can_be_resumed(tiny_dataset, tiny_llm, tiny_config):
    keys = tiny_keys(tiny_llm) | {"epochs": 6, "warmup": "6 steps", "lea_valid_steps": 3}
    port = program.free_port()
    torch.multiprocessing.spawn(resumed, (port, keys), nprocs=2)
    config = tiny_config(**{k: keys[k] for k in ("warmup", "lea_valid_steps")})
    trainer, loaders = quick_start.prepare(config)
    trainer.resume_checkpoint("middle.pth")
    with pytest.raises(ValueError, match="middle.pth was written by a training in 2 processes"):
        trainer.fit(*loaders[:2], verbose=False, saved=False)


def test_a_mistake_in_several_processes_is_one_line(tiny_dataset, tiny_llm):
    keys = tiny_keys(tiny_llm) | {"transform": "lea_live"}
    port = str(program.free_port())

    def start():
        run("SASRecSA2CLEA", "tiny", config_dict=keys, nproc=2, port=port)

    with pytest.raises(SystemExit, match="error: transform: lea_live asks the LLM within"):
        console.console(start)


def test_an_error_that_is_no_mistake_keeps_its_traceback():
    assert console.mistake(Exception("Traceback ...\nRuntimeError: a\nb\n")) is None


@pytest.mark.parametrize(
    "flags", ["--nproc=0", "--nproc=2 --world_size=1", "--nproc=1 --world_size=2 --group_offset=2"]
)
def test_processes_that_do_not_fit_are_refused(start, flags):
    with pytest.raises(ValueError, match="--nproc=.*more processes than `world_size`, or none"):
        start("SASRecSA2CLEA", *flags.split())


def test_a_trainer_with_a_loop_of_its_own_is_refused():
    class OwnTrainer(Trainer):
        def _train_epoch(self, *arguments): ...

    trainer = object.__new__(OwnTrainer)
    trainer.config = {"model": "X"}
    with pytest.raises(ValueError, match="X has a training loop of its own, OwnTrainer's"):
        distributed.set_up(trainer)


@pytest.mark.parametrize("even", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_shares_make_up_the_batches(monkeypatch, n, even):
    batches = [[5, 3, 8, 1], [2, 9, 4, 7], [6, 0]]
    numbers = torch.Generator().manual_seed(0)
    expected = [torch.rand(len(batch), generator=numbers).tolist() for batch in batches]
    rows, draws, means = ([{} for _ in batches] for _ in range(3))
    for rank in range(n):
        state = type("State", (), {"process_index": rank, "num_processes": n})
        monkeypatch.setattr("recbole_lea.engine.processes.processes", lambda s=state: s)
        share, numbers = Share(batches, even), torch.Generator().manual_seed(0)
        assert len(share) == len(batches)
        count = 0
        for k, own in enumerate(share):
            count += 1
            values = drawn(share, len(own), lambda m, g=numbers: torch.rand(m, generator=g))
            assert len(values) == len(own) > 0
            means[k][rank] = share.weight * sum(own) / len(own)
            if share.weight:
                rows[k][rank], draws[k][rank] = own, values.tolist()
        assert count == (3 if even or rank < 2 else 2)
    for k, batch in enumerate(batches):
        assert sorted(sum(rows[k].values(), [])) == sorted(batch)
        assert sorted(sum(draws[k].values(), [])) == sorted(expected[k])
        assert sum(means[k].values()) / n == pytest.approx(sum(batch) / len(batch))

"""What is timed as a training step; how long it takes is not judged here."""

from recbole_lea.experiments import training_speed
from recbole_lea.methods import METHODS
from recbole_lea.model import MODELS


def test_training_ratios_are_of_the_costliest_method(tiny_config, monkeypatch):
    steps, measured = training_speed.training_step, []

    def step(model, optimizer):
        measured.append(model)
        return steps(model, optimizer)

    monkeypatch.setattr(training_speed, "training_step", step)
    config = tiny_config(lea_method="LER")
    train, inference = training_speed.training_ratios(config, state_dim=8, steps=1).values()
    assert list(train) == list(inference) == list(MODELS)
    ours, stock = measured[::2], measured[1::2]
    assert {m.switches for m in ours} == {METHODS["LEASR"]}
    assert all(m.warmed_up and m.q_head.norm.normalized_shape == (8,) for m in ours)
    assert [type(m).__name__ for m in stock] == ["SASRec", "SASRec", "GRU4Rec", "GRU4Rec"]

"""What the tests of the models share."""

import pytest
import torch
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import GRU4Rec, SASRec
from recbole.utils import init_seed

from recbole_lea.model import MODELS, backbone

STOCK = {"SASRec": SASRec, "GRU4Rec": GRU4Rec}
ALL = pytest.mark.parametrize("name", MODELS)
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attn_dropout_prob": 0.0, "dropout_prob": 0.0}


def build(config):
    init_seed(3, True)
    dataset = create_dataset(config)
    train, valid, test = data_preparation(config, dataset)
    init_seed(3, True)
    model = MODELS[config["model"]](config, train._dataset)
    return model, train, test


def one_batch(loader):
    return next(iter(loader))


def force(model, first):
    """Make Algorithm 1's coin come up on one side."""
    draw = torch.rand

    def coin(*size, **kwargs):
        value = draw(*size, **kwargs)
        return (
            torch.tensor(0.1 if first else 0.9) if kwargs.get("generator") is model._rng else value
        )

    return coin


def watch_passes(model, monkeypatch):
    """A list that receives rows and columns of each of the encoder's passes."""
    forward, shapes = model.backbone_class().forward, []

    def watched(self, seq, length):
        shapes.append(tuple(seq.shape))
        return forward(self, seq, length)

    monkeypatch.setattr(model.backbone_class(), "forward", watched)
    return shapes


def parts_by_length(lengths):
    """Rows and columns of the passes over sequences of these lengths."""
    parts = lengths.sort().values.tensor_split(backbone.LENGTH_PARTS)
    return [(len(part), int(part[-1])) for part in parts]

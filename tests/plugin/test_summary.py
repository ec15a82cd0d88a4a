"""The closing lines of a run."""

import copy
from pathlib import Path

import pytest

from recbole_lea.plugin.summary import summary


@pytest.fixture
def told(trained):
    """The closing lines of a trained model beside a plain backbone of that NDCG@10."""
    run = trained()

    def lines(ndcg=None, **changes):
        content = copy.deepcopy(run.trainer.record)
        content["test_result"] |= {"hit@10": 0.3, "ndcg@10": 0.2, "mrr@10": 0.1}
        content["le"] |= changes
        beside = None
        if ndcg is not None:
            beside = dict(content["test_result"]) | {"ndcg@10": ndcg, "mrr@10": 0.0}
        return summary(run.config, content, Path("log/x"), beside).splitlines()

    return lines


def test_both_results_stand_side_by_side(told):
    lines = told(ndcg=0.16)
    assert len(lines) == 9
    assert lines[0].split() == ["tiny,", "test", "hit@10", "ndcg@10", "mrr@10"]
    assert lines[1].split() == ["SASRecSA2CLEA", "(LEASR)", "0.3000", "0.2000", "0.1000"]
    assert lines[2].split() == ["SASRec,", "plain", "0.3000", "0.1600", "0.0000"]
    assert lines[3].split() == ["gain", "+0.0", "%", "+25.0", "%", "-"]
    assert not any("tune these first" in line for line in lines)


def test_below_the_plain_backbone_it_says_what_to_tune(told):
    (line,) = [line for line in told(ndcg=0.25) if "tune these first" in line]
    for key in ("learning_rate", "hidden_dropout_prob", "attn_dropout_prob", "q_weight", "w_ah"):
        assert key in line


def test_it_says_what_the_le_is_worth_what_it_cost_and_where_things_are(told, trained):
    lines = told(accuracy=0.6, n=50, popularity_accuracy=0.7, text_accuracy=0.5)
    assert lines[2] == (
        "LE: reward accuracy 0.600 +- 0.069 on 50 held-out pairs (popularity 0.700, text 0.500): "
        "cannot be told apart from popularity"
    )
    path, text = trained().path, "\n".join(lines)
    assert lines[4].startswith(f"files: {path}, {Path('log/x/run.json')}, ")
    assert f"recbole_lea.inspect {path}" in text and f"recbole_lea.export {path} --to" in text
    assert lines[3].startswith("cost: LE ")

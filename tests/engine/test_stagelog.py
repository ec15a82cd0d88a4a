import pytest

from recbole_lea.engine import stagelog as stages
from recbole_lea.engine.stagelog import StageLog


@pytest.fixture
def wait(monkeypatch):
    """Moves the clock on."""
    now = [0.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])

    def seconds(n):
        now[0] += n

    return seconds


def test_an_inner_stage_interrupts_the_outer_one(wait):
    log = StageLog()
    with log.stage("outer"):
        wait(1)
        with log.stage("inner"):
            wait(20)
        wait(300)
    assert log.stages["outer"]["seconds"] == 301
    assert log.stages["inner"]["seconds"] == 20
    assert log.stages["inner"]["peak_memory_mb"] > 1


def test_seconds_add_up_and_errors_do_not_lose_them(wait):
    log = StageLog()
    for n in (1, 20):
        with pytest.raises(RuntimeError), log.stage("s"):
            wait(n)
            raise RuntimeError
        wait(300)
    assert log.stages["s"]["seconds"] == 21

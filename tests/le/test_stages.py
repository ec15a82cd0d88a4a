import time

import pytest

from recbole_lea.le.stages import StageLog


def test_an_inner_stage_interrupts_the_outer_one():
    log = StageLog()
    with log.stage("outer"):
        time.sleep(0.05)
        with log.stage("inner"):
            time.sleep(0.2)
        time.sleep(0.05)
    assert log.stages["outer"]["seconds"] == pytest.approx(0.1, abs=0.05)
    assert log.stages["inner"]["seconds"] == pytest.approx(0.2, abs=0.05)
    assert log.stages["inner"]["peak_memory_mb"] > 1


def test_seconds_add_up_and_errors_do_not_lose_them():
    log = StageLog()
    for _ in range(2):
        with pytest.raises(RuntimeError), log.stage("s"):
            time.sleep(0.05)
            raise RuntimeError
    assert log.stages["s"]["seconds"] == pytest.approx(0.1, abs=0.05)

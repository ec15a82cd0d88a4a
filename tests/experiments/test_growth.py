"""The growth report has its fields; what it measures is not judged here."""

from recbole_lea.experiments import growth


def test_each_size_is_built_in_a_process_of_its_own(settings):
    report = growth.run(settings(), sizes=(20, 40))
    assert list(report) == ["20", "40"]
    for stages in report.values():
        assert set(stages) == {"states", "rewards"}
        assert all(stage["peak_memory_mb"] > 0 for stage in stages.values())

import pytest

from recbole_lea.methods import METHODS, Switches, switches

UNSET = {"lea_state": None, "lea_reward": None, "lea_augmentation": None, "q_weight": 1.0}
UNSET |= {"lea_advantage": "Q"}


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("base", ("hidden", "constant", "none")),
        ("LER", ("hidden", "LE", "none")),
        ("LES'", ("LE", "constant", "none")),
        ("LES", ("both", "constant", "none")),
        ("LEA", ("hidden", "constant", "both")),
        ("LEAR", ("hidden", "LE", "both")),
        ("LEAS", ("both", "constant", "both")),
        ("LEAS'R", ("LE", "LE", "both")),
        ("LEASR", ("both", "LE", "both")),
    ],
)
def test_paper_s_methods(method, expected):
    assert switches(UNSET | {"lea_method": method}, "SA2C") == Switches(*expected)


def test_every_method_is_covered():
    assert len(METHODS) == 9


def test_switches_override_one_by_one():
    found = switches(UNSET | {"lea_method": "LEASR", "lea_augmentation": "Q"}, "SNQN")
    assert found == Switches("both", "LE", "Q")


@pytest.mark.parametrize("method", ["LES'", "LEAS'R"])
def test_le_state_alone_is_refused_under_snqn(method):
    with pytest.raises(ValueError, match="would not reach the backbone"):
        switches(UNSET | {"lea_method": method}, "SNQN")


def test_without_q_only_the_supervised_augmentation_is_left():
    config = UNSET | {"lea_method": "LEASR", "q_weight": 0}
    assert switches(config, "SNQN") == Switches("hidden", "constant", "supervised")
    assert not switches(config | {"lea_method": "LES"}, "SNQN").needs_le
    with pytest.raises(ValueError, match="q_weight"):
        switches(config | {"lea_augmentation": "Q"}, "SNQN")


def test_an_advantage_of_rewards_needs_rewards():
    config = UNSET | {"lea_method": "LEASR", "lea_advantage": "reward"}
    assert switches(config, "SA2C") == METHODS["LEASR"]
    without_q = switches(config | {"q_weight": 0}, "SA2C")
    assert without_q == Switches("hidden", "LE", "supervised")
    for other in ({"lea_method": "LEAS"}, {"lea_reward": "constant"}):
        with pytest.raises(ValueError, match="lea_advantage"):
            switches(config | other, "SA2C")
    with pytest.raises(ValueError, match="lea_advantage"):
        switches(config, "SNQN")

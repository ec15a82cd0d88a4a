"""The paper's methods (section 4.3) as three switches."""

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Switches:
    """What the LE contributes to training.

    Attributes:
        state: the Q head's state: ``hidden`` h_t, ``LE`` s'_t, or ``both`` (Eq. 4).
        reward: ``constant`` or ``LE`` (Eq. 5).
        augmentation: which losses the LE's choice joins: ``none``, ``supervised`` (Eq. 14),
            ``Q`` (Eq. 15) or ``both``.
    """

    state: str
    reward: str
    augmentation: str

    @property
    def le_state(self) -> bool:
        """Whether the LE's state is used."""
        return self.state != "hidden"

    @property
    def le_reward(self) -> bool:
        """Whether the LE's reward is used."""
        return self.reward == "LE"

    @property
    def augmented(self) -> bool:
        """Whether the LE's choice is used."""
        return self.augmentation != "none"

    @property
    def needs_le(self) -> bool:
        """Whether anything of the LE is used."""
        return self.le_state or self.le_reward or self.augmented


METHODS = {
    "base": Switches("hidden", "constant", "none"),
    "LER": Switches("hidden", "LE", "none"),
    "LES'": Switches("LE", "constant", "none"),
    "LES": Switches("both", "constant", "none"),
    "LEA": Switches("hidden", "constant", "both"),
    "LEAR": Switches("hidden", "LE", "both"),
    "LEAS": Switches("both", "constant", "both"),
    "LEAS'R": Switches("LE", "LE", "both"),
    "LEASR": Switches("both", "LE", "both"),
}


def needs_warmup(method: Switches, rl_loss: str, q_weight: float) -> bool:
    """Whether anything starts at the end of a warm-up: SA2C's advantage, augmentation."""
    return (rl_loss == "SA2C" and (q_weight != 0 or method.le_reward)) or method.augmented


def switches(config: Mapping[str, Any], rl_loss: str) -> Switches:
    """The switches of a config: ``lea_method``'s, each overridden by its own key if set.

    ``rl_loss`` is ``SNQN`` or ``SA2C``. Raises a ValueError that says why if they cannot work.
    """
    keys = {name: config[f"lea_{name}"] for name in ("state", "reward", "augmentation")}
    overrides = {name: value for name, value in keys.items() if value is not None}
    found = dataclasses.replace(METHODS[config["lea_method"]], **overrides)
    # older records lack the key
    by_reward = "lea_advantage" in config and config["lea_advantage"] == "reward"
    if by_reward and (rl_loss != "SA2C" or not found.le_reward):
        raise ValueError(
            "lea_advantage: reward weighs SA2C's supervised loss by the LE's rewards: it needs a "
            f"model with SA2C and lea_reward: LE, not {rl_loss} and lea_method: "
            f"{config['lea_method']} with constant rewards"
        )
    if config["q_weight"] == 0:
        if found.augmentation in ("Q", "both") and "augmentation" in overrides:
            raise ValueError(
                f"lea_augmentation: {found.augmentation} trains the Q head, which q_weight: 0 "
                "switches off; use lea_augmentation: supervised"
            )
        # without a Q head there is no use for its state, and for the reward in the advantage alone
        augmentation = "supervised" if found.augmented else "none"
        return Switches("hidden", "LE" if by_reward else "constant", augmentation)
    if found.state == "LE" and rl_loss == "SNQN":
        raise ValueError(
            f"lea_method {config['lea_method']} with the LE's state alone cannot be used with "
            "SNQN: its Q loss would not reach the backbone, as the LE's state is constant; "
            "use SA2C, whose advantage weighs the supervised loss, or lea_state: both"
        )
    return found

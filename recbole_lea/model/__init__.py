"""The four models: RecBole's backbones with SNQN or SA2C and the LE's feedback."""

from recbole.model.sequential_recommender import GRU4Rec, SASRec

from recbole_lea.model.lea import LEARecommender


class SASRecSNQNLEA(LEARecommender, SASRec):
    """SASRec trained with SNQN and the LE (Eq. 13, 16)."""

    rl_loss = "SNQN"


class SASRecSA2CLEA(LEARecommender, SASRec):
    """SASRec trained with SA2C and the LE (Eq. 12, 13, 16)."""

    rl_loss = "SA2C"


class GRU4RecSNQNLEA(LEARecommender, GRU4Rec):
    """GRU4Rec trained with SNQN and the LE (Eq. 13, 16)."""

    rl_loss = "SNQN"


class GRU4RecSA2CLEA(LEARecommender, GRU4Rec):
    """GRU4Rec trained with SA2C and the LE (Eq. 12, 13, 16)."""

    rl_loss = "SA2C"


MODELS = {
    model.__name__: model
    for model in (SASRecSNQNLEA, SASRecSA2CLEA, GRU4RecSNQNLEA, GRU4RecSA2CLEA)
}

__all__ = [*MODELS, "MODELS"]

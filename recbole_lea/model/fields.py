"""Names of the fields that we add to RecBole's batches."""

FIELD_PREFIX = "lea_"
ROW = FIELD_PREFIX + "row"  # number of an interaction, in held-out rows
TRANSITION = FIELD_PREFIX + "transition"  # number of the LE's transition, in training rows
DONE = FIELD_PREFIX + "done"  # 1 at a user's last training transition, else 0

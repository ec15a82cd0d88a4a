"""RecBole datasets and transforms that carry the LE's feedback."""

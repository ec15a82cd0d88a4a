"""All that touches RecBole."""

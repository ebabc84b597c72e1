"""``osr review``: what was called unknown, in groups that a person names."""

"""What ``import osr_lightning`` offers."""

import osr_lightning


def test_every_public_name_is_listed_before_it_is_used_and_is_there():
    assert {*osr_lightning.__all__, "__version__"} <= {*dir(osr_lightning)}
    assert all(getattr(osr_lightning, name).__name__ == name for name in osr_lightning.__all__)

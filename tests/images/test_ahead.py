"""How many processors work on images."""

import os

import pytest

from osr_lightning.images.ahead import processors


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (3, 3), (8, 5)])
def test_those_that_the_process_may_use_count(most, expected, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 5, 7, 11}, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert processors(most) == expected


@pytest.mark.parametrize(("count", "expected"), [(4, 4), (64, 8), (None, 1)])
def test_all_count_where_the_system_does_not_tell(count, expected, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: count)
    assert processors(8) == expected

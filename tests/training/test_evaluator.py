"""What the evaluation of a test is asked for."""

import pytest

from osr_lightning.errors import UserError
from osr_lightning.training.callbacks.evaluator import Evaluator


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_that_the_figures_cannot_take_is_refused_before_training(seed):
    with pytest.raises(UserError, match=f"evaluation.seed must be from 0 to 4294967295, got {seed}"):
        Evaluator(seed=seed)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_any_other_seed_serves(seed):
    assert Evaluator(seed=seed).seed == seed

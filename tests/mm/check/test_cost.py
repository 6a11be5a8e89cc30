"""What the check of the cost says without a GPU that has none of it."""

import pytest

from kd_dense.mm.check.cost import advice


@pytest.mark.parametrize(
    ('device', 'compiled', 'said'),
    [
        ('cuda', [False, False], True),
        ('cuda:1', [False], True),
        ('cuda', [False, True], False),
        ('cpu', [False], False),
    ],
)
def test_losses_that_could_be_compiled(device, compiled, said):
    assert ('model.compile_losses=True' in advice(device, compiled)) is said

import pytest
import torch

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import methods, toy
from tests.mm.pictures.looking import see, texts


@pytest.fixture(scope='module')
def masked():
    config = methods.distilled('generation')
    for term, over in zip(config.terms.values(), ('channels', None), strict=True):
        term.loss.mask_ratio = 0.4
        if over:
            term.loss.mask_over = over
    return see(toy.build(config).eval(), methods.scenes('generation'))


def test_the_mask_is_the_same_in_all_pictures_and_training_does_not_see_it(masked):
    view, compared = masked
    state = torch.get_rng_state()
    for one in compared.values():
        first, second = differences(one), differences(one)
        assert all(map(torch.equal, first.maps, second.maps))
        assert first.what.endswith('with another mask')
        assert '40% of the student are masked' in texts(draw_term(view, one))
    assert torch.equal(torch.get_rng_state(), state)

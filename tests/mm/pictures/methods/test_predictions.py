import pytest

from kd_dense.mm.pictures.differences import differences
from kd_dense.mm.pictures.terms import draw_term
from tests.mm import methods, toy
from tests.mm.pictures.looking import drawn, see, texts


def seen(terms, index=1):
    config = methods.distilled('predictions')
    config.terms = terms
    return see(toy.build(config).eval(), methods.scenes('predictions'), index)


@pytest.mark.parametrize('loss', [dict(type='BCKDLoss', positive_levels_only=False),
                                  dict(type='BCKDLoss', box_weight=0.0), dict(type='ADLLoss')],
                         ids=str)  # fmt: skip
def test_positions_add_up_to_the_loss(loss):
    view, found = seen(dict(one=dict(tap='bbox_head', loss=loss)))
    maps = differences(found['one']).maps
    assert len(maps) == 5
    assert sum(float(m.sum()) for m in maps) == pytest.approx(found['one'].value, rel=1e-4)
    drawn(draw_term(view, found['one']))


def test_what_comes_out_of_the_teachers_head_adds_up_to_the_loss():
    term = methods.DETECTORS['predictions']['crosskd']
    view, found = seen(dict(one=term))
    maps = differences(found['one']).maps
    assert sum(float(m.sum()) for m in maps) == pytest.approx(found['one'].value, rel=1e-4)
    assert "what the teacher's head makes" in texts(draw_term(view, found['one'])).replace(
        '\n', ' '
    )


def test_a_picture_without_objects_is_drawn():
    view, found = seen(dict(one=dict(tap='bbox_head', loss=dict(type='BCKDLoss'))), 0)
    assert found['one'].value == 0
    drawn(draw_term(view, found['one']))


@pytest.mark.parametrize(('tower', 'kind'), [('cls', 'PGDClassLoss'), ('reg', 'PGDBoxLoss')])
def test_key_regions(tower, kind):
    loss = dict(type=kind, attention=0.0)
    view, found = seen(dict(one=dict(tap=f'bbox_head.{tower}_convs.0', loss=loss)), 2)
    maps = differences(found['one']).maps
    assert sum(float(m.sum()) for m in maps) == pytest.approx(found['one'].value, rel=0.05)
    drawn(draw_term(view, found['one']))

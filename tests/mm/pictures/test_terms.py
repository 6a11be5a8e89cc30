"""Each loss has its own pictures."""

from importlib import import_module
from pkgutil import walk_packages

import matplotlib
import pytest

from kd_dense import losses
from kd_dense.mm.pictures import methods as files
from kd_dense.mm.pictures.differences import differences, draw_differences
from kd_dense.mm.pictures.terms import PICTURES, draw_term, pictures_of
from tests.mm import methods
from tests.mm.pictures.looking import drawn, see_method, texts

BACKEND = matplotlib.rcParams['backend']


# The others are drawn with --long.
FEW = ('cwd', 'fgd', 'intrakd', 'ld', 'logits', 'skd')
EVERY = [m if m in FEW else pytest.param(m, marks=pytest.mark.long) for m in methods.METHODS]


@pytest.mark.parametrize('method', EVERY)
def test_every_term_is_drawn(method):
    view, compared = see_method(method, 2)
    titles = {
        'features': 'CWD: where does each channel look?',
        'logits': 'CWD: where does each class channel look?',
        'fpn': 'CWD: where does each channel look?',
        'classes': 'CWD: where does each channel look?',
        'pixel': 'Which classes does each position get?',
        **dict.fromkeys(('edge', 'places'), 'Which positions count? Those at the edges'),
        'pair': 'SKD, pair-wise',
        'holistic': 'Score of the critic: teacher',
        'affinity': 'IntRA-KD: how alike are the classes',
        **dict.fromkeys(('attention', 'transfer', 'later'), 'Attention maps: where is the'),
        'moves': 'AttentionChangeLoss compares these maps',
        'variation': 'IFVD: how near is each feature to its class?',
        'perspectives': 'APD: which centre is each feature near to?',
        'channels': 'Are the features alike',
        'direction': 'Are the features alike',
        'review': 'Are the features alike',
        'memory': 'Are pixels like the regions of their class',
        'focus': 'FBKD: where are teacher and student active?',
        'class_relations': 'Which classes are active together?',
        'like': 'Where does a position find its like?',
        'images': 'SPLoss compares these maps',
        'angles': 'RKDLoss compares these maps',
        'set': 'NSTLoss compares these maps',
        'generated': "Can the teacher's features be made",
        'contrast': "Can the teacher's features be made",
        **dict.fromkeys(('kd', 'dkd', 'gdkd', 'nkd', 'wsld'), 'Which classes does each position'),
        'dist': 'DIST: do probabilities rise and fall alike?',
        'fgd': 'FGD: which differences of the features count',
        **dict.fromkeys(('frs', 'defeat', 'fgfi'), 'Where do the features have to be alike?'),
        'ld': 'LD: which anchors count',
        'erd': "ERD: where are the teacher's classes?",
        'imitation': "region 'finegrained'",
        'general': "region 'gibox'",
        **dict.fromkeys(('bckd', 'adl', 'crosskd'), 'Where do student and teacher see an object?'),
        **dict.fromkeys(
            ('class_tower', 'box_tower'), 'PGD: where are the predictions of the teacher best?'
        ),
        'boxes': 'Which queries are paired?',
        'masks': 'Which masks are paired?',
        'points': 'What do both decoders find',
        'looks': 'Which differences of the features count',
    }
    for name, one in compared.items():
        figure = draw_term(view, one)
        title = titles[name] if one.rois is None else 'Shared RoIs: where do student and teacher'
        assert title in texts(figure)
        assert drawn(figure).shape[1] == 1125
    last = differences(one)
    figure = draw_differences(view, {'before': last, 'after': last})
    assert f'after\nloss of the term: {last.value:.3g}' in texts(figure)
    drawn(figure)
    assert matplotlib.rcParams['backend'].lower() == BACKEND.lower()


def test_every_loss_has_pictures_and_one_file_has_them():
    found = [
        loss
        for _, path, folder in walk_packages(files.__path__, f'{files.__name__}.')
        if not folder
        for loss in import_module(path).PICTURES
    ]
    ours = [x for x in vars(losses).values() if isinstance(x, type) and hasattr(x, 'needs')]
    ours.remove(losses.DistillLoss)
    assert sorted(found, key=str) == sorted(ours, key=str)


def test_a_loss_that_derives_from_one_of_ours_has_its_pictures():
    class OwnLoss(losses.FGDLoss):
        pass

    [one] = see_method('fgd')[1].values()
    own = one._replace(losses=[OwnLoss(channels=4)])
    assert pictures_of(own) == PICTURES[losses.FGDLoss]

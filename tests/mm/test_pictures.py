"""The pictures: each loss has its own, whatever the size of the picture and the classes."""

import warnings

import matplotlib
import numpy as np
import pytest
import torch

from kd_dense.mm import pictures
from kd_dense.mm.loss_maps import Differences, differences
from kd_dense.mm.observe import Prediction, View, class_names, compare, load, look
from tests.mm import methods, toy

BACKENDS = matplotlib.rcParams['backend']


def texts(figure):
    """All that is written in a figure."""
    return '\n'.join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def drawn(figure):
    """The pixels; a figure too small for what is in it is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*constrained_layout not applied.*')
        pixels = pictures.pixels_of(figure)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 5
    return pixels


@pytest.mark.parametrize('method', methods.METHODS)
def test_every_term_is_drawn(method):
    scenes = methods.scenes(method)
    model = toy.build(methods.distilled(method)).eval()
    data = load(scenes, 2)
    view = look(model, data, class_names(scenes))
    compared, _ = compare(model, data, view)
    titles = {
        'features': 'CWD: where does each channel look?',
        'logits': 'CWD: where does each class channel look?',
        'fpn': 'CWD: where does each channel look?',
        'classes': 'CWD: where does each channel look?',
        'pixel': 'Which classes does each position get?',
        'pair': 'SKD, pair-wise',
        'holistic': 'Score of the critic: teacher',
        'affinity': 'IntRA-KD: how alike are the classes',
        'attention': 'attention maps: where is the activation?',
        'fgd': 'FGD: which differences of the features count',
        'ld': 'LD: which anchors count',
        'imitation': "region 'finegrained'",
        'general': "region 'gibox'",
    }
    for name, one in compared.items():
        figure = pictures.draw_term(view, one)
        assert titles[name] in texts(figure)
        assert drawn(figure).shape[1] == 1125
    last = differences(one)
    figure = pictures.draw_differences(view, {'before': last, 'after': last})
    assert f'after\nloss of the term: {last.value:.3g}' in texts(figure)
    drawn(figure)
    assert matplotlib.rcParams['backend'].lower() == BACKENDS.lower()


def segmentation(size=(64, 128), classes=19):
    stripes = np.arange(size[1]) * classes // size[1]
    labels = np.tile(stripes, (size[0], 1))
    labels[:6] = 255
    names = tuple(f'class name {i}' for i in range(classes))
    image = np.repeat((10 * labels[..., None]) % 255, 3, 2).astype(np.uint8)
    return View(image, size, names, segmentation=labels)


def test_segmentations_count_wrong_pixels_of_those_with_a_label():
    view = segmentation()
    wrong = view.segmentation.copy()
    wrong[view.segmentation == 255] = 0
    right = Prediction(segmentation=wrong.copy())
    wrong[6:, :64] += 1
    figure = pictures.draw_predictions(
        view, {'teacher': right, 'student': Prediction(segmentation=wrong)}
    )
    assert 'wrong: 0.0%' in texts(figure)
    assert 'wrong: 50.0%' in texts(figure)
    legend = [t.get_text() for t in figure.legends[0].get_texts()]
    assert sorted(legend) == sorted(view.classes)
    drawn(figure)


def test_without_ground_truth_the_teacher_is_compared_with():
    view = segmentation()
    labels = view.segmentation.copy()
    labels[view.segmentation == 255] = 0
    other = labels.copy()
    other[:16] = 18 - other[:16]
    figure = pictures.draw_predictions(
        view._replace(segmentation=None),
        {'teacher': Prediction(segmentation=labels), 'student': Prediction(segmentation=other)},
    )
    share = (labels != other).mean()
    assert f'unlike the teacher: {share:.1%}' in texts(figure)
    drawn(figure)


def detection(boxes, labels, size=(120, 80)):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    names = tuple(f'name{i}' for i in range(80))
    boxes = torch.tensor(boxes).float().view(-1, 4)
    return View(image, size, names, boxes, torch.tensor(labels, dtype=torch.long))


def test_boxes_are_right_wrong_or_missed():
    view = detection([[10, 10, 40, 40], [50, 50, 70, 70], [0, 80, 20, 110]], [3, 70, 3])
    found = Prediction(
        boxes=torch.tensor(
            [
                [10.0, 10, 40, 44],  # right
                [12.0, 10, 40, 40],  # a second time
                [50.0, 50, 70, 70],  # of another class
                [0.0, 80, 20, 110],  # not sure enough
            ]
        ),
        labels=torch.tensor([3, 3, 71, 3]),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.2]),
        masks=np.ones((4, 120, 80), bool),
    )
    figure = pictures.draw_predictions(view, {'teacher': found})
    assert 'teacher\n1 right, 2 wrong, 2 missed' in texts(figure)
    assert 'name71 70%' in texts(figure)
    drawn(figure)


@pytest.mark.parametrize('count', [0, 50])
def test_no_box_and_too_many(count):
    view = detection([], [])
    boxes = torch.rand(count, 4) * 30 + torch.tensor([0, 0, 40, 40])
    found = Prediction(boxes, torch.zeros(count).long(), torch.full((count,), 0.9))
    figure = pictures.draw_predictions(view, {'teacher': found})
    more = '; 20 drawn' if count else ''
    assert f'0 right, {count} wrong, 0 missed{more}' in texts(figure)
    drawn(figure)


def test_models_without_boxes():
    figure = pictures.draw_predictions(detection([], []), {'teacher': Prediction()})
    assert 'teacher: no boxes' in texts(figure)
    drawn(figure)


def test_names_do_not_cover_each_other():
    boxes = [[10 + i, 10, 70, 60 + i] for i in range(10)]
    figure = pictures.draw_predictions(detection(boxes, [*range(10)]), {'teacher': Prediction()})
    drawn(figure)
    renderer = figure.canvas.get_renderer()
    tags = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text().startswith('name')]
    extents = [t.get_bbox_patch().get_window_extent(renderer) for t in tags]
    assert 1 <= len(tags) < 10
    assert not any(a.overlaps(b) for i, a in enumerate(extents) for b in extents[:i])


def test_worst_places_are_apart_and_marked():
    maps = torch.zeros(20, 20)
    maps[3, 4], maps[3, 5], maps[15, 15], maps[10, 2] = 5.0, 4.0, 3.0, 0.5
    shown = Differences(1.0, [maps], 'the loss')
    figure = pictures.draw_differences(detection([], []), {'student': shown})
    marks = [t for t in figure.findobj(matplotlib.text.Text) if t.get_text() in '123']
    at = {(t.get_text(), *t.get_position()) for t in marks if t.get_text()}
    # a position is 4 pixels wide and 6 high; the one beside the worst, and a small one, are not
    assert at == {('1', 18.0, 21.0), ('2', 62.0, 93.0)}
    drawn(figure)


def test_a_map_without_any_difference():
    shown = Differences(0.0, [torch.zeros(4, 4)] * 5, 'the loss')
    figure = pictures.draw_differences(detection([], []), {'student': shown})
    assert texts(figure).count('none') == 5
    drawn(figure)


def test_an_object_free_picture_has_nothing_to_localise():
    scenes = methods.scenes('ld')
    model = toy.build(methods.distilled('ld')).eval()
    data = load(scenes, 0)
    view = look(model, data, class_names(scenes))
    compared, _ = compare(model, data, view)
    figure = pictures.draw_term(view, compared['ld'])
    assert 'no object in this picture: no box is compared' in texts(figure)
    drawn(figure)
    drawn(pictures.draw_term(view, compared['imitation']))

import numpy as np
import pytest
import torch

from kd_dense.mm.pictures.observe import Prediction
from kd_dense.mm.pictures.predictions import draw_predictions
from tests.mm.pictures.looking import detection, drawn, segmentation, texts


def test_segmentations_count_wrong_pixels_of_those_with_a_label():
    view = segmentation()
    wrong = view.segmentation.copy()
    wrong[view.segmentation == 255] = 0
    right = Prediction(segmentation=wrong.copy())
    wrong[6:, :64] += 1
    figure = draw_predictions(view, {'teacher': right, 'student': Prediction(segmentation=wrong)})
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
    figure = draw_predictions(
        view._replace(segmentation=None),
        {'teacher': Prediction(segmentation=labels), 'student': Prediction(segmentation=other)},
    )
    share = (labels != other).mean()
    assert f'unlike the teacher: {share:.1%}' in texts(figure)
    drawn(figure)


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
    figure = draw_predictions(view, {'teacher': found})
    assert 'teacher\n1 right, 2 wrong, 2 missed' in texts(figure)
    assert 'name71 70%' in texts(figure)
    drawn(figure)


@pytest.mark.parametrize('count', [0, 50])
def test_no_box_and_too_many(count):
    view = detection([], [])
    boxes = torch.rand(count, 4) * 30 + torch.tensor([0, 0, 40, 40])
    found = Prediction(boxes, torch.zeros(count).long(), torch.full((count,), 0.9))
    figure = draw_predictions(view, {'teacher': found})
    more = '; 20 drawn' if count else ''
    assert f'0 right, {count} wrong, 0 missed{more}' in texts(figure)
    drawn(figure)


def test_models_without_boxes():
    figure = draw_predictions(detection([], []), {'teacher': Prediction()})
    assert 'teacher: no boxes' in texts(figure)
    drawn(figure)

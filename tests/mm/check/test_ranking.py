"""Which score is compared, and which of two values of it is the better one."""

import pytest
from mmengine.hooks import CheckpointHook
from mmseg.evaluation import DepthMetric

from kd_dense.mm.check.ranking import lower_is_better, main_score, watched


@pytest.mark.parametrize('name', [x for x in DepthMetric.METRICS if x not in ('d1', 'd2', 'd3')])
def test_errors_of_depth(name):
    assert lower_is_better(name)
    assert lower_is_better(f'nyu/{name}')


@pytest.mark.parametrize('name', ['val_loss', 'loss_bbox', 'MAE', 'crowd_human/mMR', 'top1_error'])
def test_other_errors(name):
    assert lower_is_better(name)


@pytest.mark.parametrize(
    'name', ['d1', *CheckpointHook._default_greater_keys, 'coco/bbox_mAP', 'PQ', 'glossy', 'mass']
)
def test_the_more_the_better(name):
    assert not lower_is_better(name)


def test_what_a_config_says_comes_first():
    said = [dict(save_best=['mIoU', 'distance'], rule=['greater', 'less'])]
    said += [dict(deep=[dict(monitor='rmse', rule='greater')])]
    found = watched(said, ['mIoU', 'distance', 'rmse'])
    assert found == {'mIoU': 'greater', 'distance': 'less', 'rmse': 'greater'}
    assert lower_is_better('distance', found)
    assert not lower_is_better('rmse', found)
    assert not lower_is_better('distance')


def test_one_rule_for_several_and_keys():
    names = ['near', 'far']
    assert watched([dict(save_best=names, rule='less')], names) == dict.fromkeys(names, 'less')
    assert watched([dict(save_best='near', less_keys=['ea'])], names) == {'near': 'less'}
    assert watched([dict(save_best='near', less_keys='x')], names) == {'near': None}
    assert watched([dict(save_best=3, rule=[]), dict(monitor='loss')], names) == {}


def test_auto_is_the_first():
    assert watched([dict(save_best='auto', rule='less')], ['x', 'y']) == {'x': 'less'}
    # The training takes the first one; mIoU tells more.
    assert main_score(['aAcc', 'mIoU'], watched([dict(save_best='auto')], ['aAcc', 'mIoU'])) == (
        'mIoU'
    )
    found = watched([dict(save_best='auto', rule='less')], ['x', 'mIoU'])
    assert main_score(['x', 'mIoU'], found) == 'x'


def test_which_score_is_compared():
    assert main_score(['aAcc', 'mIoU', 'mAcc']) == 'mIoU'
    assert main_score(['aAcc', 'mIoU'], {'aAcc': None}) == 'aAcc'
    assert main_score(['coco/segm_mAP', 'coco/bbox_mAP']) == 'coco/bbox_mAP'
    assert main_score(['a/aAcc', 'a/mIoU', 'b/mIoU']) == 'a/mIoU'
    assert main_score(['x', 'y']) is None
    assert main_score(['x']) == 'x'
    assert main_score([]) is None

import pytest
from mmengine.config import Config

from kd_dense.mm.mmrazor.note import CannotError
from kd_dense.mm.mmrazor.places import NO_TAPS, Places, joined, skeleton
from tests.mm import toy
from tests.mm.mmrazor.shapes import outputs


@pytest.fixture(scope='module')
def detector():
    return Places(skeleton(Config(dict(model=toy.detector(), default_scope='mmdet'))))


@pytest.fixture(scope='module')
def segmenter():
    config = toy.segmenter(
        auxiliary_head=[
            dict(type='FCNHead', in_channels=32, in_index=2, channels=4, num_classes=5)
        ]
    )
    return Places(skeleton(Config(dict(model=config, default_scope='mmseg'))))


def test_a_skeleton_takes_no_memory(detector):
    assert all(parameter.is_meta for parameter in detector.model.parameters())
    assert skeleton(Config(dict(model=dict(type='Nothing')))) is None


@pytest.mark.parametrize(
    ('source', 'call', 'item', 'tap'),
    [
        ('neck', 0, None, 'neck'),
        ('neck', 0, 3, 'neck[3]'),
        ('neck.fpn_convs.1.conv', 0, None, 'neck.fpn_convs.1.conv'),
        ('bbox_head.retina_cls', 0, None, 'bbox_head.retina_cls[0]'),  # once for each level
        ('bbox_head.retina_cls', 4, None, 'bbox_head.retina_cls[4]'),
        ('bbox_head', 0, 0, 'bbox_head[:5]'),  # a list of class maps and one of boxes
        ('bbox_head', 0, 1, 'bbox_head[5:10]'),
        ('backbone.layer1.0', 0, None, 'backbone.layer1.0'),
    ],
)
def test_records_of_a_detector(source, call, item, tap, detector):
    assert detector.tap(outputs(source), call, item) == tap


def test_records_of_a_segmenter(segmenter):
    for source in ('decode_head.conv_seg', 'auxiliary_head.0.conv_seg', 'decode_head'):
        assert segmenter.tap(outputs(source)) == source


def test_records_that_are_not_there(detector):
    with pytest.raises(CannotError, match="there is no tap 'nekc' in RetinaNet"):
        detector.tap(outputs('nekc'))
    with pytest.raises(CannotError, match=r'record_idx=5, and bbox_head\.retina_cls runs 5 times'):
        detector.tap(outputs('bbox_head.retina_cls'), 5)
    with pytest.raises(CannotError, match='data_idx=5, and neck does not yield as many'):
        detector.tap(outputs('neck'), 0, 5)
    with pytest.raises(CannotError, match='lies behind region proposals'):
        detector.tap(outputs('roi_head.bbox_head.fc_cls'))
    with pytest.raises(CannotError, match='no tap for a recorder'):
        detector.tap(dict(type='Unheard'))


@pytest.mark.parametrize('kind', NO_TAPS)
def test_recorders_that_are_no_taps(kind, detector):
    with pytest.raises(CannotError, match=f'{kind}: it records'):
        detector.tap(dict(type=f'mmrazor.{kind}', source='neck'))


def method(source):
    return dict(type='MethodOutputs', source=f'mmdet.models.{source}')


def test_methods_are_those_of_the_module_of_the_class(detector):
    assert detector.tap(method('RetinaHead.forward_single')) == 'bbox_head.forward_single[:2]'
    assert detector.tap(method('AnchorHead.forward'), 0, 0) == 'bbox_head[:5]'  # its base
    with pytest.raises(CannotError, match='0 of the model are of that class'):
        detector.tap(method('PAAHead.get_targets'))
    with pytest.raises(CannotError, match=r'8 of the model are of that class: backbone\.layer1'):
        detector.tap(method('BasicBlock.forward'))


def test_without_the_model():
    places = Places(None)
    assert places.tap(outputs('neck')) == 'neck'
    assert places.tap(outputs('neck'), 0, 0) == 'neck[0]'
    assert places.tap(outputs('head'), 2) == 'head[2]'
    assert not places.whole(['neck[0]'], 'neck')
    with pytest.raises(CannotError, match='record_idx and a data_idx'):
        places.tap(outputs('neck'), 1, 1)
    with pytest.raises(CannotError, match='could not be built here to look for it'):
        places.tap(method('RetinaHead.forward'))


def test_levels_in_one_tap(detector):
    def both(*taps):
        return joined([(tap, tap) for tap in taps], [detector.whole] * 2)

    convs = [f'neck.fpn_convs.{level}.conv' for level in range(5)]
    assert both(*convs) == ('neck.fpn_convs.*.conv',) * 2
    assert both(*convs[:4]) is None  # there are five
    assert both(convs[1], convs[0], *convs[2:]) is None  # in another order
    assert both(convs[0], 'backbone.layer1.0.conv1') is None
    assert both('neck[1]', 'neck[2]') == ('neck[1:3]',) * 2
    assert both('neck[0]', 'neck[2]') is None
    assert both('neck[0]', 'backbone[1]') is None
    assert both('neck[0]', 'neck') is None
    assert both(*(f'neck[{level}]' for level in range(5))) == ('neck', 'neck')
    assert both('a.0', 'a.1') is None

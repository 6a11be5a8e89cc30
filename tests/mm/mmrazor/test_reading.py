import pytest

from kd_dense.mm.configs import NotFoundError, RequestError
from kd_dense.mm.mmrazor.reading import mended, read_source, words
from kd_dense.mm.mmrazor.translate import translate
from tests.mm.mmrazor import shapes
from tests.mm.mmrazor.shapes import pkd, small


def test_bases_of_mmrazor_are_left_behind(razor):
    source = read_source(str(razor / 'pkd_fcos.py'))
    assert source.bases == [base.replace('1x', '2x') for base in shapes.COCO]
    source = read_source(str(razor / 'distillation' / 'kd_tiny.py'))
    assert [*map(str, source.bases)] == [f'{razor}/distillation/../rtmdet_tiny.py']


def test_what_a_config_imports_is_not_imported(tmp_path):
    file = small(tmp_path, pkd(), custom_imports=dict(imports=['mmrazor.models']))
    assert read_source(file).config.custom_imports.imports == ['mmrazor.models']


def mmrazor(file, bases=(), **model):
    return shapes.write(file, [*bases], model=dict(_scope_='mmrazor', **model))


REFUSED = {
    'a classifier': (
        dict(bases=['mmcls::_base_/datasets/imagenet_bs32.py'], type='SingleTeacherDistill'),
        'it trains a classifier, and kd_dense is for dense prediction alone',
    ),
    'a package that is not there': (
        dict(bases=['mmdet3d::fcos3d/fcos3d.py'], type='SingleTeacherDistill'),
        r'builds on mmdet3d::fcos3d/fcos3d\.py, and mmdet3d is not installed$',
    ),
    'bases of mmrazor by name': (
        dict(bases=['mmrazor::_base_/x.py'], type='SingleTeacherDistill'),
        'mmrazor is not installed: give the bases as paths',
    ),
    'itself': (dict(bases=['./mine.py'], type='X'), 'is a base of itself'),
    'no base': (dict(bases=['./gone.py'], type='X'), r'builds on \./gone\.py, which'),
    'data-free': (dict(type='DAFLDataFreeDistillation'), 'from images that a generator makes'),
    'self-distillation': (dict(type='SelfDistill'), 'a network into its own lower layers'),
    'overhaul': (dict(type='mmrazor.OverhaulFeatureDistillation'), 'for classifiers'),
    'a search': (dict(type='SPOS'), 'its model is a SPOS, and distillation with'),
    'a student by its path': (
        dict(type='SingleTeacherDistill', architecture=dict(cfg_path='configs/student.py')),
        r"has cfg_path='configs/student\.py', and mmengine takes names",
    ),
    'a student without a model': (
        dict(
            type='SingleTeacherDistill',
            architecture=dict(cfg_path='mmdet::_base_/default_runtime.py'),
        ),
        r'names mmdet::_base_/default_runtime\.py, which has no model',
    ),
    'no teacher': (
        dict(type='SingleTeacherDistill', architecture=dict(type='mmdet.X'), teacher='x.py'),
        r"model\.teacher is no model, but 'x\.py'",
    ),
    'no student': (
        dict(type='SingleTeacherDistill', architecture=None),
        'model.architecture is no model, but None',
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', REFUSED)
def test_what_is_refused(name, tmp_path):
    model, why = REFUSED[name]
    with pytest.raises(RequestError, match=why):
        translate(str(mmrazor(tmp_path / 'mine.py', **model)))


def test_files_that_are_no_such_config(tmp_path):
    with pytest.raises(NotFoundError, match='give the path of one in a copy of mmrazor'):
        read_source('mmrazor::distill/x.py')
    pure = 'from mmengine.config import read_base\nwith read_base():\n    from .x import *\n'
    (tmp_path / 'pure.py').write_text(pure)
    with pytest.raises(RequestError, match=r'as a \.py with _base_ and model'):
        read_source(str(tmp_path / 'pure.py'))
    (tmp_path / 'broken.py').write_text('model = dict(')
    with pytest.raises(RequestError, match=r'broken\.py is no Python: .* in line 1'):
        read_source(str(tmp_path / 'broken.py'))
    (tmp_path / 'raises.py').write_text('model = dict(type=unknown)')
    with pytest.raises(RequestError, match=r"cannot be read: NameError: name 'unknown'"):
        read_source(str(tmp_path / 'raises.py'))
    (tmp_path / 'old.py').write_text('algorithm = dict(type="GeneralDistill")')
    with pytest.raises(RequestError, match=r'a config of mmrazor 0\.x \(algorithm='):
        read_source(str(tmp_path / 'old.py'))
    (tmp_path / 'stock.py').write_text('model = dict(type="RetinaNet")')
    with pytest.raises(RequestError, match='its model is a RetinaNet'):
        read_source(str(tmp_path / 'stock.py'))


@pytest.mark.parametrize(
    ('old', 'new'),
    [
        ('gfl/gfl_r101_fpn_mstrain_2x_coco.py', 'gfl/gfl_r101_fpn_ms-2x_coco.py'),
        (
            'retinanet/retinanet_x101_64x4d_fpn_1x_coco.py',
            'retinanet/retinanet_x101-64x4d_fpn_1x_coco.py',
        ),
        ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',) * 2,
    ],
)
def test_names_of_mmdet_2(old, new):
    assert mended(f'mmdet::{old}') == f'mmdet::{new}'


def test_names_of_mmseg_0():
    old = 'mmseg::pspnet/pspnet_r18-d8_512x1024_80k_cityscapes.py'
    assert mended(old) == 'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'


def test_names_that_nothing_is_called(tmp_path):
    with pytest.raises(NotFoundError, match=r'did you mean mmdet::retinanet/retinanet_r50'):
        mended('mmdet::retinanet/retinanet_r50_fpn_9x_coco.py')
    with pytest.raises(RequestError, match='mmyolo is not installed'):
        mended('mmyolo::rtmdet/rtmdet_s.py')


def test_words():
    assert words('a_b-mstrain_fp16_8xb2.py') == ['a', 'amp', 'b', 'ms']

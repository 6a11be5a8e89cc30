"""The shapes of all dense configs of mmrazor, as recipes."""

from __future__ import annotations

import re

import pytest
from mmengine.config import Config

from kd_dense.mm.configs import RequestError
from kd_dense.mm.mmrazor.reading import merged, plain
from kd_dense.mm.mmrazor.settings import SETTINGS
from kd_dense.mm.mmrazor.text import recipe_text
from kd_dense.mm.mmrazor.translate import translate
from tests.mm import toy
from tests.mm.mmrazor import shapes
from tests.mm.mmrazor.shapes import pkd, small

CWD = dict(type='CWDLoss', weight=10)
SHAPES = {
    'cwd_frcnn': dict(
        teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        terms=dict(kd_fpn=dict(tap='neck', loss=CWD)),
        bases=['mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'],
        known=['r50_fpn_1x_coco.py does not exist; meant is mmdet::faster_rcnn/faster-'],
    ),
    'cwd_retina': dict(
        teacher='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        terms=dict(kd_fpn=dict(tap='neck', loss=CWD)),
        bases=['mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'],
        changed=['are the weights of another model, which a base of the config names'],
    ),
    'cwd_cls_head_gfl_r101_fpn_gfl_r50_fpn_1x_coco': dict(
        teacher='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py',
        terms=dict(cwd=dict(tap='bbox_head.gfl_cls', loss=dict(type='CWDLoss', weight=5.0))),
        bases=['mmdet::gfl/gfl_r50_fpn_1x_coco.py'],
        changed=['meant are the logits with weight 5'],
    ),
    'cwd_retina_visualization': dict(
        teacher='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py',
        terms=dict(kd_fpn=dict(tap='neck', loss=CWD)),
        settings=dict(default_hooks=dict(checkpoint=dict(interval=-1))),
        known=['default_hooks.visualization: left out: PictureHook'],
        changed=['are the weights of another model'],
    ),
    'fbkd': dict(
        teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
        terms=dict(
            fbkd=dict(
                tap='neck.fpn_convs.*.conv',
                loss=dict(type='FBKDLoss', weight=1.0, reductions=(4, 4, 2, 2),
                          pools=(16, 8, 4, 4)),
            )
        ),
        settings=dict(load_from=shapes.FRCNN_R50),
        known=['loss_s0, loss_s1, loss_s2, loss_s3: with several processes, what'],
    ),
    'mgd': dict(
        teacher='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        inherit=('neck', 'bbox_head'),
        terms=dict(
            mgd_fpn=dict(
                tap='neck.fpn_convs.*.conv',
                loss=dict(type='MGDLoss', weight=2e-5, mask_ratio=0.65),
            )
        ),
        bases=['mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'],
        known=['meant was optim_wrapper=dict(clip_grad=dict(max_norm=35, norm_type=2))'],
    ),
    'pkd_frcnn': dict(
        teacher='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        terms=dict(kd_fpn=dict(tap='neck[:4]', loss=dict(type='PKDLoss', weight=6))),
        bases=['mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'],
    ),
    'pkd_retina': dict(
        teacher='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        terms=dict(kd_fpn=dict(tap='neck[:4]', loss=dict(type='PKDLoss', weight=10))),
        bases=['mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'],
    ),
    'pkd_fcos': dict(
        teacher=dict(
            config='mmdet::fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py',
            checkpoint='work_dirs/fcos/epoch_12.pth',
        ),
        terms=dict(kd_fpn=dict(tap='neck[:4]', loss=dict(type='PKDLoss', weight=10))),
        known=['model.teacher: is given images as it was trained on'],
    ),
    'pkd_swin': dict(
        teacher='mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        terms=dict(kd_fpn=dict(tap='neck[:4]', loss=dict(type='PKDLoss', weight=6))),
        settings={'train_dataloader', 'val_dataloader', 'test_dataloader', 'val_evaluator',
                  'test_evaluator'},
    ),
    'cwd_seg': dict(
        teacher='mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        terms=dict(
            cwd=dict(tap='decode_head.conv_seg', loss=dict(type='CWDLoss', weight=5))
        ),
        bases=['mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'],
        known=['val_cfg: the loop of the student'],
    ),
}  # fmt: skip


@pytest.fixture(scope='module')
def translated(razor):
    done = {}

    def translated(name):
        if name not in done:
            done[name] = translate(str(razor / f'{name}.py'))
        return done[name]

    return translated


def notes(found, title):
    """The lines under a title."""
    _, _, rest = '\n'.join(['', *found.notes.lines(), '']).partition(f'\n{title}\n')
    return rest.partition('\nTo know:\n')[0]


@pytest.mark.parametrize('name', SHAPES)
def test_shapes_that_ship(name, translated):
    expected = SHAPES[name]
    found = translated(name)
    assert found.teacher.spec == expected['teacher']
    assert found.terms == expected['terms']
    assert found.student.edits == {}
    assert found.student.inherit == expected.get('inherit', ())
    settings = expected.get('settings', {})
    assert (found.settings.keys() if isinstance(settings, set) else found.settings) == settings
    assert found.student.bases == expected.get('bases', found.student.bases)
    assert found.same is ('changed' not in expected)
    for title, kind in (('Not the same:', 'changed'), ('To know:', 'known')):
        for text in expected.get(kind, []):
            assert text in notes(found, title)


@pytest.mark.parametrize('name', SHAPES)
def test_the_recipe_says_the_same(name, translated, tmp_path):
    """What mmengine reads of it is what the config of mmrazor trains with, and the translation."""
    found = translated(name)
    file = tmp_path / 'recipe.py'
    file.write_text(recipe_text(found, tmp_path))
    recipe, theirs = plain(merged([str(file)]).to_dict()), plain(found.source.config.to_dict())
    model = recipe['model']
    assert model['type'] == 'kd_dense.Distilled'
    assert model['student'] == plain(found.student.model)
    assert model['teacher'] == found.teacher.spec
    assert model['terms'] == found.terms
    assert model.get('inherit', ()) == found.student.inherit
    # The preprocessor beside the model is for one that has none of its own.
    assert found.student.model['data_preprocessor']
    for one in {*SETTINGS} - {'val_cfg', 'default_hooks', 'data_preprocessor'}:
        assert recipe.get(one) == theirs.get(one), one
    assert recipe['val_cfg'] == dict(type='ValLoop')
    assert recipe['default_hooks']['checkpoint'] == theirs['default_hooks']['checkpoint']
    assert all(len(line) < 100 for line in file.read_text().splitlines() if 'http' not in line)
    for line in found.notes.lines():
        assert line.partition(':')[0] in file.read_text()


def test_rtmdet(razor, tmp_path):
    """Without mmyolo: the student's config is a base, the teacher's is carried over unseen."""
    found = translate(str(razor / 'distillation' / 'kd_tiny.py'))
    term = dict(
        loss=dict(type='CWDLoss', weight=1, standardise=True),
        schedule=dict(stop=280, by_epoch=True),
    )
    assert found.terms == {
        f'fpn{level}': dict(tap=f'neck.fpn_convs.{level}.conv', **term) for level in range(3)
    }
    assert found.teacher.spec == dict(
        config='mmyolo::rtmdet/rtmdet_s.py', checkpoint='https://somewhere.org/rtmdet_s.pth'
    )
    assert found.settings == {}  # the hook that stops is a schedule, and EMA is the base's own
    assert found.same
    assert 'mmyolo is not installed: it is carried over unseen' in notes(found, 'To know:')
    text = recipe_text(found, tmp_path)
    assert f"{razor.name}/rtmdet_tiny.py']" in text
    (tmp_path / 'recipe.py').write_text(text)
    recipe = Config.fromfile(tmp_path / 'recipe.py')
    recipe.model.teacher = dict(config=toy.detector(16), checkpoint=None)
    model = toy.build(recipe.model)
    assert [type(a).__name__ for a in model.kd.fpn0.adapters] == ['Adapter']
    assert not model.kd.fpn0.schedule.constant


@pytest.mark.parametrize(('name', 'kind'), [('cwd_seg', 'segmenter'), ('mgd', 'detector')])
def test_what_is_written_is_built(name, kind, translated, tmp_path):
    file = tmp_path / 'recipe.py'
    file.write_text(recipe_text(translated(name), tmp_path))
    recipe = Config.fromfile(file)
    make = getattr(toy, kind)
    recipe.model.student, recipe.model.teacher = make(), dict(config=make(), checkpoint=None)
    model = toy.build(recipe.model)
    [term] = model.kd.values()
    assert len(term.adapters) == (1 if kind == 'segmenter' else 5)


def test_models_that_are_written_out(tmp_path):
    found = translate(small(tmp_path, pkd(), bases=shapes.COCO))
    assert found.terms == dict(pkd=dict(tap='neck', loss=dict(type='PKDLoss', weight=1.0)))
    assert found.student.edits is None
    assert found.student.bases == shapes.COCO
    assert found.teacher.spec['checkpoint'] == 'teacher.pth'
    text = recipe_text(found, tmp_path)
    (tmp_path / 'recipe.py').write_text(text)
    recipe = plain(Config.fromfile(tmp_path / 'recipe.py').to_dict())
    assert recipe['model']['student'] == plain(toy.detector().to_dict())
    assert recipe['model']['teacher']['config'] == plain(toy.detector(16).to_dict())


def test_a_student_that_is_changed(tmp_path):
    base = shapes.write(tmp_path / 'student.py', shapes.COCO, model=toy.detector().to_dict())
    code = (
        'student = _base_.model\n'
        'student.backbone.base_channels = 4\n'
        'student.neck.in_channels = [4, 8, 16, 32]\n'
        f'model = dict(_delete_=True, _scope_="mmrazor", type="SingleTeacherDistill", '
        f'architecture=student, teacher={toy.detector(16).to_dict()!r}, '
        f'distiller={pkd()!r}, data_preprocessor=dict(type="DetDataPreprocessor"))'
    )
    file = shapes.write(tmp_path / 'mine.py', [base.name], code)
    found = translate(str(file))
    text = recipe_text(found, tmp_path)
    assert 'student.backbone.base_channels = 4' in text
    assert 'student.neck.in_channels = [4, 8, 16, 32]' in text
    assert 'student=student,' in text
    (tmp_path / 'recipe.py').write_text(text)
    student = plain(Config.fromfile(tmp_path / 'recipe.py').model.student.to_dict())
    assert student == plain(found.student.model)
    assert student['data_preprocessor'] == dict(type='DetDataPreprocessor')
    assert 'the teacher is untrained, here as in mmrazor' in notes(found, 'To know:')


LEFT_OUT = {
    'another loss': (
        dict(distill_losses=dict(loss_pkd=dict(type='PKDLoss'),
                                 loss_ofd=dict(type='OFDLoss')),
             loss_forward_mappings=dict(loss_pkd=shapes.pair('neck'),
                                        loss_ofd=shapes.pair('neck'))),
        r'loss_ofd: left out: overhaul feature distillation \(OFD\) is for the layers of',
    ),
    'a delivery': (
        dict(distill_deliveries=dict(assign=dict(type='MethodOutputs'))),
        "distill_deliveries.assign: left out: a student that is handed the teacher's",
    ),
    'no mapping': (
        dict(distill_losses=dict(loss_pkd=dict(type='PKDLoss'), loss_b=dict(type='PKDLoss'))),
        'loss_b: left out: no loss_forward_mappings',
    ),
    'a statistic': (
        dict(distill_losses=dict(loss_pkd=dict(type='PKDLoss'), pkd=dict(type='PKDLoss')),
             loss_forward_mappings=dict(loss_pkd=shapes.pair('neck'), pkd=shapes.pair('neck'))),
        "pkd: left out: mmengine trains on what has 'loss' in its name",
    ),
}  # fmt: skip


@pytest.mark.parametrize('name', LEFT_OUT)
def test_what_is_left_out(name, tmp_path):
    others, text = LEFT_OUT[name]
    found = translate(small(tmp_path, {**pkd(), **others}))
    assert [*found.terms] == ['pkd']
    assert re.search(text, '\n'.join(found.notes.lines()))
    assert found.same is (name in ('no mapping', 'a statistic'))


def test_switches_that_are_not_carried_over(tmp_path):
    switches = dict(
        teacher_trainable=True,
        teacher_norm_eval=False,
        student_trainable=False,
        calculate_student_loss=False,
    )
    found = translate(small(tmp_path, pkd(), model=switches, load_from='epoch_3.pth'))
    text = notes(found, 'Not the same:')
    for name, value in {**switches, 'load_from': None}.items():
        assert f'model.{name}={value}: left out' in text or f'{name}: left out' in text


NOTHING = {
    'deliveries alone': (
        dict(type='ConfigurableDistiller', distill_deliveries=dict(a=dict(type='MethodOutputs'))),
        'no loss of it can be carried over\nNot the same:\nmodel.distiller.distill_deliveries.a',
    ),
    'another distiller': (dict(type='BYOTDistiller'), 'is a BYOTDistiller, and Configurable'),
}


@pytest.mark.parametrize('name', NOTHING)
def test_nothing_to_carry_over(name, tmp_path):
    distiller, why = NOTHING[name]
    with pytest.raises(RequestError, match=why):
        translate(small(tmp_path, distiller))

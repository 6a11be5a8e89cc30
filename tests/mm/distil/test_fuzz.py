"""Random recipes: each trains, or ends in one of our own errors before the first iteration.

A recipe that fails is printed; ``recipe(SEED)`` makes it again. ``KD_DENSE_FUZZ_SEED`` moves the
seeds of the long run, and with ``KD_DENSE_FUZZ_REPORT=FILE`` every distinct message is written to
a file, with the seed of a recipe that leads to it.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import pprint
import random
import re
import traceback
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from torch import nn

import kd_dense
from kd_dense.losses import CWDLoss
from kd_dense.mm import Distilled
from kd_dense.mm.configs import NotFoundError
from kd_dense.mm.hooks.critic import CriticHook
from kd_dense.registry import MODELS
from kd_dense.taps import TapError
from tests.mm import toy, toy_heads

OURS = str(Path(kd_dense.__file__).parent)
TYPES = (ValueError, TypeError, TapError, FileNotFoundError, RuntimeError, FloatingPointError)
# What a message has to name: the field that is wrong.
FIELD = re.compile(
    r"\bterm '|\bterms\b|name of a term|teacher|student|inherit|preset|the checkpoint"
)
# What only a running training can know: where it counts no epochs, how large its images are,
# and when numbers are no longer finite.
LATE = re.compile(r'by_epoch=True in a training|mirrors the image at its edges|is not finite')

SEGMENTERS, DETECTORS = ('fcn', 'psp'), ('retinanet', 'faster-rcnn', *toy_heads.HEADS)
NAN, INF = math.nan, math.inf
JUNK: list[Any] = ['3', 'x', '', -1.0, -1, 0, None, NAN, INF, True, [], {}, [1.0], (2, 3), 1.5]


def choose_model(rng: random.Random, kind: str) -> ConfigDict:
    """A toy model of a kind; what varies is fine for a student and for a teacher."""
    width = rng.choice([8, 8, 12, 16])
    norm = rng.choice([dict(type='BN'), dict(type='BN'), dict(type='GN', num_groups=2)])
    if kind in SEGMENTERS:
        config = toy.segmenter(width, rng.choice([5, 5, 5, 6]), rng.choice([0.0, 0.1]))
        config.decode_head.norm_cfg = norm
        if kind == 'psp':
            config.decode_head.update(type='PSPHead', pool_scales=(1, 2))
            del config.decode_head.num_convs
        if rng.random() < 0.3:
            config.backbone.strides = (1, 2, 2, 1)
        if rng.random() < 0.3:
            config.auxiliary_head = dict(
                type='FCNHead',
                in_channels=4 * width,
                in_index=2,
                channels=4,
                num_convs=1,
                num_classes=config.decode_head.num_classes,
                norm_cfg=norm,
            )
    elif kind in toy_heads.HEADS:
        head = dict(num_classes=rng.choice([3, 3, 3, 4]), reg_max=rng.choice([8, 8, 8, 4]))
        config = toy_heads.detector(kind, width, **head)
    else:
        config = toy.detector(width, rng.choice([3, 3, 3, 4]))
        if kind == 'faster-rcnn':
            config = faster_rcnn(config)
    config.backbone.norm_cfg = norm
    config.backbone.depth = rng.choice([18, 18, 18, 34])
    if rng.random() < 0.08:
        config.backbone.frozen_stages = rng.choice([0, 1, 4])
    if rng.random() < 0.1:
        config.backbone.with_cp = True
    if rng.random() < 0.2:
        config.data_preprocessor.update(mean=[0.0, 1.0, 2.0], bgr_to_rgb=False)
    return config


def faster_rcnn(config: ConfigDict) -> ConfigDict:
    """Make a two-stage detector of a toy RetinaNet."""
    channels, classes = config.neck.out_channels, config.bbox_head.num_classes
    config.type = 'FasterRCNN'
    config.neck.update(start_level=0, num_outs=5, add_extra_convs=False)
    del config.bbox_head
    box_loss = dict(type='L1Loss')
    config.rpn_head = dict(
        type='RPNHead',
        in_channels=channels,
        feat_channels=8,
        anchor_generator=dict(
            type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0], strides=[4, 8, 16, 32, 64]
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=box_loss,
    )
    config.roi_head = dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
            out_channels=channels,
            featmap_strides=[4, 8, 16, 32],
        ),
        bbox_head=dict(
            type='Shared2FCBBoxHead',
            in_channels=channels,
            fc_out_channels=16,
            roi_feat_size=3,
            num_classes=classes,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='CrossEntropyLoss'),
            loss_bbox=box_loss,
        ),
    )
    sampler = dict(
        type='RandomSampler',
        num=16,
        pos_fraction=0.5,
        neg_pos_ub=-1,
        add_gt_as_proposals=False,
    )
    assigner = config.train_cfg.assigner
    part = dict(assigner=assigner, sampler=sampler, allowed_border=-1, pos_weight=-1, debug=False)
    nms = dict(nms_pre=20, max_per_img=10, nms=dict(type='nms', iou_threshold=0.7))
    config.train_cfg = dict(rpn=part, rpn_proposal=dict(**nms, min_bbox_size=0), rcnn=part)
    rcnn = dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10)
    config.test_cfg = dict(rpn=dict(**nms, min_bbox_size=0), rcnn=rcnn)
    return config


@functools.cache
def _places(text: str) -> tuple[str, ...]:
    """All modules of a model, and methods of the larger ones."""
    model = toy.build(ConfigDict(eval(text)))
    names = [name for name, _ in model.named_modules() if name]
    owners = {'': model, **dict(model.named_children())}
    methods = [
        f'{name}.{method}'.lstrip('.')
        for name, owner in owners.items()
        for method in dir(type(owner))
        if not method.startswith('__')
        and callable(getattr(type(owner), method))
        and (not hasattr(nn.Module, method) or method in ('forward', 'train', 'parameters'))
    ]
    return (*names, *names, *names, *methods)  # a module is drawn more often


def places(model: ConfigDict) -> tuple[str, ...]:
    return _places(repr(model.to_dict()))


# Places that make sense for the losses named.
LOGIT_LOSSES = ('CWDLoss', 'CWDLoss', 'PixelWiseLoss', 'HolisticLoss')
FEATURE_LOSSES = ('CWDLoss', 'PairWiseLoss', 'AttentionMapLoss', 'IntRALoss')
PYRAMID_LOSSES = ('CWDLoss', 'FGDLoss', 'PairWiseLoss', 'AttentionMapLoss')
LOSSES = (
    'CWDLoss', 'FGDLoss', 'PixelWiseLoss', 'PairWiseLoss', 'HolisticLoss', 'IntRALoss',
    'AttentionMapLoss', 'LDLoss', 'LDImitationLoss',
)  # fmt: skip


def sensible_pair(rng: random.Random, kind: str) -> tuple[Any, str]:
    """A tap and the type of a loss that go together in models of a kind."""
    stages = ['backbone', 'backbone[-1]', 'backbone[1:3]', 'backbone.layer3', 'backbone.layer4.1']
    if kind in SEGMENTERS:
        last = 'decode_head.bottleneck' if kind == 'psp' else 'decode_head.convs.0'
        return rng.choice(
            [
                ('decode_head.conv_seg', rng.choice(LOGIT_LOSSES)),
                (rng.choice([*stages, last]), rng.choice(FEATURE_LOSSES)),
                (dict(student='backbone.layer3', teacher=last), rng.choice(FEATURE_LOSSES)),
            ]
        )
    pairs = [
        (rng.choice(stages), rng.choice(PYRAMID_LOSSES)),
        (rng.choice(['neck', 'neck[:3]', 'neck[-2:]', 'neck.fpn_convs.*.conv']),
         rng.choice(PYRAMID_LOSSES)),
    ]  # fmt: skip
    if kind == 'faster-rcnn':
        return rng.choice([*pairs, ('rpn_head.rpn_conv', 'CWDLoss'), ('rpn_head', 'CWDLoss')])
    pairs.append((rng.choice(['bbox_head.cls_convs.0', 'bbox_head.forward_single']), 'CWDLoss'))
    if kind in toy_heads.HEADS:
        pairs += [('bbox_head', 'LDLoss'), ('bbox_head', 'LDLoss'), ('neck', 'LDImitationLoss')]
    return rng.choice(pairs)


def sensible_loss(rng: random.Random, name: str, kind: str) -> dict[str, Any]:
    """Valid arguments of a loss."""
    weight = rng.choice([0.0, 0.5, 1, 3.0])
    temperature = rng.choice([0.5, 1, 4.0])
    own: dict[str, dict[str, list[Any]]] = {
        'CWDLoss': dict(temperature=[temperature], norm=['channel', 'spatial'],
                        divergence=['kl', 'mse']),
        'FGDLoss': dict(temperature=[temperature], foreground=[0, 1e-3], relation=[0.0, 5e-6],
                        box_scale=['batch', 'image']),
        'PixelWiseLoss': dict(temperature=[temperature], divergence=['kl', 'cross_entropy'],
                              published_batch=[None, 1, 8]),
        'PairWiseLoss': dict(scale=[0.1, 0.5, 1], detach_norm=[True, False]),
        'HolisticLoss': dict(kind=['wgan-gp', 'hinge'], preprocess=['tanh', 'batch_norm']),
        'IntRALoss': dict(kernel=[1, 3, 11], regions=['dilate', 'smooth'],
                          pixels=['inside', 'literal'], normaliser=['present', 'all']),
        'AttentionMapLoss': dict(norm=['l2', 'softmax']),
        'LDLoss': dict(temperature=[temperature], kd_weight=[0, 1.0], vlr_weight=[0, 0.25],
                       topk=[1, 9], diou=['paper', 'code'], published_batch=[None, 2]),
        'LDImitationLoss': dict(positive_levels_only=[True, False], mix_images=[True, False]),
    }[name]  # fmt: skip
    loss: dict[str, Any] = dict(type=name)
    if rng.random() < 0.7:
        loss['weight'] = weight
    loss |= {key: rng.choice(values) for key, values in own.items() if rng.random() < 0.4}
    if name == 'HolisticLoss':
        loss['width'] = 4
    if name == 'LDLoss' and kind == 'fcos':
        loss['region'] = 'inside'
    if name == 'LDImitationLoss':
        regions = ['main', 'inside', 'gibox', 'all', 'decoupled']
        regions += ['finegrained'] * (kind != 'fcos')
        loss['region'] = rng.choice(regions)
    return loss


def wild_tap(rng: random.Random, student: ConfigDict, teacher: ConfigDict) -> Any:
    """A tap with real names, that may make sense or not."""

    def one(model: ConfigDict) -> str:
        path = rng.choice(places(model))
        if rng.random() < 0.15:
            parts = path.split('.')
            parts[rng.randrange(len(parts))] = '*'
            path = '.'.join(parts)
        if rng.random() < 0.25:
            path += rng.choice(['[0]', '[-1]', '[:2]', '[1:]', '[7]', '[5:9]', '[:]'])
        return path

    tap = one(student)
    return tap if rng.random() < 0.6 else dict(student=tap, teacher=one(teacher))


def broken_tap(rng: random.Random, tap: Any) -> Any:
    text = str(tap if isinstance(tap, str) else tap['student'])
    place = rng.randrange(len(text))
    return rng.choice(
        [
            text[:place] + text[place + 1 :],
            text + rng.choice(['.', '.x', '[', '[a]', '[0][0]', ' ', '.0', '.*', '.forward']),
            dict(student=text),
            dict(student=text, techer=text),
            dict(student=text, teacher=rng.choice([None, 3, '', [text]])),
            rng.choice([None, 3, [], [text, text], '', '*', '.', 'roi_head.bbox_head.fc_cls']),
        ]
    )


def broken_loss(rng: random.Random, loss: dict[str, Any]) -> Any:
    """A loss whose arguments are perhaps not what it takes."""
    names = {
        'CWDLoss': ['weight', 'temperature', 'norm', 'divergence', 'first_image_only'],
        'FGDLoss': ['channels', 'weight', 'temperature', 'foreground', 'relation', 'box_scale'],
        'PixelWiseLoss': ['weight', 'temperature', 'divergence', 'published_batch'],
        'PairWiseLoss': ['weight', 'scale', 'detach_norm'],
        'HolisticLoss': ['channels', 'weight', 'kind', 'gradient_penalty', 'preprocess', 'width'],
        'IntRALoss': ['num_classes', 'weight', 'kernel', 'regions', 'pixels', 'eps', 'cos_eps',
                      'ignore_index', 'third_denominator', 'normaliser'],
        'AttentionMapLoss': ['weight', 'norm', 'eps'],
        'LDLoss': ['weight', 'main_weight', 'kd_weight', 'temperature', 'kd_temperature', 'topk',
                   'main_factor', 'vlr_factor', 'published_batch', 'region', 'diou',
                   'vlr_on_positives', 'joint_sides'],
        'LDImitationLoss': ['weight', 'region', 'positive_levels_only', 'mix_images',
                            'background_weight'],
    }[loss['type']]  # fmt: skip
    broken = [
        {**loss, rng.choice(names): rng.choice(JUNK)},
        {**loss, rng.choice(names): rng.choice(JUNK)},
        {**loss, rng.choice(names): rng.choice(JUNK)},
        {**loss, rng.choice(['tau', 'wieght', 'student', 'reduction']): 1.0},
        {k: v for k, v in loss.items() if k != 'type'},
        {**loss, 'type': rng.choice(['CDWLoss', 'L1Loss', 'Adapter', 'mmdet.FocalLoss', 3, None])},
        rng.choice([loss['type'], None, 3, [], [loss], nn.MSELoss(), {}, CWDLoss()]),
    ]
    return rng.choice(broken)


@MODELS.register_module(force=True)
class FuzzAdapter(nn.Conv2d):
    """An adapter of a user, that may yield maps of another shape, or something else."""

    def __init__(self, in_channels, out_channels, stride=1, wrong=None):
        super().__init__(in_channels, out_channels, 1, stride)
        self.wrong = wrong

    def forward(self, x, size):
        y = super().forward(x)
        if self.wrong == 'raises':
            raise KeyError('no such thing')
        if self.wrong == 'none':
            return None
        if self.wrong == 'size':
            return y
        return nn.functional.interpolate(y, tuple(size))


ADAPTERS: list[Any] = [
    True,
    False,
    dict(type='Adapter'),
    dict(type='FuzzAdapter'),
    dict(type='FuzzAdapter', stride=2),
    dict(type='FuzzAdapter', stride=2, wrong='size'),
    dict(type='FuzzAdapter', wrong='none'),
    dict(type='FuzzAdapter', wrong='raises'),
    dict(type='Adapter', in_channels=3),
    dict(type='Adapter', out_channels=3),
    dict(type='Adapter', out_channels='3'),
    dict(type='Adapter', kernel=3),
    dict(type='Adaptor'),
    dict(type='mmcv.cnn.ConvModule', kernel_size=1),
    dict(kernel_size=1),
    dict(),
    None,
    'Adapter',
    0,
    3,
    [],
]
SCHEDULES: list[Any] = [
    dict(warmup=1, start=1),
    dict(warmup=2, decay='linear'),
    dict(decay='cosine', stop=2),
    dict(stop=1),
    dict(stop=0),
    dict(warmup=1, by_epoch=True),
    dict(decay='linear', stop=1.5),
    dict(),
    None,
    dict(warmup=5, stop=2),
    dict(warmup=-1),
    dict(warmup='3'),
    dict(warmup=None),
    dict(warmup=NAN),
    dict(warmup=INF),
    dict(stop='end'),
    dict(stop=NAN),
    dict(stop=INF, decay='linear'),
    dict(decay='exp'),
    dict(decay=3),
    dict(decay=[]),
    dict(by_epoch='yes', warmup=1),
    dict(wramup=1),
    'linear',
    5,
    [1, 2],
    True,
]
INHERITS: list[Any] = [
    ['neck'], ['bbox_head'], ['decode_head'], ['backbone'], ['backbone.layer1', 'neck'],
    ['nekc'], ['neck', 5], 'neck', 5, None, dict(neck=True), [''], ['backbone.relu'],
    ['neck', 'neck'], [['neck']], True,
]  # fmt: skip


def broken_teacher(rng: random.Random, config: ConfigDict) -> Any:
    return rng.choice(
        [
            dict(config=config),
            dict(config=config, checkpoint='nowhere.pth'),
            dict(config=config, checkpoint='OTHER'),
            dict(config=config, checkpoint='OTHER', strict=False),
            dict(config=config, checkpoint='OWN'),
            dict(config=config, checkpoint='OWN', strict=False),
            dict(config=config, checkpoint='TEXT'),
            dict(config=config, checkpoint=rng.choice([3, [], True, ''])),
            dict(config=config, checkpoint=None, strict=rng.choice(['no', 3, None])),
            dict(config=config, chekpoint=None),
            dict(config=config, checkpoint=None, scope='mmdet'),
            dict(config=config, checkpoint=None, precision=rng.choice(['bf16', 'bf61', 16, []])),
            dict(config=config, checkpoint=None, channels_last=rng.choice([True, 'yes'])),
            dict(config=config, checkpoint=None, compile='yes'),
            dict(config=config, checkpoint=None, stream=rng.choice([True, 1])),
            dict(checkpoint=None),
            dict(config=rng.choice([None, 3, [], {}, dict(model=None)]), checkpoint=None),
            dict(config={**config, 'type': 'RetinaNett'}, checkpoint=None),
            dict(config={**config, 'backbone': dict(type='ResNet', depth=17)}, checkpoint=None),
            dict(config={k: v for k, v in config.items() if k != 'type'}, checkpoint=None),
            dict(
                config={k: v for k, v in config.items() if k != 'data_preprocessor'},
                checkpoint=None,
            ),
            dict(config=dict(model=config, default_scope='mmseg'), checkpoint=None),
            'configs/nowhere.py',
            'nowhere::a/b.py',
            'mmdet::retinanet/retinanet_r101_fpn_2x_cco.py',
            rng.choice([None, 3, [], '', True, {}]),
            nn.Conv2d(3, 8, 1),
            'STUDENT',
        ]
    )


def recipe(seed: int) -> dict[str, Any]:
    """The fields of ``Distilled``, and how it is trained."""
    rng = random.Random(seed)
    kind = rng.choice(SEGMENTERS * 3 + DETECTORS)
    student = choose_model(rng, kind)
    other = rng.choice(SEGMENTERS + DETECTORS) if rng.random() < 0.08 else kind
    teacher = choose_model(rng, other)
    if other == kind and rng.random() < 0.85:  # heads that can be compared
        for part in {'decode_head', 'bbox_head'} & student.keys():
            for field in {'num_classes', 'reg_max'} & student[part].keys():
                teacher[part][field] = student[part][field]
    terms: Any = {}
    for name in rng.sample(['a', 'logits', 'fpn', 'head'], rng.choice([1, 1, 2, 3])):
        tap, loss = sensible_pair(rng, kind)
        if rng.random() < 0.1:
            tap = wild_tap(rng, student, teacher)
        if rng.random() < 0.05:
            loss = rng.choice(LOSSES)
        term = dict(tap=tap, loss=sensible_loss(rng, loss, kind))
        if rng.random() < 0.2:
            term['schedule'] = rng.choice(SCHEDULES[:8])
        if rng.random() < 0.1:
            term['adapter'] = rng.choice(ADAPTERS[:5])
        terms[name] = term
    made = dict(
        student=student,
        teacher=dict(config=teacher, checkpoint=None),
        terms=terms,
        built=rng.random() < 0.3,  # the teacher is given as a module
        epochs=rng.choice([1, 2]),
    )
    if rng.random() < 0.1:
        made['inherit'] = rng.choice(INHERITS[:5])
    if rng.random() < 0.1:
        del made['terms']
        made['preset'] = rng.choice(['cwd', 'skd', 'fgd', 'ld', 'intrakd'])
    if rng.random() < 0.5:
        _break(rng, made)
    return made


def _break(rng: random.Random, made: dict[str, Any]) -> None:
    """Change a recipe in one place or two, so that it is perhaps none any more."""
    student, teacher = made['student'], made['teacher']['config']
    for _ in range(rng.choice([1, 1, 1, 2])):
        terms = made.get('terms')
        what = rng.choice(['term'] * 8 + ['teacher', 'teacher', 'inherit', 'preset', 'terms'])
        if what == 'teacher' and isinstance(made['teacher'], dict):
            made['built'] = False
            made['teacher'] = broken_teacher(rng, teacher)
        elif what == 'inherit':
            made['inherit'] = rng.choice(INHERITS)
        elif what == 'preset':
            made['preset'] = rng.choice(['cwd', 'cdw', 'fgd', '', 3, [], 'CWDLoss', True])
            if rng.random() < 0.7:
                made.pop('terms', None)
        elif what == 'terms':
            good = next(iter(terms.values())) if isinstance(terms, dict) and terms else {}
            names = [{'a.b': good}, {'training': good}, {3: good}, {'forward': good}]
            made['terms'] = rng.choice([None, {}, [], [good], 'cwd', {'a': None}, *names])
        elif isinstance(terms, dict) and terms:
            term = next(iter(terms.values()))
            if not isinstance(term, dict) or not {'tap', 'loss'} <= term.keys():
                continue
            _break_term(rng, term, student, teacher)


def _break_term(rng: random.Random, term: dict[str, Any], student: Any, teacher: Any) -> None:
    what = rng.choice(['tap', 'tap', 'wild', 'wild', 'loss', 'loss', 'any', 'adapter', 'schedule',
                       'field'])  # fmt: skip
    tap = term['tap']
    if (
        what == 'tap'
        and tap
        and (isinstance(tap, str) or (isinstance(tap, dict) and tap.get('student')))
    ):
        term['tap'] = broken_tap(rng, tap)
    elif what == 'wild':
        term['tap'] = wild_tap(rng, student, teacher)
    elif what == 'loss' and isinstance(term['loss'], dict) and term['loss'].get('type') in LOSSES:
        term['loss'] = broken_loss(rng, term['loss'])
    elif what == 'any':
        term['loss'] = sensible_loss(rng, rng.choice(LOSSES), '')
    elif what == 'adapter':
        term['adapter'] = rng.choice(ADAPTERS)
    elif what == 'schedule':
        term['schedule'] = rng.choice(SCHEDULES)
    elif what == 'field':
        key = rng.choice(['tapp', 'weight', 'tap', 'loss', 'name'])
        term[key] = rng.choice([None, 1.0, 'neck'])


class BadError(AssertionError):
    """A recipe ends in what is no good error."""


def outcome(made: dict[str, Any], folder: Path) -> str | Exception:
    """Build and train two steps; ``'trained'``, or the error of ours that it ends in."""
    made = copy.deepcopy(made)
    epochs, built = made.pop('epochs'), made.pop('built')
    torch.manual_seed(0)
    made['student'] = toy.build(made['student'])
    made['teacher'] = _teacher(made, built, folder)
    own = {name: set(vars(module)) for name, module in made['student'].named_modules()}
    try:
        model = Distilled(**made)
        model.init_weights()
    except Exception as error:
        _require_ours(error)
        return error
    try:
        _train(model, epochs)
    except Exception as error:
        _require_ours(error)
        if not LATE.search(str(error)):
            raise BadError('comes too late') from error
        error.late = True
        return error
    for name, module in model.named_modules():
        assert name not in own or set(vars(module)) - own[name] <= {'kd_plan'}
    return 'trained'


def _teacher(made: dict[str, Any], built: bool, folder: Path) -> Any:
    """The teacher, with the words that stand for files and models replaced."""
    teacher = made['teacher']
    if built:
        return toy.build(teacher['config'])
    if teacher == 'STUDENT':
        return made['student']
    checkpoint = teacher.get('checkpoint') if isinstance(teacher, dict) else None
    if checkpoint in ('OWN', 'OTHER', 'TEXT'):
        path = folder / f'{checkpoint}.pth'
        if checkpoint == 'TEXT':
            path.write_text('no checkpoint')
        else:
            model = toy.build(teacher['config'] if checkpoint == 'OWN' else toy.segmenter(10))
            torch.save({'state_dict': model.state_dict()}, path)
        return {**teacher, 'checkpoint': str(path)}
    return teacher


def _require_ours(error: Exception) -> None:
    """An error is ours if we raise it, it is of a kind that says something, and it names what."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    if not frame.filename.startswith(OURS):
        raise BadError(f'comes from {frame.filename}:{frame.lineno}') from error
    if type(error) not in (*TYPES, NotFoundError):
        raise BadError(f'a {type(error).__name__} says nothing to a user') from error
    if not FIELD.search(str(error)):
        raise BadError('names no field') from error


def _train(model: Any, epochs: int) -> None:
    """Two steps, as mmengine's Runner takes them."""
    hub = MessageHub.get_instance(f'fuzz{len(MessageHub._instance_dict)}')
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1e-4))
    runner = SimpleNamespace(
        model=model, optim_wrapper=wrapper, message_hub=hub, iter=0, max_iters=2
    )
    hook = CriticHook()
    hook.before_run(runner)
    scenes = toy.SegScenes() if hasattr(model, 'decode_head') else toy.DetScenes()
    before = [p.clone() for p in model.parameters()]
    teacher = copy.deepcopy(model.kd_plan.teacher.model.state_dict())
    model.train()
    for step in range(2):
        runner.iter = step
        for key, value in dict(iter=step, max_iters=2, max_epochs=epochs).items():
            hub.update_info(key, value)
        items = [scenes[2 * step + 1], scenes[2 * step + 2]]
        data = {key: [item[key] for item in items] for key in items[0]}
        hook.before_train_iter(runner, step)
        logs = model.train_step(data, wrapper)
        hook.after_train_iter(runner, step)
        assert all(torch.as_tensor(value).isfinite().all() for value in logs.values()), logs
        assert all(any(f'loss_kd_{name}' in key for key in logs) for name in model.kd)
    own = {id(p) for p in model.kd.parameters()}
    moved = zip(before, model.parameters(), strict=True)
    assert any(not torch.equal(b, p) for b, p in moved if id(p) not in own)
    if model.kd_plan.teacher.precision == 'fp32' and model.kd_plan.teacher.checkpoint is None:
        after = model.kd_plan.teacher.model.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in teacher.items())


def _run(seeds: range, folder: Path) -> None:
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    failures = []
    for seed in seeds:
        made = recipe(seed)
        try:
            result = outcome(made, folder)
        except Exception as error:
            cause = error.__cause__ or error
            text = ''.join(traceback.format_exception(cause, chain=False)[-6:])
            shown = pprint.pformat(
                {k: v.to_dict() if isinstance(v, ConfigDict) else v for k, v in made.items()},
                width=99,
            )
            failures.append(f'recipe({seed}): {error}\n{text}\n{shown}')
            counts['failed'] += 1
            continue
        kind = result if isinstance(result, str) else type(result).__name__
        if hasattr(result, 'late'):
            kind += ' in the first iteration'
        counts[kind] += 1
        if not isinstance(result, str):
            plain = re.sub(r'\d+', '#', str(result))
            messages.setdefault(plain, f'recipe({seed}): {kind}: {result}\n')
    report = os.environ.get('KD_DENSE_FUZZ_REPORT')
    if report:
        Path(report).write_text('\n'.join([str(counts), *sorted(messages.values()), *failures]))
    print(f'{len(seeds)} recipes: {dict(counts.most_common())}')
    if failures:
        pytest.fail(f'{len(failures)} of {len(seeds)} recipes:\n\n' + '\n\n'.join(failures))
    assert counts['trained'] >= len(seeds) / 3
    assert len(messages) >= len(seeds) / 10


def test_random_recipes_train_or_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _run(range(20), tmp_path)


@pytest.mark.long
def test_many_random_recipes_train_or_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = int(os.environ.get('KD_DENSE_FUZZ_SEED', '1000'))
    _run(range(start, start + 500), tmp_path)

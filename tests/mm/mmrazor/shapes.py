"""Configs in the shape of the dense ones that mmrazor 1.x and mmyolo ship, as short as they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.mm import toy

ZOO = 'https://download.openmmlab.com/mmdetection/v2.0'


def weights(folder: str, name: str, when: str) -> str:
    """Address of published weights."""
    return f'{ZOO}/{folder}/{name}/{name}_{when}.pth'


RETINA_R50 = weights('retinanet', 'retinanet_r50_fpn_1x_coco', '20200130-c2398f9e')
GFL_R101 = weights('gfl', 'gfl_r101_fpn_mstrain_2x_coco', '20200629_200126-dd12f847')
FRCNN_R50 = weights('faster_rcnn', 'faster_rcnn_r50_fpn_1x_coco', '20200130-047c8118')
FRCNN_R101 = weights('faster_rcnn', 'faster_rcnn_r101_fpn_1x_coco', '20200130-f513f705')
SWIN = weights(
    'swin', 'mask_rcnn_swin-s-p4-w7_fpn_fp16_ms-crop-3x_coco', '20210903_104808-b92c91f1'
)
PSPNET = (
    'https://somewhere.org/pspnet_r101-d8_512x1024_80k_cityscapes_20200606_112211-e1e1100f.pth'
)
LOCAL = 'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth'
COCO = [
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/schedules/schedule_1x.py',
    'mmdet::_base_/default_runtime.py',
]
CITYSCAPES = [
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/schedules/schedule_80k.py',
    'mmseg::_base_/default_runtime.py',
]
LOOP = dict(_delete_=True, type='mmrazor.SingleTeacherDistillValLoop')
SGD = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0001))
FROZEN_BN = dict(type='BN', affine=False, track_running_stats=False)


def outputs(source: str) -> dict[str, Any]:
    return dict(type='ModuleOutputs', source=source)


def record(recorder: str, from_student: bool = True, **others: Any) -> dict[str, Any]:
    return dict(recorder=recorder, from_student=from_student, **others)


def distiller(
    sources: dict[str, str], losses: dict[str, Any], mappings: dict[str, Any], **others: Any
) -> dict[str, Any]:
    recorders = {name: outputs(source) for name, source in sources.items()}
    return dict(
        type='ConfigurableDistiller',
        student_recorders=recorders,
        teacher_recorders=recorders,
        distill_losses=losses,
        loss_forward_mappings=mappings,
        **others,
    )


def pair(recorder: str, names: tuple[str, str] = ('preds_S', 'preds_T'), **others: Any) -> Any:
    """The mapping of a loss that compares what one recorder has of both."""
    return {
        name: record(recorder, from_student, **others)
        for name, from_student in zip(names, (True, False), strict=True)
    }


def of_pyramid(levels: int, **loss: Any) -> dict[str, Any]:
    names = [f'loss_kd_fpn{level}' for level in range(levels)]
    mappings = {name: pair('fpn', data_idx=level) for level, name in enumerate(names)}
    return distiller(dict(fpn='neck'), dict.fromkeys(names, loss), mappings)


def algorithm(
    student: str, teacher: str, checkpoint: str | None, distiller: Any, **others: Any
) -> dict[str, Any]:
    return dict(
        _scope_='mmrazor',
        type='FpnTeacherDistill',
        architecture=dict(cfg_path=student, pretrained=False),
        teacher=dict(cfg_path=teacher, pretrained=False),
        teacher_ckpt=checkpoint,
        distiller=distiller,
        **others,
    )


def write(file: Path, bases: Any, code: str = '', **settings: Any) -> Path:
    lines = [f'{name} = {value!r}' for name, value in settings.items()]
    file.write_text('\n'.join([f'_base_ = {bases!r}', code, *lines, '']))
    return file


def write_all(folder: Path) -> None:
    """Write them into a folder, under short names but where the name matters."""
    _cwd(folder)
    _fbkd(folder)
    _mgd(folder)
    _pkd(folder)
    _seg(folder)
    _rtmdet(folder)


def _cwd(folder: Path) -> None:
    losses = of_pyramid(5, type='ChannelWiseDivergence', tau=1, loss_weight=10)
    names = [
        f'mmdet::faster_rcnn/faster_rcnn_{one}_coco.py' for one in ('r50_fpn_1x', 'r101_fpn_2x')
    ]
    write(folder / 'cwd_frcnn.py', COCO, model=algorithm(*names, LOCAL, losses),
          find_unused_parameters=True, val_cfg=LOOP)  # fmt: skip
    retina = dict(
        architecture=dict(cfg_path='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
        teacher=dict(cfg_path='mmdet::retinanet/retinanet_r101_fpn_2x_coco.py', pretrained=True),
    )
    write(folder / 'cwd_retina.py', ['./cwd_frcnn.py'], model=retina, optim_wrapper=SGD)
    gfl = dict(
        architecture=dict(cfg_path='mmdet::gfl/gfl_r50_fpn_1x_coco.py', pretrained=False),
        teacher=dict(cfg_path='mmdet::gfl/gfl_r101_fpn_ms-2x_coco.py', pretrained=True),
        teacher_ckpt=GFL_R101,
    )
    write(folder / 'cwd_cls_head_gfl_r101_fpn_gfl_r50_fpn_1x_coco.py', ['./cwd_retina.py'],
          model=gfl)  # fmt: skip
    hooks = dict(
        checkpoint=dict(type='CheckpointHook', interval=-1),
        visualization=dict(
            _scope_='mmrazor',
            type='RazorVisualizationHook',
            enabled=True,
            recorders=dict(neck=dict(_scope_='mmrazor', **outputs('architecture.neck'))),
            mappings=dict(p3=dict(recorder='neck', data_idx=0)),
            out_dir='pictures',
        ),
    )
    write(folder / 'cwd_retina_visualization.py', ['./cwd_retina.py'], default_hooks=hooks)


def _fbkd(folder: Path) -> None:
    own = [dict(reduction=4, maxpool_stride=8), dict(reduction=4, maxpool_stride=4), {}, {}]
    connectors, losses, mappings = {}, {}, {}
    for level, arguments in enumerate(own):
        for side in ('Student', 'Teacher'):
            connectors[f'loss_s{level}_{side}'] = dict(
                type=f'FBKD{side}Connector', in_channels=256, mode='dot_product', sub_sample=True,
                **arguments,
            )  # fmt: skip
        losses[f'loss_s{level}'] = dict(type='FBKDLoss')
        mappings[f'loss_s{level}'] = dict(
            s_input=record(f'neck_s{level}', connector=f'loss_s{level}_Student'),
            t_input=record(f'neck_s{level}', False, connector=f'loss_s{level}_Teacher'),
        )
    sources = {f'neck_s{level}': f'neck.fpn_convs.{level}.conv' for level in range(4)}
    model = algorithm(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
        'mmdet::faster_rcnn/faster-rcnn_r101_fpn_1x_coco.py',
        FRCNN_R101,
        distiller(sources, losses, mappings, connectors=connectors),
    )
    model['type'], model['architecture']['pretrained'] = 'SingleTeacherDistill', True
    write(folder / 'fbkd.py', COCO, model=model, find_unused_parameters=True, val_cfg=LOOP)


def _mgd(folder: Path) -> None:
    connector = dict(type='MGDConnector', student_channels=256, teacher_channels=256,
                     lambda_mgd=0.65)  # fmt: skip
    levels = range(5)
    model = algorithm(
        '',
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py',
        RETINA_R50,
        distiller(
            {f'fpn{level}': f'neck.fpn_convs.{level}.conv' for level in levels},
            {f'loss_mgd_fpn{level}': dict(type='MGDLoss', alpha_mgd=2e-5) for level in levels},
            {
                f'loss_mgd_fpn{level}': dict(
                    preds_S=record(f'fpn{level}', connector=f's_fpn{level}'),
                    preds_T=record(f'fpn{level}', False),
                )
                for level in levels
            },
            connectors={f's_fpn{level}': connector for level in levels},
        ),
    )
    del model['architecture']
    code = [
        'student = _base_.model',
        *(
            f'student.{part}.init_cfg = dict('
            f'type="Pretrained", prefix="{part}.", checkpoint={RETINA_R50!r})'
            for part in ('neck', 'bbox_head')
        ),
        f'model = dict(_delete_=True, architecture=student, **{model!r})',
    ]
    clip = dict(max_norm=35, norm_type=2)
    base = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    write(folder / 'mgd.py', [base], '\n'.join(code),
          val_cfg=LOOP, optim_wrapper=SGD,
          optimizer_config=dict(_delete_=True, grad_clip=clip))  # fmt: skip


def _pkd(folder: Path) -> None:
    twice = [COCO[0], COCO[1].replace('1x', '2x'), COCO[2]]
    losses = of_pyramid(4, type='PKDLoss', loss_weight=6)
    model = algorithm(
        'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py',
        'mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        f'{ZOO}/{LOCAL}',
        losses,
    )
    write(folder / 'pkd_frcnn.py', twice, model=model, val_cfg=LOOP)
    heavier = {name: dict(loss_weight=10) for name in losses['distill_losses']}
    retina = dict(
        architecture=dict(cfg_path='mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'),
        teacher=dict(cfg_path='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
        teacher_ckpt=RETINA_R50,
        distiller=dict(distill_losses=heavier),
    )
    lr = dict(optimizer=dict(lr=0.01))
    write(folder / 'pkd_retina.py', ['./pkd_frcnn.py'], model=retina, optim_wrapper=lr)
    other_teacher = dict(
        architecture=dict(cfg_path='mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'),
        teacher=dict(cfg_path='mmdet::fcos/fcos_r101-caffe_fpn_gn-head-1x_coco.py'),
        teacher_ckpt='work_dirs/fcos/epoch_12.pth',
    )
    once = dict(
        train_cfg=dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
            dict(type='MultiStepLR', begin=0, end=12, by_epoch=True, milestones=[8, 11],
                 gamma=0.1),
        ],
    )  # fmt: skip
    write(folder / 'pkd_fcos.py', ['./pkd_retina.py'], model=other_teacher, **once)
    model = algorithm(
        'mmdet::retinanet/retinanet_r50_fpn_2x_coco.py',
        'mmdet::swin/mask-rcnn_swin-s-p4-w7_fpn_amp-ms-crop-3x_coco.py',
        SWIN,
        losses,
    )
    bases = [COCO[0].replace('detection', 'instance'), *twice[1:]]
    boxes = dict(metric=['bbox'])
    write(folder / 'pkd_swin.py', bases, model=model, val_cfg=LOOP, optim_wrapper=lr,
          val_evaluator=boxes, test_evaluator=boxes)  # fmt: skip


def _seg(folder: Path) -> None:
    losses = dict(loss_cwd=dict(type='ChannelWiseDivergence', tau=1, loss_weight=5))
    model = algorithm(
        'mmseg::pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py',
        'mmseg::pspnet/pspnet_r101-d8_4xb2-80k_cityscapes-512x1024.py',
        PSPNET,
        distiller(dict(logits='decode_head.conv_seg'), losses, dict(loss_cwd=pair('logits'))),
    )
    model['type'] = 'SingleTeacherDistill'
    write(folder / 'cwd_seg.py', CITYSCAPES, model=model, find_unused_parameters=True,
          val_cfg=LOOP)  # fmt: skip


def _rtmdet(folder: Path) -> None:
    """As mmyolo's; the student is a toy of mmdet under the name of one of mmyolo's."""
    (folder / 'distillation').mkdir()
    hooks = [dict(type='EMAHook', ema_type='ExpMomentumEMA')]
    student = toy.detector().to_dict()
    write(folder / 'rtmdet_tiny.py', COCO, model=student, custom_hooks=hooks)
    connectors, mappings, levels = {}, {}, range(3)
    for level in levels:
        connectors[f'fpn{level}_s'] = dict(
            type='ConvModuleConnector', in_channel=16, out_channel=32, bias=False,
            norm_cfg=FROZEN_BN, act_cfg=None,
        )  # fmt: skip
        connectors[f'fpn{level}_t'] = dict(type='NormConnector', in_channels=32,
                                           norm_cfg=FROZEN_BN)  # fmt: skip
        mappings[f'loss_fpn{level}'] = dict(
            preds_S=record(f'fpn{level}', connector=f'fpn{level}_s'),
            preds_T=record(f'fpn{level}', False, connector=f'fpn{level}_t'),
        )
    model = algorithm(
        'mmyolo::rtmdet/rtmdet_tiny.py',
        'mmyolo::rtmdet/rtmdet_s.py',
        'https://somewhere.org/rtmdet_s.pth',
        distiller(
            {f'fpn{level}': f'neck.fpn_convs.{level}.conv' for level in levels},
            {f'loss_fpn{level}': dict(type='ChannelWiseDivergence', loss_weight=1)
             for level in levels},
            mappings,
            connectors=connectors,
        ),
        _delete_=True,
    )  # fmt: skip
    stop = dict(type='mmrazor.StopDistillHook', stop_epoch=280)
    write(folder / 'distillation' / 'kd_tiny.py', '../rtmdet_tiny.py', model=model,
          custom_hooks=[*hooks, stop])  # fmt: skip


def small(folder: Path, distiller: dict[str, Any], bases: Any = (), **others: Any) -> str:
    """A config of mmrazor with toys of mmdet for student and teacher."""
    model = dict(
        _scope_='mmrazor',
        type='SingleTeacherDistill',
        architecture=toy.detector().to_dict(),
        teacher=toy.detector(16).to_dict(),
        teacher_ckpt='teacher.pth',
        distiller=distiller,
    )
    model.update(others.pop('model', {}))
    return str(write(folder / 'small.py', [*bases], model=model, **others))


def pkd(**others: Any) -> dict[str, Any]:
    losses = dict(loss_pkd=dict(type='PKDLoss'))
    return distiller(dict(neck='neck'), losses, dict(loss_pkd=pair('neck')), **others)

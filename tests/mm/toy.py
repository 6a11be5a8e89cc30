"""Tiny real models of mmseg and mmdet, and a data set for each, for tests of kd_dense.mm."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import nn
from torch.utils.data import Dataset

import kd_dense.mm  # noqa: F401

CWD = dict(type='CWDLoss', weight=3.0, temperature=4.0)


def segmenter(width: int = 8, classes: int = 5, dropout: float = 0.1, **others: Any) -> ConfigDict:
    return ConfigDict(
        _scope_='mmseg',
        type='EncoderDecoder',
        data_preprocessor=dict(
            type='SegDataPreProcessor',
            mean=[120.0, 110.0, 100.0],
            std=[60.0, 50.0, 40.0],
            bgr_to_rgb=True,
            size=(32, 32),
        ),
        backbone=dict(
            type='ResNetV1c',
            depth=18,
            stem_channels=width,
            base_channels=width,
            strides=(1, 2, 1, 1),
        ),
        decode_head=dict(
            type='FCNHead',
            in_channels=8 * width,
            channels=width,
            num_convs=1,
            num_classes=classes,
            dropout_ratio=dropout,
            norm_cfg=dict(type='BN'),
        ),
        test_cfg=dict(mode='whole'),
        **others,
    )


def detector(width: int = 8, classes: int = 3, **others: Any) -> ConfigDict:
    return ConfigDict(
        _scope_='mmdet',
        type='RetinaNet',
        data_preprocessor=dict(
            type='DetDataPreprocessor',
            mean=[120.0, 110.0, 100.0],
            std=[60.0, 50.0, 40.0],
            bgr_to_rgb=True,
            pad_size_divisor=32,
        ),
        backbone=dict(type='ResNet', depth=18, base_channels=width, norm_eval=False),
        neck=dict(
            type='FPN',
            in_channels=[width, 2 * width, 4 * width, 8 * width],
            out_channels=2 * width,
            start_level=1,
            add_extra_convs='on_input',
            num_outs=5,
        ),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=classes,
            in_channels=2 * width,
            feat_channels=2 * width,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator',
                octave_base_scale=4,
                scales_per_octave=3,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32, 64, 128],
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_bbox=dict(type='L1Loss'),
        ),
        train_cfg=dict(
            assigner=dict(
                type='MaxIoUAssigner',
                pos_iou_thr=0.5,
                neg_iou_thr=0.4,
                min_pos_iou=0,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
        ),
        test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5)),
        **others,
    )


def logits_term(**loss: Any) -> dict[str, Any]:
    return dict(logits=dict(tap='decode_head.conv_seg', loss={**CWD, **loss}))


def distilled(
    student: Any = None, teacher: Any = None, terms: Any = None, **others: Any
) -> ConfigDict:
    """The config of a distilled toy segmenter, unless told otherwise."""
    return ConfigDict(
        type='kd_dense.Distilled',
        student=segmenter() if student is None else student,
        teacher=dict(config=segmenter(16), checkpoint=None) if teacher is None else teacher,
        terms=logits_term() if terms is None else terms,
        **others,
    )


def distilled_detector(**others: Any) -> ConfigDict:
    return distilled(
        **{
            'student': detector(),
            'teacher': dict(config=detector(16), checkpoint=None),
            'terms': dict(fpn=dict(tap='neck', loss=CWD)),
            **others,
        }
    )


def build(config: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(config)


class SegScenes(Dataset):
    """Random pictures with label maps; each look at one adds noise, as augmentation does."""

    metainfo = dict(classes=tuple('abcde'), palette=[[i, i, i] for i in range(5)])

    def __init__(self, length: int = 8, size: int = 32, augment: bool = True) -> None:
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (length, 3, size, size), dtype=np.uint8)
        self.labels = rng.integers(0, 5, (length, 1, size, size))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmseg.structures import SegDataSample

        image = torch.from_numpy(self.images[index])
        if self.augment:
            image = image ^ torch.randint(0, 16, image.shape, dtype=torch.uint8)
        shape = tuple(image.shape[1:])
        sample = SegDataSample(
            gt_sem_seg=PixelData(data=torch.from_numpy(self.labels[index])),
            metainfo=dict(img_shape=shape, ori_shape=shape),
        )
        return dict(inputs=image, data_samples=sample)


class DetScenes(Dataset):
    """Random pictures of unequal sizes with a few boxes; the first has none."""

    metainfo = dict(classes=tuple('abc'))

    def __init__(self, length: int = 8, sizes: tuple[int, ...] = (64, 50)) -> None:
        rng = np.random.default_rng(0)
        self.sizes = [(64, sizes[i % len(sizes)]) for i in range(length)]
        self.images = [rng.integers(0, 256, (3, *size), dtype=np.uint8) for size in self.sizes]
        self.boxes = [self._boxes(rng, index % 4, size) for index, size in enumerate(self.sizes)]

    @staticmethod
    def _boxes(rng: Any, count: int, size: tuple[int, int]) -> torch.Tensor:
        corners = rng.uniform(0, 25, (count, 2))
        return torch.tensor(
            np.hstack([corners, corners + rng.uniform(10, 25, (count, 2))])
        ).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from mmdet.structures import DetDataSample

        boxes, size = self.boxes[index], self.sizes[index]
        sample = DetDataSample(
            gt_instances=InstanceData(bboxes=boxes, labels=torch.arange(len(boxes)) % 3),
            metainfo=dict(
                img_id=index, img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1, 1)
            ),
        )
        return dict(inputs=torch.from_numpy(self.images[index]), data_samples=sample)


def batch(model: nn.Module, scenes: Dataset | None = None, count: int = 2) -> tuple[Any, Any]:
    """Preprocess the first pictures of a data set for a model."""
    scenes = SegScenes(augment=False) if scenes is None else scenes
    data = [scenes[i] for i in range(count)]
    data = {key: [item[key] for item in data] for key in data[0]}
    data = model.data_preprocessor(data, training=True)
    return data['inputs'], data['data_samples']


def losses(model: nn.Module, scenes: Dataset | None = None, count: int = 2) -> dict[str, Any]:
    return model.train()(*batch(model, scenes, count), mode='loss')


def runner(model: Any, work_dir: Any, max_iters: int = 4, **others: Any) -> Runner:
    """A Runner on the toy data, with a new name so that several can live in one process."""
    config = dict(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            dataset=SegScenes(),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=10**6),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1.0)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=10),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            logger=dict(type='LoggerHook', interval=1),
        ),
        randomness=dict(seed=0),
        log_level='ERROR',
        default_scope='mmengine',
        experiment_name=f'toy{len(DefaultScope._instance_dict)}',
    )
    config.update(others)
    return Runner(**config)

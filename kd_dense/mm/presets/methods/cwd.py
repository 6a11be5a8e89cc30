"""CWD: class logits, or features where there are none."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.presets.settings import COCO, P3_TO_P5, P3_TO_P7, Method, Preset, Sums

__all__ = ['METHODS', 'SUMS']

# What masks are made of in SAN, whose image encoder is frozen.
SAN_PIXELS = 'decode_head.side_adapter_network.mask_decoder.pix_mlp'


def _on(tap: str, **loss: float) -> dict[str, Any]:
    return {'cwd': {'tap': tap, 'loss': {'type': 'CWDLoss', **loss}}}


METHODS = {
    'cwd': Method(
        'where each channel has its activation: class logits, or features',
        (
            Preset(
                models='segmenters with class logits',
                terms=_on('logits', weight=3.0, temperature=4.0),
                inherit=(),
                source='authors, exp_cwd.sh: PSPNet on Cityscapes, class logits',
            ),
            Preset(
                models='SAN',
                part=SAN_PIXELS,
                terms=_on(f'{SAN_PIXELS}[-1]', weight=35.0, temperature=4.0),
                inherit=(),
                source='weights of the authors for features of PSPNet; tap by role',
            ),
            Preset(
                models='other segmenters',
                part='decode_head',
                terms=_on('backbone[-1]', weight=35.0, temperature=4.0),
                inherit=(),
                source='weights of the authors for features of PSPNet; tap by role',
            ),
            Preset(
                models='GFL',
                part='bbox_head.gfl_cls',
                terms=_on('bbox_head.gfl_cls', weight=5.0, temperature=1.0),
                inherit=(),
                source='MMRazor 0.x: GFL on COCO, class logits',
                layout=COCO,
            ),
            Preset(
                models='RTMDet, YOLOX',
                part='neck.out_convs',
                terms={
                    'cwd': {
                        'tap': 'neck.out_convs.*.conv',
                        'loss': {
                            'type': 'CWDLoss',
                            'weight': 1.0,
                            'temperature': 1.0,
                            'standardise': True,
                        },
                        # Without the last 20 of 300 epochs, which have no mosaics.
                        'schedule': {'stop': 14 / 15, 'by_share': True},
                    }
                },
                inherit=(),
                source='MMYOLO: RTMDet on COCO, four pairs',
                layout=P3_TO_P5,
            ),
            Preset(
                models='detectors with a neck',
                terms=_on('neck', weight=10.0, temperature=1.0),
                inherit=(),
                source='MMRazor 1.x: Faster R-CNN and RetinaNet on COCO, pyramid features',
                layout=P3_TO_P7,
            ),
            Preset(
                models='detectors without a neck',
                terms=_on('backbone', weight=10.0, temperature=1.0),
                inherit=(),
                source='weights of MMRazor 1.x for pyramid features; tap by role',
                layout=P3_TO_P7,
            ),
        ),
    ),
}

SUMS: dict[str, Sums] = {'CWDLoss': dict(weight=lambda m: 1)}

"""Every method on tiny models, for what all of them promise."""

from __future__ import annotations

from typing import Any

from torch.utils.data import Dataset

from tests.mm import toy, toy_heads, toy_queries, toy_rois

LOGITS, FEATURES = 'decode_head.conv_seg', 'backbone.layer4'
SEGMENTERS: dict[str, dict[str, Any]] = {
    'cwd': dict(
        features=dict(tap=FEATURES, loss=toy.CWD),
        logits=dict(tap=LOGITS, loss=toy.CWD),
    ),
    # These label maps are noise, without bodies.
    'edge_body': dict(
        edge=dict(tap=LOGITS, loss=dict(type='KDLoss', where='edge', edge=3)),
        places=dict(tap=LOGITS, loss=dict(type='CWDLoss', where='edge', edge=3)),
    ),
    'skd': dict(
        pixel=dict(tap=LOGITS, loss=dict(type='PixelWiseLoss', weight=10.0)),
        pair=dict(tap=FEATURES, loss=dict(type='PairWiseLoss', weight=0.5)),
        holistic=dict(tap=LOGITS, loss=dict(type='HolisticLoss', kind='hinge')),
    ),
    'intrakd': dict(
        affinity=dict(tap=FEATURES, loss=dict(type='IntRALoss', kernel=3)),
        attention=dict(tap=FEATURES, loss=dict(type='AttentionMapLoss')),
    ),
    'logits': dict(
        kd=dict(tap=LOGITS, loss=dict(type='KDLoss')),
        dist=dict(tap=LOGITS, loss=dict(type='DISTLoss')),
        dkd=dict(tap=LOGITS, loss=dict(type='DKDLoss')),
        gdkd=dict(tap=LOGITS, loss=dict(type='GDKDLoss', valid_only=True)),
        nkd=dict(tap=LOGITS, loss=dict(type='NKDLoss', standardise=True)),
        wsld=dict(tap=LOGITS, loss=dict(type='WSLDLoss')),
    ),
    'mimic': dict(
        channels=dict(tap=FEATURES, loss=dict(type='PKDLoss', weight=10.0)),
        direction=dict(tap=FEATURES, loss=dict(type='CosineLoss')),
        focus=dict(tap='backbone', loss=dict(type='FBKDLoss')),
    ),
    'relations': dict(
        class_relations=dict(tap=LOGITS, loss=dict(type='ICKDLoss')),
        like=dict(tap=FEATURES, loss=dict(type='CrossImageLoss', temperature=0.5)),
        images=dict(tap=FEATURES, loss=dict(type='SPLoss', weight=100.0)),
        angles=dict(tap=FEATURES, loss=dict(type='RKDLoss')),
        set=dict(tap=FEATURES, loss=dict(type='NSTLoss')),
    ),
    'attention': dict(
        transfer=dict(tap=FEATURES, loss=dict(type='ATLoss', weight=1000.0)),
        later=dict(
            tap=dict(student='backbone.layer3', teacher=FEATURES), loss=dict(type='SADLoss')
        ),
        moves=dict(tap='backbone[2:]', loss=dict(type='AttentionChangeLoss')),
    ),
    'prototypes': dict(
        variation=dict(tap=FEATURES, loss=dict(type='IFVDLoss')),
        perspectives=dict(tap=FEATURES, loss=dict(type='APDLoss')),
    ),
    # Without a mask, which is another one in each process.
    'generation': dict(
        generated=dict(tap=FEATURES, loss=dict(type='MGDLoss', weight=1e-3, mask_ratio=0.0)),
        contrast=dict(
            tap=FEATURES,
            loss=dict(type='AfDCDLoss', mask_ratio=0.0, pool=1, window=(2, 2)),
        ),
    ),
    # With room for all, and compared with all: which are drawn depends on the process.
    'memory': dict(
        memory=dict(
            tap=FEATURES,
            loss=dict(
                type='MemoryLoss',
                pixel_memory=1024,
                region_memory=16,
                drawn=64,
                pixel_contrast=8192,
                region_contrast=4096,
            ),
        ),
    ),
    'query-masks': dict(
        masks=dict(tap='decode_head', loss=dict(type='QueryMaskLoss', points=None)),
    ),
}
DETECTORS: dict[str, dict[str, Any]] = {
    'cwd-detector': dict(
        fpn=dict(tap='neck', loss=toy.CWD),
        classes=dict(tap='bbox_head.retina_cls', loss=toy.CWD),
    ),
    'fgd': dict(fgd=dict(tap='neck', loss=dict(type='FGDLoss'))),
    'review': dict(review=dict(tap='neck', loss=dict(type='ReviewKDLoss', width=8))),
    'masked': dict(
        frs=dict(tap='neck', loss=dict(type='FRSLoss')),
        defeat=dict(tap='neck', loss=dict(type='DeFeatLoss')),
        fgfi=dict(tap='neck', loss=dict(type='FGFILoss')),
    ),
    'ld': dict(
        ld=dict(tap='bbox_head', loss=dict(type='LDLoss', kd_vlr_weight=1.0)),
        imitation=dict(tap='neck', loss=dict(type='LDImitationLoss', region='finegrained')),
        general=dict(tap='neck', loss=dict(type='LDImitationLoss', region='gibox')),
    ),
    'predictions': dict(
        bckd=dict(tap='bbox_head', loss=dict(type='BCKDLoss')),
        adl=dict(tap='bbox_head', loss=dict(type='ADLLoss')),
        crosskd=dict(
            tap='bbox_head',
            cross_at=1,
            loss=dict(type='CrossKDLoss', boxes='distributions', box_weight=4.0),
        ),
        # Without jitter, which is another one in each process.
        class_tower=dict(tap='bbox_head.cls_convs.0', loss=dict(type='PGDClassLoss', jitter=0.0)),
        box_tower=dict(tap='bbox_head.reg_convs.0', loss=dict(type='PGDBoxLoss', jitter=0.0)),
    ),
    'rois': toy_rois.terms(),
    'erd': dict(erd=dict(tap='bbox_head', loss=dict(type='ERDLoss'))),
    'queries': dict(
        boxes=dict(tap='bbox_head', loss=dict(type='QueryBoxLoss')),
        looks=dict(tap='neck', loss=dict(type='QueryFeatureLoss')),
        points=dict(tap='bbox_head', loss=dict(type='QueryPointLoss')),
    ),
}
METHODS = [*SEGMENTERS, *DETECTORS]


def distilled(method: str, **others: Any) -> Any:
    """A student whose normalisation does not depend on how a batch is split."""
    norm = dict(type='GN', num_groups=2)
    if method == 'query-masks':
        student, teacher = (toy_queries.mask_model('seg-maskformer', q) for q in (7, 5))
    elif method in SEGMENTERS:
        student, teacher = toy.segmenter(dropout=0.0), toy.segmenter(16)
        student.decode_head.norm_cfg = norm
    elif method in ('ld', 'predictions'):
        student, teacher = toy_heads.detector('gfl'), toy_heads.detector('gfl', 16)
    elif method == 'erd':
        student = toy_heads.incremental(old_classes=2)
        teacher = toy_heads.detector('gfl', 16, num_classes=2)
    elif method == 'rois':
        student, teacher = toy_rois.detector(), toy_rois.detector(16)
        student.train_cfg.rcnn.sampler = dict(type='PseudoSampler')  # the others draw lots
    elif method == 'queries':
        student, teacher = toy_queries.model('dab'), toy_queries.model('dab', queries=5, layers=1)
    else:
        student, teacher = toy.detector(), toy.detector(16)
    student.backbone.norm_cfg = norm
    terms = (SEGMENTERS | DETECTORS)[method]
    return toy.distilled(student, dict(config=teacher, checkpoint=None), terms, **others)


def scenes(method: str) -> Dataset:
    """Pictures of one size, always the same."""
    if method in SEGMENTERS:
        return toy.SegScenes(augment=False)
    return toy.DetScenes(sizes=(64,))

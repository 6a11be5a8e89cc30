"""Whatever maps, boxes and labels come: every loss and its gradient are finite."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kd_dense import losses
from kd_dense.adapters import Adapter, resize
from kd_dense.critic import Critic, critic_loss, gradient_penalty
from kd_dense.losses import Decoders, DistillLoss, HeadTargets, HolisticLoss, TaughtQueries
from kd_dense.losses.features.masked import Anchors
from kd_dense.losses.predictions.boxes import (
    Decoded,
    HeadBoxes,
    decode_distances,
    expected_distances,
    rows_of_priors,
)
from kd_dense.losses.queries.features import rate_queries

LARGEST = 65504.0  # of float16
SMALLEST = 6e-8
CLASSES = 3
BINS = 4
STRIDES = (8, 16)
SIDE = 32  # pixels of the pictures

# The settings of each loss that are tried. A loss that is not here fails the first test.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    'CWDLoss': [
        dict(),
        dict(norm='spatial'),
        dict(divergence='mse'),
        dict(norm='spatial', divergence='mse'),
        dict(norm='channel_mean', divergence='mse'),
        dict(norm='none', divergence='mse'),
        dict(standardise=True),
        dict(where='body', edge=3),
        dict(norm='spatial', where='edge', edge=3),
    ],  # channel_mean with kl is defined for positive means only
    'FGDLoss': [dict(), dict(box_scale='image'), dict(relative_temperature=True)],
    'PixelWiseLoss': [dict(), dict(divergence='kl'), dict(published_batch=None)],
    'PairWiseLoss': [dict(), dict(scale=1.0), dict(scale=0.01), dict(detach_norm=False)],
    'HolisticLoss': [
        dict(),
        dict(preprocess='tanh', kind='hinge'),
        dict(preprocess='image'),
    ],
    'IntRALoss': [
        dict(kernel=3),
        dict(regions='smooth', kernel=3),
        dict(kernel=1, pixels='literal'),
        dict(kernel=5, third_denominator='var', normaliser='all'),
        dict(kernel=3, ignore_index=0),
    ],
    'AttentionMapLoss': [dict(), dict(norm='softmax')],
    'ATLoss': [dict()],
    'SADLoss': [dict(), dict(detach=False)],
    'AttentionChangeLoss': [dict()],
    'IFVDLoss': [dict()],
    'APDLoss': [dict()],
    'MimicLoss': [
        dict(distance='smooth_l1'),
        dict(norm='batch', reduction='root'),
        dict(norm='map', distance='squared', reduction='image'),
    ],
    'FitNetsLoss': [dict(), dict(pooled=(4, 2, 1))],
    'PKDLoss': [dict()],
    'VkDLoss': [dict()],
    'NFDLoss': [dict()],
    'FTLoss': [dict()],
    'CosineLoss': [dict()],
    'FBKDLoss': [dict()],
    'RelationLoss': [
        dict(over='positions', values='unit', rows='none', reduction='mean'),
        dict(values='places', rows='none', pool=2, temperature=4.0),
        dict(over='images', values='classes', rows='none', temperature=4.0),
    ],
    'ICKDLoss': [dict(), dict(pool=2)],
    'SPLoss': [dict(), dict(rows='l1')],
    'RKDLoss': [dict(), dict(over_norm=False)],
    'PKTLoss': [dict()],
    'CCKDLoss': [dict(), dict(kernel='bilinear')],
    'CrossImageLoss': [dict(), dict(pool=2)],
    'NSTLoss': [dict()],
    'MGDLoss': [dict(), dict(mask_over='channels')],
    'AfDCDLoss': [dict(pool=2, window=(2, 2)), dict(deep=True)],
    'CAMKDLoss': [dict(), dict(confidence='image', per_teacher=True)],
    'KDLoss': [
        dict(),
        dict(where='edge', edge=3),
        dict(sigmoid=True, valid_only=False),
        dict(per='map'),
    ],
    'DISTLoss': [dict(), dict(sigmoid=True), dict(per_image=True)],
    'DKDLoss': [dict(), dict(beta=8.0, reduction='sum')],
    'GDKDLoss': [dict(), dict(k=1, valid_only=True)],
    'NKDLoss': [dict()],
    'WSLDLoss': [dict()],
    'LwFLoss': [dict()],
    'UnbiasedKDLoss': [dict()],
    'FRSLoss': [dict()],
    'DeFeatLoss': [dict()],
    'FGFILoss': [dict()],
    'ReviewKDLoss': [dict(width=2)],
    'MemoryLoss': [
        dict(pixel_memory=16, region_memory=4),
        dict(pixel_memory=16, region_memory=4, queue='code', literal=True),
    ],
    'RoIBoxLoss': [dict(), dict(beta=0.0)],
    'ERDLoss': [dict(), dict(without_strides=True), dict(candidates=1, sigmas=0.5)],
    'QueryBoxLoss': [dict(), dict(sigmoid=False), dict(unmatched='code')],
    'QueryFeatureLoss': [dict()],
    'QueryPointLoss': [dict(), dict(published_batch=None)],
    'QueryMaskLoss': [dict(), dict(points=2, sigmoid=True)],
    'BCKDLoss': [dict(), dict(positive_levels_only=False)],
    'ADLLoss': [dict(), dict(power=None)],
    'CrossKDLoss': [dict(boxes=boxes) for boxes in ('giou', 'iou', 'distributions')],
    'PGDClassLoss': [dict(), dict(mix_images=True)],
    'PGDBoxLoss': [dict()],
    'RotatedLDLoss': [dict(), dict(around='unturned')],
    'LDLoss': [
        dict(kd_vlr_weight=1.0),
        dict(kd_vlr_weight=1.0, diou='code'),
        dict(kd_vlr_weight=1.0, region='inside'),
        dict(kd_vlr_weight=1.0, joint_sides=True, vlr_on_positives=False, topk=1),
    ],
    'LDImitationLoss': [
        *(dict(region=region) for region in ('main', 'inside', 'finegrained', 'gibox', 'all')),
        dict(region='gibox', mix_images=True, positive_levels_only=True),
        dict(region='decoupled'),
        dict(region='decoupled', background_weight=16.0, positive_levels_only=True),
    ],
}
CASES = [(name, options) for name, variants in SETTINGS.items() for options in variants]
# The functions are reached through these.
FUNCTIONS = dict(
    cwd_loss='CWDLoss',
    fgd_loss='FGDLoss',
    pixel_wise_loss='PixelWiseLoss',
    pair_wise_loss='PairWiseLoss',
    intra_loss='IntRALoss',
    attention_map_loss='AttentionMapLoss',
    ld_loss='LDLoss',
    bckd_loss='BCKDLoss',
    adl_loss='ADLLoss',
    crosskd_loss='CrossKDLoss',
    pgd_class_loss='PGDClassLoss',
    pgd_box_loss='PGDBoxLoss',
    rotated_ld_loss='RotatedLDLoss',
    query_box_loss='QueryBoxLoss',
    query_feature_loss='QueryFeatureLoss',
    query_mask_loss='QueryMaskLoss',
    query_point_loss='QueryPointLoss',
    kd_loss='KDLoss',
    camkd_loss='CAMKDLoss',
    dist_loss='DISTLoss',
    dkd_loss='DKDLoss',
    gdkd_loss='GDKDLoss',
    nkd_loss='NKDLoss',
    wsld_loss='WSLDLoss',
    lwf_loss='LwFLoss',
    unbiased_kd_loss='UnbiasedKDLoss',
    roi_box_loss='RoIBoxLoss',
    erd_loss='ERDLoss',
    unbiased_cross_entropy='UnbiasedKDLoss',  # what stands beside it; of plain operators
    mimic_loss='MimicLoss',
    sad_loss='SADLoss',
    attention_change_loss='AttentionChangeLoss',
    ifvd_loss='IFVDLoss',
    apd_loss='APDLoss',
    relation_loss='RelationLoss',
    rkd_loss='RKDLoss',
    pkt_loss='PKTLoss',
    cckd_loss='CCKDLoss',
    cross_image_loss='CrossImageLoss',
    nst_loss='NSTLoss',
    fbkd_loss='FBKDLoss',
    review_loss='ReviewKDLoss',
    memory_loss='MemoryLoss',
    masked_loss='DeFeatLoss',
    mgd_loss='MGDLoss',
    af_dcd_loss='AfDCDLoss',
)
# With layers of their own, which they put between the two maps; NKD, which has a label beside the
# teacher; DIST and PKT, whose correlations of what is almost constant depend on an epsilon; and
# queries, whose boxes are clamped in the teacher alone, and whose masks overlap most where they
# are sharp.
NO_DIVERGENCES = {'HolisticLoss', 'FBKDLoss', 'ReviewKDLoss', 'MemoryLoss', 'MGDLoss', 'AfDCDLoss',
                  'NKDLoss', 'DISTLoss', 'PKTLoss', 'APDLoss', 'QueryBoxLoss', 'QueryMaskLoss',
                  'QueryPointLoss'}  # fmt: skip


# They compare the maps of heads with distributions of boxes.
OF_HEADS = {'LDLoss', 'ERDLoss', 'BCKDLoss', 'ADLLoss', 'CrossKDLoss', 'RotatedLDLoss'}

# They compare the maps of a neck, beside what heads yield.
OF_PYRAMIDS = {'LDImitationLoss', 'PGDClassLoss', 'PGDBoxLoss', 'FRSLoss', 'DeFeatLoss',
               'FGFILoss'}  # fmt: skip


class Scene(NamedTuple):
    """What a test is made from; pixels and values follow from the seed."""

    seed: int
    images: int
    channels: int
    size: tuple[int, int]
    student: str
    teacher: str
    student_dtype: torch.dtype
    teacher_dtype: torch.dtype
    boxes: list[str]
    labels: str
    temperature: float

    def half(self) -> bool:
        """Whether the student's maps are of half precision."""
        like_teacher = self.student == 'as the teacher'
        return (self.teacher_dtype if like_teacher else self.student_dtype).itemsize < 4


CONTENTS = {
    'random': lambda shape: 3 * torch.randn(shape),
    'constant': lambda shape: torch.full(shape, 1.7),
    'zero': torch.zeros,
    'largest': lambda shape: LARGEST * (2 * torch.randint(2, shape) - 1).float(),
    'one sign': lambda shape: torch.full(shape, LARGEST),
    'smallest': lambda shape: SMALLEST * (2 * torch.randint(2, shape) - 1).float(),
    'outlier': lambda shape: torch.zeros(shape).flatten().index_fill(
        0, torch.tensor([0]), LARGEST
    ).view(shape),
    'magnitudes': lambda shape: torch.randn(shape) * 10 ** torch.empty(shape).uniform_(-6, 4),
}  # fmt: skip
BOXES = {
    'none': lambda: torch.zeros(0, 4),
    'ordinary': lambda: torch.tensor([[3.0, 5.0, 20.0, 30.0], [8.0, 8.0, 12.0, 12.0]]),
    'a point': lambda: torch.tensor([[8.0, 8.0, 8.0, 8.0]]),
    'a line': lambda: torch.tensor([[4.0, 8.0, 28.0, 8.0]]),
    'reversed': lambda: torch.tensor([[20.0, 30.0, 3.0, 5.0]]),
    'beside the picture': lambda: torch.tensor([[-30.0, -30.0, -5.0, -5.0], [90.0, 9, 99.0, 20]]),
    'beyond the picture': lambda: torch.tensor([[-1e3, -1e3, 1e3, 1e3], [0.0, 0.0, 1e7, 1e7]]),
    'tiny': lambda: torch.tensor([[8.0, 8.0, 8.0 + 1e-5, 8.0 + 1e-5]]),
    'the same twice': lambda: torch.tensor([[4.0, 4.0, 20.0, 20.0]] * 2),
    'a thousand': lambda: torch.rand(1000, 4).mul(SIDE).sort(1).values[:, [0, 1, 2, 3]],
}
LABELS = {
    'random': lambda shape: torch.randint(CLASSES, shape),
    'some ignored': lambda shape: torch.where(torch.rand(shape) < 0.3, 255, 1),
    'all ignored': lambda shape: torch.full(shape, 255),
    'one class': lambda shape: torch.full(shape, 1),
    'no class': lambda shape: torch.full(shape, -1),
    'one pixel of a class': lambda shape: torch.full(shape, 2).flatten().index_fill(
        0, torch.tensor([0]), 0
    ).view(shape),
}  # fmt: skip
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

SCENES = st.builds(
    Scene,
    seed=st.integers(0, 2**16),
    images=st.integers(1, 3),
    channels=st.integers(1, 4),
    size=st.sampled_from([(1, 1), (1, 6), (5, 1), (2, 2), (4, 5), (7, 3)]),
    student=st.sampled_from(['as the teacher', *CONTENTS]),
    teacher=st.sampled_from([*CONTENTS]),
    student_dtype=st.sampled_from(DTYPES),
    teacher_dtype=st.sampled_from(DTYPES),
    boxes=st.lists(st.sampled_from([*BOXES]), min_size=3, max_size=3),
    labels=st.sampled_from([*LABELS]),
    temperature=st.sampled_from([1e-4, 0.1, 0.5, 1.0, 4.0, 10.0, 1e3, 1e6]),
)
PLAIN = Scene(
    0, 2, 3, (4, 5), 'random', 'random', torch.float32, torch.float32,
    ['ordinary'] * 3, 'random', 1.0,
)  # fmt: skip


def quickly(test: Any) -> Any:
    return settings(max_examples=10, derandomize=True, deadline=None, database=None)(test)


def at_length(test: Any) -> Any:
    return settings(max_examples=200, derandomize=True, deadline=None, database=None)(test)


def build(name: str, options: dict[str, Any], scene: Scene) -> DistillLoss:
    kind = getattr(losses, name)
    takes = inspect.signature(kind).parameters
    widths: Any = [scene.channels] if kind.all_maps else scene.channels
    given = dict(
        channels=scene.channels,
        student_channels=widths,
        teacher_channels=widths,
        num_classes=CLASSES,
        temperature=scene.temperature,
    )
    options = {**{k: v for k, v in given.items() if k in takes}, **options}
    if name == 'HolisticLoss':
        options['width'] = 2
    torch.manual_seed(scene.seed)
    built: DistillLoss = kind(**options)
    return built


def shapes(name: str, scene: Scene) -> list[tuple[int, ...]]:
    """Of the maps that a loss compares."""
    if name in OF_HEADS:
        sides, sizes = 5 if name == 'RotatedLDLoss' else 4, [scene.size, (1, 1)]
        return [(scene.images, c, *s) for c in (CLASSES, sides * BINS) for s in sizes]
    if name == 'QueryMaskLoss':  # of two layers
        logits = (scene.images, 3, scene.channels)
        return [logits, logits, *[(scene.images, 3, *scene.size)] * 2]
    if name in ('QueryBoxLoss', 'QueryPointLoss'):  # as well
        return [(scene.images, 4, size) for size in (scene.channels, scene.channels, 4, 4)]
    if name in (
        'LDImitationLoss',
        'PGDClassLoss',
        'PGDBoxLoss',
        'FRSLoss',
        'DeFeatLoss',
        'FGFILoss',
    ):
        return [(scene.images, scene.channels, *s) for s in (scene.size, (1, 1))]
    if name == 'AttentionChangeLoss':
        return [(scene.images, c, *scene.size) for c in (scene.channels, CLASSES)]
    if name == 'RoIBoxLoss':
        return [(scene.images, 4 * CLASSES)]
    return [(scene.images, scene.channels, *scene.size)]


def maps(name: str, scene: Scene) -> tuple[list[Tensor], list[Tensor]]:
    torch.manual_seed(scene.seed)
    teacher = [CONTENTS[scene.teacher](s).to(scene.teacher_dtype) for s in shapes(name, scene)]
    several = [torch.cat([x, x]) for x in teacher] if name == 'CAMKDLoss' else teacher
    if scene.student == 'as the teacher':
        return [x.clone() for x in teacher], several
    student = [CONTENTS[scene.student](s).to(scene.student_dtype) for s in shapes(name, scene)]
    return student, several


def head_targets(scene: Scene) -> HeadTargets:
    torch.manual_seed(scene.seed)
    priors = []
    for stride, (height, width) in zip(STRIDES, (scene.size, (1, 1)), strict=True):
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
        corner = stride * torch.stack([x, y, x, y], -1).view(-1, 4).float()
        priors.append(corner + stride * torch.tensor([-1.5, -1.5, 2.5, 2.5]))
    label = {'all ignored': CLASSES, 'no class': -1, 'one class': 0}.get(scene.labels)
    sizes = [(scene.images, len(x)) for x in priors]
    weight = 0.0 if scene.labels == 'all ignored' else 1.0
    return HeadTargets(
        priors=priors,
        labels=[
            torch.randint(CLASSES + 1, s) if label is None else torch.full(s, label) for s in sizes
        ],
        label_weights=[torch.full(s, weight) for s in sizes],
        valid=[torch.full(s, scene.labels != 'all ignored') for s in sizes],
        boxes=[BOXES[kind]() for kind in scene.boxes[: scene.images]],
        num_classes=CLASSES,
        strides=[*STRIDES],
    )


def head_boxes(scene: Scene) -> HeadBoxes:
    priors = head_targets(scene).priors

    def decode(levels: list[Tensor]) -> Decoded:
        distances = (expected_distances(rows_of_priors(x, 1)) for x in levels)
        both = zip(priors, distances, STRIDES, strict=True)
        return Decoded(priors, [decode_distances(p, stride * x) for p, x, stride in both])

    return HeadBoxes(decode, decode)


def extras(loss: DistillLoss, scene: Scene) -> dict[str, Any]:
    torch.manual_seed(scene.seed)
    found: dict[str, Any] = dict(
        boxes=[BOXES[kind]() for kind in scene.boxes[: scene.images]],
        batch_shape=(SIDE, SIDE),
        image_shapes=[(SIDE - 7 * i, SIDE - i) for i in range(scene.images)],
        segmentation=LABELS[scene.labels]((scene.images, *(2 * s for s in scene.size))),
    )
    if isinstance(loss, losses.RoIBoxLoss):
        found['segmentation'] = LABELS[scene.labels]((scene.images,))
    if 'head_targets' in loss.needs:
        found['head_targets'] = head_targets(scene)
    if isinstance(loss, losses.RotatedLDLoss):
        rotated = [torch.cat([b, b[:, :1] / SIDE], 1) for b in found['boxes']]
        found['head_targets'] = found['head_targets']._replace(rotated=rotated)
    if 'labels' in loss.needs:
        found['labels'] = [torch.randint(CLASSES, (len(b),)) for b in found['boxes']]
    if 'head_boxes' in loss.needs:
        found['head_boxes'] = head_boxes(scene)
    if 'head_outputs' in loss.needs:
        found['head_outputs'] = maps('LDLoss', scene)
    if 'anchors' in loss.needs:
        base = torch.tensor([[-8.0, -8.0, 8.0, 8.0]])
        found['anchors'] = Anchors([base, 2 * base], [(s, s) for s in STRIDES])
    if 'taught_queries' in loss.needs:
        found['taught_queries'] = taught_queries(scene)
    return {name: found[name] for name in loss.needs if name in found}


def taught_queries(scene: Scene) -> TaughtQueries:
    """Of a decoder of two layers, as wide as the maps."""
    states, logits, boxes = (
        [CONTENTS[scene.teacher]((scene.images, 3, n)).to(scene.teacher_dtype) for _ in range(2)]
        for n in (scene.channels, CLASSES, 4)
    )
    objects = [BOXES[kind]() for kind in scene.boxes[: scene.images]]
    return rate_queries(states, logits, boxes, objects, [(SIDE, SIDE)] * scene.images)


def results(name: str, loss: DistillLoss, scene: Scene, dtype: Any = None) -> tuple[Any, Any]:
    """Values and gradients of the maps, of a call that must change nothing that it is given."""
    student, teacher = maps(name, scene)
    leaves = [x.to(dtype or x.dtype).requires_grad_() for x in student]
    given = (leaves, teacher) if loss.all_maps else (leaves[0], teacher[0])
    more = extras(loss, scene)
    if 'decoders' in loss.needs:
        more['decoders'] = Decoders(lambda _: leaves, lambda _: teacher, torch.zeros(1, 4, 4))
    result = loss(*given, **more)
    values = [*result.values()] if isinstance(result, dict) else [result]
    sum(values).backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    return values, grads


def all_is_finite(name: str, options: dict[str, Any], scene: Scene) -> None:
    if name in ('FGDLoss', 'AfDCDLoss'):  # by their constructors
        scene = scene._replace(channels=max(2, scene.channels))
    loss = build(name, options, scene)
    values, exact = results(name, loss, scene, torch.float32)
    for value in values:
        assert value.dtype == torch.float32
        assert value.isfinite(), value
    assert all(grad.isfinite().all() for grad in exact)
    if isinstance(loss, HolisticLoss):
        assert loss.critic_backward().isfinite()
    for parameter in loss.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()

    if scene.half():
        # The gradient is lost only where it is no number of half precision.
        loss = build(name, options, scene)
        values, grads = results(name, loss, scene)
        assert all(value.isfinite() and value.dtype == torch.float32 for value in values)
        for grad, full in zip(grads, exact, strict=True):
            representable = full.abs() < torch.finfo(grad.dtype).max / 2
            assert grad[representable].isfinite().all()

    if name not in NO_DIVERGENCES and scene.student == 'as the teacher':
        largest = max(float(x.abs().max()) for x in maps(name, scene)[0])
        assert all(grad.abs().max() <= 1e-6 * (1 + largest) for grad in exact)


def test_every_loss_is_here():
    exported = {name: getattr(losses, name) for name in losses.__all__}
    modules = {
        name
        for name, value in exported.items()
        if inspect.isclass(value) and issubclass(value, DistillLoss) and value is not DistillLoss
    }
    assert modules == SETTINGS.keys(), 'a new loss needs settings that are tried here'
    assert {name for name, value in exported.items() if inspect.isfunction(value)} == {*FUNCTIONS}
    assert set(FUNCTIONS.values()) <= modules


@pytest.mark.parametrize(('name', 'options'), CASES, ids=lambda x: x if isinstance(x, str) else '')
@quickly
@given(scene=SCENES)
def test_finite(name: str, options: dict[str, Any], scene: Scene) -> None:
    all_is_finite(name, options, scene)


@pytest.mark.long
@pytest.mark.parametrize(('name', 'options'), CASES, ids=lambda x: x if isinstance(x, str) else '')
@at_length
@given(scene=SCENES)
def test_finite_at_length(name: str, options: dict[str, Any], scene: Scene) -> None:
    all_is_finite(name, options, scene)


HALF = torch.float16
EXTREMES = [
    PLAIN,
    PLAIN._replace(student='largest', teacher='largest'),
    PLAIN._replace(teacher='largest', teacher_dtype=torch.float16),
    PLAIN._replace(student='one sign', teacher='zero', student_dtype=torch.float16),
    PLAIN._replace(student='constant', teacher='constant'),
    PLAIN._replace(student='zero', teacher='zero'),
    PLAIN._replace(student='zero'),
    PLAIN._replace(teacher='zero'),
    PLAIN._replace(student='smallest', teacher='smallest'),
    PLAIN._replace(student='as the teacher'),
    PLAIN._replace(size=(1, 1)),
    PLAIN._replace(size=(1, 1), images=1, channels=1),
    PLAIN._replace(labels='all ignored'),
    PLAIN._replace(images=1),
    PLAIN._replace(temperature=1e-4),
    PLAIN._replace(temperature=1e6),
    PLAIN._replace(temperature=1e-4, student='largest', teacher='largest'),
    PLAIN._replace(student_dtype=torch.float16, teacher_dtype=torch.bfloat16),
    PLAIN._replace(student_dtype=torch.bfloat16, teacher_dtype=torch.bfloat16),
    *(
        PLAIN._replace(student=s, teacher=t, student_dtype=HALF, teacher_dtype=HALF)
        for s, t in (('random', 'random'), ('largest', 'largest'), ('one sign', 'zero'))
    ),
    *(PLAIN._replace(boxes=[kind] * 3) for kind in BOXES),
]


@pytest.mark.parametrize(('name', 'options'), CASES, ids=lambda x: x if isinstance(x, str) else '')
def test_finite_at_the_extremes(name: str, options: dict[str, Any]) -> None:
    """The same, at points that chance need not hit."""
    for scene in EXTREMES:
        all_is_finite(name, options, scene)


@quickly
@given(scene=SCENES, channels=st.integers(1, 3), size=st.sampled_from([(1, 1), (3, 4), (9, 9)]))
def test_adapters(scene: Scene, channels: int, size: tuple[int, int]) -> None:
    (x,), _ = maps('CWDLoss', scene)
    resized = resize(x, size)
    assert resized.dtype == x.dtype
    assert resized.isfinite().all()
    assert resized.abs().max() <= x.abs().max() * 1.01
    adapter = Adapter(scene.channels, channels)
    x = x.float().requires_grad_()
    y = adapter(x, size)
    y.mean().backward()
    assert y.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@quickly
@given(scene=SCENES, preprocess=st.sampled_from(['batch_norm', 'tanh', 'image']))
def test_critic(scene: Scene, preprocess: Any) -> None:
    (student,), (teacher,) = maps('CWDLoss', scene)
    critic = Critic(scene.channels, preprocess, width=2)
    scores = critic(student), critic(teacher)
    for kind in ('wgan-gp', 'hinge'):
        assert critic_loss(*scores, kind=kind).isfinite()  # type: ignore[arg-type]
    penalty = gradient_penalty(critic, student.float(), teacher.float())
    (critic_loss(*scores) + penalty).backward()
    assert penalty.isfinite()
    for parameter in critic.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()

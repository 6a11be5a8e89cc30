"""No loss makes the host wait for the device: not forward, not backward."""

import inspect
from unittest import mock

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kd_dense import losses
from kd_dense.losses import (
    ADLLoss,
    AfDCDLoss,
    APDLoss,
    ATLoss,
    AttentionChangeLoss,
    AttentionMapLoss,
    BCKDLoss,
    CAMKDLoss,
    CCKDLoss,
    CosineLoss,
    CrossImageLoss,
    CrossKDLoss,
    CWDLoss,
    DeFeatLoss,
    DistillLoss,
    DISTLoss,
    DKDLoss,
    ERDLoss,
    FBKDLoss,
    FGDLoss,
    FGFILoss,
    FitNetsLoss,
    FRSLoss,
    FTLoss,
    GDKDLoss,
    HolisticLoss,
    ICKDLoss,
    IFVDLoss,
    IntRALoss,
    KDLoss,
    LDImitationLoss,
    LDLoss,
    LwFLoss,
    MemoryLoss,
    MGDLoss,
    MimicLoss,
    NFDLoss,
    NKDLoss,
    NSTLoss,
    PairWiseLoss,
    PGDBoxLoss,
    PGDClassLoss,
    PixelWiseLoss,
    PKDLoss,
    PKTLoss,
    QueryBoxLoss,
    QueryFeatureLoss,
    QueryMaskLoss,
    QueryPointLoss,
    RelationLoss,
    ReviewKDLoss,
    RKDLoss,
    RoIBoxLoss,
    RotatedLDLoss,
    SADLoss,
    SPLoss,
    UnbiasedKDLoss,
    VkDLoss,
    WSLDLoss,
)
from kd_dense.losses.features.masked import Anchors
from kd_dense.losses.queries import matching
from kd_dense.losses.queries.features import rate_queries
from tests.losses.ld_head import SHAPES, make_maps, make_targets
from tests.losses.test_fgd import BATCH, BOXES, NO_BOXES
from tests.losses.test_ld import VARIANTS
from tests.losses.test_ld_rotated import rotated_maps, rotated_targets
from tests.losses.test_predictions import boxes_of_distributions
from tests.losses.test_queries import make_masks, make_queries, points_of


class SyncError(AssertionError):
    pass


WAITING_OPERATORS = {
    '_linalg_check_errors',
    '_local_scalar_dense',
    '_unique',
    '_unique2',
    'allclose',
    'bincount',
    'equal',
    'is_nonzero',
    'item',
    'masked_select',
    'multinomial',
    'nonzero',
    'nonzero_numpy',
    'unique_consecutive',
    'unique_dim',
    'unique_dim_consecutive',
}
READING_METHODS = {
    '__array__',
    '__bool__',
    '__float__',
    '__index__',
    '__int__',
    'cpu',
    'item',
    'numpy',
    'tolist',
}


class Dispatched(TorchDispatchMode):
    """Refuses operators whose result, or its size, has to reach the host, and slow copies."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix('aten::')
        if name in WAITING_OPERATORS:
            raise SyncError(name)
        if name == 'repeat_interleave' and not kwargs.get('output_size'):
            raise SyncError(name)
        if name.startswith(('index', '_index', '_unsafe_index')) and any(
            x.dtype in (torch.bool, torch.uint8)
            for x in tree_leaves(args[1:2])
            if isinstance(x, torch.Tensor)
        ):
            raise SyncError(f'{name} by a mask')
        result = func(*args, **kwargs)
        if name in ('_to_copy', 'copy_') and not (kwargs.get('non_blocking') or args[2:]):
            source = args[0] if name == '_to_copy' else args[1]
            if source.device != result.device:
                raise SyncError(f'copy from {source.device} to {result.device}')
        return result


class Called(TorchFunctionMode):
    """Refuses what reads a tensor of the host without an operator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, '__name__', '')
        if name in READING_METHODS:
            raise SyncError(name)
        if name == 'to' and any(x == 'cpu' for x in (*args, kwargs.get('device'))
                                if isinstance(x, str)):  # fmt: skip
            raise SyncError('to the host')
        return func(*args, **kwargs)


class Late(torch.autograd.Function):
    """Waits in its backward pass."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * float(grad.max())


WAITING = {
    'item': lambda x: x.sum().item(),
    'float': lambda x: float(x[0]),
    'int': lambda x: int(x[0]),
    'bool': lambda x: x if x.sum() > 0 else -x,
    'range': lambda x: range(x.long()[0]),
    'slice': lambda x: x[: x.argmax()],
    'tolist': lambda x: x.detach().tolist(),
    'numpy': lambda x: x.detach().numpy(),
    'values': lambda x: sum(float(v) for v in x),
    'nonzero': lambda x: x.nonzero(),
    'where': lambda x: torch.where(x > 0),
    'masked_select': lambda x: x.masked_select(x > 0),
    'index': lambda x: x[x > 0],
    'index_put': lambda x: x.clone().index_put_((x > 0,), x.new_zeros(())),
    'set': lambda x: x.detach().clone().__setitem__(x > 0, x.detach()[:2]),
    'unique': lambda x: x.unique(),
    'unique_consecutive': lambda x: x.unique_consecutive(),
    'equal': lambda x: torch.equal(x, x + 0),
    'allclose': lambda x: torch.allclose(x, x + 0),
    'bincount': lambda x: x.long().bincount(),
    'repeat': lambda x: x.repeat_interleave(x.long()),
    'one_hot': lambda x: torch.nn.functional.one_hot(x.long()),
    'cpu': lambda x: x.cpu(),
    'to': lambda x: x.to('cpu'),
    'upload': lambda x: x.to('meta'),
    'to device': lambda x: x.to(device='cpu'),
    'backward': lambda x: Late.apply(x).sum().backward(),
}  # fmt: skip


@pytest.mark.parametrize('kind', WAITING)
def test_what_waits_is_found(kind):
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    with pytest.raises(SyncError, match=r'\w'), Dispatched(), Called():
        WAITING[kind](x)


def test_what_does_not_wait_is_allowed():
    x = torch.tensor([0.0, 1.0, 2.0], requires_grad=True)
    with Dispatched(), Called():
        taken = x[torch.tensor([0, 2])] + x[1:] + x.gather(0, x.argmax()[None])
        x.to('meta', non_blocking=True)
        masked = torch.where(x > 0, x, 0).masked_fill(x > 1, 0.0).to(x.device)
        (taken.sum() + masked.double().sum()).backward()


def head(device, dtype, targets=make_targets, maps=make_maps):
    """What a head yields in student and teacher, and its targets."""
    targets = tree_map_only(torch.Tensor, lambda x: x.to(device), targets(dtype=dtype))
    student, teacher = ([x.to(device) for x in maps(seed=seed, dtype=dtype)] for seed in (0, 1))
    return [x.requires_grad_() for x in student], teacher, targets


def cases():
    """Each loss in all its forms: how it is made, and what it asks for."""
    for norm in ('channel', 'spatial', 'channel_mean', 'none'):
        for divergence in ('kl', 'mse') if norm != 'none' else ('mse',):
            yield CWDLoss, dict(norm=norm, divergence=divergence, temperature=2.0)
    yield CWDLoss, dict(norm='none', divergence='mse', first_image_only=True)
    yield CWDLoss, dict(standardise=True)
    yield CWDLoss, dict(where='body', edge=3)
    yield CWDLoss, dict(norm='spatial', where='edge', edge=3)
    yield KDLoss, dict(where='edge', edge=3)
    for divergence in ('cross_entropy', 'kl'):
        yield PixelWiseLoss, dict(divergence=divergence)
    for detach_norm in (True, False):
        yield PairWiseLoss, dict(detach_norm=detach_norm)
    for kind in ('wgan-gp', 'hinge'):
        for preprocess in ('batch_norm', 'tanh', 'image'):
            yield HolisticLoss, dict(channels=4, kind=kind, preprocess=preprocess, width=8)
    for regions in ('dilate', 'smooth'):
        for pixels in ('inside', 'literal'):
            for normaliser, third in (('present', 'std'), ('all', 'var')):
                yield IntRALoss, dict(num_classes=3, kernel=3, regions=regions, pixels=pixels,
                                      normaliser=normaliser, third_denominator=third)  # fmt: skip
    for norm in ('l2', 'softmax'):
        yield AttentionMapLoss, dict(norm=norm)
    for kind in (ATLoss, AttentionChangeLoss):
        yield kind, {}
    for detach in (True, False):
        yield SADLoss, dict(detach=detach)
    yield IFVDLoss, dict(num_classes=3)
    yield APDLoss, dict(num_classes=3, channels=4)
    for box_scale in ('batch', 'image'):
        yield FGDLoss, dict(channels=4, box_scale=box_scale)
    yield FGDLoss, dict(channels=4, relative_temperature=True)
    for kind in (PKDLoss, VkDLoss, NFDLoss, FTLoss, CosineLoss):
        yield kind, {}
    yield FitNetsLoss, dict(pooled=(4, 2, 1))
    for distance, reduction in (('smooth_l1', 'image'), ('squared', 'root')):
        yield MimicLoss, dict(norm='batch', distance=distance, reduction=reduction)
    yield FBKDLoss, dict(teacher_channels=[4])
    for queue in ('ring', 'code'):
        yield MemoryLoss, dict(student_channels=4, teacher_channels=4, num_classes=3,
                               pixel_memory=32, region_memory=4, queue=queue)  # fmt: skip
    yield ReviewKDLoss, dict(student_channels=[4], teacher_channels=[4], width=4)
    for over, values in (('positions', 'unit'), ('channels', 'places'), ('images', 'classes')):
        for rows in ('none', 'l1', 'l2'):
            yield RelationLoss, dict(over=over, values=values, rows=rows, pool=2)
    yield ICKDLoss, dict(windows=(2, 2))
    for kind in (SPLoss, RKDLoss, PKTLoss, CrossImageLoss, NSTLoss):
        yield kind, dict(pool=1)
    for kernel in ('gaussian', 'bilinear'):
        yield CCKDLoss, dict(kernel=kernel)
    # A mask is drawn, but masks nothing: other devices draw other ones.
    for mask_over in ('positions', 'channels'):
        yield MGDLoss, dict(channels=4, mask_ratio=0.0, mask_over=mask_over)
    for groups, pool in ((2, 1), (4, 2)):
        # Pooled, all tokens of the teacher are larger here, and gradients cancel: not by 1 / 0.07.
        cut = dict(groups=groups, pool=pool, window=(2, 2), temperature=1.0)
        yield AfDCDLoss, dict(channels=4, mask_ratio=0.0, **cut)
    for kind in (DeFeatLoss, FGFILoss, FRSLoss):
        yield kind, {}
    for kind in (DKDLoss, NKDLoss, WSLDLoss, LwFLoss, UnbiasedKDLoss):
        yield kind, dict(standardise=False)
    for confidence in ('position', 'image'):
        yield CAMKDLoss, dict(confidence=confidence)
    for standardise in (True, False):
        yield KDLoss, dict(standardise=standardise)
        yield GDKDLoss, dict(standardise=standardise, valid_only=True)
        yield DISTLoss, dict(standardise=standardise, per_image=standardise)
    yield DISTLoss, dict(sigmoid=True)
    for kind in (DKDLoss, DISTLoss, KDLoss):
        yield kind, dict(temperature=2.0)  # of regions
    yield RoIBoxLoss, dict(num_classes=3)
    for switch in (True, False):
        yield ERDLoss, dict(without_strides=switch)
    yield KDLoss, dict(per='map', valid_only=False, sigmoid=True)
    for variant in VARIANTS.values():
        yield LDLoss, variant
    for around in ('hull', 'unturned'):
        yield RotatedLDLoss, dict(around=around)
    for region in ('main', 'inside', 'finegrained', 'gibox', 'all', 'decoupled'):
        for switch in (True, False):
            yield LDImitationLoss, dict(region=region, positive_levels_only=switch,
                                        mix_images=switch)  # fmt: skip
    for switch in (True, False):
        yield BCKDLoss, dict(positive_levels_only=switch)
        yield ADLLoss, dict(power=1.8 if switch else None, entropy=float(switch))
    yield PGDBoxLoss, {}
    for mix in (True, False):
        yield PGDClassLoss, dict(mix_images=mix)
    for boxes in ('giou', 'iou', 'distributions'):
        yield CrossKDLoss, dict(boxes=boxes)
    for unmatched, sigmoid in (('background', True), ('ignored', True), ('background', False)):
        yield QueryBoxLoss, dict(unmatched=unmatched, sigmoid=sigmoid)
    yield QueryFeatureLoss, {}
    for points in (None, 10):
        yield QueryMaskLoss, dict(points=points)
    for published_batch in (8, None):
        yield QueryPointLoss, dict(published_batch=published_batch)


CASES = [
    pytest.param(kind, options, id=f'{kind.__name__}-{"-".join(map(str, options.values()))}')
    for kind, options in cases()
]


def test_no_loss_is_left_out():
    exported = {x for x in vars(losses).values() if inspect.isclass(x)}
    exported = {x for x in exported if issubclass(x, DistillLoss)} - {DistillLoss}
    assert {case.values[0] for case in CASES} == exported


def in_order(costs):
    """Pairs of queries without a look at their costs, for which the host waits on purpose."""
    pairs = torch.arange(min(costs.shape[2:]), device=costs.device)
    return pairs.expand(2, *costs.shape[:2], -1)


def prepare(kind, options, device, dtype=torch.float32):
    """A call that runs the loss, forward and backward: what it yields, and the student's maps."""
    loss = kind(**options).to(device, dtype)
    generator = torch.Generator().manual_seed(0)

    def maps(channels, *size):
        drawn = torch.randn(2, 3, channels, *size, generator=generator).abs().to(device, dtype)
        return drawn[0].clone().requires_grad_(), drawn[1]

    needs = {}
    if kind in (LDLoss, BCKDLoss, ADLLoss, CrossKDLoss):
        *outputs, needs['head_targets'] = head(device, dtype)
        if 'head_boxes' in loss.needs:
            needs['head_boxes'] = boxes_of_distributions(needs['head_targets'])
    elif kind in (PGDBoxLoss, PGDClassLoss):
        found, taught, targets = head(device, dtype)
        labels = [torch.zeros(len(b), dtype=torch.long, device=device) for b in targets.boxes]
        needs.update(
            boxes=targets.boxes,
            labels=labels,
            head_outputs=(found, taught),
            head_boxes=boxes_of_distributions(targets),
        )
        outputs = zip(*(maps(2, *shape) for shape in SHAPES), strict=True)
    elif kind is ERDLoss:
        *outputs, targets = head(device, dtype)
        needs['head_boxes'] = boxes_of_distributions(targets)
    elif kind is RotatedLDLoss:
        made = head(device, dtype, rotated_targets, rotated_maps)
        *outputs, needs['head_targets'] = made
    elif kind is LDImitationLoss:
        *outputs, needs['head_targets'] = head(device, dtype)
        if options['region'] == 'gibox':
            needs['head_outputs'] = outputs
        outputs = zip(*(maps(2, *shape) for shape in SHAPES), strict=True)
    elif kind in (QueryBoxLoss, QueryMaskLoss, QueryPointLoss):
        make = make_masks if kind is QueryMaskLoss else make_queries
        count = 5 if kind is QueryPointLoss else 4
        outputs = (
            [x.to(device, dtype) for x in make(seed=seed, queries=queries)]
            for seed, queries in ((0, 5), (1, count))
        )
        student, teacher = outputs
        outputs = [x.requires_grad_() for x in student], teacher
        if kind is QueryPointLoss:
            needs['decoders'] = points_of(outputs)
    else:
        outputs = maps(4, 5, 6)
    if kind is FGDLoss:
        boxes = [x.to(device, dtype) for x in (BOXES, NO_BOXES, BOXES[:1])]
        needs.update(boxes=boxes, batch_shape=BATCH, image_shapes=[BATCH, (40, 30), (20, 48)])
    if kind in (DeFeatLoss, FGFILoss, FRSLoss):
        boxes = [x.to(device, dtype) for x in (BOXES, NO_BOXES, BOXES[:1])]
        base = torch.tensor([[-8.0, -8.0, 8.0, 8.0]]).to(device, dtype)
        beside = dict(
            boxes=boxes,
            batch_shape=BATCH,
            anchors=Anchors([base], [(8, 8)]),
            head_outputs=[[x] for x in maps(2, 5, 6)],
        )
        needs.update({name: beside[name] for name in loss.needs})
        outputs = [[x] for x in outputs]
    if kind is RoIBoxLoss or options == dict(temperature=2.0):
        rows = torch.randn(2, 8, 12, generator=generator).to(device, dtype)
        outputs = rows[0].clone().requires_grad_(), rows[1]
        if 'segmentation' in loss.needs:
            needs['segmentation'] = torch.randint(4, (8,), generator=generator).to(device)
    if kind is QueryFeatureLoss:
        layers = [x.to(device, dtype) for x in make_queries()]
        states = [x.to(device, dtype) for x in torch.randn(2, 3, 4, 4, generator=generator)]
        objects = [x.to(device, dtype) for x in (BOXES, NO_BOXES, BOXES[:1])]
    if 'segmentation' in loss.needs and 'segmentation' not in needs:
        needs['segmentation'] = torch.randint(4, (3, 20, 24), generator=generator).to(device)
    student, teacher = outputs
    if kind in (FBKDLoss, ReviewKDLoss, AttentionChangeLoss):
        count = 2 if kind is AttentionChangeLoss else 1
        student, teacher = [student] * count, [teacher] * count
    if kind is CAMKDLoss:
        teacher = torch.cat([teacher, teacher.flip(1)])

    @mock.patch.object(matching, 'solve', in_order)
    def call():
        if kind is QueryFeatureLoss:
            needs['taught_queries'] = rate_queries(
                states, layers[:2], layers[2:], objects, [BATCH, (40, 30), (20, 48)]
            )
        result = loss(student, teacher, **needs)
        sum(result.values() if isinstance(result, dict) else [result]).backward()
        if kind is HolisticLoss:
            loss.critic_backward()
        return result, student

    return call


@pytest.mark.parametrize(('kind', 'options'), CASES)
def test_no_loss_reads_a_value(kind, options):
    call = prepare(kind, options, 'cpu')
    with Dispatched(), Called():
        call()


@pytest.mark.parametrize(('kind', 'options'), CASES)
def test_no_loss_needs_values(kind, options):
    """On this device there are none: whatever copies or asks for one raises."""
    call = prepare(kind, options, 'meta')
    with Dispatched():
        call()


def test_queries_are_paired_in_one_wait():
    waits = []

    class Counted(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            name = getattr(func, '__name__', '')
            waits.extend([name] if name in READING_METHODS - {'numpy'} else [])
            return func(*args, **(kwargs or {}))

    student, teacher = make_queries(layers=3), make_queries(layers=3, seed=1)
    with Counted():
        QueryBoxLoss()(student, teacher)
    assert waits == ['cpu']

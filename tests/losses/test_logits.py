"""Class logits, position by position."""

from functools import partial

import pytest
import torch
from torch.nn import functional as F

from kd_dense.losses import (
    CAMKDLoss,
    CWDLoss,
    DISTLoss,
    DKDLoss,
    GDKDLoss,
    KDLoss,
    LwFLoss,
    NKDLoss,
    PixelWiseLoss,
    UnbiasedKDLoss,
    WSLDLoss,
    camkd_loss,
    dist_loss,
    dkd_loss,
    gdkd_loss,
    kd_loss,
    lwf_loss,
    nkd_loss,
    unbiased_cross_entropy,
    unbiased_kd_loss,
    wsld_loss,
)
from kd_dense.losses.logits.camkd import confidence_weights
from kd_dense.losses.logits.groups import group_kl
from kd_dense.losses.logits.rows import Rows
from tests.losses.contract import LossContract, OneChannelContract
from tests.mm.processes import in_two_processes

# At twice the size of the maps, so that rows 0, 2, ... and columns 0, 2, ... count.
LABELS = torch.tensor([[0, 0, 1, 1, 2, 2], [0, 3, 3, 1, 2, 2], [2, 2, 255, 1, 0, 7],
                       [2, 255, 255, 1, 0, 7], [3, 3, 0, 0, 1, 1]])  # fmt: skip
LABELS = LABELS.repeat_interleave(2, 0).repeat_interleave(2, 1)


def maps(*shape, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return drawn[0].requires_grad_(), drawn[1]


def labels_for(student, classes=None):
    """Some valid, some ignored, one of no class."""
    generator = torch.Generator().manual_seed(3)
    size = student.shape[:1] + student.shape[2:]
    drawn = torch.randint(classes or student.shape[1], size, generator=generator)
    drawn.view(-1)[:2] = 255
    drawn.view(-1)[2] = 99
    return drawn


class Labelled:
    """All images have the same labels, because the contract shuffles and halves batches."""

    def extra(self):
        return {'segmentation': LABELS.expand(3, -1, -1)}

    def value(self, student, teacher):
        return self.loss(student, teacher, segmentation=LABELS.expand(len(student), -1, -1))


class OverTheBatch:
    # Correlations do not; what holds in its place is tested below, with two processes.
    test_two_half_batches_average_to_the_whole = None


class TestKD(LossContract):
    loss = KDLoss(weight=2.0, temperature=4.0, valid_only=False)
    function = staticmethod(partial(kd_loss, temperature=4.0))


class TestKDValid(Labelled, LossContract):
    loss = KDLoss(weight=2.0)
    function = staticmethod(kd_loss)


class TestKDStandardised(LossContract):
    loss = KDLoss(weight=9.0, temperature=2.0, valid_only=False, standardise=True)
    function = staticmethod(partial(kd_loss, temperature=2.0, standardise=True))


class TestKDSigmoid(LossContract):
    loss = KDLoss(weight=2.0, temperature=2.0, per='entry', valid_only=False, sigmoid=True)
    function = staticmethod(partial(kd_loss, temperature=2.0, per='entry', sigmoid=True))


class TestKDOneChannel(OneChannelContract):
    loss = KDLoss(weight=2.0, temperature=2.0, valid_only=False)
    function = staticmethod(partial(kd_loss, temperature=2.0))


class TestDIST(OverTheBatch, LossContract):
    loss = DISTLoss(weight=2.0, inter=2.0, intra=0.5, temperature=2.0)
    function = staticmethod(partial(dist_loss, inter=2.0, intra=0.5, temperature=2.0))
    zero_on_match = False  # but for the epsilon


class TestDISTPerImage(LossContract):
    loss = DISTLoss(weight=2.0, per_image=True, standardise=True)
    function = staticmethod(partial(dist_loss, per_image=True, standardise=True))
    zero_on_match = False


class TestDISTSigmoid(OverTheBatch, LossContract):
    loss = DISTLoss(weight=2.0, sigmoid=True)
    function = staticmethod(partial(dist_loss, sigmoid=True))
    zero_on_match = False


class TestDKD(Labelled, LossContract):
    loss = DKDLoss(weight=2.0, alpha=0.5, beta=8.0, temperature=4.0)
    function = staticmethod(partial(dkd_loss, alpha=0.5, beta=8.0, temperature=4.0))


class TestDKDOneChannel(Labelled, OneChannelContract):
    loss = DKDLoss(weight=2.0)
    function = staticmethod(dkd_loss)


class TestGDKD(LossContract):
    loss = GDKDLoss(weight=2.0, k=2, between=0.5, top=0.7, rest=3.0, temperature=2.0)
    function = staticmethod(
        partial(gdkd_loss, k=2, between=0.5, top=0.7, rest=3.0, temperature=2.0)
    )


class TestGDKDOneChannel(OneChannelContract):
    loss = GDKDLoss(weight=2.0)
    function = staticmethod(gdkd_loss)


class TestNKD(Labelled, LossContract):
    loss = NKDLoss(weight=2.0, gamma=0.5, temperature=2.0)
    function = staticmethod(partial(nkd_loss, gamma=0.5, temperature=2.0))
    zero_on_match = False


class TestWSLD(Labelled, LossContract):
    loss = WSLDLoss(weight=2.5)
    function = staticmethod(wsld_loss)
    zero_on_match = False

    def test_gradient_is_right(self):
        """That of the weights, which are constants, left out."""
        student, teacher = (x.detach() for x in self.example())
        student.requires_grad_()
        (grad,) = torch.autograd.grad(self.value(student, teacher), student)
        labels = LABELS[::2, ::2].expand(3, -1, -1)
        valid = labels < 4
        ce = [
            F.cross_entropy(x, labels.where(valid, 0), reduction='none')
            for x in (student.detach(), teacher)
        ]
        weight = (1 - (-ce[0] / (ce[1] + 1e-7)).exp()) * valid / valid.sum()
        slope = 2 * ((student.detach() / 2).softmax(1) - (teacher / 2).softmax(1))
        assert torch.allclose(grad, 2.5 * weight[:, None] * slope, rtol=1e-10)


class Incremental(LossContract):
    zero_on_match = False

    def test_names_both_shapes_when_they_differ(self):
        student, teacher = self.example()
        for other in (teacher[..., :5], torch.cat([teacher, teacher], 1)):
            with pytest.raises(ValueError, match=r'of its teacher and more.*\(3, 4, 5, 6\)'):
                self.value(student, other)

    def test_takes_a_teacher_with_fewer_classes(self):
        student, teacher = self.example()
        value = self.value(student, teacher[:, :3])
        assert value > 0
        (grad,) = torch.autograd.grad(value, student)
        assert grad.isfinite().all()


class TestLwF(Incremental):
    loss = LwFLoss(weight=100.0, alpha=2.0)
    function = staticmethod(partial(lwf_loss, alpha=2.0))


class TestUnbiasedKD(Incremental):
    loss = UnbiasedKDLoss(weight=10.0, standardise=True)
    function = staticmethod(partial(unbiased_kd_loss, standardise=True))


# What all members of the family have in common.
def with_labels(loss):
    return lambda s, t, **options: loss(s, t, labels_for(s), **options)


FAMILY = {
    'kd': kd_loss,
    'dist': dist_loss,
    'gdkd': gdkd_loss,
    'lwf': lwf_loss,
    'unbiased': unbiased_kd_loss,
    'kd valid': with_labels(kd_loss),
    'dkd': with_labels(dkd_loss),
    'nkd': with_labels(nkd_loss),
    'wsld': with_labels(wsld_loss),
}
every_member = pytest.mark.parametrize('loss', FAMILY.values(), ids=FAMILY)


@every_member
def test_rows_are_maps_of_one_position(loss):
    student, teacher = maps(6, 4)
    flat = loss(student, teacher)
    as_maps = [x[:, :, None, None] for x in (student, teacher)]
    assert torch.allclose(flat, loss(*as_maps), rtol=1e-12)


@every_member
def test_a_constant_at_a_position_does_not_matter(loss):
    student, teacher = maps(2, 4, 3, 3)
    shift = 5 * torch.randn(2, 1, 3, 3, dtype=torch.float64)
    assert torch.allclose(loss(student, teacher), loss(student + shift, teacher - 2 * shift))


@every_member
def test_standardised_logits_have_no_size(loss):
    student, teacher = maps(2, 4, 2, 2)
    factor = 1 + torch.rand(2, 1, 2, 2, dtype=torch.float64)
    value = loss(student, teacher, standardise=True)
    scaled = loss(student * factor + 1, teacher * 2, standardise=True)
    assert torch.allclose(value, scaled, rtol=1e-5)  # but for the epsilon
    assert not torch.allclose(value, loss(student, teacher), rtol=1e-3)
    if loss is not FAMILY['wsld']:  # its weights have no gradient
        assert torch.autograd.gradcheck(lambda x: loss(x, teacher, standardise=True), (student,))


@every_member
def test_two_classes_are_not_standardised(loss):
    for classes in (1, 2):
        student, teacher = maps(2, classes, 3, 3)
        with pytest.raises(ValueError, match='expected logits of 3 classes or more, got'):
            loss(student, teacher, standardise=True)


@every_member
@pytest.mark.parametrize('scale', [1e-3, 300.0, 6e4])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_is_that_of_double_precision_at_all_sizes(loss, dtype, scale):
    drawn = [x.detach() * (scale / x.detach().abs().max()) for x in maps(2, 5, 4, 4)]
    student, teacher = (x.to(dtype) for x in drawn)
    values, grads = [], []
    for s, t in ((student, teacher), (student.double(), teacher.double())):
        s = s.clone().requires_grad_()
        value = loss(s, t)
        grads.append(torch.autograd.grad(value, s)[0].double())
        values.append(value.detach())
    assert values[0].dtype == torch.float32
    # Single precision tells probabilities that are almost alike apart no better.
    exact = 0.01 if loss is dist_loss and scale < 1 else 1e-4
    assert values[0].item() == pytest.approx(values[1].item(), rel=exact, abs=1e-6)
    precision = exact if dtype == torch.float32 else 0.01
    assert (grads[0] - grads[1]).abs().max() <= precision * grads[1].abs().max() + 1e-7


def test_the_weight_of_no_pixel():
    student, teacher = maps(2, 4, 3, 3)
    nothing = torch.full((2, 6, 6), 255)
    for loss in (kd_loss, dkd_loss, gdkd_loss, nkd_loss, wsld_loss):
        value = loss(student, teacher, nothing)
        assert value == 0
        assert not torch.autograd.grad(value, student)[0].any()


class TestWhatKDIs:
    def test_the_four_published_scales(self):
        student, teacher = maps(2, 5, 3, 4)
        total = F.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction='sum')
        kd = partial(kd_loss, student, teacher, temperature=2.0)
        assert torch.allclose(kd(), 4 * total / 24)
        assert torch.allclose(kd(per='entry', temperature_squared=False), total / 120)
        assert torch.allclose(kd(per='image'), 4 * total / 2)
        skd = PixelWiseLoss(divergence='kl', published_batch=None)
        assert torch.allclose(
            kd_loss(student, teacher, per='map'), skd(student, teacher), rtol=1e-12
        )
        assert torch.allclose(kd(), CWDLoss(temperature=2.0, norm='spatial')(student, teacher))

    def test_only_valid_pixels_count(self):
        student, teacher = maps(2, 4, 3, 3)
        labels = labels_for(student)
        valid = (labels < 4)[:, None].expand_as(student)
        kl = (teacher.softmax(1) * (teacher.log_softmax(1) - student.log_softmax(1))).sum(1)
        for per, count in (('position', 15), ('entry', 60), ('image', 2), ('map', 9)):
            expected = kl[valid[:, 0]].sum() / count
            assert torch.allclose(kd_loss(student, teacher, labels, per=per), expected)
        for loss in (KDLoss(), GDKDLoss(valid_only=True)):
            assert loss.needs == ('segmentation',)
            value = loss(student, teacher, segmentation=labels)
            (grad,) = torch.autograd.grad(value, student)
            assert not grad[~valid].any()
            assert grad[valid].all()

    def test_sigmoids_are_classes_against_none(self):
        student, teacher = maps(2, 4, 3, 3)
        one = [kd_loss(student[:, i : i + 1], teacher[:, i : i + 1]) for i in range(4)]
        assert torch.allclose(kd_loss(student, teacher, sigmoid=True), sum(one))
        q, p = student.sigmoid(), teacher.sigmoid()
        kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        assert torch.allclose(sum(one), kl.sum(1).mean())


class TestWhatDISTIs:
    def test_it_is_correlations(self):
        student, teacher = maps(2, 4, 3, 3)
        p, q = ((x / 2).softmax(1).transpose(0, 1).flatten(1) for x in (student, teacher))

        def correlation(x, y):
            pairs = torch.stack([x, y], 1)
            return torch.stack([torch.corrcoef(pair)[0, 1] for pair in pairs]).mean()

        expected = 2 * (1 - correlation(p.T, q.T)) + 3 * (1 - correlation(p, q))
        found = dist_loss(student, teacher, 2.0, 3.0, 2.0, temperature_squared=False)
        assert torch.allclose(found, expected, rtol=1e-6)  # but for the epsilon

    def test_equal_logits_correlate(self):
        _, teacher = maps(2, 4, 3, 3)
        for options in (dict(), dict(per_image=True), dict(sigmoid=True)):
            assert dist_loss(teacher, teacher, **options).abs() < 1e-5  # the epsilon
            assert dist_loss(-teacher, teacher, **options) > 1

    def test_sigmoids_of_all_anchors_are_one_row(self):
        student, teacher = maps(2, 6, 3, 2)
        p, q = (x.sigmoid().transpose(1, 3).reshape(-1, 6) for x in (student, teacher))

        def pearson(x, y):
            x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
            return ((x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1) + 1e-8)).mean()

        expected = 2 - pearson(p, q) - pearson(p.T, q.T)
        assert torch.allclose(dist_loss(student, teacher, sigmoid=True), expected, rtol=1e-12)

    def test_size_and_shift_of_probabilities_are_free(self):
        """Probabilities mixed with those of all classes alike keep their correlations."""
        student, teacher = maps(8, 5)
        mixed = (0.3 * student.softmax(1) + 0.7 / 5).log()
        assert torch.allclose(dist_loss(mixed, teacher), dist_loss(student, teacher))
        assert not torch.allclose(kd_loss(mixed, teacher), kd_loss(student, teacher))

    def test_of_two_classes_the_positions_alone_teach(self):
        student, teacher = maps(2, 1, 4, 4)
        inter = dist_loss(student, teacher, intra=0.0)
        agree = ((student > 0) == (teacher > 0)).double().mean()
        assert torch.allclose(inter, 2 * (1 - agree), atol=1e-5)
        assert torch.autograd.grad(inter, student)[0].abs().max() < 1e-3
        intra = dist_loss(student, teacher, inter=0.0)
        assert torch.autograd.grad(intra, student)[0].abs().max() > 1e-3


class TestPartsOfKD:
    def test_dkd_with_the_rest_of_the_teacher_as_beta_is_kd(self):
        student, teacher = maps(1, 5)
        label = torch.tensor([3])
        rest = 1 - teacher.softmax(1)[0, 3]
        for temperature in (1.0, 4.0):
            rest = 1 - (teacher / temperature).softmax(1)[0, 3]
            dkd = dkd_loss(student, teacher, label, 1.0, rest.item(), temperature)
            assert torch.allclose(dkd, kd_loss(student, teacher, temperature=temperature))

    def test_gdkd_of_the_true_class_alone_is_dkd(self):
        student, teacher = maps(2, 5, 3, 3)
        gdkd = gdkd_loss(student, teacher, between=0.7, rest=3.0, k=1, temperature=2.0)
        dkd = dkd_loss(student, teacher, teacher.argmax(1), 0.7, 3.0, 2.0)
        assert torch.allclose(gdkd, dkd, rtol=1e-12)

    def test_three_parts_with_the_shares_as_weights_are_kd(self):
        student, teacher = maps(1, 6)
        shares = teacher.softmax(1)[0].sort(descending=True).values
        for k in (1, 2, 5):
            top = shares[:k].sum().item()
            parts = gdkd_loss(student, teacher, top=top, rest=1 - top, k=k)
            assert torch.allclose(parts, kd_loss(student, teacher))

    def test_more_likeliest_classes_than_there_are_others(self):
        student, teacher = maps(2, 3, 2, 2)
        most = gdkd_loss(student, teacher, k=2)
        assert torch.equal(gdkd_loss(student, teacher, k=9), most)

    def test_a_sum_for_what_other_code_calls_a_mean(self):
        student, teacher = maps(6, 5)
        labels = torch.tensor([0, 1, 255, 3, 4, 4])
        found = dkd_loss(student, teacher, labels, reduction='sum')
        assert torch.allclose(found, 5 * dkd_loss(student, teacher, labels))

    def test_a_sure_teacher_still_teaches_the_rest(self):
        """Where 1 - p is 0 in any precision."""
        teacher = torch.tensor([[500.0, 1.0, 0.0]])
        student = torch.tensor([[500.0, 0.0, 0.0]], requires_grad=True)
        value = dkd_loss(student, teacher, torch.tensor([0]))
        (grad,) = torch.autograd.grad(value, student)
        p = torch.tensor([1.0, 0.0]).softmax(0)
        assert torch.allclose(grad, 2 * torch.tensor([[0.0, *(0.5 - p)]]))

    def test_the_parts_are_right_where_groups_are_large(self):
        student, teacher = maps(2, 6, 2, 2)
        members = teacher.topk(4, 1).indices

        def parts(x):
            rows = Rows(x, teacher)
            return group_kl(rows, members, 0.3, 0.5, 0.7, 2.0).square().sum()

        assert torch.autograd.gradcheck(parts, (student,))

    def test_nkd_weighs_the_label_by_the_teacher(self):
        student, teacher = maps(4, 5)
        labels = torch.tensor([0, 3, 1, 4])
        ce = F.cross_entropy(student, labels, reduction='none')
        trust = teacher.softmax(1)[range(4), labels]
        found = nkd_loss(student, teacher, labels, gamma=0.0)
        assert torch.allclose(found, (trust * ce).mean())


class TestOldClasses:
    def test_without_new_classes_both_are_distillation(self):
        student, teacher = maps(2, 4, 3, 3)
        entropy = -(teacher.softmax(1) * teacher.log_softmax(1)).sum(1).mean()
        expected = (kd_loss(student, teacher) + entropy) / 4
        assert torch.allclose(unbiased_kd_loss(student, teacher), expected)
        assert torch.allclose(lwf_loss(student, teacher), expected)

    def test_new_classes_are_background_to_the_teacher(self):
        student, teacher = maps(2, 6, 3, 3)
        teacher = teacher[:, :4]
        q = student.softmax(1)
        old = torch.cat([q[:, :1] + q[:, 4:].sum(1, keepdim=True), q[:, 1:4]], 1)
        expected = -(teacher.softmax(1) * old.log()).sum(1).mean() / 4
        assert torch.allclose(unbiased_kd_loss(student, teacher), expected)

    def test_lwf_says_nothing_of_new_classes(self):
        student, teacher = maps(2, 6, 3, 3)
        (grad,) = torch.autograd.grad(lwf_loss(student, teacher[:, :4]), student)
        assert not grad[:, 4:].any()
        assert grad[:, :4].any()

    def test_a_teacher_with_one_channel_knows_the_background_and_a_class(self):
        student, teacher = maps(2, 4, 3, 3)
        one = teacher[:, :1]
        two = torch.cat([torch.zeros_like(one), one], 1)
        for loss in (unbiased_kd_loss, lwf_loss):
            assert torch.equal(loss(student, one), loss(student, two))

    def test_the_students_own_loss_takes_old_classes_for_background(self):
        student, _ = maps(2, 5, 3, 3)
        labels = labels_for(student)
        valid = labels < 5
        q = student.softmax(1)
        merged = torch.cat([q[:, :3].sum(1, keepdim=True), q[:, 3:]], 1).log()
        target = (labels - 2).clamp(min=0).where(valid, 255)
        expected = F.nll_loss(merged, target, ignore_index=255)
        assert torch.allclose(unbiased_cross_entropy(student, labels, 3), expected)
        assert unbiased_cross_entropy(student, torch.full((2, 3, 3), 255), 3) == 0
        plain = F.cross_entropy(student, labels.where(valid, 255), ignore_index=255)
        assert torch.allclose(unbiased_cross_entropy(student, labels, 1), plain)

    @pytest.mark.parametrize(
        ('labels', 'old', 'message'),
        [
            (torch.zeros(2, 6, 6).long(), 3, 'enlarge the logits first'),
            (torch.zeros(2, 3, 3).long(), 6, '1 <= old_classes <= 5'),
            (torch.zeros(2, 3, 3).long(), 0, '1 <= old_classes <= 5'),
        ],
    )
    def test_refuses_what_does_not_fit(self, labels, old, message):
        with pytest.raises(ValueError, match=message):
            unbiased_cross_entropy(torch.zeros(2, 5, 3, 3), labels, old)


@pytest.mark.parametrize(
    ('kind', 'arguments', 'message'),
    [
        (KDLoss, dict(per='pixel'), r"per to be one of .*'position'.*got 'pixel'"),
        (KDLoss, dict(temperature=0.0), 'temperature > 0'),
        (DISTLoss, dict(temperature=-1.0), 'temperature > 0'),
        (DISTLoss, dict(inter=-1.0), 'finite inter >= 0'),
        (DKDLoss, dict(reduction='none'), r"reduction to be one of .*got 'none'"),
        (DKDLoss, dict(beta=float('nan')), 'finite beta >= 0'),
        (GDKDLoss, dict(k=0), 'k as an int >= 1'),
        (GDKDLoss, dict(rest=-1.0), 'finite rest >= 0'),
        (NKDLoss, dict(gamma=-1.0), 'finite gamma >= 0'),
        (WSLDLoss, dict(temperature=0.0), 'temperature > 0'),
        (LwFLoss, dict(alpha=0.0), 'alpha > 0'),
        (UnbiasedKDLoss, dict(alpha=-1.0), 'alpha > 0'),
        *(
            (kind, dict(sigmoid=True), 'takes a softmax over the classes')
            for kind in (DKDLoss, GDKDLoss, NKDLoss, WSLDLoss, LwFLoss, UnbiasedKDLoss)
        ),
    ],
)
def test_refuses_settings_that_make_no_sense(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_sigmoids_are_not_standardised():
    with pytest.raises(ValueError, match='nor of sigmoids'):
        kd_loss(*maps(2, 5, 3, 3), standardise=True, sigmoid=True)


@pytest.mark.parametrize(
    ('labels', 'message'),
    [
        (torch.zeros(3, 4, 4).long(), 'N=2 as in the logits'),
        (torch.zeros(2, 4, 4, 4).long(), 'N=2 as in the logits'),
        (torch.zeros(2, 4, 4), 'segmentation of integers'),
    ],
)
def test_refuses_labels_of_something_else(labels, message):
    with pytest.raises(ValueError, match=message):
        dkd_loss(*maps(2, 5, 3, 3), labels)


def whole_batch():
    student, teacher = maps(4, 5, 3, 4, scale=2.0)
    labels = labels_for(student)
    labels[2:, :, 1:] = 255  # far fewer in the second process
    return student, teacher, labels


def gradients(rank=None):
    """The gradients of a batch, or of a half of it in one of two processes."""
    own = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    student, teacher, labels = (x[own] for x in whole_batch())
    found = {}
    for name, loss in (
        ('kd', lambda s: kd_loss(s, teacher, labels)),
        ('dist', lambda s: dist_loss(s, teacher)),
        ('dkd', lambda s: dkd_loss(s, teacher, labels)),
        ('gdkd', lambda s: gdkd_loss(s, teacher, labels)),
        ('nkd', lambda s: nkd_loss(s, teacher, labels)),
        ('wsld', lambda s: wsld_loss(s, teacher, labels)),
    ):
        leaf = student.detach().requires_grad_()
        value = loss(leaf)
        found[name] = value.detach(), torch.autograd.grad(value, leaf)[0]
    return found


def test_two_processes_find_what_one_does():
    """After the mean over processes, which DDP takes of the gradients."""
    first, second = in_two_processes(gradients)
    for name, (value, grad) in gradients().items():
        values, grads = zip(first[name], second[name], strict=True)
        assert torch.allclose(sum(values) / 2, value, rtol=1e-12), name
        assert torch.allclose(torch.cat(grads) / 2, grad, rtol=1e-10, atol=1e-15), name


class TestCAMKD:
    """With labels, of two teachers or more."""

    def example(self, seed=0):
        torch.manual_seed(seed)
        student, *teachers = torch.randn(4, 3, 4, 5, 6, dtype=torch.float64)
        return student.requires_grad_(), teachers, LABELS.expand(3, -1, -1)

    def plain(self, student, teachers, labels, temperature):
        """Position by position, as the formula says."""
        labels = labels[:, ::2, ::2]
        total, count = 0, 0
        for n, i, j in (labels < 4).nonzero().tolist():
            rows = [x[n, :, i, j] for x in teachers]
            known = torch.stack([-x.log_softmax(0)[labels[n, i, j]] for x in rows])
            weights = (1 - known.exp() / known.exp().sum()) / (len(rows) - 1)
            ours = (student[n, :, i, j] / temperature).log_softmax(0)
            for weight, row in zip(weights, rows, strict=True):
                soft = (row / temperature).log_softmax(0)
                total += weight * temperature**2 * (soft.exp() * (soft - ours)).sum()
            count += 1
        return total / count

    def test_equals_the_formula(self):
        student, teachers, labels = self.example()
        found = camkd_loss(student, teachers, labels, temperature=2.0)
        expected = self.plain(student, teachers, labels, 2.0)
        assert torch.allclose(found, expected, rtol=1e-12)
        for a, b in zip(
            *(torch.autograd.grad(x, student) for x in (found, expected)), strict=True
        ):
            assert torch.allclose(a, b, rtol=1e-9)
        each = camkd_loss(student, teachers, labels, temperature=2.0, per_teacher=True)
        assert torch.allclose(3 * each, found)

    def test_the_module_takes_them_one_behind_the_other(self):
        student, teachers, labels = self.example()
        loss = CAMKDLoss(weight=3.0, temperature=2.0, confidence='image')
        found = loss(student, torch.cat(teachers), segmentation=labels)
        assert torch.equal(
            found, 3 * camkd_loss(student, teachers, labels, 2.0, confidence='image')
        )

    def test_an_image_has_one_weight(self):
        student, _, labels = self.example()
        right = F.one_hot(labels[:, ::2, ::2] % 4, 4).movedim(3, 1) * 50.0
        wrong = -right
        right[:, :, 0, 0], wrong[:, 0, 0, 0] = 0, 9  # where the other one knows more
        found = camkd_loss(student, [right, wrong], labels, confidence='image')
        assert torch.allclose(found, kd_loss(student, right, labels, 4.0))
        assert not torch.allclose(camkd_loss(student, [right, wrong], labels), found)

    def test_nothing_flows_into_teachers_and_labels_may_be_missing(self):
        student, teachers, labels = self.example()
        teachers = [x.requires_grad_() for x in teachers]
        for confidence in ('position', 'image'):
            value = camkd_loss(
                student, teachers, torch.full_like(labels, 255), confidence=confidence
            )
            value.backward()
            assert value == 0
            assert not student.grad.any()
            assert teachers[0].grad is None

    def test_one_teacher_is_too_few(self):
        student, teachers, labels = self.example()
        with pytest.raises(ValueError, match='two teachers or more, got 1; KDLoss is for one'):
            camkd_loss(student, teachers[:1], labels)
        with pytest.raises(ValueError, match='two teachers or more, got 1'):
            confidence_weights(torch.zeros(1, 2))
        with pytest.raises(ValueError, match='sigmoids'):
            CAMKDLoss(sigmoid=True)

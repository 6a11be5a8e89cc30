import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd_dense.functional import unit
from kd_dense.losses import MemoryLoss, memory_loss
from kd_dense.losses.features.memory import Memory, pick_pixels
from tests.losses.contract import LossContract

CLASSES = 3


def seeded(channels=4, **options):
    torch.manual_seed(0)
    sizes = dict(pixel_memory=8, region_memory=4, pixel_contrast=24, region_contrast=12, drawn=8)
    loss = MemoryLoss(channels, channels, CLASSES, **{**sizes, **options})
    for parameter in loss.parameters():
        nn.init.normal_(parameter)
    return loss


def labels(images=3, height=10, width=12):
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(CLASSES, (images, height, width), generator=generator)
    return torch.where(torch.rand(drawn.shape, generator=generator) < 0.2, 255, drawn)


class TestMemory(LossContract):
    """With the whole memory, whatever the order of it; in evaluation, which does not change it."""

    loss = seeded(weight=3.0, pixels=0.3, regions=0.7).eval()
    zero_on_match = False
    test_two_half_batches_average_to_the_whole = None  # a mean over pixels that have a label
    test_order_of_images_does_not_matter = None  # the labels have an order

    def example(self, dtype=torch.float64):
        self.loss.to(torch.promote_types(dtype, torch.float32))
        return super().example(dtype)

    def extra(self):
        return dict(segmentation=labels())

    def value(self, student, teacher):
        torch.manual_seed(0)  # for the order of the memory
        return super().value(student, teacher)

    def function(self, student, teacher, segmentation):
        ours, theirs = unit(self.loss.project(student), 1), unit(teacher, 1)
        valid = segmentation[:, ::2, ::2] != 255
        parts = [
            memory_loss(ours, theirs, one.vectors().flatten(0, 1), valid)
            for one in (self.loss.pixel_memory, self.loss.region_memory)
        ]
        return 0.3 * parts[0] + 0.7 * parts[1]

    @pytest.mark.parametrize('weight', [-1.0, float('nan'), float('inf')])
    def test_rejects_a_weight_that_is_negative_or_not_finite(self, weight):
        with pytest.raises(ValueError, match='finite weight >= 0'):
            MemoryLoss(4, 4, 3, weight=weight)


# The contrast


def test_contrast_is_the_divergence_of_likenesses():
    student, teacher = (unit(x, 1) for x in LossContract().example())
    bank = F.normalize(torch.randn(7, 4, dtype=torch.float64), dim=1)
    valid = torch.rand(3, 5, 6) < 0.6
    value = memory_loss(student, teacher, bank, valid, temperature=0.3, kd_temperature=2.0)
    ours, theirs = (
        (torch.einsum('nchw,mc->nhwm', x, bank) / 0.6).log_softmax(-1)[valid]
        for x in (student, teacher)
    )
    assert torch.allclose(value, 4 * F.kl_div(ours, theirs.exp(), reduction='batchmean'))


def test_blocks_change_nothing(monkeypatch):
    student, teacher = LossContract().example()
    bank = torch.randn(7, 4, dtype=torch.float64)
    (whole,) = torch.autograd.grad(memory_loss(student, teacher, bank), student)
    monkeypatch.setattr('kd_dense.functional.divergence.CPU_BLOCK_BYTES', 100)
    (blocks,) = torch.autograd.grad(memory_loss(student, teacher, bank), student)
    assert torch.allclose(whole, blocks)


def test_without_a_label_it_is_0_and_nothing_is_remembered():
    loss, maps = seeded(), torch.randn(2, 3, 4, 5, 6)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    student = maps[0].requires_grad_()
    parts = loss(student, maps[1], torch.full((3, 10, 12), 255))
    assert [part.item() for part in parts.values()] == [0, 0]
    sum(parts.values()).backward()
    assert not student.grad.any()
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


# The queues


def numbered(counts, size):
    """New vectors of one channel that tell image, class and number, of each image and class."""
    images, classes = len(counts), len(counts[0])
    new = torch.zeros(images, classes, size, 1)
    there = torch.zeros(images, classes, size, dtype=torch.bool)
    for image, of_classes in enumerate(counts):
        for one, count in enumerate(of_classes):
            new[image, one, :count, 0] = 100 * (image + 1) + 10 * one + torch.arange(count)
            there[image, one, :count] = True
    return new, there


@pytest.mark.parametrize('queue', ['ring', 'code'])
@pytest.mark.parametrize('seed', range(5))
def test_queues_are_filled_image_by_image(queue, seed):
    generator = torch.Generator().manual_seed(seed)
    size, classes = 7, 3
    memory = Memory(classes, size, 1, queue)
    expected, at = memory.vectors()[..., 0].clone(), [0] * classes
    for _ in range(4):
        counts = torch.randint(5, (3, classes), generator=generator).tolist()
        new, there = numbered(counts, 4)
        memory.add(new, there)
        for image, of_classes in enumerate(counts):
            for one, count in enumerate(of_classes):
                values = new[image, one, :count, 0]
                if queue == 'ring':
                    for value in values:
                        expected[one, at[one]] = value
                        at[one] = (at[one] + 1) % size
                elif at[one] + count < size:
                    expected[one, at[one] : at[one] + count] = values
                    at[one] += count
                else:
                    expected[one, size - count :] = values
                    at[one] = 0
        assert torch.equal(memory.vectors()[..., 0], expected)
        assert memory.next.tolist() == at
    assert not memory.rows[-1].any()


def test_a_queue_begins_with_unit_vectors_and_gives_the_same_places_of_all():
    memory = Memory(3, 5, 4)
    assert torch.allclose(memory.vectors().norm(dim=2), torch.ones(3, 5))
    memory.vectors().copy_(torch.arange(15.0).view(3, 5, 1).expand(-1, -1, 4))
    drawn = memory.some(2).view(3, 2, 4)[..., 0]
    assert torch.equal(drawn - drawn[:1], 5 * torch.arange(3.0)[:, None].expand(-1, 2))
    assert memory.some(9).shape == (15, 4)


# What goes into them


def test_pixels_are_drawn_from_their_class_without_replacement():
    known = labels(2).flatten(1)
    places, there = pick_pixels(known, known != 255, CLASSES, 5)
    for image in range(2):
        for one in range(CLASSES):
            found = places[image, one][there[image, one]]
            assert len(found) == len(set(found.tolist())) == 5
            assert (known[image, found] == one).all()
    few = torch.tensor([[2, 255, 2, 0]])
    places, there = pick_pixels(few, few != 255, CLASSES, 3)
    assert there.sum(2).tolist() == [[1, 0, 2]]
    assert sorted(places[0, 2, :2].tolist()) == [0, 2]


def test_each_pixel_of_a_class_is_as_likely():
    torch.manual_seed(0)
    known = torch.tensor([[0, 1, 1, 1, 1]]).expand(4000, -1)
    places, _ = pick_pixels(known, known >= 0, 2, 1)
    shares = places[:, 1, 0].bincount(minlength=5) / 4000
    assert torch.allclose(shares[1:], torch.full((4,), 0.25), atol=0.03)


def test_literal_places_are_the_numbers_among_the_class():
    known = torch.tensor([[1, 0, 1, 255, 1]])
    for seed in range(8):
        drawn = []
        for literal in (False, True):
            torch.manual_seed(seed)
            drawn.append(pick_pixels(known, known != 255, 2, 2, literal)[0][0, 1].tolist())
        right, literal = drawn
        assert literal == [[0, 2, 4].index(place) for place in right]


def test_training_remembers_and_evaluation_does_not():
    loss, maps = seeded(), torch.randn(2, 3, 4, 5, 6)
    before = loss.pixel_memory.rows.clone()
    loss.eval()(*maps, labels())
    assert torch.equal(loss.pixel_memory.rows, before)
    loss.train()(*maps, labels())
    assert not torch.equal(loss.pixel_memory.rows, before)
    assert loss.region_memory.next.tolist() == [3] * CLASSES
    new = loss.region_memory.vectors()[:, :3]
    assert torch.allclose(new.norm(dim=2), torch.ones(CLASSES, 3))


def test_the_state_holds_the_memory():
    loss, maps = seeded(), torch.randn(2, 3, 4, 5, 6)
    loss(*maps, labels())
    other = seeded(pixels=0.5)
    other.load_state_dict(loss.state_dict(), strict=True)
    assert torch.equal(other.pixel_memory.vectors(), loss.pixel_memory.vectors())
    assert torch.equal(other.region_memory.next, loss.region_memory.next)


def test_pooled_maps_are_compared_and_remembered():
    maps = torch.randn(2, 3, 4, 10, 12)
    values = []
    for pool, given in ((2, maps), (1, F.avg_pool2d(maps.flatten(0, 1), 2).unflatten(0, (2, 3)))):
        loss = seeded(pool=pool)
        values += [*loss(*given, labels()).values(), loss.pixel_memory.rows]
    assert all(torch.equal(a, b) for a, b in zip(values[:3], values[3:], strict=True))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(pool=0), 'MemoryLoss expects pool as an int >= 1, got pool=0'),
        (dict(pixel_memory=4, drawn=8), r'pixel_memory >= drawn=8, .* got 4'),
        (dict(drawn=0), 'drawn as an int >= 1, got drawn=0'),
        (dict(temperature=0.0), 'temperature > 0'),
        (dict(queue='stack'), "queue to be one of .*got 'stack'"),
        (dict(regions=-1.0), 'finite regions >= 0'),
    ],
)
def test_bad_arguments_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        seeded(**options)


def test_a_memory_of_another_width_is_an_error():
    maps = torch.zeros(1, 4, 2, 2)
    with pytest.raises(ValueError, match=r'a memory \(M, 4\) for maps .* got \(3, 5\)'):
        memory_loss(maps, maps, torch.zeros(3, 5))

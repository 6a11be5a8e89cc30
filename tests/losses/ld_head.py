"""A dense head with two levels, for the tests of localization distillation."""

import torch

from kd_dense.losses import HeadTargets
from tests.losses.contract import LossContract

SHAPES = ((6, 7), (3, 4))
STRIDES = [8, 16]
CLASSES, BINS = 3, 5
BOXES = [
    torch.tensor([[3.3, 4.1, 36.2, 33.7], [20.9, 10.2, 50.1, 47.3]], dtype=torch.float64),
    torch.zeros(0, 4, dtype=torch.float64),
    torch.tensor([[9.7, 1.3, 45.8, 38.9]], dtype=torch.float64),
]


def make_anchors(per_position=1):
    """Anchors of each level; those of one position have different shapes and centres."""
    levels = []
    for (height, width), stride in zip(SHAPES, STRIDES, strict=True):
        rows = []
        for y in range(height):
            for x in range(width):
                for k in range(per_position):
                    cx, cy = (x + 0.1 * k) * stride, (y - 0.2 * k) * stride
                    w, h = stride * (2.0 + 0.5 * k), stride * (2.0 - 0.3 * k)
                    rows.append([cx - w, cy - h, cx + w, cy + h])
        levels.append(torch.tensor(rows, dtype=torch.float64))
    return levels


def make_targets(boxes=BOXES, per_position=1, dtype=torch.float64):
    """Positives on the first level alone; one image has a column of padding."""
    priors, labels, valid = make_anchors(per_position), [], []
    generator = torch.Generator().manual_seed(1)
    for level, (height, width) in enumerate(SHAPES):
        size = (len(boxes), height * width * per_position)
        drawn = torch.randint(CLASSES, size, generator=generator)
        positive = torch.rand(size, generator=generator) < (0.15 if level == 0 else 0)
        has_boxes = torch.tensor([len(b) > 0 for b in boxes])[:, None]
        inside = torch.ones(len(boxes), height, width, per_position, dtype=torch.bool)
        inside[-1, :, -1] = False
        valid.append(inside.flatten(1))
        labels.append(torch.where(positive & has_boxes & valid[-1], drawn, CLASSES))
    weights = [(torch.rand(v.shape, generator=generator) * v).to(dtype) for v in valid]
    priors, boxes = [p.to(dtype) for p in priors], [b.to(dtype) for b in boxes]
    return HeadTargets(priors, labels, weights, valid, boxes, CLASSES, STRIDES)


def make_maps(images=3, per_position=1, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    channels = [per_position * CLASSES] * 2 + [per_position * 4 * BINS] * 2
    return [
        2 * torch.randn(images, c, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for c, shape in zip(channels, SHAPES * 2, strict=True)
    ]


def prior_logits(level_map, per_position, image, prior):
    """The logits of one prior, cut out of a map."""
    position, k = divmod(prior, per_position)
    y, x = divmod(position, level_map.shape[3])
    size = level_map.shape[1] // per_position
    return level_map[image, k * size : (k + 1) * size, y, x]


def pack(maps):
    return torch.cat([x.flatten(1) for x in maps], 1)


def unpack(packed, like):
    """The maps of a head, or of a neck, from one tensor for each image."""
    sizes = [x[0].numel() for x in like]
    return [x.reshape(-1, *y.shape[1:]) for x, y in zip(packed.split(sizes, 1), like, strict=True)]


class Packed(LossContract):
    """The contract for a loss that takes the lists of maps of a tap.

    Its maps are packed into one tensor; all its images have the same boxes and labels.
    """

    maps = staticmethod(make_maps)

    def keywords(self, images):
        targets = make_targets([BOXES[0]], dtype=torch.float32)
        repeated = {
            name: [x.expand(images, -1) for x in getattr(targets, name)]
            for name in ('labels', 'label_weights', 'valid')
        }
        return {'head_targets': targets._replace(boxes=targets.boxes * images, **repeated)}

    def example(self, dtype=torch.float64):
        student, teacher = (pack(self.maps(seed=seed)).to(dtype) for seed in (0, 1))
        return student.requires_grad_(), teacher.requires_grad_()

    def call(self, loss, student, teacher):
        maps = (unpack(x, self.maps()) for x in (student, teacher))
        result = loss(*maps, **self.keywords(len(student)))
        return sum(result.values()) if isinstance(result, dict) else result

    def value(self, student, teacher):
        return self.call(self.loss, student, teacher)

    def test_is_a_finite_scalar_or_its_named_parts(self):
        maps = (unpack(x, self.maps()) for x in self.example())
        keywords = self.keywords(3)
        result = self.loss(*maps, **keywords)
        assert tuple(result if isinstance(result, dict) else ()) == self.loss.parts
        assert set(keywords) == set(self.loss.needs)
        for value in result.values() if isinstance(result, dict) else [result]:
            assert value.shape == ()
            assert value.isfinite()

import pytest
import torch

from kd_dense.losses import CWDLoss, FGDLoss
from kd_dense.losses.ld.ld import mean_kl
from kd_dense.mm.presets.choose import METHODS, SUMS
from kd_dense.mm.presets.roles import IMAGE, LOGITS, Map
from kd_dense.mm.presets.settings import COCO, P3_TO_P7, scaled


class TestScale:
    def test_published_layouts_keep_the_published_weights(self):
        for method in METHODS.values():
            for preset in method.presets:
                if preset.layout is None:
                    continue
                maps = layout_maps(preset.layout.channels, preset.layout.strides)
                for term in of_maps(preset):
                    assert rescaled(term['loss'], maps, preset.layout) == term['loss']

    def test_every_loss_of_a_row_with_a_layout_has_a_rule(self):
        for method in METHODS.values():
            for preset in method.presets:
                for term in of_maps(preset) if preset.layout else ():
                    weights = SUMS[term['loss']['type']]
                    assert weights.keys() <= term['loss'].keys()

    # Fewer levels, other widths, other strides.
    @pytest.mark.parametrize(('channels', 'strides'), [(64, (8, 16)), (32, (4, 8, 16, 32))])
    def test_terms_of_other_layouts_keep_their_size(self, channels, strides):
        published = 256, (8, 16, 32, 64, 128)
        fgd = METHODS['fgd'].presets[-1].terms['fgd']['loss']
        cwd = METHODS['cwd'].presets[-2].terms['cwd']['loss']
        maps = layout_maps(channels, strides)
        for loss in (fgd, cwd):
            expected = worth(loss, *published)
            unscaled = worth(loss, channels, strides)
            found = worth(rescaled(loss, maps, P3_TO_P7), channels, strides)
            for part, value in expected.items():
                # The attention varies more where it averages over fewer channels.
                within = 4.0 if part == 'attention' else 1.15
                assert 1 / within < found[part] / value < within, part
            assert any(abs(unscaled[part] / expected[part] - 1) > 0.15 for part in expected)

    @pytest.mark.parametrize(
        ('classes', 'strides'), [(3, (8, 16, 32)), (20, (8, 16, 32, 64, 128))]
    )
    def test_classes_are_distilled_alike_whatever_their_number(self, classes, strides):
        loss = METHODS['ld'].presets[0].terms['ld']['loss']
        config = rescaled(loss, layout_maps(classes, strides), COCO)
        expected = worth_of_classes(loss['kd_weight'], 80, len(COCO.strides))
        found = worth_of_classes(config.pop('kd_weight'), classes, len(strides))
        assert 1 / 1.6 < found / expected < 1.6  # unscaled, 3 classes are worth 10 times as much
        assert config == {k: v for k, v in loss.items() if k != 'kd_weight'}


def of_maps(preset):
    """The terms that a layout is of; there is one map of logits, whatever the layout."""
    return [term for term in preset.terms.values() if term['tap'] not in LOGITS]


@torch.no_grad()
def worth_of_classes(weight, classes, levels):
    """What the part of the classes makes of random logits at positives on all levels."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(5000, classes, generator=generator) for _ in range(2))
    return weight * levels * mean_kl(a, b, temperature=2.0, dim=1).mean().item()


def rescaled(loss, maps, layout):
    return scaled(loss, maps, layout, SUMS[loss['type']])


def layout_maps(channels, strides):
    return [Map(channels, IMAGE / stride**2) for stride in strides]


@torch.no_grad()
def worth(loss, channels, strides):
    """What a loss makes of random maps of images of 400x608, part by part."""
    generator = torch.Generator().manual_seed(0)
    arguments = {k: v for k, v in loss.items() if k != 'type'}
    total = {}
    for stride in strides:
        shape = 1, channels, -(-400 // stride), -(-608 // stride)
        maps = [torch.randn(shape, generator=generator) for _ in range(2)]
        if loss['type'] == 'CWDLoss':
            parts = {'': CWDLoss(**arguments)(*maps)}
        else:
            boxes = [torch.tensor([[100.0, 50.0, 300.0, 250.0], [400.0, 100.0, 500.0, 390.0]])]
            shapes = dict(batch_shape=(400, 608), image_shapes=[(400, 608)])
            parts = FGDLoss(channels=channels, **arguments)(*maps, boxes=boxes, **shapes)
        total = {part: total.get(part, 0.0) + value.item() for part, value in parts.items()}
    return total

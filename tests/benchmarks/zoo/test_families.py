from __future__ import annotations

import pytest
from mmengine.config import Config

from benchmarks.zoo import families
from tests.miniature import ROOT


class TestChoose:
    def test_choices_are_different_models_from_the_smallest_up(self, monkeypatch):
        widths = dict(e=9, d=3, copy_of_d=3, f=5, g=7)
        paths = {name: ROOT / f'{name}.py' for name in widths}
        configs = {
            paths[n]: Config(dict(model=dict(type='M', width=w))) for n, w in widths.items()
        }
        monkeypatch.setattr(families, 'read', configs.get)
        monkeypatch.setattr(families, 'parameters', lambda config: config.model.width)
        pairs = families.choose([*paths.values(), ROOT / 'no_model.py'])
        assert pairs == [(paths[name], paths['e']) for name in 'dfg']

    @pytest.mark.parametrize('neck', [
        dict(type='FPN', out_channels=256), [dict(type='FPN'), dict(type='BFP', out_channels=256)]
    ])  # fmt: skip
    def test_prefers_a_pyramid(self, neck, monkeypatch):
        necks = [None, dict(type='SSDNeck', out_channels=(512, 256)), neck]
        models = [dict(type='M', width=i, neck=neck) for i, neck in enumerate(necks)]
        models.append(dict(type='Tracker', width=3, detector=dict(neck=neck)))
        configs = {ROOT / f'{i}.py': Config(dict(model=m)) for i, m in enumerate(models)}
        monkeypatch.setattr(families, 'read', configs.get)
        monkeypatch.setattr(families, 'parameters', lambda config: config.model.width)
        students = [student.stem for student, _ in families.choose([*configs])]
        assert students == ['2', '3', '0']

    def test_a_teacher_knows_the_same_classes(self, monkeypatch):
        """As Mask2Former's, which is for instances or for panoptic segmentation."""
        head = dict(type='H', num_things_classes=80)
        paths = {stuff: ROOT / f'{stuff}.py' for stuff in (0, 53)}
        configs = {
            path: Config(
                dict(model=dict(type='M', panoptic_head={**head, 'num_stuff_classes': n}))
            )
            for n, path in paths.items()
        }
        monkeypatch.setattr(families, 'read', configs.get)
        monkeypatch.setattr(
            families, 'parameters', lambda config: config.model.panoptic_head.num_stuff_classes
        )
        pairs = families.choose([*paths.values()])
        assert pairs == [(path, path) for path in paths.values()]

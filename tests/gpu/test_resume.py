"""A resumed training on the GPU draws the random numbers that it would have drawn."""

import pytest
import torch
from mmengine.hooks import Hook

from tests.mm import toy

pytestmark = pytest.mark.gpu
RANDOM = dict(type='kd_dense.RandomStateHook')


class Draws(Hook):
    """Draws a number on the device in every iteration, and stops as a power cut would."""

    def __init__(self, device, cut=None):
        self.device, self.cut, self.drawn = device, cut, []

    def before_train_iter(self, runner, *args, **kwargs):
        if runner.iter == self.cut:
            raise KeyboardInterrupt('power cut')

    def after_train_iter(self, runner, *args, **kwargs):
        self.drawn.append(float(torch.rand((), device=self.device)))


def draws(work_dir, device, cut=None, resume=False, hooks=(RANDOM,)):
    found = Draws(device, cut)
    # its dropout draws on the device, too
    config = toy.distilled(student=toy.segmenter(dropout=0.5))
    runner = toy.runner(config, work_dir, 6, custom_hooks=[*hooks, found], resume=resume)
    if cut is None:
        runner.train()
        assert next(runner.model.parameters()).device.type == device
    else:
        with pytest.raises(KeyboardInterrupt, match='power cut'):
            runner.train()
    return found.drawn


def test_numbers_of_the_device(tmp_path, device):
    whole = draws(tmp_path / 'whole', device)
    first = draws(tmp_path / 'stopped', device, cut=5)
    torch.rand(7, device=device)
    assert first == whole[:5]
    assert draws(tmp_path / 'stopped', device, resume=True) == whole[4:]  # iter_4.pth


def test_without_the_hook_they_are_others(tmp_path, device):
    whole = draws(tmp_path / 'whole', device)
    draws(tmp_path / 'stopped', device, cut=5)
    torch.rand(7, device=device)
    assert draws(tmp_path / 'stopped', device, resume=True, hooks=()) != whole[4:]

"""Files that run something when they are read, and what must become of them."""

import collections
import copyreg
import functools
import io
import operator
import os
import pickle
import runpy
import subprocess

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import CheckpointLoader

from kd_dense.mm.files.checkpoint import read_checkpoint
from tests.mm import toy

TOUCH = 'open("executed", "w")'


class Call:
    """Pickled, it is a call; this is how a file runs code."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


CALLS = {
    'posix.system': Call(os.system, 'touch executed'),
    'subprocess.Popen': Call(subprocess.Popen, ['touch', 'executed']),
    'subprocess.getoutput': Call(subprocess.getoutput, 'touch executed'),
    'eval': Call(eval, TOUCH),
    'exec': Call(exec, TOUCH),
    '__import__': Call(__import__, 'this'),
    'open': Call(open, 'executed', 'w'),
    'io.open_code': Call(io.open_code, 'executed'),
    'runpy._run_code': Call(runpy._run_code, TOUCH, {}),
    'pickle._loads': Call(pickle._loads, pickle.dumps(0)),
    'copyreg._reconstructor': Call(copyreg._reconstructor, object, object, None),
    'functools.partial': Call(functools.partial, eval, TOUCH),
    'operator.attrgetter': Call(operator.attrgetter, 'system'),
    'torch.hub.load': Call(torch.hub.load, '.', 'x', 'local'),
    'torch.serialization.load': Call(torch.load, 'other.pth', None, None),
    'numpy.load': Call(np.load, 'executed', None, True),
    'mmengine.runner.runner.Runner': Call(toy.Runner.from_cfg, {}),
    'collections.defaultdict': collections.defaultdict(list, x=[1]),
    'torch.nn.modules.linear.Linear': torch.nn.Linear(1, 1),
    'torch.nn.modules.module.Module': Call(getattr, torch.nn.Module, 'load_state_dict'),
    'getattr': Call(getattr, HistoryBuffer, '__init__'),
}


def around(content):
    """What looks like a checkpoint of mmengine, with something in it."""
    return {
        'meta': {'epoch': 3, 'cfg': "model = dict(type='PSPNet')", 'dataset_meta': content},
        'state_dict': {'weight': torch.zeros(2, 2)},
    }


def refused(path, message):
    """By us, and by mmengine, which reads ``load_from`` and what is resumed from."""
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match=message):
            read(str(path))

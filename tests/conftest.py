"""What every test run begins and ends with, side by side or not."""

import gc
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

from mmengine.config import utils
from mmengine.dataset import base_dataset
from yapf.yapflib import yapf_api

# What mmengine does again and again: it formats the config of each run, looks through all that is
# imported for garbage for each data set, and reads a hundred files for each `mmdet::`.
yapf_api.FormatCode = lambda text, **_: (text, True)
base_dataset.gc = SimpleNamespace(collect=lambda: None)
utils.load = cache(utils.load)
# It imports mmrotate, which is optional: where that is missing, it has no examples to run.
NEEDS_MMROTATE = Path(__file__).parents[1] / 'kd_dense' / 'mm' / 'models' / 'rotated_heads.py'
LONGEST = ('test_commands.py', 'test_dist.py', 'test_distributed.py', 'test_kill.py',
           'test_package.py', 'test_quickstart.py', 'test_recipes.py')  # fmt: skip


def pytest_addoption(parser):
    parser.addoption(
        '--gpu-dry-run',
        action='store_true',
        help='run what needs a GPU on the CPU, without the calls that only CUDA has',
    )


def pytest_configure(config):
    if config.getoption('gpu_dry_run'):
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    if find_spec('mmrotate') is None:
        config.option.ignore = [*(config.option.ignore or ()), str(NEEDS_MMROTATE)]


def pytest_collection_finish():
    gc.freeze()  # what is imported by now is not looked through again and again


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for name, value in report.user_properties:
            if name in ('oracle', 'gpu') and report.when == 'call':
                terminalreporter.write_line(f'{name}: {value}')


def pytest_collection_modifyitems(items):
    # the longest first, or one process ends with them while the other has nothing left
    items.sort(key=lambda item: item.path.name not in LONGEST)

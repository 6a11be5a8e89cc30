"""What needs CUDA: `bash tools/run_tests.sh --gpu` runs all of it, `--gpu-dry-run` on the CPU."""

from functools import partial

import pytest
import torch
from mmengine.optim.optimizer import amp_optimizer_wrapper

from tests.gpu.card import describe


def pytest_terminal_summary(terminalreporter, config):
    reports = terminalreporter.getreports('passed') + terminalreporter.getreports('failed')
    if any('tests/gpu/' in report.nodeid for report in reports):
        terminalreporter.section('GPU')
        dry = 'a dry run on the CPU, CUDA was not used; ' if config.option.gpu_dry_run else ''
        terminalreporter.write_line(dry + describe())


@pytest.fixture(scope='session')
def dry(request):
    return request.config.option.gpu_dry_run


@pytest.fixture(scope='session')
def device(dry):
    if not dry and not torch.cuda.is_available():
        pytest.skip('needs a GPU; --gpu-dry-run walks through it on the CPU')
    return 'cpu' if dry else 'cuda'


@pytest.fixture
def exact():
    """Float32 with all its bits: TF32 leaves ten of a factor's mantissa."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture
def amp(dry, monkeypatch):
    """Settings of mmengine's wrapper for mixed precision.

    It asserts that there is a GPU, and float16 needs one: the dry run takes bfloat16 without both.
    """
    if dry:
        monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
        scaler = partial(torch.amp.GradScaler, device='cpu')
        monkeypatch.setattr(amp_optimizer_wrapper, 'GradScaler', scaler)
        # oneDNN's convolutions leave bfloat16 values unset (docs/performance.md)
        monkeypatch.setattr(torch.backends.mkldnn, 'enabled', False)
    return lambda dtype, **options: dict(
        type='AmpOptimWrapper', dtype='bfloat16' if dry else dtype, **options
    )

"""What every test run begins and ends with, side by side or not."""

import os

from yapf.yapflib import yapf_api

format_code = yapf_api.FormatCode
formatted = {}


def format_once(text, **options):
    if text not in formatted:
        formatted[text] = format_code(text, **options)
    return formatted[text]


# Mmengine formats the config of a run for seconds, and again each time that it is written.
yapf_api.FormatCode = format_once


def pytest_addoption(parser):
    parser.addoption(
        '--gpu-dry-run',
        action='store_true',
        help='run what needs a GPU on the CPU, without the calls that only CUDA has',
    )


def pytest_configure(config):
    if config.getoption('gpu_dry_run'):
        os.environ['CUDA_VISIBLE_DEVICES'] = ''


def pytest_terminal_summary(terminalreporter):
    for report in terminalreporter.getreports('passed') + terminalreporter.getreports('failed'):
        for name, value in report.user_properties:
            if name in ('oracle', 'gpu') and report.when == 'call':
                terminalreporter.write_line(f'{name}: {value}')


def pytest_collection_modifyitems(items):
    # the longest one first, or one process ends with it while the other has nothing left
    items.sort(key=lambda item: 'test_trains_compares_and_draws' not in item.nodeid)

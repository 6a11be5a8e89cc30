"""What docs/distributed.md says of communication is what is counted."""

import sys

import pytest

from tests.launch import SEGMENTER, free_port, run
from tests.miniature import ROOT

pytestmark = pytest.mark.long


def test_counts_what_the_page_says():
    said = run(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2,
               '--master_port', free_port(), ROOT / 'benchmarks' / 'communication.py', SEGMENTER,
               OMP_NUM_THREADS='1')  # fmt: skip
    lines = said[said.rindex(SEGMENTER.stem) :].splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ['alone', 'distilled']
    row = '| CWD, PSPNet R101 to R18 | 12,790,086 | 51,160,344 B | 51,160,344 B | none | none |'
    assert row in (ROOT / 'docs' / 'distributed.md').read_text()
    for line in lines[1:3]:
        assert '12,790,086 numbers trained' in line
        assert '51,160,344 bytes of gradients, 0 other collectives' in line


def test_says_how_it_is_started():
    said = run(sys.executable, ROOT / 'benchmarks' / 'communication.py', SEGMENTER, ok=False)
    assert 'start it with torchrun --nproc_per_node 2' in said

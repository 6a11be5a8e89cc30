"""Launches and passes of all losses are those that the page says."""

import pytest
import torch

from benchmarks import launches
from benchmarks.counting import count, size_of

LINES = launches.PAGE.read_text().split(launches.BEGIN)[1].split(launches.END)[0].splitlines()
ON_PAGE = {what: counts for what, *counts in (line[2:-2].split(' | ') for line in LINES[3:])}

OFTEN = ('cwd', 'fgd', 'ld', 'intrakd', 'skd-pixel', 'skd-pair', 'pkd', 'kd')


def on_page():
    for case in launches.CASES:
        if case.what in ON_PAGE:
            often = case.name.startswith(tuple(f'{name}-' for name in OFTEN)) or case.name in OFTEN
            yield pytest.param(case, id=case.name, marks=() if often else pytest.mark.long)


@pytest.mark.skipif(
    not torch.__version__.startswith('2.13'), reason='another torch is made of other operators'
)
@pytest.mark.parametrize('case', on_page())
def test_counts_are_those_of_the_page(case):
    row, _ = launches.measure(case, reference=False)
    again = 'python -m benchmarks.launches --page writes what is counted now'
    cells = launches.table([row]).splitlines()[-1][2:-2].split(' | ')
    assert cells[1:3] == ON_PAGE[case.what][:2], again


def test_the_page_has_no_other_lines():
    assert set(ON_PAGE) <= {case.what for case in launches.CASES}


@pytest.mark.long  # who adds a loss need not count it at once
def test_the_page_has_all_lines():
    assert len(ON_PAGE) == len(launches.CASES)


def test_what_is_counted():
    x, y = torch.zeros(2, 3, 4, device='meta'), torch.zeros(3, 1, device='meta')

    def call():
        out = torch.empty_like(x)
        torch.add(x.transpose(0, 1).transpose(0, 1), y.expand(3, 4), out=out)  # 24 + 3 + 24
        out.mul_(2)  # 24 + 24
        out.zero_()  # 24
        torch.ones_like(x)  # 24
        torch.zeros(5) + 1  # of the host
        torch.cat([x, out])[:, 0]  # 24 + 24 + 48

    found = count(call)
    assert found.operators == {'add': 1, 'mul_': 1, 'zero_': 1, 'ones_like': 1, 'cat': 1}
    assert found.bytes == 4 * (51 + 48 + 24 + 24 + 96)
    assert size_of(y.expand(3, 4)) == 12


def test_command(tmp_path, capsys):
    page = tmp_path / 'page.md'
    page.write_text(f'above\n{launches.BEGIN}\nold\n{launches.END}\nbelow\n')
    assert launches.main(['--only', 'skd-pixel', '--operators', '--page', str(page)]) == 0
    assert 'log_softmax' in capsys.readouterr().out
    text = page.read_text()
    assert 'old' not in text
    assert text.startswith('above\n')
    assert text.endswith('below\n')
    assert '| SKD pixel-wise, logits 8x19x65x65 |' in text
    with pytest.raises(SystemExit, match='2'):
        launches.main(['--only', 'nothing'])
    assert 'nothing begins so; there are cwd-pyramid' in capsys.readouterr().err

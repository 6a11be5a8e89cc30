"""Files of the repository that repeat what others say."""

import re

import yaml

import kd_dense
import kd_dense.losses
import kd_dense.mm
from tests.miniature import ROOT


def test_every_file_names_the_version():
    version = kd_dense.__version__
    assert re.search(rf'^## {re.escape(version)}$', (ROOT / 'CHANGELOG.md').read_text(), re.M)
    assert yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version'] == version


def test_a_commit_is_looked_at_by_what_the_tests_begin_with():
    [repo] = yaml.safe_load((ROOT / '.pre-commit-config.yaml').read_text())['repos']
    entries = [hook['entry'] for hook in repo['hooks']]
    script = (ROOT / 'tools' / 'run_tests.sh').read_text().splitlines()
    start = script.index(entries[0])
    found = [line.partition(' & ')[0] for line in script[start : start + len(entries)]]
    assert found == entries


def test_the_public_names_are_those_that_were_agreed():
    """None appears or vanishes unnoticed: edit public_names.txt with a change that means to."""
    modules = [kd_dense, kd_dense.losses, kd_dense.mm]
    found = [f'{module.__name__}.{name}' for module in modules for name in sorted(module.__all__)]
    assert found == (ROOT / 'tests' / 'public_names.txt').read_text().split()
    assert all(hasattr(module, name) for module in modules for name in module.__all__)
    assert {'Distilled', 'check', 'distill', 'export'} <= {*dir(kd_dense)}

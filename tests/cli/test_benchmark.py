"""The command that times whole steps, on the small models of the quickstart."""

import argparse
import json
import subprocess

import pytest
import torch

from kd_dense import __version__
from kd_dense.cli import benchmark
from kd_dense.mm.cost.steps import Trained
from tests.launch import call
from tests.miniature import ROOT

RECIPES = ROOT / 'configs' / 'quickstart'
SEG_CWD, SEG_SKD = RECIPES / 'seg_cwd.py', RECIPES / 'seg_skd.py'
DET_LD, DET_FGD = RECIPES / 'det_ld.py', RECIPES / 'det_fgd.py'
SMALL = ['--size', '64', '64', '--rounds', '2']


def arguments(*words):
    parser = argparse.ArgumentParser()
    benchmark.add_arguments(parser)
    return parser.parse_args([*map(str, words)])


def test_measures_recipes_side_by_side_and_writes_json(tmp_path, monkeypatch, capsys):
    path = tmp_path / 'new' / 'figures.json'
    monkeypatch.chdir(ROOT)
    call('benchmark', SEG_CWD, '--against', SEG_SKD, SEG_CWD, 'model.teacher.precision=bf16',
         *SMALL, '--threads', 1, '--json', path)  # fmt: skip
    said = capsys.readouterr()
    found = json.loads(path.read_text())
    assert found['size'] == [64, 64]
    assert (found['batch_size'], found['rounds'], found['threads']) == (2, 2, 1)
    assert (found['device'], found['torch']) == ('cpu', torch.__version__)
    assert {'commit', 'pretrained'} <= found.keys()
    for one in found['calls'].values():
        assert len(one['seconds']) == 2
        assert one['low'] <= one['median'] <= one['high']
        assert one['peak_bytes'] > 0
    recipes = found['recipes']
    assert [*recipes] == ['seg_cwd', 'seg_skd', 'seg_cwd model.teacher.precision=bf16']
    assert [*recipes['seg_skd']['terms']] == ['pixel', 'pair', 'holistic']
    first, skd, other = recipes.values()
    assert first['guest'] == other['guest']  # the floor knows no options
    assert first['step'] != other['step']
    assert skd['guest']['full'] == first['guest']['full']
    for recipe in recipes.values():
        calls = [found['calls'][recipe['guest']['minimal']], found['calls']['plain step']]
        floor = [sum(pair) for pair in zip(*(one['seconds'] for one in calls), strict=True)]
        assert recipe['floor_seconds'] == floor
        step = found['calls'][recipe['step']]
        ratios = sorted(a / b for a, b in zip(step['seconds'], floor, strict=True))
        assert recipe['step_to_floor']['median'] == pytest.approx(sum(ratios) / 2)
        assert recipe['goals']['time'] == (recipe['step_to_floor']['median'] <= 1.05)
        held = recipe['guest']['maps'] + recipe['guest']['layer']
        assert recipe['floor_bytes'] == found['calls']['plain step']['peak_bytes'] + held
        assert recipe['peak_to_floor'] == step['peak_bytes'] / recipe['floor_bytes']
    for text in ('plain step', '[3] distilled step', '[2] holistic, alone', 'x floor, goal 1.05'):
        assert text in said.out
    assert 'rounds: 3 of 3' in said.err


def test_settings_of_all_recipes_and_of_one(monkeypatch):
    monkeypatch.chdir(ROOT)
    args = arguments(
        SEG_CWD, '--against', SEG_SKD, SEG_SKD, 'model.teacher.precision=bf16', '--cfg-options',
        f'model.teacher={RECIPES / "seg_teacher.py"}', 'train_cfg.max_iters=7',
    )  # fmt: skip
    found = benchmark.named_configs(args)
    assert [*found] == ['seg_cwd', 'seg_skd', 'seg_skd model.teacher.precision=bf16']
    assert all(config.train_cfg.max_iters == 7 for config in found.values())
    plain = dict(config=str(RECIPES / 'seg_teacher.py'))
    teachers = [config.model.teacher for config in found.values()]
    assert teachers == [plain, plain, {**plain, 'precision': 'bf16'}]


class TestWhichCodeWasMeasured:
    def test_the_commit_of_a_checkout(self, tmp_path):
        def git(*words):
            author = ['-c', 'user.name=x', '-c', 'user.email=x']
            subprocess.run(['git', '-C', str(tmp_path), *author, *words], check=True)

        git('init', '--quiet')
        git('commit', '--quiet', '--allow-empty', '--message', 'first')
        found = benchmark.commit(tmp_path)
        assert len(found) == 12
        assert int(found, 16)

    def test_none_of_an_installed_package_below_a_checkout(self):
        assert benchmark.commit(ROOT / 'kd_dense') is None

    def test_the_version(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        args = arguments(SEG_CWD, *SMALL)
        found = benchmark.surroundings(args, benchmark.side_by_side(args))
        assert found['version'] == __version__
        assert found['batch_size'] == 2


class TestBadInput:
    @pytest.mark.parametrize(
        ('words', 'message'),
        [
            ([RECIPES / 'seg_student.py'], 'distils nothing: expected a model of type kd_dense'),
            (['nowhere.py'], r'the config nowhere\.py does not exist'),
            ([SEG_CWD, '--against', DET_LD], 'det_ld has another student than seg_cwd'),
            ([SEG_CWD, '--against', SEG_CWD], 'seg_cwd is named twice'),
            ([SEG_CWD, '--against', SEG_SKD, 'optim_wrapper.optimizer.lr=1'],
             'has another optim_wrapper than seg_cwd'),
            ([DET_FGD, '--size', 50, 64], r'pads pictures to multiples of 32: .* got 50 64'),
            ([SEG_CWD, '--rounds', 0], 'must be >= 1'),
            ([SEG_CWD, '--size', 0, 64], 'must be >= 1'),
            ([SEG_CWD, '--against', 'model.teacher.compile=True'], 'a recipe before its settings'),
        ],
    )  # fmt: skip
    def test_ends_with_what_to_do(self, monkeypatch, words, message):
        monkeypatch.chdir(ROOT)
        with pytest.raises(SystemExit, match=f'kd_dense benchmark: .*{message}'):
            call('benchmark', *words)

    def test_an_unknown_device(self, capsys):
        with pytest.raises(SystemExit, match='2'):
            call('benchmark', SEG_CWD, '--device', 'tpu')
        assert "invalid choice: 'tpu'" in capsys.readouterr().err

    def test_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        with pytest.raises(SystemExit, match='torch finds no GPU'):
            call('benchmark', SEG_CWD, '--device', 'cuda')

    def test_a_loss_that_is_not_finite(self, monkeypatch):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(Trained, 'step', lambda *_: torch.tensor(float('nan')))
        with pytest.raises(SystemExit, match='the loss of a step is not finite'):
            call('benchmark', SEG_CWD, *SMALL)

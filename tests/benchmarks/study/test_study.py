"""The study: its grid, what it remembers, and its page."""

import itertools
import json
from pathlib import Path

import pytest

from benchmarks.study import __main__ as study
from benchmarks.study import cells as cells_file
from benchmarks.study import run as run_file
from benchmarks.study.brought import with_column
from benchmarks.study.cells import ROOT, SETS, Cell, teacher_of
from benchmarks.study.page import ALONE, kind_of, page
from benchmarks.study.queue import StudyQueue
from benchmarks.study.results import Results
from benchmarks.study.run import read, run
from examples.real.link import link, write_splits
from kd_dense.mm.check.finding import Finding
from kd_dense.mm.check.verdict import GAINED


def line(cell, test=50.0, cpu_s=10.0, iterations=None):
    return {
        **cell.spec(),
        'set': cell.set.partition('-')[0],
        'task': cell.data.task,
        'student': cell.data.student.as_posix(),
        'teacher': cell.data.teacher.as_posix(),
        'iterations': cell.iterations if iterations is None else iterations,
        'teacher_iterations': cell.taught,
        'cpu_s': cpu_s,
        'val': test,
        'test': test,
        'verdict': 'will help' if cell.distils and not cell.seed else '',
        'commit': 'abc',
    }


@pytest.fixture
def results(tmp_path):
    found = Results(tmp_path / 'study.jsonl')
    found.add(line(teacher_of('camvid'), 60.0))
    for seed, (alone, cwd) in enumerate([(40.0, 43.0), (41.0, 44.5), (42.0, 44.5)]):
        found.add(line(Cell('camvid', 'alone', '-', 'short', seed, 600), alone, 100.0))
        cell = Cell('camvid', 'cwd', 'published', 'short', seed, 600)
        found.add(line(cell, cwd, 150.0))
    return found


class TestGrid:
    def test_goes_seed_by_seed(self):
        args = study.parse(['--sets', 'camvid', 'cards', '--methods', 'alone', 'cwd'])
        cells = [*study.same_schedule(args)]
        assert [c.seed for c in cells] == sorted(c.seed for c in cells)
        assert len({*cells}) == len(cells) == 2 * 2 * 3

    def test_a_control_takes_as_long_as_its_method(self, results):
        args = study.parse(['--sets', 'camvid', '--methods', 'alone', 'cwd', '--seeds', '2'])
        cells = [*study.same_cpu_time(args, results)]
        assert [(c.method, c.iterations, c.equals, c.seed) for c in cells] == [
            ('alone', 900, 'cwd', 0),
            ('alone', 900, 'cwd', 1),
        ]

    @pytest.mark.parametrize('name', SETS)
    def test_configs_exist_and_shared_pictures_fit_them(self, name):
        data = SETS[name]
        assert data.student.is_file()
        assert data.teacher.is_file()
        assert data.iterations['plateau'] > data.iterations['short']


class TestResults:
    def test_what_has_its_line_is_found_again(self, results):
        again = Results(results.file)
        assert again.find(Cell('camvid', 'alone', '-', 'short', 1, 600))['test'] == 41.0
        assert again.find(Cell('camvid', 'alone', '-', 'short', 3, 600)) is None
        assert again.find(Cell('camvid', 'alone', '-', 'plateau', 1, 2400)) is None

    def test_the_two_tasks_of_scenes_are_told_apart(self, tmp_path):
        found = Results(tmp_path / 'study.jsonl')
        cells = [
            Cell(f'scenes-{task}', 'alone', '-', 'short', 0, 600)
            for task in ('segmentation', 'detection')
        ]
        found.add(line(cells[0]))
        assert found.find(cells[0])
        assert not found.find(cells[1])

    def test_a_teacher_that_is_only_tested_has_no_iterations(self, tmp_path):
        found = Results(tmp_path / 'study.jsonl')
        teacher = teacher_of('scenes-detection')
        found.add(line(teacher, iterations=0))
        assert found.find(teacher)

    def test_what_another_teacher_taught_is_told_apart(self, tmp_path):
        found = Results(tmp_path / 'study.jsonl')
        cell = Cell('cards', 'auto', '-', 'plateau', 0, 1600)
        found.add(line(teacher_of('cards'), 40.0, iterations=800))
        found.add({**line(cell, 38.0), 'teacher_iterations': 800})
        assert not found.find(cell)
        assert not found.seconds('cards', 'plateau', 'auto', '-')
        found.add(line(teacher_of('cards'), 60.0))
        found.add(line(cell, 45.0))
        found.add(line(Cell('cards', 'alone', '-', 'plateau', 0, 1600), 30.0))
        rows = [x for x in page(found.lines).splitlines() if x.startswith('| auto')]
        assert [x.split(' |')[0] for x in rows] == ['| auto (teacher of 800 iterations)', '| auto']
        assert ['80 %' in rows[0], '50 %' in rows[1]] == [True, True]


class TestQueue:
    def test_notes_what_ended_while_it_was_away(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cells_file, 'WORK', tmp_path)
        cell = Cell('camvid', 'alone', '-', 'short', 0, 600)
        cell.folder.mkdir()
        (cell.folder / 'result.json').write_text(json.dumps(line(cell, 41.0)))
        found = Results(tmp_path / 'study.jsonl')
        StudyQueue(1, found, None).do([cell])
        assert Results(found.file).find(cell)['test'] == 41.0


class TestPage:
    def test_says_gain_interval_and_gap(self, results):
        text = page(results.lines)
        assert 'camvid_teacher.py`, 1,600 iterations: val 60.0, test 60.0' in text
        row = next(x for x in text.splitlines() if x.startswith('| cwd'))
        # the differences are 3, 3.5 and 2.5: their spread is 0.5, and 4.303 * 0.5 / sqrt(3) is 1.2
        assert (
            row == '| cwd | 3 | 600 | 150 | 44.0 | 44.0 +- 0.9 | +3.0 +- 1.2 | 16 % | will help |'
        )

    def test_a_control_stands_behind_its_method(self, results):
        for seed in range(3):
            cell = Cell('camvid', 'alone', '-', 'short', seed, 900, 'cpu_time', 'cwd')
            results.add(line(cell, 45.0, 151.0))
        rows = [x.split('|')[1].strip() for x in page(results.lines).splitlines() if '|' in x]
        assert rows[-3:] == ['alone', 'cwd', 'alone, as cwd']
        # 43, 44.5 and 44.5 less 45
        said = 'cwd against the student alone for the same CPU time: -1.0 +- 2.2 (3 seeds).'
        assert said in page(results.lines)

    def test_the_pages_are_those_of_the_lines(self):
        lines = Results(ROOT / 'docs/results/study.jsonl').lines
        assert (ROOT / 'docs/results/study.md').read_text() == page(lines)
        methods = (ROOT / 'docs/methods/README.md').read_text()
        assert with_column(methods, lines) == methods


def test_what_the_verdict_trusts_made_no_student_worse():
    lines = Results(ROOT / 'docs/results/study.jsonl').lines
    trusted = {kind.removesuffix('Loss').lower() for kind in GAINED}
    where = ('set', 'task', 'schedule', 'seed')
    alone = {tuple(x[k] for k in where): x['test'] for x in lines if kind_of(x) == ALONE}
    gains = {
        (x['method'], x['set']): x['test'] - alone[tuple(x[k] for k in where)]
        for x in lines
        if x['weights'] == 'shares' and x['method'].replace('_', '') in trusted
    }
    assert len(gains) > 10
    assert min(gains.values()) > -0.5, gains


class TestRun:
    """One run: its config, and a short one on real pictures where they are."""

    @pytest.mark.parametrize('name', SETS)
    def test_a_config_for_each_kind_of_run(self, name):
        cells = [
            teacher_of(name),
            *(Cell(name, method, '-', 'short', 3, 60) for method in ('alone', 'inherit')),
            Cell(name, 'cwd', 'published', 'short', 3, 60),
        ]
        teacher, alone, inherit, cwd = map(read, cells)
        assert bool(teacher.get('load_from')) == (SETS[name].weights is not None)
        assert alone.model == cwd.model.student == inherit.model.student
        assert (alone.train_cfg.max_iters, alone.randomness.seed) == (60, 3)
        assert alone.param_scheduler[0].total_steps == 60
        assert cwd.model.preset == 'cwd'
        if SETS[name].task == 'detection':
            for config, part in itertools.product((teacher, alone), ('val', 'test')):
                pictures = config[f'{part}_dataloader'].dataset
                scored = config[f'{part}_evaluator'].ann_file
                assert Path(scored) == Path(pictures.data_root, pictures.ann_file)

    def test_a_method_of_shares_has_shares(self):
        cell = Cell('cards', 'cwd', 'shares', 'short', 0, 60)
        assert read(cell).model.weights == 'shares'

    def test_a_method_within_the_student_has_no_teacher(self):
        cell = Cell('camvid', 'sad', 'shares', 'short', 0, 60)
        assert read(cell).model.teacher is None
        assert cell.taught is None

    def test_a_run_is_checked_beforehand(self, monkeypatch):
        seen = {}

        def check(config, student, **others):
            seen.update(student=student, preset=config.model.preset)
            return [Finding('verdict', 'ok', 'will help', figures=dict(verdict='will help'))]

        monkeypatch.setattr(run_file, 'check', check)
        cell = Cell('cards', 'cwd', 'published', 'short', 0, 60)
        assert run_file.checked(read(cell), cell) == 'will help'
        assert seen == dict(student=None, preset='cwd')

    def test_and_can_be_checked_again(self, results, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(cells_file, 'WORK', tmp_path)
        monkeypatch.setattr(run_file, 'checked', lambda config, cell: f'{cell.method}: cannot say')
        monkeypatch.setattr(run_file, 'commit', lambda: 'abcdef')
        results.add(line(Cell('cards', 'cwd', 'published', 'short', 0, 600)))
        results.add(line(Cell('cards', 'sad', 'published', 'short', 0, 600)))
        teacher = teacher_of('camvid').checkpoint
        teacher.parent.mkdir()
        teacher.touch()
        run_file.check_again(results, ['camvid', 'cards'], ['cwd', 'sad'])
        said = capsys.readouterr().out
        assert 'camvid, cwd, published, short, seed 0: cwd: cannot say (before: will help)' in said
        assert 'cards, cwd, published, short, seed 0: its teacher is not there' in said
        found = [x for x in Results(results.file).lines if x['verdict']]
        assert [(x['verdict'], x.get('checked')) for x in found] == [
            ('cwd: cannot say', 'abcdef'),
            ('will help', None),
            ('sad: cannot say', 'abcdef'),  # which has no teacher
        ]

    def test_a_short_run_on_real_pictures(self, tmp_path, monkeypatch):
        pictures = ROOT.parent / 'shared' / 'data'
        if not pictures.is_dir():
            pytest.skip('trains on real pictures, which are not in the repository')
        assert link(pictures / 'cards', tmp_path / 'real' / 'cards')
        write_splits(tmp_path / 'real' / 'cards')
        monkeypatch.setenv('REAL_PICTURES', str(tmp_path / 'real'))
        monkeypatch.setattr(cells_file, 'WORK', tmp_path)
        cell = Cell('cards', 'alone', '-', 'short', 0, 2)
        cell.folder.mkdir()
        run(cell)
        found = cell.result()
        assert (found['set'], found['task'], found['iterations']) == ('cards', 'detection', 2)
        assert found['cpu_s'] > 0
        assert found['verdict'] == ''  # it has no teacher
        assert {'val', 'test', 'commit', 'weights', 'control', 'seed'} <= found.keys()


class TestFewLabels:
    """Sets of which only some training pictures have labels."""

    def test_a_method_sees_the_labelled_ones_alone(self):
        for method in ('teacher', 'alone', 'cwd'):
            cell = Cell('camvid10', method, 'shares', 'short', 0, 60)
            indices = read(cell).train_dataloader.dataset.indices
            assert len(indices) == 37
            assert max(indices) < 367

    @pytest.mark.parametrize('more', ['+pictures', '+pseudo+full'])
    def test_or_all_of_them(self, more):
        config = read(Cell('camvid25', 'kd' + more, 'shares', 'short', 0, 60))
        loader = config.train_dataloader
        assert loader.batch_size == loader.sampler.batch_size == 16
        assert 'indices' not in loader.dataset.pictures
        assert len(loader.dataset.beside.indices) == 92
        assert config.model.preset == 'kd'
        assert config.model.unlabelled
        assert ('pseudo' in config.model) == ('pseudo' in more)
        taught = config.model.teacher.checkpoint
        assert ('camvid_teacher' in taught) == ('full' in more)

    def test_of_two_teachers_each_is_told_apart(self, tmp_path):
        found = Results(tmp_path / 'study.jsonl')
        for cell, score in [
            (teacher_of('camvid25'), 40.0),
            (Cell('camvid25', 'alone', '-', 'short', 0, 600), 30.0),
            (Cell('camvid25', 'cwd+pictures+full', 'shares', 'short', 0, 600), 35.0),
        ]:
            found.add(line(cell, score))
        assert found.lines[-1]['teacher_iterations'] == SETS['camvid'].taught
        text = page(found.lines)
        assert 'Of the 367 training pictures of camvid, 92 have labels.' in text
        assert '| cwd+pictures+full, shares (teacher of 1,600 iterations) | 1 |' in text

    def test_a_teacher_that_was_trained_elsewhere_is_trained_here(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cells_file, 'WORK', tmp_path)
        found = Results(tmp_path / 'study.jsonl')
        teacher = teacher_of('camvid25')
        found.add(line(teacher))
        queue, ran = StudyQueue(1, found, None), []
        monkeypatch.setattr(queue, 'run', lambda cells, costs: ran.extend(cells))
        with pytest.raises(SystemExit, match='time is over: 1 runs left'):
            queue.do([teacher])
        assert ran == [teacher]

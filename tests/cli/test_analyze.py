import json
from math import nan

import matplotlib.pyplot as plt
import pytest

from kd_dense.cli import analyze
from kd_dense.mm.configs import RequestError
from tests.launch import call


def write(folder, *lines, start='20260101_000000', cut=''):
    file = folder / start / 'vis_data' / 'scalars.json'
    file.parent.mkdir(parents=True)
    file.write_text('\n'.join([*map(json.dumps, lines), cut]))
    return folder


def train(step, **more):
    losses = {'loss_cls': 1.0, 'loss_kd_fgd.foreground': 2.0, 'loss_kd_fgd.relation': 0.5}
    return {'loss': 3.5, **losses, 'time': 0.1, 'iter': step, 'step': step, **more}


def score(step, value, name='mIoU'):
    return {name: value, 'data_time': 0.1, 'time': 0.1, 'step': step}


def test_parts_of_a_term_are_added_and_taken_from_the_students_own():
    assert analyze.terms(train(1)) == {'own losses': 1.0, 'fgd': 2.5}


def test_a_resumed_run_counts_from_where_it_went_on(tmp_path):
    run = tmp_path / 'run'
    write(run, train(50), score(60, 10.0), train(100), score(120, 99.0), cut='{"loss": 1.')
    write(run, train(100, loss=4.0), score(120, 20.0), start='20260101_000001')
    found = analyze.read_run(run)
    assert [(line['step'], line['loss']) for line in found.losses] == [(50, 3.5), (100, 4.0)]
    assert analyze.curve(found, 'mIoU') == [(60, 10.0), (120, 20.0)]


def test_epochs_become_iterations_and_shares_percent(tmp_path):
    name = 'coco/bbox_mAP'
    lines = [train(50, epoch=1), train(80, epoch=1), score(1, 0.1, name), train(130, epoch=2)]
    run = analyze.read_run(
        write(tmp_path / 'run', *lines, train(160, epoch=2), score(2, 0.2, name))
    )
    assert analyze.choose_score([run], None) == name
    assert analyze.curve(run, name) == [(80, 10.0), (160, 20.0)]


def test_table_and_picture(tmp_path, capsys):
    alone = write(tmp_path / 'alone', score(60, 30.0), score(120, 40.0))
    kd = write(tmp_path / 'kd', train(50), score(60, 50.0), score(120, 45.0))
    out = tmp_path / 'out'
    call('analyze', alone, kd, '--teacher', 60, '--out', out)
    header, _, first, second = (out / 'analysis.md').read_text().splitlines()
    assert header == '| run | best mIoU | at | last | gain | of the gap | last loss | of it ours |'
    assert first == '| alone | 40.0 | 120 | 40.0 |  |  |  |  |'
    assert second == '| kd | 50.0 | 60 | 45.0 | +10.0 | 50% | 3.5 | 71% |'
    assert (out / 'analysis.png').stat().st_size > 10_000
    assert 'analysis.md' in capsys.readouterr().out


def test_of_several_scores_the_telling_one_is_chosen(tmp_path):
    """Not the first by name, and no text or time; what is no number is left out of curves."""
    both = {'coco/segm_mAP': 0.3, 'coco/bbox_mAP_copypaste': '0.4 0.6'}
    lines = [
        {**score(step, value, 'coco/bbox_mAP'), **both} for step, value in ((1, 0.2), (2, nan))
    ]
    run = analyze.read_run(write(tmp_path / 'run', *lines))
    assert analyze.choose_score([run], None) == 'coco/bbox_mAP'
    assert analyze.curve(run, 'coco/bbox_mAP') == [(1, 20.0)]
    with pytest.raises(RequestError, match=r'there are coco/bbox_mAP, coco/segm_mAP$'):
        analyze.choose_score([run], 'coco/bbox_mAP_copypaste')


def test_a_teacher_no_better_than_the_first_run_leaves_no_gap(tmp_path):
    runs = [
        analyze.read_run(write(tmp_path / name, score(60, value)))
        for name, value in (('alone', 50.0), ('kd', 60.0))
    ]
    header, (first, second) = analyze.summarise(runs, 'mIoU', 50.0)
    assert header[5] == 'of the gap'
    assert (first[5], second[5]) == ('', 'no gap')


def test_terms_below_zero_are_drawn_as_such(tmp_path):
    """The critic's verdict may be negative, and the axis is logarithmic."""
    verdict = {'loss_kd_holistic': -2.0, 'loss': 1.5}
    run = analyze.read_run(write(tmp_path / 'run', train(1, **verdict), train(2, **verdict)))
    _, axis = plt.subplots()
    analyze._draw_losses(axis, run)
    lines = {line.get_label(): [*line.get_ydata()] for line in axis.lines}
    plt.close(axis.figure)
    assert lines == {'own losses': [1.0, 1.0], 'fgd': [2.5, 2.5], '-holistic': [2.0, 2.0]}
    assert axis.get_yscale() == 'log'


class TestTheLowerTheBetter:
    """Errors, as of depth: the best epoch is the one with the lowest, and less is a gain."""

    @pytest.fixture
    def runs(self, tmp_path):
        alone, kd = (
            write(
                tmp_path / name, *(score(i + 1, value, 'rmse') for i, value in enumerate(values))
            )
            for name, values in (('alone', (0.9, 0.5, 0.6)), ('kd', (0.8, 0.6, 0.4125)))
        )
        return alone, kd

    def test_table(self, runs, tmp_path):
        call('analyze', *runs, '--teacher', 0.3, '--out', tmp_path)
        header, _, first, second = (tmp_path / 'analysis.md').read_text().splitlines()
        assert header.startswith('| run | best rmse (lower is better) | at | last | gain | of the')
        assert first.startswith('| alone | 0.500 | 2 | 0.600 |  |  |')
        assert second.startswith('| kd | 0.412 | 3 | 0.412 | +0.088 | 44% |')

    def test_no_gap(self, runs):
        found = [analyze.read_run(run) for run in runs]
        rows = analyze.summarise(found, 'rmse', 0.55, lower=True)[1]
        assert rows[1][5] == 'no gap'

    def test_picture(self, runs, tmp_path):
        found = [analyze.read_run(run) for run in runs]
        _, axis = plt.subplots()
        analyze._draw_scores(axis, found, 'rmse', None, lower=True)
        plt.close(axis.figure)
        assert axis.get_ylabel() == 'rmse (lower is better)'

    @pytest.mark.parametrize(
        'said',
        [
            "default_hooks = dict(checkpoint=dict(type='X', save_best='off', rule='less'))",
            "custom_hooks = [dict(monitor='off', rule='less', type='EarlyStoppingHook')]",
            "default_hooks = {'checkpoint': {'save_best': 'off', 'rule': 'less', 'x': print()}}",
        ],
    )
    def test_what_the_config_of_a_run_says(self, said, tmp_path, capsys):
        """It is read, and never run."""
        run = write(tmp_path / 'run', score(1, 0.9, 'off'), score(2, 0.5, 'off'), score(3, 0.7))
        (run / '20260101_000000/vis_data/config.py').write_text(f'raise SystemExit\n{said}\n')
        call('analyze', run, '--out', tmp_path)
        # Of two scores it is the one that the training watches.
        text = (tmp_path / 'analysis.md').read_text()
        assert '| best off (lower is better) |' in text
        assert '| run | 0.500 | 2 | 0.500 |' in text

    @pytest.mark.parametrize('text', ['this is no python', '', 'default_hooks = dict(**other)'])
    def test_a_config_that_says_nothing(self, text, tmp_path):
        run = write(tmp_path / 'run', score(1, 0.9, 'off'), score(2, 0.5, 'off'))
        (run / '20260101_000000/vis_data/config.py').write_text(text)
        call('analyze', run, '--out', tmp_path)
        assert '| run | 0.900 | 1 | 0.500 |' in (tmp_path / 'analysis.md').read_text()

    def test_what_the_user_says(self, tmp_path):
        run = write(tmp_path / 'run', score(1, 0.9, 'off'), score(2, 0.5, 'off'))
        call('analyze', run, '--lower-is-better', '--out', tmp_path)
        assert '| run | 0.500 | 2 | 0.500 |' in (tmp_path / 'analysis.md').read_text()


def test_runs_that_were_never_evaluated(tmp_path):
    run = analyze.read_run(write(tmp_path / 'run', train(50)))
    assert analyze.choose_score([run], None) is None
    assert analyze.summarise([run], None, None)[1] == [
        ['run', 'never evaluated', '', '', '', '3.5', '71%']
    ]
    analyze.draw(tmp_path / 'picture.png', [run], None, None)


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(RequestError, match='missing is no folder'):
        analyze.read_run(tmp_path / 'missing')
    with pytest.raises(RequestError, match='has no logs'):
        analyze.read_run(tmp_path)
    with pytest.raises(RequestError, match='logs are empty'):
        analyze.read_run(write(tmp_path / 'run'))


def test_which_score(tmp_path):
    run = analyze.read_run(write(tmp_path / 'run', score(1, 2.0, 'acc'), score(1, 3.0, 'other')))
    with pytest.raises(RequestError, match='choose a score with --score: acc, other'):
        analyze.choose_score([run], None)
    with pytest.raises(RequestError, match="no run logged 'mAP'; there are acc, other"):
        analyze.choose_score([run], 'mAP')
    assert analyze.choose_score([run], 'other') == 'other'
    both = write(tmp_path / 'both', score(1, 0.1, 'coco/segm_mAP'), score(1, 3.0))
    assert analyze.choose_score([analyze.read_run(both)], None) == 'mIoU'

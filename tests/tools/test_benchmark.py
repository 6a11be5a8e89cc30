"""The benchmark of whole steps, on the small models of the quickstart."""

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from tests.miniature import ROOT

RECIPES = ROOT / 'configs' / 'quickstart'
SEG_CWD, SEG_SKD = RECIPES / 'seg_cwd.py', RECIPES / 'seg_skd.py'
DET_LD, DET_FGD = RECIPES / 'det_ld.py', RECIPES / 'det_fgd.py'
SMALL = ['--size', '64', '64', '--rounds', '2']


@pytest.fixture
def tool(monkeypatch):
    """The program as a module."""
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    for name in ('train', 'benchmark'):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import benchmark

    return benchmark


def benchmark_of(tool, monkeypatch, *words):
    """What is timed for a command line."""
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, words)])
    args = tool.parse_args()
    return tool.Benchmark(tool.named_configs(args), args)


def layers_run(model, call):
    """The modules without children that a call runs, in order."""
    names = {module: name for name, module in model.named_modules() if not any(module.children())}
    seen = []  # as each begins: the last is left before it ends
    hooks = [m.register_forward_pre_hook(lambda m, *_: seen.append(names[m])) for m in names]
    call()
    for hook in hooks:
        hook.remove()
    return seen


def test_measures_recipes_side_by_side_and_writes_json(tmp_path):
    path = tmp_path / 'new' / 'figures.json'
    command = [sys.executable, 'tools/benchmark.py', SEG_CWD, '--against', SEG_SKD, SEG_CWD,
               'model.teacher.precision=bf16', *SMALL, '--threads', 1, '--json', path]  # fmt: skip
    done = subprocess.run(
        [str(word) for word in command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(path.read_text())
    assert found['size'] == [64, 64]
    assert (found['batch_size'], found['rounds'], found['threads']) == (2, 2, 1)
    assert (found['device'], found['torch']) == ('cpu', torch.__version__)
    assert {'commit', 'pretrained'} <= found.keys()
    for call in found['calls'].values():
        assert len(call['seconds']) == 2
        assert call['low'] <= call['median'] <= call['high']
        assert call['peak_bytes'] > 0
    recipes = found['recipes']
    assert [*recipes] == ['seg_cwd', 'seg_skd', 'seg_cwd model.teacher.precision=bf16']
    assert [*recipes['seg_skd']['terms']] == ['pixel', 'pair', 'holistic']
    first, skd, other = recipes.values()
    assert first['guest'] == other['guest']  # the floor knows no options
    assert first['step'] != other['step']
    assert skd['guest']['full'] == first['guest']['full']
    for recipe in recipes.values():
        calls = [found['calls'][recipe['guest']['minimal']], found['calls']['plain step']]
        floor = [sum(pair) for pair in zip(*(call['seconds'] for call in calls), strict=True)]
        assert recipe['floor_seconds'] == floor
        step = found['calls'][recipe['step']]
        ratios = sorted(a / b for a, b in zip(step['seconds'], floor, strict=True))
        assert recipe['step_to_floor']['median'] == pytest.approx(sum(ratios) / 2)
        assert recipe['goals']['time'] == (recipe['step_to_floor']['median'] <= 1.05)
        held = recipe['guest']['maps'] + recipe['guest']['layer']
        assert recipe['floor_bytes'] == found['calls']['plain step']['peak_bytes'] + held
        assert recipe['peak_to_floor'] == step['peak_bytes'] / recipe['floor_bytes']
    for text in ('plain step', '[3] distilled step', '[2] holistic, alone', 'x floor, goal 1.05'):
        assert text in done.stdout
    assert 'rounds: 3 of 3' in done.stderr


@pytest.mark.parametrize('recipe', [DET_FGD, DET_LD], ids=lambda path: path.stem)
def test_detectors(tool, monkeypatch, recipe):
    benchmark = benchmark_of(tool, monkeypatch, recipe, *SMALL, '--batch-size', 3)
    images, samples = benchmark.batch
    assert images.shape == (3, 3, 64, 64)
    for sample in samples:
        boxes = sample.gt_instances.bboxes
        assert len(boxes) == len(sample.gt_instances.labels) > 1
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes[:, 2:] <= 64).all()
    [case] = benchmark.cases
    for call in (*case.terms.values(), case.guest.full, case.step):
        benchmark.calls[call]()


def test_label_maps_have_all_classes(tool, monkeypatch):
    benchmark = benchmark_of(tool, monkeypatch, SEG_CWD, '--size', '96', '128')
    labels = torch.stack([sample.gt_sem_seg.data for sample in benchmark.batch.samples])
    assert labels.shape == (2, 1, 96, 128)
    assert labels.unique().tolist() == [*range(11)]


def test_plain_step_is_that_of_the_student_alone(tool, monkeypatch):
    """No distillation in it, the same weights, and gradients that its optimizer has used up."""
    benchmark = benchmark_of(tool, monkeypatch, SEG_SKD, *SMALL)
    plain, distilled = benchmark.plain, benchmark.distilled['seg_skd']
    assert not hasattr(plain.model, 'kd')
    ours, theirs = plain.model.state_dict(), distilled.model.state_dict()
    assert ours.keys() == {name for name in theirs if not name.startswith('kd.')}
    weights = dict(plain.model.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in weights.items())
    before = {name: value.clone() for name, value in weights.items()}
    for trained in (plain, distilled):
        trained.step(benchmark.batch)
        assert all(p.grad is None for p in trained.model.parameters())
        assert trained.optimizer.optimizer.state  # it has taken a step, of size 0
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    assert not distilled.model.kd.holistic.loss.critic_is_due  # the critic has taken its own


@pytest.mark.parametrize(
    ('recipe', 'options', 'last'),
    [
        (SEG_CWD, [], 'decode_head.conv_seg'),
        (SEG_CWD, ['model.terms.features.tap=backbone.layer2', 'model.terms.logits.loss.weight=0'],
         'backbone.layer2'),
        (DET_FGD, [], 'neck.'),
        (DET_LD, [], 'bbox_head.'),
    ],
    ids=['seg_cwd', 'within', 'det_fgd', 'det_ld'],
)  # fmt: skip
def test_floor_runs_up_to_the_last_tap_and_no_further(tool, monkeypatch, recipe, options, last):
    options = ['--cfg-options', *options] if options else []
    benchmark = benchmark_of(tool, monkeypatch, recipe, *SMALL, *options)
    [case] = benchmark.cases
    minimal, full = (benchmark.calls[call] for call in (case.guest.minimal, case.guest.full))
    [(_, teacher)] = benchmark.teachers.values()
    run = layers_run(teacher, minimal)
    assert run[-1].startswith(last)
    everything = layers_run(teacher, full)
    assert everything[: len(run)] == run
    if recipe == DET_FGD:
        assert any(name.startswith('bbox_head') for name in everything[len(run) :])
    # and what the distilled step runs of its own teacher is the same
    guest = benchmark.distilled[recipe.stem].model.kd_plan.teacher.model
    assert guest is not teacher
    assert layers_run(guest, benchmark.calls[case.step]) == run
    weights = teacher.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in guest.state_dict().items())


def test_without_weights_there_is_no_teacher(tool, monkeypatch):
    benchmark = benchmark_of(
        tool, monkeypatch, SEG_CWD, *SMALL, '--cfg-options',
        'model.terms.logits.loss.weight=0', 'model.terms.features.loss.weight=0',
    )  # fmt: skip
    [case] = benchmark.cases
    assert case.guest is None
    assert case.terms == {}
    assert benchmark.calls.keys() == {'plain step', case.step}
    results = benchmark.run()
    found, plain = results['recipes']['seg_cwd'], results['calls']['plain step']
    assert found['floor_seconds'] == plain['seconds']
    assert found['floor_bytes'] == plain['peak_bytes']
    assert found['losses_to_step']['median'] == 0
    guest = benchmark.distilled['seg_cwd'].model.kd_plan.teacher.model
    assert layers_run(guest, benchmark.calls[case.step]) == []


def test_a_term_that_is_off_does_not_lengthen_the_floor(tool, monkeypatch):
    off = 'model.terms.logits.loss.weight=0'
    benchmark = benchmark_of(tool, monkeypatch, SEG_CWD, *SMALL, '--against', SEG_CWD, off)
    both, one = benchmark.cases
    assert one.terms.keys() == {'features'}
    [(_, teacher)] = benchmark.teachers.values()
    runs = [layers_run(teacher, benchmark.calls[case.guest.minimal]) for case in (both, one)]
    assert runs[1] == [name for name in runs[0] if name.startswith('backbone')]


class Rounding(OptimWrapper):
    """Does on a CPU what AmpOptimWrapper does on a GPU."""

    @contextmanager
    def optim_context(self, model):
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def test_floor_is_under_the_autocast_of_the_student(tool, monkeypatch):
    monkeypatch.setitem(OPTIM_WRAPPERS.module_dict, 'Rounding', Rounding)
    amp = ['--cfg-options', 'optim_wrapper.type=Rounding']
    maps = []
    for options in ([], amp):
        benchmark = benchmark_of(tool, monkeypatch, SEG_CWD, *SMALL, *options)
        [case] = benchmark.cases
        maps.append(case.guest.maps)
        for call in (*case.terms.values(), case.guest.minimal, case.guest.full, case.step):
            benchmark.calls[call]()
    assert maps[0] == 2 * maps[1]


def test_largest_layer_counts_input_and_output_once(tool):
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(inplace=True), nn.Conv2d(6, 1, 1))
    x = torch.zeros(1, 2, 4, 4)
    assert tool.largest_layer(model, lambda: model(x)) == 4 * 16 * (2 + 6)
    assert tool.largest_layer(model, lambda: model[1:](torch.zeros(1, 6, 4, 4))) == 4 * 16 * 7


def test_all_rounds_compute_the_same(tool, monkeypatch):
    benchmark = benchmark_of(tool, monkeypatch, DET_LD, *SMALL)
    trained = benchmark.distilled['det_ld']
    losses = [float(trained.step(benchmark.batch)) for _ in range(3)]
    assert max(losses) - min(losses) < 1e-3 * max(losses)


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
        ],
    )  # fmt: skip
    def test_recipes(self, tool, monkeypatch, words, message):
        with pytest.raises(SystemExit, match=message):
            benchmark_of(tool, monkeypatch, *words)

    @pytest.mark.parametrize(
        ('words', 'message'),
        [
            (['--rounds', 0], 'must be >= 1'),
            (['--size', 0, 64], 'must be >= 1'),
            (['--against', 'model.teacher.compile=True'], 'a recipe before its settings'),
            (['--device', 'tpu'], "invalid choice: 'tpu'"),
        ],
    )
    def test_options(self, tool, monkeypatch, capsys, words, message):
        with pytest.raises(SystemExit, match='2'):
            benchmark_of(tool, monkeypatch, SEG_CWD, *words)
        assert message in capsys.readouterr().err

    def test_no_gpu(self, tool, monkeypatch, capsys):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
        with pytest.raises(SystemExit, match='2'):
            benchmark_of(tool, monkeypatch, SEG_CWD, '--device', 'cuda')
        assert 'torch finds no GPU' in capsys.readouterr().err

    def test_a_loss_that_is_not_finite(self, tool, monkeypatch):
        def step(self, batch):
            return torch.tensor(float('nan'))

        monkeypatch.setattr(tool.Trained, 'step', step)
        with pytest.raises(SystemExit, match='the loss of a step is not finite'):
            benchmark_of(tool, monkeypatch, SEG_CWD, *SMALL)

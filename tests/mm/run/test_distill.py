"""`kd_dense.distill`: what the command does, in one call."""

import pytest
import torch
from mmengine.config import Config

import kd_dense
from examples.quickstart.make_scenes import make_scenes
from kd_dense.mm.configs import RequestError, build_model, read_config
from kd_dense.mm.files.checkpoint import load_weights, read_checkpoint
from tests.launch import call
from tests.miniature import ROOT

QUICK = ROOT / 'configs' / 'quickstart'
STUDENT, TEACHER = QUICK / 'seg_student.py', QUICK / 'seg_teacher.py'
WEIGHTS = QUICK / 'checkpoints' / 'seg_teacher.pth'
SHORT = {
    'train_cfg.max_iters': 3,
    'train_cfg.val_interval': 2,
    'train_dataloader.batch_size': 2,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
    'val_dataloader.num_workers': 0,
    'val_dataloader.persistent_workers': False,
    'default_hooks.checkpoint.interval': 3,
    'randomness.seed': 3,
}


@pytest.fixture(autouse=True)
def scenes(tmp_path, monkeypatch):
    make_scenes(tmp_path / 'scenes', train=4, val=2, test=1)
    monkeypatch.setenv('SCENES', str(tmp_path / 'scenes'))


def evaluated(student, work_dir):
    """What `kd_dense test` says of a checkpoint, on the pictures of the validation."""
    from kd_dense.mm.run.test import test

    config = read_config(STUDENT, SHORT)
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.work_dir, config.launcher = str(work_dir), 'none'
    return test(config, str(student), None, False)


def taught():
    model = build_model(read_config(TEACHER))
    load_weights(model, read_checkpoint(str(WEIGHTS)), str(WEIGHTS))
    return model


def test_trains_as_the_command_does(tmp_path):
    dumped = tmp_path / 'recipe.py'
    found = kd_dense.distill(
        STUDENT, TEACHER, ['cwd', 'skd'], teacher_checkpoint=WEIGHTS, work_dir=tmp_path / 'call',
        options=SHORT, dump_config=dumped,
    )  # fmt: skip
    options = [f'{key}={value}' for key, value in SHORT.items()]
    call('train', STUDENT, '--teacher', TEACHER, '--teacher-checkpoint', WEIGHTS, '--distill',
         'cwd', 'skd', '--work-dir', tmp_path / 'command', '--cfg-options', *options)  # fmt: skip
    call('export', tmp_path / 'command' / 'iter_3.pth')

    ours, theirs = (
        read_checkpoint(str(tmp_path / name / 'student.pth')) for name in ('call', 'command')
    )
    assert found.student == tmp_path / 'call' / 'student.pth'
    assert found.work_dir == tmp_path / 'call'
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    # of the last iteration, not of the validation before it
    assert found.scores['mIoU'] == evaluated(found.student, tmp_path / 'tested')['mIoU']
    assert [*Config.fromfile(dumped).model.terms] == ['cwd', 'pixel', 'pair', 'holistic']


def test_models_that_are_built_already(tmp_path):
    """A student keeps the weights that it has, and is given back as it came."""
    student, teacher = taught(), taught()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    kind = type(student)
    still = {**SHORT, 'param_scheduler.0.eta_max': 0.0, 'train_cfg.val_begin': 100}
    found = kd_dense.distill(
        student, teacher, 'cwd', config=TEACHER, work_dir=tmp_path / 'run', options=still
    )
    assert found.scores['mIoU'] > 10  # though the training itself has never validated
    assert type(student) is kind
    assert not hasattr(student, 'kd')
    after = read_checkpoint(str(found.student))
    assert after.keys() == before.keys()
    for name, parameter in student.named_parameters():
        assert torch.equal(after[name], parameter)
        torch.testing.assert_close(parameter, before[name])  # not initialised anew


def test_a_teacher_that_is_built_already(tmp_path):
    """It comes to the same as its config and checkpoint."""
    runs = dict(model=(taught(), None), config=(TEACHER, WEIGHTS))
    students = []
    for name, (one, weights) in runs.items():
        torch.manual_seed(0)
        found = kd_dense.distill(
            STUDENT, one, 'cwd', teacher_checkpoint=weights, work_dir=tmp_path / name,
            options=SHORT,
        )  # fmt: skip
        students.append(read_checkpoint(str(found.student)))
    assert all(torch.equal(value, students[1][name]) for name, value in students[0].items())


def test_a_recipe_and_a_resumed_training(tmp_path):
    recipe, work_dir = QUICK / 'seg_cwd.py', tmp_path / 'run'
    first = kd_dense.distill(recipe, work_dir=work_dir, options=SHORT)
    longer = {**SHORT, 'train_cfg.max_iters': 4, 'default_hooks.checkpoint.interval': 1}
    second = kd_dense.distill(recipe, work_dir=work_dir, options=longer, resume=True)
    assert (work_dir / 'iter_4.pth').is_file()
    assert first.student == second.student


@pytest.mark.parametrize(
    ('arguments', 'options', 'message'),
    [
        ((STUDENT, None, 'cwd'), {}, 'expected methods together with a teacher'),
        ((STUDENT, TEACHER), {}, 'comes without published weights'),
        ((STUDENT,), {}, 'is no recipe: name a teacher and methods'),
        ((STUDENT, TEACHER, 'cwd'), dict(teacher_checkpoint='x.pth'), r'x\.pth does not exist'),
        ((STUDENT, TEACHER, 'cwd'), {}, 'comes without published weights'),
        ((STUDENT, TEACHER, 'cwd'), dict(config=STUDENT), 'config is for a student that is'),
        (('no.py',), {}, r'the config no\.py does not exist'),
        ((torch.nn.Identity(), TEACHER, 'cwd'), {}, 'needs config=..., for data'),
        ((torch.nn.Identity(),), dict(config=STUDENT), 'needs a teacher and methods'),
        ((QUICK / 'seg_cwd.py', TEACHER, 'cwd'), dict(teacher_checkpoint='none'),
         'is a recipe and has a teacher already'),
    ],
)  # fmt: skip
def test_what_does_not_go_together(arguments, options, message, tmp_path):
    with pytest.raises(RequestError, match=message):
        kd_dense.distill(*arguments, work_dir=tmp_path, **options)


def test_check_reads_what_the_command_reads():
    found = kd_dense.check(
        STUDENT, TEACHER, 'cwd', teacher_checkpoint=str(WEIGHTS), batches=1, images=2,
        options={'train_dataloader.batch_size': 2},
    )  # fmt: skip
    assert [one.message for one in found if one.status == 'error'] == []
    assert found[0].check == 'model'

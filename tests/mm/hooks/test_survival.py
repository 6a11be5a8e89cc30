"""What a full disk, a kill or a vanished file leaves, and what is said about it."""

import errno
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import imwrite
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.registry import MODELS

from kd_dense.mm.files.checkpoint import read_file
from kd_dense.mm.hooks.checkpoint import is_complete, newest_checkpoint
from tests.cli.kill import write_config
from tests.launch import losses, run_here
from tests.miniature import ROOT
from tests.mm import toy

TRAIN = ROOT / 'tools' / 'train.py'
RANDOM = 'kd_dense_random_state'


def runner(work_dir, max_iters=6, hooks=(), **saving):
    """A Runner that saves every second iteration with our hook."""
    saving = dict(type='kd_dense.SafeCheckpointHook', by_epoch=False, interval=2, **saving)
    return toy.runner(
        toy.distilled(),
        work_dir,
        max_iters,
        default_hooks=dict(checkpoint=saving, logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[dict(type='kd_dense.RandomStateHook'), *hooks],
        **(validation(max_iters) if 'save_best' in saving else {}),
    )


class Rising(BaseMetric):
    """A score that is better each time."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        self.score = getattr(self, 'score', 0) + 1
        return dict(acc=self.score, mIoU=self.score)


def validation(max_iters):
    """Validate every second iteration on pictures that draw random numbers."""
    return dict(
        val_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=toy.SegScenes(length=2),
        ),
        val_cfg=dict(),
        val_evaluator=Evaluator(Rising()),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=2),
    )


def names(folder, kind='*'):
    """The files in a folder but for the config, which mmengine names after the time."""
    return sorted(
        path.name for path in folder.glob(kind) if path.is_file() and path.suffix != '.py'
    )


@pytest.fixture
def full_disk(monkeypatch):
    """Let the disk be full when a given file is written; it is an argument."""

    def fill(name):
        fsync = os.fsync

        def fail(file):
            if os.readlink(f'/proc/self/fd/{file}').endswith(f'/{name}.incomplete'):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fsync(file)

        monkeypatch.setattr(os, 'fsync', fail)

    return fill


class TestCheckpointHook:
    def test_writes_what_mmengines_own_writes(self, tmp_path):
        runner(tmp_path / 'ours').train()
        toy.runner(
            toy.distilled(),
            tmp_path / 'stock',
            6,
            custom_hooks=[dict(type='kd_dense.RandomStateHook')],
        ).train()
        kept = ['iter_2.pth', 'iter_4.pth', 'iter_6.pth', 'last_checkpoint']
        assert names(tmp_path / 'ours') == names(tmp_path / 'stock') == kept
        last = (tmp_path / 'ours' / 'last_checkpoint').read_text()
        assert last == str(tmp_path / 'ours' / 'iter_6.pth')
        ours, stock = (read_file(tmp_path / name / 'iter_6.pth') for name in ('ours', 'stock'))
        assert ours.keys() == stock.keys()
        for name, value in ours['state_dict'].items():
            assert torch.equal(value, stock['state_dict'][name])

    def test_a_file_has_its_name_only_when_it_is_complete(self, tmp_path, monkeypatch):
        seen = []
        replace = os.replace

        def look(source, target):
            assert source == f'{target}.incomplete'
            seen.append((Path(target).name, os.path.exists(target)))
            assert target.endswith('last_checkpoint') or is_complete(source)
            replace(source, target)

        monkeypatch.setattr(os, 'replace', look)
        runner(tmp_path, max_iters=4).train()
        assert seen == [
            ('iter_2.pth', False),
            ('last_checkpoint', False),
            ('iter_4.pth', False),
            ('last_checkpoint', True),
        ]

    def test_removes_the_outdated(self, tmp_path):
        runner(tmp_path, max_iters=8, max_keep_ckpts=2).train()
        assert names(tmp_path, '*.pth') == ['iter_6.pth', 'iter_8.pth']

    @pytest.mark.parametrize('metrics', ['acc', ['acc', 'mIoU']], ids=['one', 'two'])
    def test_keeps_the_best_alone(self, metrics, tmp_path):
        runner(tmp_path, save_best=metrics, max_keep_ckpts=1).train()
        best = [f'best_{m}_iter_6.pth' for m in np.atleast_1d(metrics)]
        assert names(tmp_path, '*.pth') == [*best, 'iter_6.pth']

    def test_removes_what_a_killed_run_left_unfinished_and_nothing_else(self, tmp_path):
        left = ['iter_4.pth.incomplete', 'best_acc_iter_2.pth.incomplete']
        others = ['notes.incomplete', 'iter_4.pth.old']
        for name in (*left, *others, 'last_checkpoint.incomplete'):
            (tmp_path / name).touch()
        runner(tmp_path, max_iters=2).train()
        assert names(tmp_path) == sorted([*others, 'iter_2.pth', 'last_checkpoint'])

    def test_a_better_score_saves_the_random_state_of_the_training(self, tmp_path):
        class Keep(Hook):
            priority = 'LOWEST'
            states = []

            def before_save_checkpoint(self, runner, checkpoint):
                self.states.append(checkpoint[RANDOM][0]['torch'])

        runner(tmp_path, 2, hooks=[Keep()], save_best='acc').train()
        first, best, again = Keep.states
        assert torch.equal(first, best)
        assert torch.equal(first, again)

    def test_warns_where_a_checkpoint_holds_no_random_state(self, tmp_path):
        toy.runner(toy.distilled(), tmp_path, 2).train()
        resumed = toy.runner(
            toy.distilled(),
            tmp_path,
            4,
            custom_hooks=[dict(type='kd_dense.RandomStateHook')],
            resume=True,
            log_level='WARNING',
        )
        said = []
        resumed.logger.warning = lambda text, *_: said.append(text)
        resumed.train()
        assert any('written without RandomStateHook' in text for text in said)


class TestFullDisk:
    def test_what_was_saved_before_is_intact(self, tmp_path, full_disk):
        full_disk('iter_4.pth')
        says = (
            r'cannot write \S+iter_4\.pth: No space left on device\. Checkpoints saved before '
            r'are intact: make room .*--resume, which goes on from \S+iter_2\.pth$'
        )
        with pytest.raises(RuntimeError, match=says):
            runner(tmp_path, max_keep_ckpts=1).train()
        assert names(tmp_path) == ['iter_2.pth', 'last_checkpoint']
        assert newest_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'

    def test_before_the_first_checkpoint(self, tmp_path, full_disk):
        full_disk('iter_2.pth')
        with pytest.raises(RuntimeError, match=r'holds no checkpoint yet: make room'):
            runner(tmp_path).train()
        assert names(tmp_path) == []

    def test_in_the_note_of_the_last_checkpoint(self, tmp_path, full_disk):
        runner(tmp_path, 4).train()
        full_disk('last_checkpoint')
        with pytest.raises(RuntimeError, match=r'cannot write .*last_checkpoint: .*iter_4\.pth$'):
            runner(tmp_path, 4).train()
        assert (tmp_path / 'last_checkpoint').read_text() == str(tmp_path / 'iter_4.pth')

    @pytest.mark.parametrize('metrics', ['acc', ['acc', 'mIoU']], ids=['one', 'two'])
    def test_in_a_new_best_keeps_the_best_before(self, metrics, tmp_path, full_disk):
        full_disk('best_acc_iter_4.pth')
        with pytest.raises(RuntimeError, match=r'cannot write .*best_acc_iter_4\.pth'):
            runner(tmp_path, save_best=metrics).train()
        assert 'best_acc_iter_2.pth' in names(tmp_path)
        assert 'best_acc_iter_4.pth' not in names(tmp_path)

    def test_a_limit_of_the_system(self, tmp_path, monkeypatch):
        config = write_config('skd', tmp_path / 'config.py', custom_hooks=[])
        work_dir = tmp_path / 'run'
        run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, train_cfg__max_iters=3)
        before = (work_dir / 'iter_3.pth').read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
        try:
            with pytest.raises(RuntimeError, match=r'iter_6\.pth: File too large.*iter_3\.pth$'):
                run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, '--resume')
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert names(work_dir, 'iter*') == ['iter_3.pth']
        assert (work_dir / 'iter_3.pth').read_bytes() == before
        run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, '--resume',
                 train_cfg__max_iters=6)  # fmt: skip
        assert losses(work_dir)[0]['step'] == 4


@pytest.fixture
def folder(tmp_path):
    return Checkpoints(tmp_path)


class Checkpoints:
    """A work directory, and what is in it; each file is written later than those before."""

    def __init__(self, path):
        self.path = path
        self.time = 1e9

    def __call__(self, *files, last=None):
        for name in files:
            torch.save(dict(weights=torch.arange(1000)), self.path / name)
            self._date(self.path / name)
        if last is not None:
            (self.path / 'last_checkpoint').write_text(last)
            self._date(self.path / 'last_checkpoint')

    def _date(self, path):
        self.time += 10
        os.utime(path, (self.time, self.time))

    def cut(self, name, size=2000):
        with open(self.path / name, 'r+b') as file:
            file.truncate(size)
        self._date(self.path / name)

    def newest(self):
        found = newest_checkpoint(self.path)
        return found and found.name


class TestNewestCheckpoint:
    def test_of_none(self, folder):
        assert folder.newest() is None
        folder('best_mIoU_iter_4.pth', 'student.pth', last='')
        assert folder.newest() is None

    def test_is_the_one_that_was_noted(self, folder):
        folder('iter_9.pth', 'iter_10.pth', last=str(folder.path / 'iter_10.pth'))
        assert folder.newest() == 'iter_10.pth'

    @pytest.mark.parametrize('note', [None, '', '\n', '\0\0\0\0'])
    def test_without_a_note_has_the_highest_number(self, folder, note):
        folder('iter_10.pth', 'iter_9.pth', 'best_mIoU_iter_99.pth', last=note)
        assert folder.newest() == 'iter_10.pth'

    @pytest.mark.parametrize('size', [0, 2000])
    def test_is_complete(self, folder, size):
        folder('epoch_1.pth', 'epoch_2.pth', 'epoch_3.pth', last=str(folder.path / 'epoch_3.pth'))
        folder.cut('epoch_3.pth', size)
        assert folder.newest() == 'epoch_2.pth'

    def test_was_written_completely_after_the_note(self, folder):
        folder('iter_3.pth', last=str(folder.path / 'iter_3.pth'))
        folder('iter_6.pth', 'iter_9.pth')
        folder.cut('iter_9.pth')
        assert folder.newest() == 'iter_6.pth'

    def test_is_not_that_of_a_longer_training_before(self, folder):
        folder('iter_80000.pth', 'iter_8000.pth', last=str(folder.path / 'iter_8000.pth'))
        assert folder.newest() == 'iter_8000.pth'

    def test_is_of_the_kind_that_was_noted(self, folder):
        folder('iter_4000.pth', 'epoch_3.pth', last=str(folder.path / 'epoch_3.pth'))
        assert folder.newest() == 'epoch_3.pth'
        (folder.path / 'last_checkpoint').unlink()
        assert folder.newest() == 'epoch_3.pth'

    def test_in_a_folder_of_its_own(self, folder, tmp_path):
        (tmp_path / 'elsewhere').mkdir()
        folder('elsewhere/iter_3.pth', 'elsewhere/iter_6.pth')
        folder(last=str(tmp_path / 'elsewhere' / 'iter_6.pth'))
        assert newest_checkpoint(tmp_path) == tmp_path / 'elsewhere' / 'iter_6.pth'
        folder.cut('elsewhere/iter_6.pth')
        assert newest_checkpoint(tmp_path) == tmp_path / 'elsewhere' / 'iter_3.pth'

    def test_in_a_copy_of_the_work_directory(self, folder, tmp_path):
        (tmp_path / 'copy').mkdir()
        folder('iter_3.pth', 'copy/iter_3.pth')
        (tmp_path / 'copy' / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
        assert newest_checkpoint(tmp_path / 'copy') == tmp_path / 'copy' / 'iter_3.pth'

    def test_of_a_sharded_training(self, folder):
        for step in (3, 6):
            (folder.path / f'iter_{step}.pth').mkdir()
            folder(*(f'iter_{step}.pth/rank{rank}.pth' for rank in (0, 1)))
        folder(last=str(folder.path / 'iter_6.pth'))
        assert folder.newest() == 'iter_6.pth'
        folder.cut('iter_6.pth/rank1.pth')
        assert folder.newest() == 'iter_3.pth'


def test_a_file_with_a_hole_is_not_complete(folder, tmp_path):
    # After a power cut its end may be there and its middle not; torch would load it.
    folder('iter_3.pth')
    content = bytearray((tmp_path / 'iter_3.pth').read_bytes())
    content[3000:4000] = bytes(1000)
    (tmp_path / 'iter_3.pth').write_bytes(content)
    assert torch.load(tmp_path / 'iter_3.pth').keys() == {'weights'}
    assert not is_complete(tmp_path / 'iter_3.pth')


class TestTrainingProgram:
    def test_passes_over_a_checkpoint_that_a_stock_tool_left_half(
        self, tmp_path, monkeypatch, capfd
    ):
        config = write_config('skd', tmp_path / 'config.py', custom_hooks=[])
        work_dir = tmp_path / 'run'
        run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, train_cfg__max_iters=6)
        whole = read_file(work_dir / 'iter_6.pth')
        Checkpoints(work_dir).cut('iter_6.pth', 10000)
        run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir, '--resume',
                 train_cfg__max_iters=6)  # fmt: skip
        out, err = capfd.readouterr()
        assert f'{work_dir}/iter_6.pth is not complete: passed over' in out + err
        assert f'resuming from {work_dir}/iter_3.pth' in out
        assert [entry['step'] for entry in losses(work_dir)] == [4, 5, 6]
        again = read_file(work_dir / 'iter_6.pth')
        for name, value in whole['state_dict'].items():
            assert torch.equal(value, again['state_dict'][name]), name

    def test_refuses_to_resume_from_one_by_name(self, folder, monkeypatch, tmp_path):
        config = write_config('cwd', tmp_path / 'config.py')
        folder('iter_3.pth')
        folder.cut('iter_3.pth')
        with pytest.raises(SystemExit, match=r'iter_3\.pth is not complete .*--resume without'):
            run_here(monkeypatch, TRAIN, config, '--resume', tmp_path / 'iter_3.pth')
        with pytest.raises(SystemExit, match=r'iter_4\.pth does not exist'):
            run_here(monkeypatch, TRAIN, config, '--resume', tmp_path / 'iter_4.pth')
        # the same from the config
        with pytest.raises(SystemExit, match=r'iter_3\.pth is not complete'):
            run_here(monkeypatch, TRAIN, config, resume=True, load_from=tmp_path / 'iter_3.pth')

    @pytest.mark.parametrize('kind', ['a file', 'read-only', 'full'])
    def test_a_work_directory_that_cannot_be_written(self, kind, tmp_path, monkeypatch):
        config = write_config('cwd', tmp_path / 'config.py')
        monkeypatch.setattr(MODELS, 'build', None)  # not to be reached
        work_dir, reason = tmp_path / 'runs' / 'mine', 'Not a directory'
        if kind == 'a file':
            (tmp_path / 'runs').touch()
        else:
            number = errno.EROFS if kind == 'read-only' else errno.ENOSPC
            reason = os.strerror(number)

            def fail(dir):
                raise OSError(number, reason)

            monkeypatch.setattr('kd_dense.mm.run.train.TemporaryFile', fail)
        says = rf'cannot write to the work directory {work_dir} .*{reason}\); choose another'
        with pytest.raises(SystemExit, match=says):
            run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir)
        assert not work_dir.exists()

    def test_a_data_file_that_vanishes(self, tmp_path, monkeypatch):
        config = vanishing(tmp_path, 'img/5.png', workers=0)
        work_dir = tmp_path / 'run'
        with pytest.raises(RuntimeError, match='the training stopped') as caught:
            run_here(monkeypatch, TRAIN, config, '--work-dir', work_dir)
        assert_says(str(caught.value), tmp_path / 'img' / '5.png', newest_checkpoint(work_dir))

    def test_a_data_file_that_a_worker_misses(self, tmp_path):
        config = vanishing(tmp_path, 'ann/5.png', workers=1)
        work_dir = tmp_path / 'run'
        done = subprocess.run(
            [sys.executable, str(TRAIN), str(config), '--work-dir', str(work_dir)],
            env={**os.environ, 'PYTHONPATH': str(ROOT)},
            capture_output=True,
            text=True,
            timeout=1200,
            check=False,
        )
        assert done.returncode == 1
        assert 'Traceback' in done.stderr
        last = done.stderr.strip().splitlines()[-1]
        assert_says(last, tmp_path / 'ann' / '5.png', newest_checkpoint(work_dir))


def assert_says(text, file, checkpoint):
    assert checkpoint is not None
    assert re.fullmatch(
        rf"(RuntimeError: )?the training stopped: .*No such file.*'{file}'\. Checkpoints saved "
        r'before are intact: put the file there \(relative paths start in .*\) and start again '
        'with --resume, which goes on from '
        f'{checkpoint}',
        text,
    )


def vanishing(folder, name, workers):
    """Write the config of a training on files, one of which is removed."""
    return write_config(
        'cwd',
        folder / 'config.py',
        train_dataloader=pictures(folder, workers),
        custom_hooks=[dict(type='VanishHook', path=str(folder / name), iteration=5)],
    )


def pictures(folder, workers):
    """A loader of pictures and label maps that lie in files."""
    scenes = toy.SegScenes(augment=False)
    for index, (image, label) in enumerate(zip(scenes.images, scenes.labels, strict=True)):
        imwrite(image.transpose(1, 2, 0), str(folder / 'img' / f'{index}.png'))
        imwrite(label[0].astype(np.uint8), str(folder / 'ann' / f'{index}.png'))
    return dict(
        batch_size=2,
        num_workers=workers,
        sampler=dict(type='InfiniteSampler', shuffle=True),
        dataset=dict(
            type='mmseg.BaseSegDataset',
            data_root=str(folder),
            data_prefix=dict(img_path='img', seg_map_path='ann'),
            img_suffix='.png',
            metainfo=toy.SegScenes.metainfo,
            pipeline=[
                dict(type='mmseg.LoadImageFromFile'),
                dict(type='mmseg.LoadAnnotations'),
                dict(type='mmseg.PackSegInputs'),
            ],
        ),
    )

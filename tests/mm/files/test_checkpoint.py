"""Checkpoints: foreign and broken files, all ways in, genuine ones, downloads."""

import collections
import hashlib
import os
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.runner.checkpoint import CheckpointLoader

from kd_dense.mm.files import checkpoint
from kd_dense.mm.files.checkpoint import read_checkpoint, read_file
from tests.mm import toy
from tests.mm.files.attacks import CALLS, around, refused


class TestFilesThatAreNoCheckpoints:
    @pytest.mark.parametrize(
        ('content', 'message'),
        [
            (b'', r'is it complete\? \(empty'),
            (b'<!DOCTYPE html><html>404 Not Found</html>', r"begins with b'<!DOCTYPE html>"),
            (b'version https://git-lfs.github.com/spec/v1\n', r"begins with b'version https"),
            (b'torch\n1.0\n', 'begins with'),
            (b'\x80\x02', 'cannot be read'),
            (b'PK\x03\x04', 'cannot be read'),
            (b'\x80' + bytes(range(256)), 'cannot be read'),
        ],
    )
    def test_other_content(self, path, content, message):
        path.write_bytes(content)
        refused(path, message)

    def test_a_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='is a folder'):
            read_file(str(tmp_path))

    def test_a_program_of_torchscript(self, path):
        with zipfile.ZipFile(path, 'w') as archive:
            for member in ('data.pkl', 'constants.pkl', 'code/__torch__.py'):
                archive.writestr(f'archive/{member}', b'\x80\x02}.')
        refused(path, 'would run a TorchScript program')

    def test_compressed_to_fill_the_memory(self, path):
        torch.save(around([]), path)
        with zipfile.ZipFile(path, 'a', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('archive/data/1', bytes(10**7))
        refused(path, 'content is larger than the file')

    @pytest.mark.parametrize('legacy', [False, True])
    def test_cut_anywhere(self, path, legacy):
        torch.save(around('x'), path, _use_new_zipfile_serialization=not legacy)
        whole = path.read_bytes()
        for size in range(0, len(whole) - 1, 37):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r'evil\.pth (cannot be read|was refused)'):
                read_file(str(path))

    def test_a_tensor_larger_than_its_content(self, path):
        torch.save(torch.zeros(4), path)
        whole = path.read_bytes()
        for before, after in ((b'K\x04', b'K\xff'), (b'K\x04\x85', b'K\xff\x85')):
            assert before in whole
            path.write_bytes(whole.replace(before, after))
            refused(path, 'cannot be read')

    def test_other_members_go_nowhere(self, path, tmp_path):
        torch.save(around([]), path)
        with zipfile.ZipFile(path, 'a') as archive:
            for member in ('../executed', '/executed', 'executed'):
                archive.writestr(member, b'')
        refused(path, 'not in a subdirectory')
        assert os.listdir(tmp_path) == ['evil.pth']

    @pytest.mark.parametrize('state', [{1: torch.zeros(1)}, {}, [torch.zeros(1)], None])
    def test_no_weights(self, path, state):
        torch.save({'state_dict': state}, path)
        with pytest.raises(ValueError, match='holds no weights'):
            read_checkpoint(str(path))


class TestSafetensors:
    """A format that holds tensors and no code."""

    @pytest.fixture
    def saved(self, tmp_path):
        safetensors = pytest.importorskip('safetensors.torch')
        model = toy.build(toy.segmenter(16))
        path = tmp_path / 'teacher.safetensors'
        safetensors.save_file(model.state_dict(), path, metadata={'format': 'pt'})
        return path, model.state_dict()

    def test_is_read(self, saved):
        path, state = saved
        found = read_checkpoint(str(path))
        assert found.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in found.items())
        other = path.rename(path.with_name('a'))  # by its content, not by its name
        assert read_checkpoint(str(other)).keys() == state.keys()

    def test_is_read_to_a_device(self, saved):
        for place in ('meta', torch.device('meta')):
            found = read_file(str(saved[0]), place)['state_dict']
            assert all(value.is_meta for value in found.values())
        found = read_file(str(saved[0]), lambda storage, location: storage)['state_dict']
        assert all(value.device.type == 'cpu' for value in found.values())

    def test_of_a_teacher_and_of_a_run(self, saved, tmp_path):
        path, state = saved
        teacher = dict(config=toy.segmenter(16), checkpoint=path)
        runner = toy.runner(
            toy.distilled(toy.segmenter(16), teacher), tmp_path / 'run', 1, load_from=str(path)
        )
        runner.train()
        guest = runner.model.kd_plan.teacher.model.state_dict()
        assert all(torch.equal(value, guest[name]) for name, value in state.items())

    def test_cut_anywhere(self, saved):
        path, _ = saved
        whole = path.read_bytes()
        for size in (*range(20), 1000, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r'teacher\.safetensors cannot be read'):
                read_file(str(path))

    def test_a_header_of_any_length(self, tmp_path):
        """The first byte is that of a pickle where the header has 128 or 384 bytes."""
        safetensors = pytest.importorskip('safetensors.torch')
        path, seen = tmp_path / 'x', set()
        for length in range(256):
            safetensors.save_file({'x' * length: torch.ones(1)}, path)
            seen.add(path.read_bytes()[:1])
            assert read_checkpoint(str(path)) == {'x' * length: torch.ones(1)}
        assert b'\x80' in seen

    def test_without_the_package(self, tmp_path, monkeypatch):
        (tmp_path / 'x.safetensors').write_bytes(b'\x02\0\0\0\0\0\0\0{}')
        monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
        with pytest.raises(ValueError, match=r'is not installed: pip install safetensors'):
            read_file(str(tmp_path / 'x.safetensors'))


@pytest.mark.parametrize('resume', [False, True])
def test_a_run_does_not_start_from_it(path, tmp_path, resume):
    torch.save(around(CALLS['eval']), path)
    runner = toy.runner(toy.segmenter(), tmp_path / 'run', resume=resume, load_from=str(path))
    runner.model.forward = pytest.fail
    with pytest.raises(ValueError, match=r'evil\.pth was refused: .* eval'):
        runner.train()


def test_weights_named_in_a_config(path):
    torch.save(around(CALLS['eval']), path)
    config = toy.segmenter()
    config.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    with pytest.raises(ValueError, match=r'evil\.pth was refused: .* eval'):
        toy.build(config).init_weights()


class TestGenuine:
    @pytest.mark.parametrize('kind', ['segmenter', 'detector'])
    def test_a_run_of_mmengine(self, tmp_path, kind):
        """Written, read as a teacher's, resumed from: with all the bookkeeping there is."""
        scenes = toy.SegScenes() if kind == 'segmenter' else toy.DetScenes()
        collate = {} if kind == 'segmenter' else dict(collate_fn=dict(type='pseudo_collate'))

        def runner(iterations, **others):
            made = toy.runner(
                getattr(toy, kind)(),
                tmp_path,
                max_iters=iterations,
                custom_hooks=[
                    dict(type='EMAHook', momentum=0.1),
                    dict(type='kd_dense.RandomStateHook'),
                ],
                param_scheduler=[
                    dict(type='OneCycleLR', eta_max=0.01, total_steps=9, by_epoch=False),
                    dict(type='CosineAnnealingMomentum', T_max=9, by_epoch=False),
                ],
                train_dataloader=dict(
                    batch_size=2,
                    num_workers=0,
                    sampler=dict(type='InfiniteSampler'),
                    dataset=scenes,
                    **collate,
                ),
                **others,
            )
            made.message_hub.update_info('best_score', np.float64(0.5))
            return made

        first = runner(2)
        first.train()
        path = str(tmp_path / 'iter_2.pth')
        weights = read_checkpoint(path)
        # EMAHook saves the averaged weights as those of the model.
        average = torch.load(path, weights_only=False)['state_dict']
        assert weights.keys() == average.keys() == first.model.state_dict().keys()
        assert all(torch.equal(weights[name], average[name]) for name in average)

        log = first.message_hub.log_scalars
        again = runner(3, resume=True, load_from=path)
        again.train()
        assert again.iter == 3
        for name, buffer in again.message_hub.log_scalars.items():
            if name in log:
                assert type(buffer) is HistoryBuffer
                was = log[name].data[0]
                np.testing.assert_array_equal(buffer.data[0][: len(was)], was)
        assert MessageHub.get_instance(again.experiment_name).get_info('best_score') == 0.5

    @pytest.mark.parametrize('legacy', [False, True])
    def test_a_checkpoint_of_the_time_before_mmengine(self, tmp_path, legacy):
        state = collections.OrderedDict({'module.backbone.weight': torch.rand(3)})
        state._metadata = collections.OrderedDict({'': dict(version=1)})
        meta = dict(
            env_info='sys.platform: linux',
            config="model = dict(type='EncoderDecoder')",
            mmcv_version='1.7.0',
            seed=0,
            exp_name='pspnet.py',
            epoch=3,
            iter=80000,
            time='Fri Jun 12 12:00:00 2020',
            CLASSES=('road', 'car'),
            PALETTE=np.array([[128, 64, 128], [0, 0, 142]], np.uint8),
            hook_msgs=dict(last_ckpt='latest.pth', best_score=np.float32(0.7), best_ckpt='a.pth'),
        )
        optimizer = dict(state={}, param_groups=[dict(lr=np.float64(0.1), params=[0])])
        scaler = torch.amp.GradScaler('cpu').state_dict()
        torch.save(
            dict(meta=meta, state_dict=state, optimizer=optimizer, loss_scaler=scaler),
            tmp_path / 'old.pth',
            _use_new_zipfile_serialization=not legacy,
        )
        weights = read_checkpoint(str(tmp_path / 'old.pth'))
        assert torch.equal(weights['backbone.weight'], state['module.backbone.weight'])
        found = read_file(str(tmp_path / 'old.pth'))['meta']
        np.testing.assert_array_equal(found.pop('PALETTE'), meta.pop('PALETTE'))
        assert found == meta


class TestPublishedWeights:
    """They are fetched from an address; here from this machine."""

    @pytest.fixture
    def site(self, tmp_path, monkeypatch):
        monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
        torch.save(around('x'), tmp_path / 'x.pth')
        content = (tmp_path / 'x.pth').read_bytes()
        pages = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = pages.get(self.path, b'')
                self.send_response(200 if body else 404)
                self.send_header(
                    'Content-Length', str(max(len(body), len(content) if body else 0))
                )
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()

        def publish(name, body=content):
            pages[f'/{name}'] = body
            return f'http://127.0.0.1:{server.server_port}/{name}'

        yield publish
        server.shutdown()
        server.server_close()
        thread.join()

    @pytest.fixture
    def digest(self, tmp_path, site):
        return hashlib.sha256((tmp_path / 'x.pth').read_bytes()).hexdigest()[:8]

    @pytest.mark.parametrize('named', [True, False])
    def test_are_compared_with_the_hash_in_their_name(self, site, digest, named):
        address = site(f'pspnet_r18-d8_2020-{digest}.pth' if named else 'pspnet_r18-d8.pth')
        assert list(read_checkpoint(address)) == ['weight']
        assert list(read_checkpoint(address)) == ['weight']  # from the cache
        assert 'weight' in CheckpointLoader.load_checkpoint(address)['state_dict']

    def test_that_are_others_than_their_name_says(self, site, digest, monkeypatch):
        said = []
        monkeypatch.setattr(checkpoint, 'print_log', lambda text, **_: said.append(text))
        address = site('pspnet-12345678.pth')
        for _ in range(2):  # the second time from the cache
            assert list(read_checkpoint(address)) == ['weight']
        assert len(said) == 2
        assert f'begins with {digest}, expected 12345678' in said[1]

    def test_cut_on_the_way(self, site, digest, tmp_path):
        half = (tmp_path / 'x.pth').read_bytes()[:200]
        refused(site(f'pspnet-{digest}.pth', half), 'cannot be read; is it complete')

    def test_by_a_name_that_mmengine_looks_up(self, site, path, monkeypatch):
        torch.save(around(CALLS['eval']), path)
        address = site('resnet.pth', path.read_bytes())
        for lookup in ('get_torchvision_models', 'get_external_models'):
            monkeypatch.setattr(f'mmengine.runner.checkpoint.{lookup}', lambda: {'net': address})
        for scheme in ('torchvision', 'modelzoo', 'open-mmlab', 'openmmlab'):
            with pytest.raises(ValueError, match=r'resnet\.pth was refused: .* eval'):
                CheckpointLoader.load_checkpoint(f'{scheme}://net')

    def test_that_are_not_there(self, site):
        address = site('nothing.pth', b'')
        for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
            with pytest.raises(FileNotFoundError, match=r'cannot download .*404.*fetch it your'):
                read(address)

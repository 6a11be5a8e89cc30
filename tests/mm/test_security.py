"""Files from strangers run nothing, and genuine ones are read."""

import collections
import copyreg
import functools
import hashlib
import io
import operator
import os
import pickle
import re
import runpy
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner.checkpoint import CheckpointLoader

from kd_dense.mm import checkpoint
from kd_dense.mm.checkpoint import read_checkpoint, read_file
from kd_dense.mm.safe_types import trusted_types
from tests.mm import toy

TOUCH = 'open("executed", "w")'


class Call:
    """Pickled, it is a call; this is how a file runs code."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


CALLS = {
    'posix.system': Call(os.system, 'touch executed'),
    'subprocess.Popen': Call(subprocess.Popen, ['touch', 'executed']),
    'subprocess.getoutput': Call(subprocess.getoutput, 'touch executed'),
    'eval': Call(eval, TOUCH),
    'exec': Call(exec, TOUCH),
    '__import__': Call(__import__, 'this'),
    'open': Call(open, 'executed', 'w'),
    'io.open_code': Call(io.open_code, 'executed'),
    'runpy._run_code': Call(runpy._run_code, TOUCH, {}),
    'pickle._loads': Call(pickle._loads, pickle.dumps(0)),
    'copyreg._reconstructor': Call(copyreg._reconstructor, object, object, None),
    'functools.partial': Call(functools.partial, eval, TOUCH),
    'operator.attrgetter': Call(operator.attrgetter, 'system'),
    'torch.hub.load': Call(torch.hub.load, '.', 'x', 'local'),
    'torch.serialization.load': Call(torch.load, 'other.pth', None, None),
    'numpy.load': Call(np.load, 'executed', None, True),
    'mmengine.runner.runner.Runner': Call(toy.Runner.from_cfg, {}),
    'collections.defaultdict': collections.defaultdict(list, x=[1]),
    'torch.nn.modules.linear.Linear': torch.nn.Linear(1, 1),
    'torch.nn.modules.module.Module': Call(getattr, torch.nn.Module, 'load_state_dict'),
    'getattr': Call(getattr, HistoryBuffer, '__init__'),
}


def around(content):
    """What looks like a checkpoint of mmengine, with something in it."""
    return {
        'meta': {'epoch': 3, 'cfg': "model = dict(type='PSPNet')", 'dataset_meta': content},
        'state_dict': {'weight': torch.zeros(2, 2)},
    }


FORMATS = {
    'zip': torch.save,
    'legacy': lambda content, path: torch.save(
        content, path, _use_new_zipfile_serialization=False
    ),
    'new protocol': lambda content, path: torch.save(content, path, pickle_protocol=4),
    **{
        f'pickle {protocol}': lambda content, path, protocol=protocol: path.write_bytes(
            pickle.dumps(content['meta'], protocol)
        )
        for protocol in (0, 2, 5)
    },
}


@pytest.fixture
def path(tmp_path, monkeypatch):
    """Where the file goes; afterwards nothing must have run."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / 'evil.pth'
    assert not (tmp_path / 'executed').exists()
    assert HistoryBuffer._statistics_methods.get('mean') in (None, HistoryBuffer.mean)


def refused(path, message):
    """By us, and by mmengine, which reads ``load_from`` and what is resumed from."""
    for read in (read_checkpoint, CheckpointLoader.load_checkpoint):
        with pytest.raises(ValueError, match=message):
            read(str(path))


def test_the_attacks_are_real(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(around(CALLS['eval']), 'evil.pth')
    torch.load('evil.pth', weights_only=False)
    assert (tmp_path / 'executed').exists()


@pytest.mark.parametrize('form', FORMATS)
@pytest.mark.parametrize('name', CALLS)
def test_a_call_is_refused_by_name(path, name, form):
    try:
        FORMATS[form](around(CALLS[name]), path)
    except (pickle.PicklingError, TypeError, AttributeError, copyreg.Error):
        pytest.skip('this form cannot hold it')
    # Pickle writes some modules under the names that they had in Python 2.
    refused(path, rf'evil\.pth was refused: .*\b{re.escape(name.rpartition(".")[2])}\b')


def test_the_more_is_named_the_more_is_said(path):
    path.write_bytes(pickle.dumps([CALLS['eval'], CALLS['posix.system']]))
    refused(path, r'would run builtins\.eval, posix\.system\.')


# Pickles by hand: what pickle.dumps would not write.
def text(value):
    encoded = value.encode()
    return b'X' + len(encoded).to_bytes(4, 'little') + encoded


def number(value):
    return b'J' + value.to_bytes(4, 'little', signed=True)


def name(module, attribute):
    return f'c{module}\n{attribute}\n'.encode()


def raw(content):
    return name('_codecs', 'encode') + text(content.decode('latin1')) + text('latin1') + b'\x86R'


def many(*items):
    return b'(' + b''.join(items) + b't'


def call(function, *arguments):
    return function + many(*arguments) + b'R'


NONE, FALSE, TRUE, BUILD, NEW = b'N', b'\x89', b'\x88', b'b', b'\x81'
ARRAYS = 'numpy.core.multiarray'
HISTORY = name('mmengine.logging.history_buffer', 'HistoryBuffer')
GETATTR = name('__builtin__', 'getattr')


def dtype(code, *structure, order='|', size=-1, flags=0):
    state = many(
        number(3), text(order), *(structure or 3 * [NONE]), number(size), number(-1), number(flags)
    )
    return call(name('numpy', 'dtype'), text(code), FALSE, TRUE) + state + BUILD


def array(kind, content, *shape):
    empty = call(
        name(ARRAYS, '_reconstruct'), name('numpy', 'ndarray'), many(number(0)), raw(b'b')
    )
    return empty + many(number(1), many(*map(number, shape)), kind, FALSE, raw(content)) + BUILD


def history(log, count, statistics=b'}'):
    state = b''.join(
        text(key) + value + b's'
        for key, value in dict(
            _log_history=log, _count_history=count, max_length=number(9),
            statistics_methods=statistics,
        ).items()
    )  # fmt: skip
    return HISTORY + b')' + NEW + b'}' + state + BUILD


HUGE = b'\x8a\x06' + b'\xff' * 5 + b'\0'  # a number, 2 ** 40 - 1
F8 = dtype('f8', order='<')
ADDRESS = b'A' * 8
BY_HAND = {
    # Bytes of the file as the address of an object: a crash at best.
    'scalar of objects': (call(name(ARRAYS, 'scalar'), dtype('O8'), raw(ADDRESS)), 'dtype.O8'),
    'array of objects': (array(dtype('O8'), ADDRESS, 1), 'dtype.O8'),
    'structure with objects': (
        array(
            dtype(
                'V8',
                NONE,
                many(text('a')),
                b'}' + text('a') + many(dtype('O8'), number(0)) + b's',
                size=8,
            ),
            ADDRESS,
            1,
        ),
        'dtype.V8',
    ),
    'structure in disguise': (dtype('f8', NONE, many(text('a')), b'}'), 'dtype of a structure'),
    'items of a size of 0': (array(dtype('U0'), b'', 9), 'dtype.U0'),
    'array of a dtype that is none': (array(text('f8'), ADDRESS, 1), 'ndarray'),
    'scalar of a dtype that is none': (call(name(ARRAYS, 'scalar'), text('O8'), NONE), 'scalar'),
    'array larger than its content': (array(F8, ADDRESS, 1000), 'has 8 bytes'),
    'array of negative size': (array(F8, ADDRESS, -1, -1), 'has the shape'),
    'scalar larger than its content': (call(name(ARRAYS, 'scalar'), F8, raw(b'A')), 'has 1 bytes'),
    'history of other things': (history(b']', b']'), 'HistoryBuffer of other things'),
    'attribute of an attribute': (
        call(GETATTR, call(GETATTR, HISTORY, text('mean')), text('__globals__')),
        'getattr',
    ),
    'attribute of its own': (call(GETATTR, HISTORY, text('__init__')), 'getattr'),
    'attribute without a name': (call(GETATTR, HISTORY, NONE), 'getattr'),
    'schedule built': (
        call(name('mmengine.optim.scheduler.param_scheduler', 'OneCycleParamScheduler')),
        'cannot be read',
    ),
    'blocked module': (call(name('os', 'system'), text('touch executed')), 'os.system'),
    'module of Python 2': (call(name('__builtin__', 'eval'), text(TOUCH)), 'eval'),
    'instance': (b'(' + text('touch executed') + b'iposix\nsystem\n', 'posix.system'),
    'extension': (b'\x82\x01', 'cannot be read'),
    'state of a function': (HISTORY + b'}' + BUILD, 'cannot be read|refused'),
    'terabytes': (call(name('__builtin__', 'bytearray'), HUGE), 'cannot be read'),
    'terabytes of a tensor': (call(name('torch', 'Tensor'), HUGE), 'cannot be read'),
    'memo that is not there': (b'h\x07', 'cannot be read'),
    'empty stack': (b'R', 'cannot be read'),
}  # fmt: skip


def write_zip(path, content, **others):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('archive/data.pkl', b'\x80\x02' + content + b'.')
        for member, data in {'archive/version': b'3\n', **others}.items():
            archive.writestr(member, data)


@pytest.mark.parametrize('case', BY_HAND)
def test_a_crafted_state_is_refused(path, case):
    content, message = BY_HAND[case]
    write_zip(path, content)
    refused(path, rf'evil\.pth .*{message}')


def test_statistics_of_a_history_stay_those_of_mmengine(path):
    numbers = array(F8, np.arange(2.0).tobytes(), 2)
    other = b'}' + text('mean') + call(GETATTR, HISTORY, text('max')) + b's'
    write_zip(path, history(numbers, numbers, other))
    buffer = read_file(str(path))
    assert type(buffer) is HistoryBuffer
    assert buffer.statistics('mean') == 1.0  # weighted by the counts: 1 * 1 / (0 + 1)
    assert HistoryBuffer._statistics_methods['mean'] is HistoryBuffer.mean


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


def test_what_torch_trusts_is_left_as_it_was(path):
    write_zip(path, b'}')
    torch.serialization.add_safe_globals([np.dtype, (io.BytesIO, 'somewhere.else')])
    before = set(torch.serialization.get_safe_globals())
    assert np.dtype in before
    read_file(str(path))
    with pytest.raises(KeyError, match='inside'), trusted_types():
        raise KeyError('inside' if set(torch.serialization.get_safe_globals()) - before else '')
    assert set(torch.serialization.get_safe_globals()) == before


class TestGenuine:
    @pytest.mark.parametrize('kind', [*sorted(PARAM_SCHEDULERS.module_dict), 'OneCycleLR linear'])
    def test_the_state_of_every_schedule(self, tmp_path, kind):
        kind, _, strategy = kind.partition(' ')
        arguments = {
            'CosineRestart': dict(periods=[2, 2], restart_weights=[1, 0.5], eta_min=0.0),
            'Exponential': dict(gamma=0.5),
            'MultiStep': dict(milestones=[1, 1, 3]),
            'OneCycle': dict(total_steps=9, eta_max=0.1, anneal_strategy=strategy or 'cos'),
            'CosineAnnealing': dict(T_max=4),
            'Step': dict(step_size=2),
            'ReduceOnPlateau': dict(rule='less'),
        }
        chosen = next((a for name, a in arguments.items() if kind.startswith(name)), {})
        if kind.endswith('ParamScheduler'):
            chosen = dict(chosen, param_name='lr')
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1, momentum=0.9)
        schedule = PARAM_SCHEDULERS.build(dict(type=kind, optimizer=optimizer, **chosen))
        for _ in range(3):
            optimizer.step()
            schedule.step(*([{'loss': np.float32(1.0)}] if 'Plateau' in kind else []))
        torch.save(schedule.state_dict(), tmp_path / 'schedule.pth')
        assert read_file(str(tmp_path / 'schedule.pth')) == schedule.state_dict()

    @pytest.mark.parametrize('legacy', [False, True])
    def test_numbers_and_arrays_of_numpy(self, tmp_path, legacy):
        values = [np.dtype(code).type(1) for code in '?bBhHiIlLefdFD']
        values += [np.str_('naïve'), np.bytes_(b'x')]
        arrays = [np.full((2, 3), value) for value in values]
        arrays += [arrays[3].T, np.arange(3.0).astype('>f8'), np.zeros((0, 4)), np.array(5)]
        torch.save(
            [values, arrays], tmp_path / 'numpy.pth', _use_new_zipfile_serialization=not legacy
        )
        found_values, found_arrays = read_file(str(tmp_path / 'numpy.pth'))
        for found, value in zip(found_values, values, strict=True):
            assert found == value
            assert type(found) is type(value)
        plain = pickle.loads(pickle.dumps(arrays, 2))
        for found, value in zip(found_arrays, plain, strict=True):
            np.testing.assert_array_equal(found, value, strict=True)
            assert found.flags.f_contiguous == value.flags.f_contiguous
        # Written again they are plain, and can be read without us.
        torch.save(found_arrays, tmp_path / 'again.pth')
        again = torch.load(tmp_path / 'again.pth', weights_only=False)
        assert {type(value) for value in again} == {np.ndarray}

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

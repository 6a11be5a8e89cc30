"""Pickles by hand: what pickle.dumps would not write."""

import zipfile

from tests.mm.files.attacks import TOUCH


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

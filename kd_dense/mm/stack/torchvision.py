"""timm without a torchvision that works: a stand-in for it, while timm is imported.

timm imports torchvision for data sets and augmentation; its models need next to nothing of it.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, NoReturn

from mmengine.logging import print_log

from kd_dense.mm.configs import RequestError

__all__ = ['import_timm']

NAME = 'torchvision'
# What timm imports where it is, and does without where it is not.
OPTIONAL = f'{NAME}.models'


def import_timm() -> Any:
    """Import timm, with a stand-in for torchvision where this is missing or broken.

    The stand-in is taken away when timm is there, and never replaces a torchvision that works.

    Raises:
        RequestError: If timm is not installed, or cannot be imported for another reason.
    """
    if 'timm' in sys.modules:
        return sys.modules['timm']
    if importlib.util.find_spec('timm') is None:
        raise RequestError('a teacher from timm wants the package timm: pip install timm')
    problem = _problem()
    try:
        if problem is None:
            return importlib.import_module('timm')
        _forget('timm')  # mmseg may have tried, and left a part of it
        with _stand_in():
            timm = importlib.import_module('timm')
    except Exception as error:  # whatever it finds amiss
        raise RequestError(f'timm cannot be imported: {type(error).__name__}: {error}') from error
    print_log(
        f'timm is used without torchvision ({problem}): its models run, its transforms do not',
        logger='current',
    )
    return timm


def _problem() -> str | None:
    """Why torchvision cannot be used, if it cannot."""
    try:
        importlib.import_module(NAME)
    except Exception as error:  # of a build for another torch: RuntimeError, OSError ...
        _forget(NAME)
        return f'{type(error).__name__}: {error}'
    return None


def _forget(package: str) -> None:
    for name in [*sys.modules]:
        if name.partition('.')[0] == package:
            del sys.modules[name]


@contextmanager
def _stand_in() -> Iterator[None]:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.meta_path.remove(finder)
        _forget(NAME)


class _Finder(MetaPathFinder, Loader):
    """Finds modules of torchvision that hold whatever they are asked for."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition('.')[0] != NAME or name.startswith(OPTIONAL):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Module(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _Missing(type):
    """The class of classes that are not there: they can be named, and not used."""

    def __call__(cls, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(
            f'{cls.__module__}.{cls.__qualname__} is not available: there was no torchvision that '
            'works when timm was imported; install the one that belongs to your torch'
        )

    def __getattr__(cls, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(name)
        return _missing(name, cls.__module__)


def _missing(name: str, module: str) -> _Missing:
    return _Missing(name, (), {'__module__': module})


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith('__'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')
        found = _missing(name, self.__name__)
        setattr(self, name, found)
        return found

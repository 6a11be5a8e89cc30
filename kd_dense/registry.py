"""The registries of the scope ``kd_dense``; mmengine imports this file on ``kd_dense.X``."""

from importlib import import_module
from pkgutil import iter_modules

from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

from kd_dense import adapters, losses

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='kd_dense', locations=['kd_dense.mm'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='kd_dense', locations=['kd_dense.mm'])
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='kd_dense',
    locations=['kd_dense.mm.stack.apolloscape', 'kd_dense.mm.data.unlabelled'],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='kd_dense',
    locations=['kd_dense.mm.data.ratio'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='kd_dense',
    locations=['kd_dense.mm.stack.apolloscape'],
)

# A new method is a new file in losses/, and nothing else has to name it.
for _file in iter_modules(losses.__path__):
    _module = import_module(f'{losses.__name__}.{_file.name}')
    for _name in _module.__all__:
        if _name.endswith('Loss') and _name != 'DistillLoss':
            MODELS.register_module(module=getattr(_module, _name))
MODELS.register_module(module=adapters.Adapter)

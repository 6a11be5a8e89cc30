"""The registries of the scope ``kd_dense``; mmengine imports this file on ``kd_dense.X``."""

from importlib import import_module
from pkgutil import walk_packages

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
    locations=[
        'kd_dense.mm.stack.apolloscape',
        'kd_dense.mm.batches.two_views',
        'kd_dense.mm.batches.views',
        'kd_dense.mm.datasets.unlabelled',
    ],
)
DATA_SAMPLERS = Registry(
    'data sampler',
    parent=MMENGINE_DATA_SAMPLERS,
    scope='kd_dense',
    locations=['kd_dense.mm.datasets.ratio'],
)
TRANSFORMS = Registry(
    'transform',
    parent=MMENGINE_TRANSFORMS,
    scope='kd_dense',
    locations=['kd_dense.mm.stack.apolloscape'],
)

# A new method is a new file in losses/ or its folders, and nothing else has to name it.
for _file in walk_packages(losses.__path__, f'{losses.__name__}.'):
    _module = import_module(_file.name)
    for _name in getattr(_module, '__all__', ()):
        _loss = getattr(_module, _name)
        _here = getattr(_loss, '__module__', None) == _file.name
        if _here and _name.endswith('Loss') and _name != 'DistillLoss':
            MODELS.register_module(module=_loss)
MODELS.register_module(module=adapters.Adapter)

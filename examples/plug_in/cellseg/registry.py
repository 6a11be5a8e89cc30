"""The registries of the scope ``cellseg``."""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='cellseg', locations=['cellseg'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='cellseg', locations=['cellseg'])
METRICS = Registry('metric', parent=MMENGINE_METRICS, scope='cellseg', locations=['cellseg'])

"""Models of configs, small and without downloads."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import get_installed_path

from kd_dense.mm.configs import dicts_in

# Heights and widths that are tried, smallest first; then those that the config names.
SIZES = ((128, 128), (256, 256), (320, 320), (512, 512))
SEGMENTER_SIZES = ((64, 64), *SIZES)

# What a model is built without: downloads, packages for evaluation, padding to another size.
LEFT_OUT = dict(
    pretrained=None,
    teacher_ckpt=None,
    batch_augments=None,
    use_torchvision=False,
    templates=['{}'],  # sentences with the name of a class: one in place of dozens
)
# How many boxes a detector proposes, samples and keeps at most: the time goes there.
BOXES = 32
BOX_LIMITS = ('nms_pre', 'max_per_img', 'num')


def prepared(config: Config, size: tuple[int, int] | None = None) -> Config:
    """A config whose model needs no download and no GPU, and takes images of a size."""
    config = copy.deepcopy(config)
    model = config.model
    if 'data_preprocessor' in config:
        model.setdefault('data_preprocessor', config.data_preprocessor)
    for one in dicts_in(model):
        one.update({name: LEFT_OUT[name] for name in LEFT_OUT.keys() & one.keys()})
        one.update({k: min(one[k], BOXES) for k in BOX_LIMITS if isinstance(one.get(k), int)})
        if one.get('type') == 'CLIPTextEncoder':  # it is frozen, and slow: each class is a text
            one['num_layers'] = 1
        if 'checkpoint' in (one.get('init_cfg') or {}):
            one['init_cfg'] = None
        if one.get('type') in ('SyncBN', 'MMSyncBN'):
            one['type'] = 'BN'
        if isinstance(one.get('teacher_config'), str):  # relative to the repository of mmdet
            one['teacher_config'] = get_installed_path('mmdet') + '/.mim/' + one['teacher_config']
        if size is not None and 'img_size' in one:
            one['img_size'] = size[0] if isinstance(one['img_size'], int) else size
        if size is not None and one.get('type') == 'SegDataPreProcessor':
            one['size'] = size
            one.pop('size_divisor', None)
    if 'tracker' in model and not builds(model.tracker):
        model.tracker = None  # it takes no part in training
    return config


def builds(part: Mapping[str, Any]) -> bool:
    try:
        build(Config(dict(model=part, default_scope='mmdet')))
    except Exception:  # it may need packages of its own
        return False
    return True


def build(config: Config) -> Any:
    with DefaultScope.overwrite_default_scope(config.get('default_scope')):
        return MODELS.build(config.model)


def own_sizes(config: Config) -> list[tuple[int, int]]:
    """Sizes that a config names: some models run at no other."""
    found = []
    for one in dicts_in(config.to_dict()):
        found += [one.get(name) for name in ('crop_size', 'img_size', 'input_size')]
        found.append((one.get('img_height'), one.get('img_width')))
    pairs = [(x, x) if isinstance(x, int) else tuple(x or ())[:2] for x in found]
    return [x for x in pairs if len(x) == 2 and all(isinstance(side, int) for side in x)]

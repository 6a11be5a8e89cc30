"""The edge that knows OpenMMLab: models, teachers, hooks, compatibility."""

from kd_dense.mm.stack import checkpoints, install, packages

packages.find_configs()
checkpoints.read_safely()
install.install()

from kd_dense.mm.distil.distilled import Distilled  # noqa: E402
from kd_dense.mm.hooks.average import AverageHook  # noqa: E402
from kd_dense.mm.hooks.checkpoint import SafeCheckpointHook  # noqa: E402
from kd_dense.mm.hooks.critic import CriticHook  # noqa: E402
from kd_dense.mm.hooks.random_state import RandomStateHook  # noqa: E402
from kd_dense.mm.models import heads  # noqa: E402, F401  (registers them)
from kd_dense.mm.pictures.hook import PictureHook  # noqa: E402
from kd_dense.mm.teachers import timm, torchhub, transformers  # noqa: E402, F401  (so too)

__all__ = [
    'AverageHook',
    'CriticHook',
    'Distilled',
    'PictureHook',
    'RandomStateHook',
    'SafeCheckpointHook',
]

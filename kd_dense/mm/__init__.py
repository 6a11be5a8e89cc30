"""The edge that knows OpenMMLab: models, teachers, hooks, compatibility."""

from kd_dense.mm import compat, mmcv_ops

compat.install()
mmcv_ops.install()

from kd_dense.mm import heads  # noqa: E402, F401  (registers them)
from kd_dense.mm.checkpoint_hook import SafeCheckpointHook  # noqa: E402
from kd_dense.mm.critic_hook import CriticHook  # noqa: E402
from kd_dense.mm.distilled import Distilled  # noqa: E402
from kd_dense.mm.hooks import RandomStateHook  # noqa: E402
from kd_dense.mm.picture_hook import PictureHook  # noqa: E402

__all__ = ['CriticHook', 'Distilled', 'PictureHook', 'RandomStateHook', 'SafeCheckpointHook']

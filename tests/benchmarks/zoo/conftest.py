"""Mmdet can be imported without mmcv's operators once kd_dense.mm is."""

import kd_dense.mm  # noqa: F401

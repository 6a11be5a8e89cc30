"""Maths that several losses share."""

from kd_dense.functional.checks import (
    at_least_float32,
    check_choice,
    check_published_batch,
    check_temperature,
    published_sum,
    without_autocast,
)
from kd_dense.functional.divergence import (
    NO_LOGIT,
    better_together,
    for_cache,
    in_blocks,
    soft_cross_entropy,
    soft_kl,
    soft_kl_total,
    softened,
    two_class_logits,
)
from kd_dense.functional.labels import Where, check_where, labels_at, share_of_labels
from kd_dense.functional.ranks import (
    divide_over_ranks,
    gather_over_ranks,
    mean_and_std,
    mean_over_ranks,
    standardised,
    standardised_together,
    sum_over_ranks,
)
from kd_dense.functional.units import squared_norm, unit

__all__ = [
    'NO_LOGIT',
    'Where',
    'at_least_float32',
    'better_together',
    'check_choice',
    'check_published_batch',
    'check_temperature',
    'check_where',
    'divide_over_ranks',
    'for_cache',
    'gather_over_ranks',
    'in_blocks',
    'labels_at',
    'mean_and_std',
    'mean_over_ranks',
    'published_sum',
    'share_of_labels',
    'soft_cross_entropy',
    'soft_kl',
    'soft_kl_total',
    'softened',
    'squared_norm',
    'standardised',
    'standardised_together',
    'sum_over_ranks',
    'two_class_logits',
    'unit',
    'without_autocast',
]

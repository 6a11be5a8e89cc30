"""Queries: what a decoder predicts for them, paired with what the teacher's decoder predicts."""

from kd_dense.losses.queries.boxes import QueryBoxLoss, query_box_loss
from kd_dense.losses.queries.features import QueryFeatureLoss, TaughtQueries, query_feature_loss
from kd_dense.losses.queries.masks import QueryMaskLoss, query_mask_loss
from kd_dense.losses.queries.points import Decoders, QueryPointLoss, query_point_loss

__all__ = [
    'Decoders',
    'QueryBoxLoss',
    'QueryFeatureLoss',
    'QueryMaskLoss',
    'QueryPointLoss',
    'TaughtQueries',
    'query_box_loss',
    'query_feature_loss',
    'query_mask_loss',
    'query_point_loss',
]

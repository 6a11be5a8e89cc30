"""Queries: what a decoder predicts for them, paired with what the teacher's decoder predicts."""

from kd_dense.losses.queries.boxes import QueryBoxLoss, query_box_loss

__all__ = [
    'QueryBoxLoss',
    'query_box_loss',
]

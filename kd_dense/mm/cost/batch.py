"""A made-up batch, with as much in it as a real one."""

from __future__ import annotations

from typing import Any

from kd_dense.mm.batches.made_up import Labels, random_batch
from kd_dense.mm.configs import RequestError, dicts_in, framework
from kd_dense.mm.cost.recipe import Recipe
from kd_dense.mm.cost.steps import Batch, preprocessed

__all__ = ['make_batch']

BOXES = 8  # in a picture; those of COCO have 7 on average
SMALLEST = 1 / 30  # side of a box, as a part of the picture's


def make_batch(recipe: Recipe, model: Any, count: int) -> Batch:
    """Random pictures with boxes (and masks), or label maps of all classes, as a model wants.

    Args:
        recipe: The recipe.
        model: Its student.
        count: How many pictures.

    Raises:
        RequestError: If the config of the student does not say how many classes there are.
    """
    parts = list(dicts_in(recipe.config.model.student))
    classes = next((x for part in parts if isinstance(x := part.get('num_classes'), int)), None)
    if classes is None:
        raise RequestError('the student has no num_classes: expected it in its config')
    if framework(recipe.config) == 'mmseg':
        from mmseg.structures import SegDataSample

        kind, labels = SegDataSample, Labels(boxes=0, classes=classes, label_maps=True)
    else:
        from mmdet.structures import DetDataSample

        masks = any('mask_head' in part for part in parts)
        kind, labels = DetDataSample, Labels(BOXES, SMALLEST, classes, masks)
    data = random_batch(model, recipe.size, labels, sample=kind, images=count)
    return preprocessed(model, data)

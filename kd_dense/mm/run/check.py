"""Check a recipe, or a student with a teacher, from Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from kd_dense.mm.check.check import check as check_config
from kd_dense.mm.check.finding import Finding
from kd_dense.mm.presets.choose import Weights
from kd_dense.mm.run.recipes import read_recipe

__all__ = ['check']


def check(
    student: str | os.PathLike[str] | Config,
    teacher: str | os.PathLike[str] | None = None,
    methods: str | Sequence[str] = (),
    *,
    teacher_checkpoint: str | os.PathLike[str] | None = None,
    weights: Weights = 'auto',
    unlabelled: str | os.PathLike[str] | None = None,
    labels: bool = True,
    options: Mapping[str, Any] | None = None,
    batches: int = 4,
    images: int = 50,
    student_checkpoint: str | None = None,
    device: str = 'cpu',
) -> list[Finding]:
    """Find out what a distilled training would do, before anything trains; writes nothing.

    Args:
        student: A recipe, or with a teacher the config of a student: a path, a name as
            ``'mmdet::FOLDER/FILE.py'``, or a config that has been read.
        teacher: Config of the teacher: a path or a name.
        methods: One or several presets, as ``'fgd'``.
        teacher_checkpoint: Its weights, a path or an address; by default those published with
            its config; ``'none'`` for an untrained teacher.
        weights: Of the presets, see [`kd_dense.mm.presets.choose.choose_preset`][].
        unlabelled: A folder of pictures without labels to learn from as well.
        labels: Whether pictures with labels are trained on as well.
        options: Settings of the student's config to override, as ``{'train_cfg.max_epochs': 6}``.
        batches: How many batches of the training data each term is weighed on.
        images: How many pictures of the validation data both models are scored on.
        student_checkpoint: Weights of the student trained alone, to score beside the teacher.
        device: Where to compute.

    Returns:
        What was found, in the order in which a training would meet it. Where the training would
        stop or be worth nothing, the ``status`` is ``'error'``.

    Raises:
        RequestError: If a config does not exist, or the arguments do not go together.

    Examples:
        >>> found = check('work_dirs/no_such_recipe.py')  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        kd_dense.mm.configs.NotFoundError: the config work_dirs/no_such_recipe.py ...
    """
    if isinstance(student, Config):
        config = student
    else:
        chosen = [methods] if isinstance(methods, str) else methods
        config = read_recipe(
            student, teacher, chosen, teacher_checkpoint, options, weights, unlabelled, labels
        )
    return check_config(config, batches, images, student_checkpoint, device)

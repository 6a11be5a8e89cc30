"""What is compared on a picture, made-up pictures, and what is in a figure."""

from __future__ import annotations

import warnings

import matplotlib
import numpy as np
import torch

from kd_dense.mm.pictures.canvas import pixels_of
from kd_dense.mm.pictures.observe import compare
from kd_dense.mm.pictures.views import View, class_names, load, look
from tests.mm import methods, toy


def see(model, scenes, index=1):
    """The view of an entry, and what each term compares there."""
    data = load(scenes, index)
    view = look(model, data, class_names(scenes))
    return view, compare(model, data, view)[0]


def see_method(method, index=1):
    return see(toy.build(methods.distilled(method)).eval(), methods.scenes(method), index)


def see_loss(loss, tap='decode_head.conv_seg'):
    """What a loss compares in a segmenter."""
    model = toy.build(toy.distilled(terms=dict(one=dict(tap=tap, loss=loss)))).eval()
    return see(model, toy.SegScenes(augment=False))[1]['one']


def segmentation(size=(64, 128), classes=19):
    stripes = np.arange(size[1]) * classes // size[1]
    labels = np.tile(stripes, (size[0], 1))
    labels[:6] = 255
    names = tuple(f'class name {i}' for i in range(classes))
    image = np.repeat((10 * labels[..., None]) % 255, 3, 2).astype(np.uint8)
    return View(image, size, names, segmentation=labels)


def detection(boxes, labels, size=(120, 80)):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    names = tuple(f'name{i}' for i in range(80))
    boxes = torch.tensor(boxes).float().view(-1, 4)
    return View(image, size, names, boxes, torch.tensor(labels, dtype=torch.long))


def texts(figure):
    """All that is written in a figure."""
    return '\n'.join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def drawn(figure):
    """The pixels; a figure too small for what is in it is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings('error', message='.*constrained_layout not applied.*')
        pixels = pixels_of(figure)
    assert pixels.dtype == np.uint8
    assert pixels.std() > 5
    return pixels

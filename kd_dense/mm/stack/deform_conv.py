"""PyTorch versions of mmcv's two deformable convolutions, for `kd_dense.mm.stack.install`.

The five operators have the names and arguments of the compiled ones, and write where those
write. Offsets of zero make a plain convolution; a point outside of the map, by a pixel or more,
reads 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['OPERATORS']

Pair = tuple[int, int]

# What the arguments for stride, padding and dilation begin with, and end with for each axis.
OLD = ('d', 'pad', 'dilation'), ('H', 'W')
NEW = ('stride_', 'pad_', 'dilation_'), ('h', 'w')


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Finds the four pixels around each point and their bilinear weights.

    A pixel outside of the map has weight 0.

    Args:
        y: Rows, any shape.
        x: Columns, the same shape.
        height: Height of the map.
        width: Width of the map.

    Returns:
        Indices row * width + column, shape (..., 4), int64, and weights, shape (..., 4).
    """
    inside = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = torch.where(inside, y, 0), torch.where(inside, x, 0)
    top, left = y.detach().floor(), x.detach().floor()
    below, right = y - top, x - left
    above, ahead = (1 - below) * inside, 1 - right
    below = below * inside
    weight = torch.stack([above * ahead, above * right, below * ahead, below * right], dim=-1)
    row = torch.stack([top, top, top + 1, top + 1], dim=-1)
    column = torch.stack([left, left + 1, left, left + 1], dim=-1)
    valid = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixel = torch.where(valid, row * width + column, 0)
    return pixel.long(), torch.where(valid, weight, 0)


def _columns(
    maps: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    deform_groups: int,
) -> Tensor:
    """Reads what each position of the output is made of.

    Args:
        maps: One image, shape (C, H, W).
        offset: Shape (deform_groups * K * 2, H', W') with K = kernel height * width; the two are
            rows and columns.
        mask: Factors, shape (deform_groups * K, H', W').
        kernel: Height and width, as the other pairs.

    Returns:
        Columns, shape (K * C, H' * W'); the channel is the fastest to change.
    """
    channels, height, width = maps.shape
    rows, columns = offset.shape[-2:]
    taps = kernel[0] * kernel[1]
    offset = offset.view(deform_groups, *kernel, 2, rows, columns)

    def grid(axis: int, count: int) -> Tensor:
        """Where the taps of the undeformed kernel lie, shape (kernel size, count)."""
        tap = torch.arange(kernel[axis], device=maps.device) * dilation[axis]
        start = torch.arange(count, device=maps.device) * stride[axis] - padding[axis]
        return (tap[:, None] + start).to(offset.dtype)

    y = offset[:, :, :, 0] + grid(0, rows)[:, None, :, None]
    x = offset[:, :, :, 1] + grid(1, columns)[:, None, :]
    pixel, weight = _corners(y, x, height, width)
    if mask is not None:
        weight = weight * mask.view(deform_groups, *kernel, rows, columns, 1)
    group = torch.arange(deform_groups, device=maps.device).view(-1, 1, 1, 1, 1, 1)
    pixel = pixel + group * (height * width)
    table = maps.reshape(deform_groups, -1, height * width).mT.flatten(0, 1)
    # The chosen rows, four times the columns, are never built.
    read = F.embedding_bag(
        pixel.view(-1, 4), table, per_sample_weights=weight.view(-1, 4), mode='sum'
    )
    read = read.view(deform_groups, taps, rows * columns, -1)
    return read.permute(1, 0, 3, 2).reshape(taps * channels, rows * columns)


def _convolve(
    maps: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    **geometry: Any,
) -> Tensor:
    """Deformable convolution of one image, (C, H, W) to (O, H', W')."""
    outputs, per_group, *kernel = weight.shape
    columns = _columns(maps, offset, mask, (kernel[0], kernel[1]), **geometry)
    columns = columns.view(-1, groups, per_group, columns.shape[-1]).transpose(0, 1)
    flat = weight.view(groups, outputs // groups, per_group, -1).permute(0, 1, 3, 2)
    result = flat.flatten(2) @ columns.flatten(1, 2)
    result = result.view(outputs, *offset.shape[-2:])
    return result if bias is None else result + bias[:, None, None]


def _of_image(tensors: Sequence[Tensor | None], index: int) -> list[Tensor | None]:
    """Takes maps, offset and mask of one image; weight and bias are those of all."""
    return [x[index] if x is not None and i < 3 else x for i, x in enumerate(tensors)]


def _precise(tensor: Tensor | None) -> Any:
    """Returns a detached tensor, at least float32."""
    if tensor is None:
        return None
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def _forward(output: Tensor, inputs: Sequence[Tensor | None], **geometry: Any) -> None:
    """Writes the convolution of maps, offset, mask, weight, bias to the output."""
    for index, image in enumerate(output):  # one after the other, because columns are large
        image.copy_(_convolve(*map(_precise, _of_image(inputs, index)), **geometry))


def _backward(
    grad_output: Tensor,
    inputs: Sequence[Tensor | None],
    grads: Sequence[Tensor | None],
    **geometry: Any,
) -> None:
    """Adds the gradients of the inputs to ``grads``, where those are not None."""
    for index, grad in enumerate(grad_output):
        leaves = [*map(_precise, _of_image(inputs, index))]
        totals = _of_image(grads, index)
        wanted = [x.requires_grad_() for x, t in zip(leaves, totals, strict=True) if t is not None]
        with torch.enable_grad():
            image = _convolve(*leaves, **geometry)
        found = torch.autograd.grad(image, wanted, grad.to(image.dtype))
        for total, value in zip(filter(torch.is_tensor, totals), found, strict=True):
            total += value


def _geometry(
    arguments: Mapping[str, int], names: Sequence[str], axes: Sequence[str]
) -> dict[str, Any]:
    """Gathers the geometry from the arguments of an operator; kernel sizes the weight tells."""
    stride, padding, dilation = (tuple(arguments[n + axis] for axis in axes) for n in names)
    return dict(
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=arguments['group'],
        deform_groups=arguments['deformable_group'],
    )


def _as_read(tensors: Sequence[Tensor | None], output: Tensor) -> list[Tensor | None]:
    """What the compiled operator reads of offset and mask, or writes of their gradients.

    It takes their memory for maps of the output's size. Where they are larger, as DyHead's are,
    that is the first part of each image's memory, in rows of another length.

    Args:
        tensors: Maps, offset, mask, weight, bias, or the gradients of these.
        output: The output, or its gradient.

    Raises:
        ValueError: If offset or mask is smaller than the output.
    """
    found = [*tensors]
    for index, tensor in enumerate(tensors):
        if index in (1, 2) and tensor is not None and tensor.shape[-2:] != output.shape[-2:]:
            shape = tensor.shape[:2] + output.shape[-2:]
            if tensor[0].numel() < shape[1:].numel():
                raise ValueError(
                    'expected an offset and a mask at least as large as the output, '
                    f'{tuple(output.shape[-2:])}, got {tuple(tensor.shape[-2:])}'
                )
            found[index] = tensor.flatten(1)[:, : shape[1:].numel()].unflatten(1, shape[1:])
    return found


def deform_conv_forward(
    maps: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **arguments: int,
) -> None:
    """Deformable convolution (Dai et al., ICCV 2017), forward."""
    _forward(output, [maps, offset, None, weight, None], **_geometry(arguments, *OLD))


def deform_conv_backward_input(
    maps: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_maps: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **arguments: int,
) -> None:
    """Gradient into the maps and the offset."""
    inputs, grads = [maps, offset, None, weight, None], [grad_maps, grad_offset, None, None, None]
    _backward(grad_output, inputs, grads, **_geometry(arguments, *OLD))


def deform_conv_backward_parameters(
    maps: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **arguments: int,
) -> None:
    """Gradient into the weight, which does not depend on the weight, times ``scale``."""
    inputs, grads = [maps, offset, None, grad_weight, None], [None, None, None, grad_weight, None]
    _backward(grad_output * scale, inputs, grads, **_geometry(arguments, *OLD))


def modulated_deform_conv_forward(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **arguments: int,
) -> None:
    """Modulated deformable convolution (Zhu et al., CVPR 2019), forward."""
    inputs = [maps, offset, mask, weight, bias if with_bias else None]
    _forward(output, _as_read(inputs, output), **_geometry(arguments, *NEW))


def modulated_deform_conv_backward(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_maps: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **arguments: int,
) -> None:
    """Gradient into everything."""
    inputs = [maps, offset, mask, weight, bias if with_bias else None]
    grads = [grad_maps, grad_offset, grad_mask, grad_weight, grad_bias if with_bias else None]
    inputs, grads = _as_read(inputs, grad_output), _as_read(grads, grad_output)
    _backward(grad_output, inputs, grads, **_geometry(arguments, *NEW))


OPERATORS: dict[str, Callable[..., None]] = {
    operator.__name__: operator
    for operator in (
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
    )
}

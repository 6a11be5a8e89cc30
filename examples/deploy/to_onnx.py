"""Write a trained student as an ONNX file, and compare what it yields there.

    python examples/deploy/to_onnx.py student.py student.pth student.onnx --size 512 1024

Config and checkpoint are those of the student alone, as `kd_dense export CHECKPOINT student.pth
--config student.py` writes them. In goes a batch of pictures that the model's own preprocessor has
normalised; out come the maps of its head: class logits of a segmenter, class logits and boxes of a
dense detector, level by level.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize

import kd_dense.mm  # noqa: F401  (before mmdet and mmseg)
from kd_dense.taps import tensors_in


class Maps(nn.Module):
    """A model up to the maps of its head, which it returns in one list."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pictures: Tensor) -> list[Tensor]:
        return [*tensors_in(self.model(pictures, mode='tensor'))]


def load(config: str, checkpoint: str) -> Any:
    """A student, ready to predict, by the stock loader of its package."""
    from mmdet.apis import init_detector
    from mmengine.config import Config
    from mmseg.apis import init_model

    scope = Config.fromfile(config).get('default_scope')
    init = init_model if scope == 'mmseg' else init_detector
    return init(config, checkpoint, device='cpu')


def export(model: nn.Module, pictures: Tensor, file: str) -> None:
    """Write the file.

    Args:
        model: The student.
        pictures: A batch; files take batches of this shape.
        file: Where to.
    """
    maps = Maps(copy.deepcopy(model)).eval()
    # The new exporter does not know the branches in torch's fake quantisation.
    quantised = any(isinstance(part, FakeQuantize) for part in maps.modules())
    torch.onnx.export(
        maps,
        (pictures,),
        file,
        input_names=['pictures'],
        dynamo=not quantised,
        **({'opset_version': 17} if quantised else {'external_data': False, 'verbose': False}),
    )


def run(file: str, pictures: Tensor) -> list[Tensor]:
    """Run the file in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=['CPUExecutionProvider'])
    found = session.run(None, {'pictures': pictures.numpy()})
    return [torch.from_numpy(x) for x in found]


def difference(model: nn.Module, pictures: Tensor, file: str) -> float:
    """The largest difference between the model and the file, of the largest value of a map."""
    with torch.no_grad():
        expected = Maps(model.eval())(pictures)
    pairs = zip(expected, run(file, pictures), strict=True)
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in pairs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='of the student')
    parser.add_argument('checkpoint', help='of the student')
    parser.add_argument('file', help='to write')
    parser.add_argument('--size', nargs=2, type=int, default=(512, 1024), metavar=('H', 'W'))
    args = parser.parse_args(arguments)
    model = load(args.config, args.checkpoint)
    pictures = torch.randn(1, 3, *args.size)
    export(model, pictures, args.file)
    print(f'{args.file}: {difference(model, pictures, args.file):.1e} from the model')


if __name__ == '__main__':
    main()

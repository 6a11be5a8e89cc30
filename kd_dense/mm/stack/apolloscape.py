"""The lane markings of ApolloScape, as IntRA-KD is trained on them.

Ids, names and colours of the classes are those of ``lane_segmentation/helpers/
laneMarkDetection.py`` in github.com/ApolloScapeAuto/dataset-api. It numbers 36 classes for
training and leaves noise and ignored pixels out. IntRA-KD has 37 classes: the training scripts
in github.com/cardwing/Codes-for-IntRA-KD say that these two are merged into the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.dataset import ConcatDataset

from kd_dense.registry import DATASETS, TRANSFORMS

__all__ = ['CLASSES', 'LABEL_IDS', 'ApolloScape', 'ApolloScapeTrainIds', 'CropTop', 'Marking']


class Marking(NamedTuple):
    """One class: its number in the label files, and its name and colour there."""

    id: int
    name: str
    color: tuple[int, int, int]


# The position in this table is the class.
CLASSES = (
    Marking(0, 'void', (0, 0, 0)),
    Marking(200, 's_w_d', (70, 130, 180)),
    Marking(204, 's_y_d', (220, 20, 60)),
    Marking(213, 'ds_w_dn', (128, 0, 128)),
    Marking(209, 'ds_y_dn', (255, 0, 0)),
    Marking(206, 'sb_w_do', (0, 0, 60)),
    Marking(207, 'sb_y_do', (0, 60, 100)),
    Marking(201, 'b_w_g', (0, 0, 142)),
    Marking(203, 'b_y_g', (119, 11, 32)),
    Marking(211, 'db_w_g', (244, 35, 232)),
    Marking(208, 'db_y_g', (0, 0, 160)),
    Marking(216, 'db_w_s', (153, 153, 153)),
    Marking(217, 's_w_s', (220, 220, 0)),
    Marking(215, 'ds_w_s', (250, 170, 30)),
    Marking(218, 's_w_c', (102, 102, 156)),
    Marking(219, 's_y_c', (128, 0, 0)),
    Marking(210, 's_w_p', (128, 64, 128)),
    Marking(232, 's_n_p', (238, 232, 170)),
    Marking(214, 'c_wy_z', (190, 153, 153)),
    Marking(202, 'a_w_u', (0, 0, 230)),
    Marking(220, 'a_w_t', (128, 128, 0)),
    Marking(221, 'a_w_tl', (128, 78, 160)),
    Marking(222, 'a_w_tr', (150, 100, 100)),
    Marking(231, 'a_w_tlr', (255, 165, 0)),
    Marking(224, 'a_w_l', (180, 165, 180)),
    Marking(225, 'a_w_r', (107, 142, 35)),
    Marking(226, 'a_w_lr', (201, 255, 229)),
    Marking(230, 'a_n_lu', (0, 191, 255)),
    Marking(228, 'a_w_tu', (51, 255, 51)),
    Marking(229, 'a_w_m', (250, 128, 114)),
    Marking(233, 'a_y_t', (127, 255, 0)),
    Marking(205, 'b_n_sr', (255, 128, 0)),
    Marking(212, 'd_wy_za', (0, 255, 255)),
    Marking(227, 'r_wy_np', (178, 132, 190)),
    Marking(223, 'vom_wy_n', (128, 128, 64)),
    Marking(250, 'om_n_n', (102, 0, 204)),
    Marking(249, 'noise', (0, 153, 153)),
)
LABEL_IDS = {marking.id: index for index, marking in enumerate(CLASSES)}
LABEL_IDS[255] = LABEL_IDS[249]  # ignored pixels are in the class of the noise


@DATASETS.register_module()
def ApolloScape(  # noqa: N802  (a type in configs)
    data_root: str, parts: Sequence[str], **arguments: Any
) -> Any:
    """Read road markings in the folders in which ApolloScape comes.

    ``<data_root>/ColorImage_<road>/ColorImage/<record>/<camera>/<name>.jpg`` belongs to
    ``<data_root>/Labels_<road>/Label/<record>/<camera>/<name>_bin.png``. The labels that are
    loaded are the numbers in the files: put [`ApolloScapeTrainIds`][] behind
    ``LoadAnnotations``.

    Args:
        data_root: The folder with ``ColorImage_road02`` and so on.
        parts: What to read: roads, as ``'road02'``, or records, as ``'road02/Record001'``.
        arguments: Of ``mmseg.datasets.BaseSegDataset``: ``pipeline`` and so on.

    Returns:
        A data set of mmseg; several parts are concatenated.

    Raises:
        ValueError: If there is no part.

    Examples:
        >>> train = dict(
        ...     type='kd_dense.ApolloScape',
        ...     data_root='data/apolloscape',
        ...     parts=('road02', 'road03'))
    """
    from mmseg.datasets import BaseSegDataset

    if isinstance(parts, str) or not parts:
        raise ValueError(f"expected parts as ('road02', 'road03/Record001'), got {parts!r}")
    metainfo = dict(
        classes=tuple(marking.name for marking in CLASSES),
        palette=[list(marking.color) for marking in CLASSES],
    )
    datasets = []
    for part in parts:
        road, _, record = part.partition('/')
        prefix = dict(
            img_path=f'ColorImage_{road}/ColorImage/{record}',
            seg_map_path=f'Labels_{road}/Label/{record}',
        )
        datasets.append(
            BaseSegDataset(
                data_root=data_root,
                data_prefix=prefix,
                img_suffix='.jpg',
                seg_map_suffix='_bin.png',
                metainfo=metainfo,
                **arguments,
            )
        )
    return datasets[0] if len(datasets) == 1 else ConcatDataset(datasets)


@TRANSFORMS.register_module()
class ApolloScapeTrainIds(BaseTransform):
    """Replace the numbers of ApolloScape's label files by those of the classes.

    Args:
        label_ids: Class of each number, ``LABEL_IDS`` if not given. For the 36 classes of
            the data set's own table: ``{**LABEL_IDS, 249: 255, 255: 255}``.

    Raises:
        ValueError: If a label map has a number that is not among them.

    Examples:
        >>> labels = {'gt_seg_map': np.array([[0, 200, 255]], dtype=np.uint8)}
        >>> ApolloScapeTrainIds().transform(labels)['gt_seg_map']
        array([[ 0,  1, 36]], dtype=uint8)
    """

    UNKNOWN = 254

    def __init__(self, label_ids: Mapping[int, int] | None = None) -> None:
        label_ids = LABEL_IDS if label_ids is None else label_ids
        self.table = np.full(256, self.UNKNOWN, dtype=np.uint8)
        for label, index in label_ids.items():
            if not (0 <= int(label) < 256 and 0 <= index < 256 and index != self.UNKNOWN):
                raise ValueError(
                    f'expected label_ids from 0..255 to 0..253 or 255, got {label}: {index}'
                )
            self.table[int(label)] = index

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        labels = results['gt_seg_map']
        mapped = self.table[labels]
        if (mapped == self.UNKNOWN).any():
            unknown = np.unique(labels[mapped == self.UNKNOWN]).tolist()
            raise ValueError(
                f'{results.get("seg_map_path")} has labels {unknown}, which are not in '
                'label_ids: are they classes already? Then leave this transform out'
            )
        results['gt_seg_map'] = mapped
        return results


@TRANSFORMS.register_module()
class CropTop(BaseTransform):
    """Cut the upper part off, where a road has no markings.

    The results forget that it was there: predictions are made and scored without it.

    Args:
        fraction: How much to cut off, of the height.
        keys: What to cut; what has not been loaded is left out.

    Raises:
        ValueError: If ``fraction`` is not between 0 and 1.

    Examples:
        >>> results = {'img': np.zeros((271, 338, 3))}
        >>> CropTop(fraction=170 / 271).transform(results)['img'].shape
        (101, 338, 3)
    """

    def __init__(self, fraction: float, keys: Sequence[str] = ('img', 'gt_seg_map')) -> None:
        if not 0 <= fraction < 1:
            raise ValueError(f'CropTop expects 0 <= fraction < 1, got fraction={fraction}')
        self.fraction = fraction
        self.keys = tuple(keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        for key in self.keys:
            if key in results:
                whole = results[key]
                results[key] = whole[round(self.fraction * whole.shape[0]) :]
        if 'img' in self.keys:
            results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results

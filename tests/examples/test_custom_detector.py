"""A detector of one's own, on data that a reader without data draws."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

import kd_dense.mm  # noqa: F401  (before any config is read)
from kd_dense.mm.presets.choose import choose_preset
from tests.checkout import run
from tests.examples.pages import blocks, link_checkout
from tests.miniature import ROOT

PAGE = 'docs/custom-detector.md'
HOME = 'examples/custom_detector'
CLASSES = ('nut', 'washer', 'screw')


@pytest.fixture(scope='module')
def parts():
    return runpy.run_path(str(ROOT / HOME / 'make_parts.py'))


@pytest.fixture(scope='module')
def root(tmp_path_factory, parts):
    root = link_checkout(tmp_path_factory.mktemp('custom'))
    for split in ('train', 'val'):
        parts['write_split'](root / 'data/parts', split, 3, seed=0)
    return root


def read(name):
    return Config.fromfile(ROOT / HOME / f'{name}.py')


def build(name):
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(read(name).model)


@pytest.mark.parametrize(
    ('path', 'text'), [pytest.param(*b, id=b[0]) for b in blocks(PAGE, 'python') if b[0]]
)
def test_the_page_shows_the_files(path, text):
    assert (ROOT / path).read_text() == text


class TestMakeParts:
    """The data."""

    @pytest.mark.parametrize('split', ['train', 'val'])
    def test_is_in_the_layout_of_coco(self, root, split):
        content = json.loads((root / f'data/parts/annotations/{split}.json').read_text())
        assert [c['name'] for c in content['categories']] == list(CLASSES)
        assert [i['id'] for i in content['images']] == [0, 1, 2]
        assert [a['id'] for a in content['annotations']] == list(
            range(1, len(content['annotations']) + 1)
        )
        for image in content['images']:
            picture = cv2.imread(str(root / 'data/parts' / split / image['file_name']))
            assert picture.shape == (image['height'], image['width'], 3)
        for annotation in content['annotations']:
            x, y, w, h = annotation['bbox']
            assert min(x, y) >= 0
            assert min(w, h) > 0
            assert max(x + w, y + h) <= 128
            assert annotation['area'] == w * h

    def test_the_same_again_and_splits_differ(self, root, parts, tmp_path):
        parts['write_split'](tmp_path, 'train', 1, seed=0)
        first, again = (p / 'train/0000.png' for p in (root / 'data/parts', tmp_path))
        assert again.read_bytes() == first.read_bytes()
        assert (root / 'data/parts/val/0000.png').read_bytes() != first.read_bytes()

    def test_boxes_lie_on_parts(self, parts):
        """Their borders cross an edge more often than borders of boxes that are moved aside."""
        on, beside = [], []
        for number in range(20):
            picture, found = parts['draw'](np.random.default_rng(number))
            grey = cv2.GaussianBlur(picture.astype(np.float32).mean(-1), (0, 0), 1.5)
            edges = np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))
            for _, (x, y, w, h) in found:
                middle = edges[y : y + h, x : x + w].mean()
                x, y = (x + 64) % (129 - w), (y + 64) % (129 - h)
                on.append(middle)
                beside.append(edges[y : y + h, x : x + w].mean())
        assert np.mean(on) > 1.5 * np.mean(beside)


class TestConfigs:
    """Student and teacher."""

    @pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
    def test_read_the_data(self, root, loader, monkeypatch):
        monkeypatch.chdir(root)
        with DefaultScope.overwrite_default_scope('mmdet'):
            data = DATASETS.build(read('student')[loader].dataset)
        assert len(data) == 3
        assert data.metainfo['classes'] == CLASSES
        sample = data[0]
        assert sample['inputs'].shape == (3, 128, 128)
        assert set(sample['data_samples'].gt_instances.labels.tolist()) <= {0, 1, 2}

    def test_download_nothing(self):
        for name in ('student', 'teacher'):
            assert '://' not in str(read(name).model)

    def test_the_teacher_differs_in_its_backbone(self):
        student, teacher = read('student').model, read('teacher').model
        assert student.pop('backbone').base_channels < teacher.pop('backbone').base_channels
        del student.neck['in_channels'], teacher.neck['in_channels']
        assert student == teacher

    def test_the_recipe_is_the_preset_with_other_numbers(self):
        recipe = read('fgd').model
        student = build('student')
        preset = choose_preset(['fgd'], student, build('teacher'), 'published')
        assert tuple(recipe.inherit) == tuple(preset.inherit)
        ours, theirs = recipe.terms.fgd, preset.terms['fgd']
        assert ours.tap == theirs['tap']
        assert ours.loss.keys() == theirs['loss'].keys()
        assert recipe.student == read('student').model

    def test_sizes_are_those_on_the_page(self):
        text = (ROOT / PAGE).read_text()
        for name in ('student', 'teacher'):
            million = sum(p.numel() for p in build(name).parameters()) / 1e6
            assert f'{million:.1f} M' in text

    @pytest.mark.parametrize('method', ['auto', 'cwd', 'skd', 'fgd', 'ld'])
    def test_presets_fit(self, method):
        preset = choose_preset([method], build('student'), build('teacher'))
        assert preset.terms

    def test_classes_are_distilled_by_their_number(self):
        preset = choose_preset(['ld'], build('student'), build('teacher'), 'published')
        assert preset.terms['ld']['loss']['kd_weight'] == 0.625  # 10 x (5 / 80) / (3 / 3)
        assert '`kd_weight=0.625`' in (ROOT / PAGE).read_text()


def test_the_exported_student_finds_parts(root, monkeypatch):
    """The code of the page, on a student that has not been trained."""
    monkeypatch.chdir(root)
    model = build('student')
    model.bbox_head.gfl_cls.bias.data.fill_(1.0)  # sees parts everywhere
    state = {**model.state_dict(), 'kd.x': torch.zeros(1)}
    file = Path('work_dirs/auto/epoch_12.pth')
    file.parent.mkdir(parents=True)
    torch.save({'state_dict': state, 'meta': {'dataset_meta': {'classes': CLASSES}}}, file)
    run(root, ['tools/export.py', str(file), 'work_dirs/student.pth'], root, {})
    (code,) = (text for title, text in blocks(PAGE, 'python') if not title)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    found = [line.split() for line in printed.getvalue().splitlines() if '[' in line]
    assert found
    assert {words[0] for words in found} <= set(CLASSES)

"""What a step of published recipes takes on the GPU, beside the least that it can take."""

import pytest
from mmengine.config import Config

from kd_dense.mm.cost.side_by_side import GOAL, SideBySide
from tests.miniature import ROOT

pytestmark = pytest.mark.gpu
DETECTION, SEGMENTATION = (800, 1216), (512, 1024)
RECIPES = {
    'cwd/cwd_retinanet-r50_from_retinanet-r101_1x_coco': DETECTION,
    'fgd/fgd_gfl-r50_from_gfl-r101_1x_coco': DETECTION,
    'ld/ld_gfl-r50_from_gfl-r101_1x_coco': DETECTION,
    'skd/skd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024': SEGMENTATION,
    'intrakd/intrakd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024': SEGMENTATION,
}


@pytest.mark.parametrize('name', RECIPES)
def test_memory_and_time_of_a_step(name, device, dry, record_property):
    if dry and not name.startswith(('cwd', 'skd')):
        pytest.skip('the dry run has two: a detector and a segmenter')
    config = Config.fromfile(ROOT / 'configs' / f'{name}.py')
    size, rounds = ((64, 96), 1) if dry else (RECIPES[name], 5)
    measured = SideBySide({name: config}, size, images=2, device=device).measure(rounds)
    found = measured['recipes'][name]
    step = measured['calls'][found['step']]
    time, memory = found['step_to_floor']['median'], found['peak_to_floor']
    record_property(
        'gpu',
        f'{name}, 2 x {size[0]}x{size[1]}: {step["median"] * 1000:.1f} ms, {time:.3f} of the '
        f'floor; {step["peak_bytes"] / 2**20:.0f} MiB, {memory:.3f} of the floor',
    )
    assert step['peak_bytes'] > 0
    if not dry:  # of small pictures workspaces take most
        assert memory <= GOAL

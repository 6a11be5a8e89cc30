"""The module that stands in for mmcv's compiled operators, and when it does."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import kd_dense
from kd_dense.mm.stack import install
from kd_dense.mm.stack.nms import nms
from tests.mm.stack.operators import EXT, needs_compiled, needs_plain

PACKAGE = Path(kd_dense.__file__).parent


def run_python(code, *paths):
    """Runs code in a fresh process; `install` is loaded without what `kd_dense.mm` does."""
    load = (
        'import sys, types, warnings\n'
        'warnings.simplefilter("always")\n'
        f'sys.path[:0] = {[str(p) for p in paths]!r}\n'
        'package = sys.modules["kd_dense.mm"] = types.ModuleType("kd_dense.mm")\n'
        f'package.__path__ = [{str(PACKAGE / "mm")!r}]\n'
        'from kd_dense.mm.stack.install import install as replace\n'
        'def install():\n'
        '    with warnings.catch_warnings(record=True) as caught:\n'
        '        warnings.simplefilter("always")\n'
        '        return replace(), [str(w.message) for w in caught]\n'
    )
    result = subprocess.run(
        [sys.executable, '-c', load + code],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


class TestModule:
    def test_other_operators_explain_themselves(self):
        module = install._make_module()
        assert hasattr(module, 'ms_deform_attn_forward')
        with pytest.raises(
            NotImplementedError,
            match=r"'ms_deform_attn_forward' is not available.*without its compiled operators.*"
            r'only NMS, soft-NMS, RoIAlign, deformable convolutions, and NMS and IoU of rotated '
            r'boxes.*mim install mmcv',
        ):
            module.ms_deform_attn_forward(1, 2, im2col_step=3)
        assert module.ms_deform_attn_forward is module.ms_deform_attn_forward

    def test_private_names_are_missing(self):
        module = install._make_module()
        for name in ('__file__', '__path__', '__wrapped__', '_private'):
            with pytest.raises(AttributeError, match=f"'mmcv._ext' has no attribute '{name}'"):
                getattr(module, name)

    def test_compiler_versions(self):
        module = install._make_module()
        assert module.get_compiler_version() == 'n/a'
        assert module.get_compiling_cuda_version() == 'n/a'

    def test_spec_and_repr(self, monkeypatch):
        monkeypatch.setitem(sys.modules, 'mmcv._ext', install._make_module())
        assert importlib.util.find_spec('mmcv._ext').name == 'mmcv._ext'
        assert 'mmcv._ext' in repr(sys.modules['mmcv._ext'])

    @needs_plain
    def test_operator_of_mmcv_that_is_not_replaced(self):
        with pytest.raises(NotImplementedError, match="'sigmoid_focal_loss_forward'"):
            sys.modules['mmcv.ops'].sigmoid_focal_loss(
                torch.zeros(2, 3), torch.zeros(2).long(), 2.0, 0.25, None, 'mean'
            )


class TestInstall:
    @needs_compiled
    def test_leaves_the_compiled_operators(self, recwarn):
        assert install.install() is False
        assert sys.modules['mmcv._ext'] is EXT
        assert EXT.nms is not nms
        assert len(recwarn) == 0

    @needs_plain
    def test_is_in_place(self, recwarn):
        assert install.install() is True
        assert sys.modules['mmcv._ext'] is EXT
        assert len(recwarn) == 0

    def test_nothing_to_do_without_mmcv(self, monkeypatch):
        monkeypatch.delitem(sys.modules, 'mmcv._ext')
        monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
        assert install.install() is False
        assert 'mmcv._ext' not in sys.modules

    def test_leaves_a_compiled_module_that_is_not_imported_yet(self, tmp_path):
        (tmp_path / 'mmcv').mkdir()
        (tmp_path / 'mmcv' / '__init__.py').write_text('')
        (tmp_path / 'mmcv' / '_ext.py').write_text('compiled = True')
        run_python(
            'assert install() == (False, [])\n'
            'assert "mmcv" not in sys.modules and "mmcv._ext" not in sys.modules\n'
            'import mmcv._ext\n'
            'assert mmcv._ext.compiled is True\n'
            'assert install() == (False, [])\n'
            'assert mmcv._ext.compiled is True\n',
            tmp_path,
        )

    @pytest.mark.parametrize('first', ['', 'import mmcv\n'])
    def test_replaces_a_missing_module_and_warns_once(self, tmp_path, first):
        (tmp_path / 'mmcv').mkdir()
        (tmp_path / 'mmcv' / '__init__.py').write_text('')
        run_python(
            f'{first}'
            'imported = "mmcv" in sys.modules\n'
            'done, messages = install()\n'
            'assert done is True and len(messages) == 1, messages\n'
            'assert "mmcv has no compiled operators" in messages[0]\n'
            'assert ("mmcv" in sys.modules) == imported\n'
            'module = sys.modules["mmcv._ext"]\n'
            'assert install() == (True, [])\n'
            'assert sys.modules["mmcv._ext"] is module\n'
            'import mmcv._ext\n'
            'from mmcv._ext import nms\n'
            'from kd_dense.mm.stack.nms import nms as ours\n'
            'assert nms is ours\n'
            'assert not imported or mmcv._ext is module\n',
            tmp_path,
        )

    @needs_plain
    @pytest.mark.parametrize(
        'first',
        [
            '',
            # A program may have imported mmcv and tried its operators before.
            pytest.param(
                'import mmcv, mmcv.cnn\n'
                'try:\n'
                '    import mmcv.ops\n'
                '    raise SystemExit("mmcv.ops works without operators")\n'
                'except ModuleNotFoundError:\n'
                '    pass\n',
                marks=pytest.mark.long,
            ),
        ],
    )
    def test_mmdet_and_mmseg_can_be_imported(self, first):
        pytest.importorskip('mmdet')
        pytest.importorskip('mmseg')
        out = run_python(
            f'{first}'
            'assert install()[0] is True\n'
            'import mmdet.models, mmseg.models\n'
            'from mmcv.ops import batched_nms\n'
            'from mmcv.utils import collect_env\n'
            'print(collect_env()["MMCV Compiler"])\n'
        )
        assert out.split()[-1] == 'n/a'

"""Every command that the pages show is run as shown, in a copy of the repository.

A command is a line of a shell block, or inline code that begins like one. A block with a title is
a file that the reader writes. Pages run from top to bottom, one after the other in one copy.
Trainings of recipes are of full-size models: they come as far as to the Runner; with --long they
train.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkout import calls, make_checkout, program, run
from tests.miniature import HAS_MMROTATE, ROOT, recipes

PAGES = [
    'README.md',
    'CONTRIBUTING.md',
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'docs').rglob('*.md')),
    *sorted(str(p.relative_to(ROOT)) for p in (ROOT / 'configs').glob('*/README.md')),
]
QUICK = 'configs/quickstart'

# What a reader puts in their place, as whole words.
PLACEHOLDERS = {
    'CHECKPOINT': f'{QUICK}/checkpoints/det_teacher.pth',
    'CONFIG': f'{QUICK}/det_cwd.py',
    'CONFIG --dump-config': 'with_preset.py --dump-config',
    'FILE': 'figures.json',
    'JOB': 'job',
    'JOB_NAME': 'job',
    'OTHER_CONFIG': f'{QUICK}/det_fgd.py',
    'PARTITION': 'gpus',
    'PATH': f'{QUICK}/checkpoints/det_teacher.pth',
    'RECIPE': f'{QUICK}/det_cwd.py',
    'STUDENT_CONFIG': f'{QUICK}/det_student.py',
    'TEACHER': f'{QUICK}/det_teacher.py',
    'TEACHER_CHECKPOINT': f'{QUICK}/checkpoints/det_teacher.pth',
    'TEACHER_CONFIG': f'{QUICK}/det_teacher.py',
    'VERB': 'check',
    'WORK_DIR': 'work_dirs/job',
}
WITH_PRESET = f"""
_base_ = '{QUICK}/det_student.py'
model = dict(
    _delete_=True,
    type='kd_dense.Distilled',
    student=_base_.model,
    teacher=dict(config='{QUICK}/det_teacher.py', checkpoint=None),
    preset='cwd')
"""
# What would take long, or asks for a GPU, and what is run in its place.
SMALLER = {
    'benchmarks.zoo mmdet/retinanet': 'benchmarks.zoo mmseg/erfnet --methods cwd kd',
    'kd_dense benchmark': 'kd_dense benchmark --size 64 96 --rounds 1',
    'kd_dense check': 'kd_dense check --batches 1 --images 2',
    'make_parts.py': 'make_parts.py --train 8 --val 4',
    'pspnet_r101-d8_4xb2-80k': 'pspnet_r50-d8_4xb2-80k',
    'retinanet_r50_fpn_2x': 'retinanet_r18_fpn_1x',
    'retinanet_r101_fpn_2x': 'retinanet_r50_fpn_1x',
    '--device cuda --rounds 30': '--rounds 1',
    '--rounds 3': '--rounds 1',
    '--rounds 5': '--rounds 1',
    '--size 256 384': '--size 64 96',
    '--size 512 1024': '--size 64 128',
    '--size 800 1216': '--size 64 96',
    # SyncBN of 8 processes with an image each is BN of two images.
    'train_dataloader.batch_size=1': 'train_dataloader.batch_size=2',
    ' --amp': '',  # mmengine's asserts a GPU: tests/cli/test_train.py::TestOptions has it
}
# The status that verbs may end with beside 0: no teacher is good after two iterations.
STATUS = {'check': 1}
# What runs elsewhere, and the test that runs it.
ELSEWHERE = {
    'bash examples/quickstart/quickstart.sh':
        'tests/examples/quickstart/test_quickstart.py::test_trains_compares_and_draws',
    'bash examples/quickstart/quickstart.sh --seeds 3':
        'tests/examples/quickstart/test_quickstart.py::test_trains_compares_and_draws',
    'bash examples/quickstart/quickstart.sh --methods all --seeds 3':
        'tests/examples/quickstart/test_quickstart.py::test_trains_compares_and_draws',
    'bash tools/run_tests.sh': 'the suite itself',
    'bash tools/run_tests.sh --core': 'tests/tools/test_run_tests.py::test_core',
    'bash tools/run_tests.sh --core --stack openmmlab':
        'tests/tools/test_run_tests.py::test_a_lane_on_another_stack_and_another_python',
    'bash tools/run_tests.sh --gpu': 'tests/tools/test_run_tests.py::test_gpu',
    'bash tools/run_tests.sh --gpu --wheels wheels':
        'tests/tools/test_run_tests.py::test_gpu_from_wheels',
    'bash tools/run_tests.sh --gpu -- --gpu-dry-run':
        'tests/tools/test_run_tests.py::test_the_gpu_lane_runs_dry',
    'kd_dense from-mmrazor mine/pkd_retinanet.py --output mine/recipe.py':
        'tests/cli/test_from_mmrazor.py::test_the_page',
    'python examples/deploy/to_onnx.py student.py student.pth student.onnx --size 512 1024':
        'tests/examples/test_deploy.py::test_onnx_yields_what_the_model_does',
    'kd_dense train examples/deploy/seg_quantised.py':
        'tests/examples/test_deploy.py::test_it_distils_like_any_student',
    'bash tools/wheelhouse.sh 3.12 wheels': 'tests/tools/test_wheelhouse.py::test_it_is_enough',
    'source tools/environment.sh':
        'tests/tools/test_environment.py::test_the_default_stack_needs_no_name',
    'source tools/environment.sh openmmlab':
        'tests/tools/test_environment.py::test_the_name_says_stack_and_python',
    'bash tools/run_tests.sh --long': 'the suite itself',
    'bash tools/run_tests.sh --stack openmmlab': 'the suite itself',
    'bash tools/run_tests.sh --long -k kill': 'the suite itself',
    'python -m build --no-isolation':
        'tests/test_package.py::test_an_sdist_builds_the_same_wheel',
    'python -m benchmarks.losses': 'tests/benchmarks/test_losses.py',
    'python -m benchmarks.losses --scaling': 'tests/benchmarks/test_losses.py',
    'python -m benchmarks.launches': 'tests/benchmarks/test_launches.py',
    'python -m benchmarks.scale_out': 'tests/benchmarks/test_scale_out.py',
    'python -m benchmarks.scale_out --simulate': 'tests/benchmarks/test_scale_out.py',
    'torchrun --nproc_per_node 4 -m benchmarks.scale_out --check':
        'tests/benchmarks/test_scale_out.py::test_messages_do_not_grow_with_processes',
    'bash benchmarks/gpu.sh': 'tests/benchmarks/test_gpu.py::test_all_commands_are_understood',
    'bash benchmarks/gpu.sh --wheels wheels':
        'tests/tools/test_run_tests.py::test_gpu_from_wheels',
    'bash benchmarks/gpu.sh --device cpu --tiny':
        'tests/benchmarks/test_gpu.py::test_without_a_gpu',
    'python -m mkdocs build': 'tests/test_site.py',
    'python -m mkdocs serve': 'tests/test_site.py',
    'python -m benchmarks.zoo --output zoo.jsonl':
        'tests/benchmarks/zoo/test_main.py::test_families',
    'python -m benchmarks.zoo --methods dist bckd adl crosskd pgd roi_dkd roi_dist detrdistill'
    ' kddetr':
        'tests/benchmarks/zoo/test_main.py::test_families',
    'python -m benchmarks.zoo --table docs/zoo.md --results zoo.jsonl other.jsonl':
        'tests/benchmarks/zoo/test_main.py::test_the_page',
    'python -m benchmarks.zoo mmseg/pspnet mmseg/deeplabv3 mmseg/segformer'
    ' mmdet/retinanet mmdet/gfl mmdet/faster_rcnn --methods frs defeat fgfi ickd aicsd'
    ' dsd cross_image sp rkd pkt cckd nst at sad ifvd apd reviewkd pea cirkd edge_body'
    ' --apart --steps 3 --output second.jsonl':
        'tests/benchmarks/zoo/test_sweep.py::test_each_may_be_tried_apart',
    'torchrun --nproc_per_node 2 benchmarks/communication.py'
    ' configs/cwd/cwd_pspnet-r18_from_pspnet-r101_80k_cityscapes-512x1024.py':
        'tests/benchmarks/test_communication.py::test_counts_what_the_page_says',
}  # fmt: skip
# Commands with this take a minute each: --long runs them.
LONG = '--json work_dirs/benchmark/'
TRAIN = (['-m', 'kd_dense', 'train'], ['tools/train.py'])
# These train recipes as they are, each for two iterations: tests/configs/test_recipes.py does.
RECIPES = [[*train, str(path.relative_to(ROOT))] for path in recipes() for train in TRAIN]
# Pages whose files must be imported: their commands have processes of their own.
OWN_PROCESSES = ('docs/add-a-method.md',)

# Pages whose commands take minutes, and are those of other pages with other options, or stand in
# tests of their own.
LONG_PAGES = (
    'docs/custom-detector.md',
    'docs/from-mmrazor.md',
    'docs/performance.md',
    'docs/presets.md',
    'docs/troubleshooting.md',
)

SHELLS = ('bash', 'shell')
FENCE = re.compile(r'^( *)```(\w*)([^\n]*)\n(.*?)^\1```', re.DOTALL | re.MULTILINE)
PROGRAM = r'(?:python|bash|torchrun|pip|git|kd_dense [\w-]+)'
INLINE = re.compile(rf'`((?:[A-Z_]+=\S+ )*{PROGRAM} [^`\n]+)`')


def lines(block: str) -> Iterator[str]:
    """The commands of a block, each with the variables that were set before it."""
    before = ''
    for line in block.replace('\\\n', ' ').splitlines():
        line = re.sub(r'(^|\s+)#.*$', '', line).strip()
        if re.fullmatch(r'\w+=\S+|cd \S+', line):
            before += f'{line}; '
        elif line:
            yield before + re.sub(r'\s+', ' ', line)


def steps(page: str) -> Iterator[tuple[str, str]]:
    """What a reader of a page does: ('', command), or a file's path and its text."""
    text, end = (ROOT / page).read_text(), 0
    for block in [*FENCE.finditer(text), None]:
        inline = text[end : block.start() if block else None]
        for command in INLINE.findall(inline):
            yield '', command
        if block is None:
            return
        end = block.end()
        _, language, more, content = block.groups()
        title = re.search(r'title="([^"]+)"', more)
        if title:
            yield title[1], textwrap.dedent(content)
        elif language in SHELLS:
            for command in lines(textwrap.dedent(content)):
                yield '', command


def as_run(command: str) -> str:
    """A command with values for its placeholders, and smaller."""
    for long, short in SMALLER.items():
        command = command.replace(long, short)
    names = '|'.join(sorted(PLACEHOLDERS, key=len, reverse=True))
    return re.sub(rf'(?<![\w/$-])(?:{names})(?![\w/=])', lambda m: PLACEHOLDERS[m[0]], command)


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    root = make_checkout(tmp_path_factory.mktemp('pages') / 'kd_dense')
    recipe = PLACEHOLDERS['RECIPE']
    run(root, ['-m', 'kd_dense', 'train', recipe, '--work-dir', 'work_dirs/RUN'], root, {})
    for checkpoint in ('epoch_12.pth', 'epoch_24.pth', 'iter_80000.pth'):
        (root / 'work_dirs' / 'RUN' / checkpoint).symlink_to('iter_2.pth')
    for name in ('ALONE', 'DISTILLED'):
        shutil.copytree(root / 'work_dirs' / 'RUN', root / 'work_dirs' / name, symlinks=True)
    (root / 'with_preset.py').write_text(WITH_PRESET)
    return root


@pytest.fixture(scope='module')
def done():
    """What has run: several commands come to the same, and some stand on several pages."""
    return set()


@pytest.mark.parametrize('page', [page for page in PAGES if page not in LONG_PAGES])
def test_commands_run_as_shown(page, checkout, done):
    follow(page, checkout, done, long=False)


@pytest.mark.long
@pytest.mark.parametrize('page', PAGES)
def test_long_commands_run_as_shown(page, checkout, done):
    follow(page, checkout, done, long=True)


def follow(page: str, checkout: Path, done: set[str], long: bool) -> None:
    """Do what a page says, with what takes long or without."""
    for path, content in steps(page):
        if path:
            (checkout / path).parent.mkdir(parents=True, exist_ok=True)
            (checkout / path).write_text(content)
        elif content not in ELSEWHERE and (long or LONG not in content) and can_run(content):
            print(f'{page}: {content}')  # the last one is what failed
            for call in calls(checkout, as_run(content)):
                words = program(call.words)
                what = str((call.folder, words, call.environment))
                if words is None or what in done:
                    continue
                if words[:2] == ['-m', 'pytest'] and all((ROOT / w).exists() for w in words[2:]):
                    continue  # the suite runs these
                done.add(what)
                if page in OWN_PROCESSES:
                    in_a_process(checkout, words)
                    continue
                here = page.startswith('configs/') and any(words[: len(t)] == t for t in TRAIN)
                builds = words not in RECIPES and (long or not here)
                run(checkout, words, call.folder, call.environment, status(words), builds)


def can_run(command: str) -> bool:
    """Whether what a command needs is installed: mmrotate is optional."""
    return HAS_MMROTATE or 'rotated' not in command


def status(words: list[str]) -> int | None:
    return STATUS.get(words[2]) if words[:2] == ['-m', 'kd_dense'] else None


def in_a_process(checkout: Path, words: list[str]) -> None:
    start = [] if words[:2] == ['-m', 'pytest'] else ['-m', 'tests.checkout']
    started = subprocess.run(
        [sys.executable, *start, *words],
        cwd=checkout,
        env={**os.environ, 'PYTHONPATH': str(checkout)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert started.returncode == 0, started.stdout[-3000:] + started.stderr[-3000:]


def test_a_wrong_command_is_noticed(checkout):
    with pytest.raises(AssertionError, match='not found'):
        calls(checkout, 'no_such_program --help')
    [call] = calls(checkout, 'kd_dense train no_such_config.py')
    with pytest.raises(AssertionError, match=r'ended with .* config no_such_config\.py does not'):
        run(checkout, program(call.words), call.folder, call.environment)


def test_what_runs_elsewhere_is_shown_and_is_run_there():
    shown = {command for page in PAGES for path, command in steps(page) if not path}
    for command, test in ELSEWHERE.items():
        assert command in shown, f'no page shows {command}'
        file, _, name = test.partition('::')
        if test == 'the suite itself':
            continue
        defined = {
            node.name
            for node in ast.walk(ast.parse((ROOT / file).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert not name or name in defined, test


@pytest.mark.parametrize('page', PAGES)
def test_no_command_hides_in_a_block_without_a_language(page):
    for _, language, more, content in FENCE.findall((ROOT / page).read_text()):
        assert language or more, f'a block of {page} has no language:\n{content}'
        if language not in (*SHELLS, 'python', 'yaml', 'toml'):
            # indented ones are what a program prints
            shown = textwrap.dedent(content)
            assert not re.search(f'^{PROGRAM} ', shown, re.MULTILINE), shown
        if language in SHELLS:
            for line in lines(content):
                shlex.split(line)  # bash reads it as one line

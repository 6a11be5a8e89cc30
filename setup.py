import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'kd_dense' / '__init__.py').read_text())[1]

setup(
    name='kd_dense',
    version=VERSION,
    description='Knowledge distillation for dense prediction on OpenMMLab',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['kd_dense', 'kd_dense.*']),
    # kd_dense.losses, taps and adapters need torch alone; kd_dense.mm needs one of the stacks.
    install_requires=['torch>=2.6'],
    extras_require={
        'onedl': [
            'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5.1,<3.6',
            'onedl-mmsegmentation>=1.4.2,<1.5',
            'ftfy',
            'regex',
        ],
        'openmmlab': [
            'mmengine>=0.10.7,<0.11',
            'mmcv-lite>=2.1.0,<2.2',
            'mmdet>=3.3.0,<3.4',
            'mmsegmentation>=1.2.2,<1.3',
            'numpy<2',
            'setuptools<81',  # mmengine 0.10.7 imports pkg_resources
            'ftfy',
            'regex',
        ],
        'quickstart': ['matplotlib', 'rich', 'scikit-learn>=1.5'],
        'docs': ['latex2mathml', 'mkdocs<2', 'mkdocs-material', 'mkdocstrings-python'],
        'dev': ['hypothesis', 'mypy', 'pytest', 'pytest-xdist', 'ruff', 'tensorboard'],
    },
)

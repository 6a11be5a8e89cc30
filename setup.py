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
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['kd_dense', 'kd_dense.*']),
    # Recipes and tools lie where mim and mmengine look for those of a package: .mim has links to
    # the folders of the repository, of which a wheel gets the files. The quickstart needs the
    # repository anyway.
    package_data={
        'kd_dense': [
            'py.typed',
            '.mim/model-index.yml',
            '.mim/configs/*/*.py',
            '.mim/configs/*/*.yml',
            '.mim/tools/*.py',
            '.mim/tools/dist_*.sh',
            '.mim/tools/slurm_*.sh',
        ]
    },
    exclude_package_data={'kd_dense': ['.mim/configs/quickstart/*']},
    include_package_data=False,
    entry_points={'console_scripts': ['kd_dense = kd_dense.cli.main:main']},
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
        # mmrotate imports torchvision, and does not ask for it.
        'rotate': ['onedl-mmrotate>=1.2.1,<1.3', 'torchvision'],
        # timm asks for torchvision, which kd_dense does without where it is missing.
        'timm': ['timm>=1.0.31,<1.1'],
        'transformers': ['transformers>=5.20,<6'],
        'safetensors': ['safetensors'],
        'quickstart': ['matplotlib', 'rich', 'scikit-learn>=1.5'],
        'docs': ['latex2mathml', 'mkdocs<2', 'mkdocs-material', 'mkdocstrings-python'],
        'dev': [
            'build',
            'hypothesis',
            'mypy',
            'pre-commit',
            'pytest',
            'pytest-xdist',
            'ruff',
            'tensorboard',
        ],
    },
)

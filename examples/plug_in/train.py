"""The training script of cellseg."""

import argparse

from mmengine.config import Config, DictAction
from mmengine.runner import Runner

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument('config')
parser.add_argument('--work-dir', required=True)
parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
args = parser.parse_args()

config = Config.fromfile(args.config)
config.work_dir = args.work_dir
config.merge_from_dict(args.cfg_options)
Runner.from_cfg(config).train()

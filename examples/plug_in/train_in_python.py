"""Distil a model that has been built already."""

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint

from kd_dense.mm import Distilled

config = Config.fromfile('examples/plug_in/configs/small.py')
student = MODELS.build(config.model)
teacher = MODELS.build(Config.fromfile('examples/plug_in/configs/large.py').model)
load_checkpoint(teacher, 'work_dirs/large/iter_300.pth', strict=True)

model = Distilled(
    student=student,
    teacher=teacher,
    terms=dict(
        logits=dict(tap='classify', loss=dict(type='CWDLoss', weight=3.0, temperature=4.0)),
        features=dict(tap='encoder', loss=dict(type='CWDLoss', weight=1.0)),
    ),
)
Runner(**{**config, 'model': model, 'work_dir': 'work_dirs/in_python'}).train()

"""CWD for a segmentation student that will compute in eight bits."""

_base_ = '../../configs/quickstart/seg_cwd.py'
custom_imports = dict(imports=['examples.deploy.quantised'])
model = dict(student=dict(_delete_=True, type='Quantised', model=_base_.model.student))

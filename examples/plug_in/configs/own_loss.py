"""The small CellNet, distilled with one more term, whose loss is our own."""

_base_ = 'distilled.py'
custom_imports = dict(imports=['border_loss'])
model = dict(
    terms=dict(borders=dict(tap='classify', loss=dict(type='BorderLoss', weight=5.0))))

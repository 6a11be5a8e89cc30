"""A large CellNet."""

_base_ = 'small.py'
model = dict(width=16)

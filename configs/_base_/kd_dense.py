"""Put this before all other bases of a recipe.

It imports kd_dense while the config is being read, which two things need: `mmseg::` among the
bases, with the OneDL packages, and mmdet's models, where mmcv has no compiled operators. With
this base the frameworks' own tools run a recipe as well as ours do. It sets nothing, as two
bases must not set the same key, and it calls a function because mmengine reads a config that
has an `import` statement in another way, which allows no bases of this kind.
"""
__import__('kd_dense.mm')

"""Which methods work on which models that mmdet and mmseg come with."""

"""Losses that compare feature maps, whatever the model: a file for each family, or a folder."""

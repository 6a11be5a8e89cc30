"""The settings of the families that compare feature maps."""

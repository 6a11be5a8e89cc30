"""The pictures of the families that compare feature maps."""

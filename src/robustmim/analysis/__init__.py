"""What can be read off a masked model: whether an image was attacked."""

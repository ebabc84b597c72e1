"""Callbacks of the training, one subject each."""

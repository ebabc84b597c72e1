"""Image sets, their preprocessing, and the datamodule that serves them."""

"""``osr serve``: a trained recogniser behind HTTP, and a page to try it."""

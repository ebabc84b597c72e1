"""The page to try a recogniser on: what `osr serve` shows, and what `osr export --page` writes."""

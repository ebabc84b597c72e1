"""A run folder's saved files -> one HTML page."""

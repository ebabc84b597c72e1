"""Scores (higher means more unknown) and the thresholds that turn them into decisions."""

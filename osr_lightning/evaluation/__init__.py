"""From the per-image table of a test run to numbers, figures and a report."""

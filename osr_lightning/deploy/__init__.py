"""Using a trained recogniser: on files, exported, served."""

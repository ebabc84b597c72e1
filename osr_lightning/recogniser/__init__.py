"""The recogniser: what is trained, loaded, asked, exported and served."""

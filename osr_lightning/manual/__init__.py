"""What the command line says of its options: help pages, and the sentences for mistakes."""

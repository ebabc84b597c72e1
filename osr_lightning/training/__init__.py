"""Training, calibrating and testing a recogniser with Lightning."""

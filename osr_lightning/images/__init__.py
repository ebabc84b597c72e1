"""Any image -> uint8 pixels."""

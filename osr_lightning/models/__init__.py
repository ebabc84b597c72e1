"""Networks, MC-dropout inference, and the LightningModules around them."""

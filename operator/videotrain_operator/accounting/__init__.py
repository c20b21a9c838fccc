"""Pure accounting: what every held GPU-second bought."""

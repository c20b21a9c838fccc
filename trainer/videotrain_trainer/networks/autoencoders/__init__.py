"""Published autoencoders, one file each."""

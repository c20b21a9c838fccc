"""How good an autoencoder's reconstructions and a model's videos are: numbers, VBench, and people's preference."""

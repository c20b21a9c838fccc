"""Losses and engine of an autoencoder stage."""

"""The causal video autoencoder."""

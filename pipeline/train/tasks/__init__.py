"""What is trained: the autoencoder, the flow."""

"""Images as embeddings, by pretrained encoders."""

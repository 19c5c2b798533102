"""Captions as tokens or embeddings, and their encoders."""

"""Stages train autoencoder and train dit."""

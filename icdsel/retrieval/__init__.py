"""Embeddings, nearest neighbours, candidate pools."""

"""Figures that show why a model decides as it does: embeddings and cost volumes."""

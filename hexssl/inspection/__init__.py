"""``python -m hexssl inspect``: embeddings in a file, as one page with figures. See `hexssl.inspection.command`."""

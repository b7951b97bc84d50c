"""Parquet: the file format of exported embeddings."""

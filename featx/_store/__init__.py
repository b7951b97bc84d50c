"""Stored embeddings: the cache, and Parquet files."""

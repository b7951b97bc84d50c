"""Exports: the embeddings of images as Parquet that says what made them."""

from featx._export.export import ExportSummary as ExportSummary
from featx._export.export import export_embeddings as export_embeddings

"""Exports: the embeddings of images as Parquet that says what made them."""

from featx._export.export import export_embeddings as export_embeddings
from featx._export.runs import ExportSummary as ExportSummary

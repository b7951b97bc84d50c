"""Exports: the embeddings of images as Parquet that says what made them."""

from featx.export.export import export_embeddings as export_embeddings
from featx.export.runs import ExportSummary as ExportSummary

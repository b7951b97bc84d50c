"""Extraction: how a frozen network runs on a device, and the stream of batches that feeds it."""

"""Metrics of segmentation and of retrieval."""

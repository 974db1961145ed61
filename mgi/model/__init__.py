"""The networks: the scan, the two encoders, their alignment, the segmenter. Nothing here knows of files."""

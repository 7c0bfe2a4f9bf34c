"""nnU-Net v2 results folders as models."""

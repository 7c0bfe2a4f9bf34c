"""Voxels on disk: scans, masks and the formats they come in. NumPy, nibabel and pydicom; never torch."""

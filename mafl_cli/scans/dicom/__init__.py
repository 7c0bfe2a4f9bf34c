"""DICOM: headers, which files make a volume, reading, writing a derived series, segmentations."""

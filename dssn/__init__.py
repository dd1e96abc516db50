"""DSSN: semi-supervised semantic segmentation with a dual-level Siamese structure network."""

__version__ = '0.1.0'

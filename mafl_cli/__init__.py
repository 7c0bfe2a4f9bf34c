"""mafl: how small a change to a scan makes a segmentation model draw the mask an attacker chose."""

__version__ = "0.1.0"

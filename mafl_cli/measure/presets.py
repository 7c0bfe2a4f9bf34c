"""The windows of CT by name. A module of its own, as the command line names them before it has loaded NumPy."""

WINDOWS = {"soft": (40.0, 400.0), "lung": (-600.0, 1500.0), "bone": (400.0, 1800.0), "brain": (40.0, 80.0)}
"""Level and width, HU, as radiologists use them."""

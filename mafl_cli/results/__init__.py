"""The result folder of a run and its report."""

"""The attack: tensors only."""

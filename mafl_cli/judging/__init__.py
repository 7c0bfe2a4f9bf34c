"""The verdict: was the attack real, does the model pass."""

"""What `tools/fuzz.py` is made of: damage, good files to damage, forks that run the command, and a judge."""

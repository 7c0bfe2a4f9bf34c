"""The attacked function: native voxels in, logits on the same grid out, with its exact gradient."""

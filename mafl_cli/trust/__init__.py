"""Whether an attack can be believed: do the gradients that it followed say how the model answers?"""

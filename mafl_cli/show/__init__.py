"""For the eye: figures, pages, viewers."""

"""Plain numbers about masks and changes."""

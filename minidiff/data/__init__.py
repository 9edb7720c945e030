"""Data sets: handwritten digits, rendered scenes with captions and an oracle, folders of images."""

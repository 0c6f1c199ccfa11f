"""Nouns: what stages hand to each other, and where it is kept. Outputs never land in this folder."""

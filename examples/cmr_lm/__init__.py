"""A small decoder-only language model with Contextual Memory Reweaving, trained on real text."""

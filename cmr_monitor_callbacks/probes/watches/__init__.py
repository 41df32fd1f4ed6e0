"""One file for each family of things that a monitor recognises in a model."""

"""A container image becomes something that boots: layers, tree, digest, boot files."""

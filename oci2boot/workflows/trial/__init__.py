"""A disk is booted in a virtual machine, tampered with, and reported on."""

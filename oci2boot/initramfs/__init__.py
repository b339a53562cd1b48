"""What an image's initramfs runs to turn the disk into the verified root: a shell script and its wiring, as data."""

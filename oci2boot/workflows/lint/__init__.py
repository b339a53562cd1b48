"""Checks of an image before anything is made of it."""

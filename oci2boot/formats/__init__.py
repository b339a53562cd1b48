"""Bytes to values and back. Imports only `errors` and `digest`. Pure."""

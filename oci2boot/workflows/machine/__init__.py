"""An installed machine: what it runs, what it boots next, and how that changes."""

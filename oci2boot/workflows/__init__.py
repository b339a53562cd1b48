"""One verb per file; joins the parts, decides nothing about bytes."""

"""EROFS as composefs uses it: structs, xattr areas, directory blocks, and a reader that trusts nothing."""

"""A converted image lands on a disk, an ISO, or beside a system that is there."""

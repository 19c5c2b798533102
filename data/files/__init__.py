"""Files on disk: atomic publishing, tables, JSON lines, checksums."""

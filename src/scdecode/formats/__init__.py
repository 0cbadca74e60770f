"""Model directories: our own, and later those of others."""

"""Shared helpers, which know nothing of models."""

"""Helpers that more than one package shares."""

"""Decoded trends refitted to the counts of the cells: the best estimate of a trend, with an honest band."""

from scdecode.refitting.trends import refit

__all__ = ["refit"]

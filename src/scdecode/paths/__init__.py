"""Paths through the latent space, as arrays: tracks through cells, curves along a pseudotime, flows, tubes."""

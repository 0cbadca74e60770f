"""What the matrix products and the memory traffic of a step alone would take on this machine, beside the step."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from asked import Asked, threads
from counts import DENSITY, make_cells, make_counts
from decoding import CASES as DECODING
from decoding import LIBRARY, N_TRAINED
from models import points_near, train_ours
from report import Section, number
from timing import Figure, alternate
from training import BATCH_SIZE, GENES, LIKELIHOODS, THREADS, cells_of_epoch, ours

TAKES = ("genes", "likelihood", "threads")
N_HIDDEN, N_LATENT, N_BATCHES = 128, 10, 2  # the defaults, and the benchmarks' cells
LEAST_SECONDS = 0.05  # of one timing: what is quicker is repeated

METHOD = (
    f"Training: minibatches of {BATCH_SIZE}, {N_HIDDEN} hidden units, {N_LATENT} latent dimensions, {DENSITY:.0%} "
    "non-zero. Products: torch.mm, warm, into memory that exists, of the step's shapes, one after the other: for each "
    f"head of the decoder (one for nb, two for zinb) {BATCH_SIZE} x {N_HIDDEN} by {N_HIDDEN} x genes forward, and "
    f"backward {BATCH_SIZE} x genes by genes x {N_HIDDEN} and genes x {BATCH_SIZE} by {BATCH_SIZE} x {N_HIDDEN}; the "
    "encoder's two heads and the decoder's first layer likewise, which are tiny. Traffic: the bytes that must move "
    "outside those products, over the bandwidth of a copy between two arrays that together are as large as the arrays "
    "concerned, so in the cache where they would be. Adam: weights and both moments read and written, gradients read. "
    "Likelihood: logits read, their gradients written. The encoder's first layer, which is sparse and no dense "
    f"product: {N_HIDDEN} numbers a non-zero entry, there and back, and its gradient written. Decoding: products in "
    "tiles of 4 MiB, or 128 points; traffic is writing the result once, into memory that is new, as that of a returned "
    "array is. Measured is the median of three rounds; products and traffic, as limits, are the quickest. The ratios "
    "are the measured time over the longer of the two (all overlapped) and over their sum (nothing overlapped); what "
    "is left is arithmetic of the likelihood, small layers, noise and Python."
)
HEADER = ("step", "measured, ms", "products, ms", "traffic, ms", "traffic, MB", "over the longer", "over their sum")


@dataclass(frozen=True)
class Traffic:
    """Bytes that must move, and the size of the arrays that they move in."""

    moved: int
    arrays: int


@dataclass(frozen=True)
class Line:
    """One step: milliseconds, and bytes."""

    what: str
    measured: Figure
    products: Figure
    traffic: Figure
    moved: int

    def cells(self) -> tuple[str, ...]:
        measured, products, traffic = (
            self.measured.median,
            self.products.low,
            self.traffic.low,
        )  # limits are the best seen
        ratios = (measured / max(products, traffic), measured / (products + traffic))
        numbers = map(number, (measured, products, traffic, self.moved / 1e6))
        return (self.what, *numbers, *(f"{ratio:.2f} x" for ratio in ratios))


def measure(asked: Asked) -> Section:
    """Training steps, then decoding."""
    lines = []
    thread_counts = asked.pick("threads", THREADS[-1:] if asked.quick else THREADS)
    sizes = asked.pick("genes", GENES)
    for n_genes in sizes:
        cells = make_cells(make_counts(cells_of_epoch(n_genes, quick=asked.quick), n_genes), n_batches=N_BATCHES)
        for likelihood, n_threads in itertools.product(asked.pick("likelihood", LIKELIHOODS), thread_counts):
            traffic = traffic_of_step(n_genes, likelihood)
            rate = ours(cells, likelihood, 1 if asked.quick else 3)
            line = f"training, {likelihood}, {n_genes:,} genes, {n_threads} {'thread' if n_threads == 1 else 'threads'}"
            lines.append(
                _line(
                    line,
                    lambda rate=rate: 1e3 * BATCH_SIZE / rate(),
                    products_of_step(n_genes, likelihood),
                    lambda traffic=traffic: sum(part.moved / bandwidth(part.arrays) for part in traffic) * 1e3,
                    sum(part.moved for part in traffic),
                    n_threads,
                    quick=asked.quick,
                )
            )
    for n_genes in sizes:
        for n_threads in thread_counts:
            lines.append(_decoding(n_genes, n_threads, quick=asked.quick))
    return Section("Beside the machine's limits", [], METHOD, (HEADER, *(line.cells() for line in lines)))


def _line(
    what: str,
    measured: Callable[[], float],
    products: Callable[[], float],
    traffic: Callable[[], float],
    moved: int,
    n_threads: int,
    *,
    quick: bool,
) -> Line:
    sides = {"measured": measured, "products": products, "traffic": traffic}
    with threads(n_threads):
        return Line(what, **alternate(sides, 1 if quick else 3), moved=moved)


def products_of_step(n_genes: int, likelihood: str) -> Callable[[], float]:
    """A side: milliseconds of all dense products of a training step."""
    wide = [(N_HIDDEN, n_genes)] * _n_heads(likelihood)
    narrow = [(N_HIDDEN, N_LATENT)] * 2 + [(N_LATENT + N_BATCHES, N_HIDDEN)]
    steps = [step for n_in, n_out in [*narrow, *wide] for step in _layer(BATCH_SIZE, n_in, n_out)]
    return lambda: 1e3 * seconds_of(lambda: [torch.mm(a, b, out=c) for a, b, c in steps])


def _layer(n: int, n_in: int, n_out: int, *, backward: bool = True) -> list[tuple[torch.Tensor, ...]]:
    """The factors, and the memory for the result, of a linear layer's products as torch lays them out."""
    x, weight, out = torch.randn(n, n_in), torch.randn(n_out, n_in), torch.empty(n, n_out)
    d_out, d_x, d_weight = torch.randn(n, n_out), torch.empty(n, n_in), torch.empty(n_out, n_in)
    back = [(d_out, weight, d_x), (d_out.t(), x, d_weight)]
    return [(x, weight.t(), out), *(back if backward else [])]


def _n_heads(likelihood: str) -> int:
    return 2 if likelihood == "zinb" else 1


def traffic_of_step(n_genes: int, likelihood: str) -> tuple[Traffic, ...]:
    """Of a training step, in float32: what moves beside the products."""
    matrix, heads = 4 * n_genes * N_HIDDEN, _n_heads(likelihood)
    weights = (1 + heads) * matrix
    logits = 4 * n_genes * BATCH_SIZE * heads
    rows = 4 * N_HIDDEN * round(DENSITY * n_genes) * BATCH_SIZE
    adam, likelihood_pass = Traffic(7 * weights, 4 * weights), Traffic(2 * logits, logits)
    sparse_layer = (Traffic(rows, matrix), Traffic(rows, 4 * N_HIDDEN * BATCH_SIZE), Traffic(matrix, matrix))
    return (adam, likelihood_pass, *sparse_layer)


def bandwidth(n_bytes: int) -> float:
    """Bytes a second, read and written, of a copy between two arrays that are ``n_bytes`` together."""
    source = torch.ones(max(n_bytes // 8, 1))
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of(lambda: target.copy_(source))


def seconds_of(work: Callable[[], object]) -> float:
    """Of one call, after a first one, as the mean over calls that take long enough to time together."""
    work()
    n_calls, start = 0, time.perf_counter()
    while (taken := time.perf_counter() - start) < LEAST_SECONDS:
        work()
        n_calls += 1
    return taken / n_calls


def _decoding(n_genes: int, n_threads: int, *, quick: bool) -> Line:
    n_points = dict(DECODING).get(n_genes, 200_000_000 // n_genes) // (10 if quick else 1)
    model = train_ours(make_cells(make_counts(N_TRAINED, n_genes)))
    points = points_near(model, n_points)
    tile = max(2**20 // n_genes, 128)
    layers = [*_layer(tile, N_LATENT, N_HIDDEN, backward=False), *_layer(tile, N_HIDDEN, n_genes, backward=False)]

    def measured() -> float:
        start = time.perf_counter()
        model.decode(points, batch="batch_1", library_size=LIBRARY)
        return 1e3 * (time.perf_counter() - start)

    def products() -> float:
        return 1e3 * n_points / tile * seconds_of(lambda: [torch.mm(a, b, out=c) for a, b, c in layers])

    def traffic() -> float:
        start = time.perf_counter()
        torch.from_numpy(np.empty((n_points, n_genes), dtype=np.float32)).fill_(1.0)
        return 1e3 * (time.perf_counter() - start)

    what = f"decoding, {n_points:,} points, {n_genes:,} genes, {n_threads} {'thread' if n_threads == 1 else 'threads'}"
    return _line(what, measured, products, traffic, 4 * n_points * n_genes, n_threads, quick=quick)

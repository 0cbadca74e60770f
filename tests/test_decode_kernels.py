"""Decoding by compiled loops equals plain torch: every option, quantity and condition, threads and tiles."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import decode_plan
from scdecode.decode_plan import Affine, Given, Plan
from scdecode.decoding import tiles
from scdecode.kernels.threads import own_threads

SAID = {
    "one": {
        "batch": "batch_2",
        "categorical": {"sex": "male", "chem": "v1"},
        "continuous": {"age": 40.0, "pct": 0.05},
    },
    "averaged": {},
    "some averaged": {"batch": {"batch_1": 3, "batch_3": 1}, "continuous": {"age": [30.0, 60.0], "pct": 0.05}},
    "per point": {
        "batch": np.array(["batch_1", "batch_2", "batch_3"] * 10),
        "categorical": {"sex": np.array(["male", "female"] * 15)},
        "continuous": {"age": np.linspace(30, 60, 30)},
        "library_size": np.linspace(500, 5000, 30),
    },
}

OPTIONS = {
    "two layers": {"n_layers": 2},
    "two layers, not deep": {"n_layers": 2, "deeply_inject_covariates": False},
    "embedding": {"batch_representation": "embedding", "n_layers": 2},
    "embedding, not deep": {"batch_representation": "embedding", "deeply_inject_covariates": False},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both", "n_layers": 2},
    "both norms": {"use_layer_norm": "both"},
    "no norm": {"use_batch_norm": "none"},
    "by cell": {"dispersion": "gene-cell"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "ln": {"latent_distribution": "ln"},
}


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """Conditions that never met, and points far from the few cells, are warned of: not what is asked here."""
    yield
    recwarn.clear()


@pytest.fixture
def by_loops(monkeypatch):
    """Decode by the loops however little there is to decode, and count how often."""
    calls = []
    fill = Plan.fill

    def counted(self, given, out_ng):
        calls.append(len(given))
        fill(self, given, out_ng)

    monkeypatch.setattr(Plan, "fill", counted)

    def decode(model, *arguments, large=1, **others):
        with monkeypatch.context() as patched:
            patched.setattr(decode_plan, "LARGE", large)
            before = len(calls)
            result = model.decode(*arguments, **others)
            assert len(calls) > before
            return result

    return decode


def points(model, n=30):
    z = model.reference_latents()
    return z[:n]


def agree(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-30)


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("quantity", ["rate", "scale", "mean"])
@pytest.mark.parametrize("some", [None, ["gene_7", "gene_0", "gene_39"]])
def test_conditions_and_genes(full_model, by_loops, said, quantity, some):
    genes = None if some is None else [full_model.schema.genes[int(name[5:])] for name in some]
    asked = {"quantity": quantity, "genes": genes, **SAID[said]}
    z = points(full_model)
    agree(by_loops(full_model, z, **asked).X, full_model.decode(z, **asked).X)


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize("options", OPTIONS)
def test_options(by_loops, options):
    given = {"gene_likelihood": "zinb"} | OPTIONS[options]
    model = make_model(make_adata(150, 15), setup=EVERYTHING, epochs=1, **given)
    for said in ("one", "averaged", "per point"):
        z, asked = points(model), {"quantity": "mean", **SAID[said]}
        agree(by_loops(model, z, **asked).X, model.decode(z, **asked).X)


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize("genes", [None, slice(3, 9, 2)])
def test_size_factor(by_loops, genes):
    """Its scale is a softplus: no normaliser, and other genes are not computed."""
    model = make_model(
        make_adata(150, 15), setup={"batch_key": "batch", "size_factor_key": "size_factor"}, gene_likelihood="zinb"
    )
    asked = {"quantity": "mean", "genes": None if genes is None else list(model.schema.genes[genes])}
    agree(by_loops(model, points(model), **asked).X, model.decode(points(model), **asked).X)


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"use_batch_norm": False}])
@pytest.mark.parametrize("batch", ["batch_2", None])
def test_linear_decoder(by_loops, options, batch):
    adata = make_adata(150, 15)
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    model = sd.LinearSCVI(adata, n_hidden=16, n_latent=4, gene_likelihood="zinb", **options)
    model.train(1, device="cpu", progress=False)
    for genes in (None, list(model.schema.genes[4:6])):
        asked = {"quantity": "mean", "batch": batch, "genes": genes}
        agree(by_loops(model, points(model), **asked).X, model.decode(points(model), **asked).X)


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
def test_draws(full_model, by_loops):
    z, asked = points(full_model, 7), {"spread": 0.3, "n_samples": 9, "seed": 2, **SAID["averaged"]}
    for quantity in ("rate", "mean"):
        found = by_loops(full_model, z, quantity=quantity, **asked)
        expected = full_model.decode(z, quantity=quantity, **asked)
        agree(found.X, expected.X)
        for name in ("std", "q05", "q95"):
            np.testing.assert_allclose(found.layers[name], expected.layers[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_into_a_file(model, by_loops, tmp_path, suffix):
    z = points(model)
    found = by_loops(model, z, batch="batch_1", out=tmp_path / f"x{suffix}", chunk_size=7).to_memory()
    agree(found.X, model.decode(z, batch="batch_1").X)


@given(chunk_size=st.integers(1, 40), n_threads=st.sampled_from([1, 2, 3]), rows=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_tiles_and_threads_do_not_matter(model, chunk_size, n_threads, rows):
    z, before = points(model), torch.get_num_threads()
    expected = model.decode(z, batch="batch_1").X
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(decode_plan, "LARGE", 1)
        patched.setattr(decode_plan, "_TILE_ROWS", (rows, rows))
        patched.setattr(tiles, "_STRETCH", 1)
        torch.set_num_threads(n_threads)
        try:
            agree(model.decode(z, batch="batch_1", chunk_size=chunk_size).X, expected)
        finally:
            torch.set_num_threads(before)


def test_threads_change_no_bit(model, by_loops):
    z, found = np.repeat(points(model), 30, axis=0), []
    for n_threads in (1, 2):
        torch.set_num_threads(n_threads)
        try:
            found.append(by_loops(model, z, batch="batch_1").X)
        finally:
            torch.set_num_threads(1)
    np.testing.assert_array_equal(*found)


def test_in_inference_mode(model, by_loops):
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            found = by_loops(model, np.repeat(points(model), 30, axis=0), batch="batch_1").X
    finally:
        torch.set_num_threads(1)
    agree(found[::30], model.decode(points(model), batch="batch_1").X)


def test_only_large_calls_take_them(model, by_loops, monkeypatch):
    n_values = 30 * model.schema.n_genes
    by_loops(model, points(model), batch="batch_1", large=n_values)
    with pytest.raises(AssertionError):
        by_loops(model, points(model), batch="batch_1", large=n_values + 1)
    with pytest.raises(AssertionError):
        by_loops(model, points(model), batch="batch_1", quantity="counts")


def test_without_numba(model, monkeypatch):
    monkeypatch.setattr(decode_plan.kernels, "usable", lambda: False)
    monkeypatch.setattr(decode_plan, "LARGE", 1)
    monkeypatch.setattr(Plan, "fill", None)
    assert np.isfinite(model.decode(points(model), batch="batch_1").X).all()


# -- the loops themselves, at extremes


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("n_slots", [1, 3])
@given(
    n=st.integers(1, 9),
    g=st.sampled_from([1, 5, 512, 700, 1100]),
    offset=st.sampled_from([0.0, -80.0, 80.0, -3000.0, 3000.0]),
    spread=st.sampled_from([0.0, 1.0, 20.0, 300.0]),
    inflated=st.booleans(),
    kept=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_any_logits(softmax, n_slots, n, g, offset, spread, inflated, kept, seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: torch.from_numpy(rng.normal(size=shape).astype(np.float32))  # noqa: E731
    genes = torch.from_numpy(rng.permutation(g)[: max(1, g // 3)]) if kept else None
    n_kept = g if genes is None else len(genes)
    hidden = Affine(draw(4, 6), draw(2 * n_slots, 6), None)
    scale = Affine(draw(6, g) * spread / 4, offset + draw(1, g), None)
    zi = Affine(draw(6, n_kept) * spread / 4, draw(1, n_kept), None) if inflated else None
    weight_s = rng.dirichlet(np.ones(n_slots), 2).reshape(-1)
    if not softmax and genes is not None:
        scale = Affine(scale.weight_io[:, genes].contiguous(), scale.shift_so[:, genes].contiguous(), None)
        genes = None
    plan = Plan((hidden,), scale, zi, softmax, genes, weight_s, n_slots)
    group_n, library_n = rng.integers(2, size=n), rng.uniform(1, 1e4, n).astype(np.float32)
    given_points = Given(draw(n, 4), group_n, library_n)
    out = np.full((n, plan.n_genes), np.nan, np.float32)
    plan.fill(given_points, out)
    expected = np.zeros((n, plan.n_genes))
    for slot in range(n_slots):
        at = torch.from_numpy(group_n * n_slots + slot)
        h = (given_points.inputs_ni.double() @ hidden.weight_io.double() + hidden.shift_so.double()[at]).relu()
        # the products in single precision are what they are: their errors are not those of the loops
        logits = (h.float() @ scale.weight_io).double() + scale.shift_so.double()
        zi_logits = None if zi is None else (h.float() @ zi.weight_io).double() + zi.shift_so.double()
        factor = torch.from_numpy(library_n[:, None] * weight_s[at, None])
        values = torch.softmax(logits, -1) if softmax else torch.logaddexp(logits, torch.zeros_like(logits))
        values = factor * (values if genes is None else values[:, genes])
        if zi_logits is not None:
            values = values * torch.sigmoid(-zi_logits)
        expected += values.numpy()
    # single precision knows a logit of size x to x / 10^7, and so its exponential
    tolerance = 1e-5 + 4e-7 * (abs(offset) + 10 * spread)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, expected, rtol=tolerance, atol=1e-9)
    np.testing.assert_allclose(plan.compute(given_points).numpy(), expected, rtol=tolerance, atol=1e-9)


def test_nested_threads(model, by_loops):
    """Where the threads are ours already, nothing waits for itself."""
    torch.set_num_threads(2)
    try:
        with own_threads():
            found = by_loops(model, points(model), batch="batch_1").X
    finally:
        torch.set_num_threads(1)
    agree(found, model.decode(points(model), batch="batch_1").X)


def test_small_calls_load_no_numba(model, tmp_path):
    """It takes longer to load than they take."""
    model.save(tmp_path / "model")
    code = (
        "import sys, numpy as np, scdecode as sd; model = sd.load(sys.argv[1]); z = np.zeros((3, 4))\n"
        "model.decode(z, batch='batch_1'); model.decoder(batch='batch_1')(z); print('numba' in sys.modules)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "model")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"

"""Our numbers against scvi-tools', without scvi-tools: models that it trained, and what it encoded and decoded.

Tolerances are relative, 1e-5, with nothing added, but for values that cross zero (the mean of q(z|x), zero-inflation
logits), where 1e-6 is added. Log-probabilities are sums of terms of up to 1e5 that cancel, so in float32, which
scvi-tools computed in, they are right to some units in the last place of their largest term: that is what is asked of
them, and that our formula in float64 at scvi-tools' own parameters differs by two at most.
"""

import functools
import itertools

import numpy as np
import pytest
import torch
from golden_models import FILES, GOLDEN, Golden, read_golden

from scdecode.conditions import resolve
from scdecode.decoding import averaged, distribution
from scdecode.encoding import encode, latent_draws, latent_mean
from scdecode.formats.archives import read_archive
from scdecode.formats.scvi_names import MODULES, to_ours
from scdecode.likelihoods import make_likelihood

FLOAT32 = 2.0**-23
ALL = slice(None)

read_golden = functools.cache(read_golden)


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def golden(request) -> Golden:
    return read_golden(request.param)


def assert_close(name, ours, theirs, *, rtol=1e-5, atol=0.0):
    ours, theirs = torch.as_tensor(ours).double(), theirs.double()
    assert ours.shape == theirs.shape, name
    difference = (ours - theirs).abs()
    print(f"{name}: differs by {difference.max():.1e}, relative {(difference / theirs.abs()).max():.1e}")
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def conditions_by_name(golden):
    """The conditions of the golden points, resolved from names, one per point."""
    schema, labels_matter = golden.schema, golden.config.dispersion == "gene-label"

    def names(category, code_p):
        return np.array(category.names, dtype=object)[code_p]

    codes_pc = golden.codes("z_").numpy()
    continuous_pd = golden.continuous("z_").numpy()
    return resolve(
        schema,
        len(golden["z"]),
        batch=None if schema.batch is None else names(schema.batch, codes_pc[:, 0]),
        labels=names(schema.labels, codes_pc[:, -1]) if schema.labels and labels_matter else None,
        categorical={c.key: names(c, codes_pc[:, 1 + j]) for j, c in enumerate(schema.categorical)},
        continuous={key: continuous_pd[:, j] for j, key in enumerate(schema.continuous)},
        library_size=golden["z_library"].numpy(),
        label_matters=labels_matter,
    )


def largest_term(golden, x, mu, theta):
    """The largest of the terms that make up log p(x), at least 1: what float32 rounds in units of."""
    if golden.config.gene_likelihood == "normal":
        return 1 + (x + mu) * (x - mu).abs() / theta**2
    of_mean = x * mu.log().abs() + torch.lgamma(x + 1)
    if golden.config.gene_likelihood == "poisson":
        return 1 + of_mean + mu
    lgammas = torch.lgamma(x + theta).abs() + torch.lgamma(theta).abs()
    return 1 + of_mean + lgammas + (x + theta) * (theta + mu).log().abs() + theta * theta.log().abs()


# -- the files ---------------------------------------------------------------------------------------------------------


def test_files_cover_the_options():
    configs = [read_golden(path).config for path in FILES]
    assert len(FILES) >= 50
    seen = {(c.gene_likelihood, c.dispersion) for c in configs}
    assert seen == set(
        itertools.product(("zinb", "nb", "poisson", "normal"), ("gene", "gene-batch", "gene-label", "gene-cell"))
    )
    for option, values in {
        "latent_distribution": {"normal", "ln"},
        "use_observed_lib_size": {True, False},
        "use_size_factor": {True, False},
        "learns_library": {True, False},
        "encode_covariates": {True, False},
        "deeply_inject_covariates": {True, False},
        "batch_representation": {"one-hot", "embedding"},
        "use_batch_norm": {"encoder", "decoder", "both", "none"},
        "use_layer_norm": {"encoder", "decoder", "both", "none"},
        "n_layers": {1, 2, 3},
    }.items():
        assert {getattr(c, option) for c in configs} == values, option
    setups = {(s.n_batches, len(s.categorical), len(s.continuous)) for s in (read_golden(p).schema for p in FILES)}
    assert {(1, 0, 0), (3, 0, 0), (1, 1, 0), (1, 2, 0), (1, 3, 2), (3, 3, 2), (3, 2, 2)} <= setups


def test_every_parameter_of_scvi_tools_has_its_place(golden):
    state, unused = to_ours(golden.state, golden.config)
    vae = golden.vae()
    assert set(state) == set(vae.state_dict())
    assert len(state) + len(unused) == len(golden.state)
    library = {name for name in golden.state if name.startswith("l_encoder.")}
    assert library and set(unused) == (set() if golden.config.learns_library else library)
    assert all(torch.isfinite(t).all() for t in vae.state_dict().values())


def test_an_unknown_parameter_is_an_error():
    golden = read_golden(FILES[0])
    with pytest.raises(KeyError, match=r"decoder\.new\.weight"):
        to_ours({**golden.state, "decoder.new.weight": torch.zeros(1)}, golden.config)


def test_every_row_of_the_table_is_used():
    used = {name.rpartition(".")[0] for path in FILES for name in read_golden(path).state}
    for path in (GOLDEN / "saved").glob("*/*model.pt"):  # other classes, too
        used |= {name.rpartition(".")[0] for name in read_archive(path)["model_state_dict"]}
    assert {name.replace("{}", "0") for name in MODULES} <= used


# -- encode ------------------------------------------------------------------------------------------------------------


def test_encode(golden):
    vae, cells = golden.vae(), golden.minibatch()
    posterior = vae.encode(cells)
    assert_close("qz_mean", posterior.mean, golden["qz_mean"], atol=1e-6)
    assert_close("qz_var", posterior.variance, golden["qz_var"])
    assert_close("latent", vae.to_latent(posterior.mean), golden["latent"], atol=1e-6)
    if golden.config.learns_library:
        library = vae.encode_library(cells)
        assert_close("ql_mean", library.mean, golden["ql_mean"][:, None])
        assert_close("ql_var", library.variance, golden["ql_var"][:, None])


def test_encode_by_the_chunk(golden):
    posterior = encode(golden.vae(), golden.cells(), batch_size=5)
    assert_close("qz_mean", posterior.mean_nk, golden["qz_mean"], atol=1e-6)
    assert_close("qz_var", posterior.variance_nk, golden["qz_var"])
    n_draws = 500
    mean_nk = latent_mean(posterior, golden.config, n_draws=n_draws, seed=1)
    draws_snk = latent_draws(posterior, golden.config, n_draws, seed=2)
    assert draws_snk.shape == (n_draws, *mean_nk.shape)
    spread_nk = draws_snk.std(axis=0) / np.sqrt(n_draws)
    if golden.config.latent_distribution == "normal":
        assert_close("latent", mean_nk, golden["latent"], atol=1e-6)
    else:
        for latent in (mean_nk, draws_snk):
            np.testing.assert_allclose(latent.sum(-1), 1, rtol=1e-5)
            assert (latent >= 0).all()
    assert (np.abs(draws_snk.mean(axis=0) - mean_nk) < 5 * np.sqrt(2) * spread_nk).all()


def test_bound(golden):
    """The KL terms of the elbo; and the reconstruction at the posterior's mean, where scvi-tools took it."""
    vae, cells = golden.vae(), golden.minibatch()
    elbo = vae.elbo(cells)
    assert_close("kl_z", elbo.kl_z, golden["kl_z"])
    if golden.config.learns_library:
        assert_close("kl_l", elbo.kl_l, golden["kl_l"])
    else:
        assert torch.equal(elbo.kl_l, torch.zeros(len(cells)))
    log_library = vae.encode_library(cells).mean if golden.config.learns_library else cells.library_n1.log()
    output = vae.decode(golden["latent"], cells.codes_nc, cells.continuous_nd)
    px = vae.likelihood(output, log_library, cells.codes_nc)
    assert_close("reconstruction", -px.log_prob(cells.x_ng).sum(1), golden["reconstruction"])


# -- decode ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_decode(golden, dtype):
    vae, codes = golden.vae(dtype), golden.codes("z_")
    output = vae.decode(golden["z"].to(dtype), codes, golden.continuous("z_").to(dtype))
    px = vae.likelihood(output, golden["z_library"].to(dtype).log()[:, None], codes)
    assert_close("scale", output.log_scale.exp(), golden["scale"])
    assert_close("mean", px.mean, golden["mean"])
    if golden.config.gene_likelihood in ("zinb", "nb"):
        assert_close("rate", px.mu, golden["rate"])
    log_theta = vae.dispersion(output, codes)
    assert (log_theta is None) == ("theta" not in golden)
    if log_theta is not None:
        assert_close("theta", log_theta.exp().expand(golden["theta"].shape), golden["theta"])
    assert (output.zi_logits is None) == ("zi_logits" not in golden)
    if output.zi_logits is not None:
        assert_close("zi_logits", output.zi_logits, golden["zi_logits"], atol=1e-6)


def test_log_probability(golden):
    # at scvi-tools' own parameters, so that the formula alone is compared
    x, mu = golden["z_x"].double(), golden["rate"].double()
    theta = golden["theta"].double() if "theta" in golden else torch.ones_like(mu)
    zi_logits = golden["zi_logits"].double() if "zi_logits" in golden else None
    exact = make_likelihood(golden.config.gene_likelihood, mu.log(), theta.log(), zi_logits).log_prob(x)
    term = largest_term(golden, x, mu, theta)
    difference = (exact - golden["log_prob"]).abs()
    print(f"formula: {(difference / term).max() / FLOAT32:.1f} units of the largest term")
    assert (difference <= 2.5 * FLOAT32 * term).all()

    # with our network, whose rate has a relative error of up to 8 units
    vae, codes = golden.vae(), golden.codes("z_")
    output = vae.decode(golden["z"], codes, golden.continuous("z_"))
    px = vae.likelihood(output, golden["z_library"].log()[:, None], codes)
    ours = px.log_prob(golden["z_x"])
    difference = (ours - golden["log_prob"]).abs()
    print(f"network: {(difference / term).max() / FLOAT32:.1f} units of the largest term")
    assert (difference <= 10 * FLOAT32 * term).all()
    assert_close("log_prob", ours, golden["log_prob"], rtol=3e-4, atol=3e-4)


# -- decode, by name ---------------------------------------------------------------------------------------------------


def test_decode_by_name(golden):
    """Names of conditions -> codes -> network -> quantities, as ``model.decode`` goes."""
    vae, conditions = golden.vae(), conditions_by_name(golden)
    assert conditions.n_slots == 1
    for quantity in ("scale", "rate", "mean"):
        assert_close(quantity, averaged(vae, golden["z"], conditions, ALL, quantity, None), golden[quantity])
    genes = torch.tensor([20, 3, 3, 0])
    assert_close("mean", averaged(vae, golden["z"], conditions, ALL, "mean", genes), golden["mean"][:, genes])
    rows = slice(3, 7)
    some = averaged(vae, golden["z"][rows], conditions, rows, "rate", genes)
    assert_close("rate", some, golden["rate"][rows][:, genes])


def test_distribution_by_name(golden):
    """The differentiable form, as ``model.distribution`` goes."""
    vae, conditions = golden.vae(), conditions_by_name(golden)
    z = golden["z"].clone().requires_grad_()
    px = distribution(vae, z, conditions, None)
    assert_close("mean", px.mean.detach(), golden["mean"])
    log_prob = px.log_prob(golden["z_x"])
    assert_close("log_prob", log_prob.detach(), golden["log_prob"], rtol=3e-4, atol=3e-4)
    (gradient,) = torch.autograd.grad(px.mean.sum(), z)
    assert torch.isfinite(gradient).all() and (gradient != 0).any()
    genes = torch.tensor([20, 3, 0])
    some = distribution(vae, golden["z"], conditions, genes).log_prob(golden["z_x"][:, genes])
    torch.testing.assert_close(some, log_prob.detach()[:, genes], rtol=1e-5, atol=1e-5)


def test_other_names_give_other_numbers():
    """That the names matter at all: a rotation of the batches or of a covariate changes what is decoded."""
    golden = next(g for g in map(read_golden, FILES) if g.name == "nb_gene_onehot_cats_deep2")
    vae, codes = golden.vae(), golden.codes("z_")
    for column in range(2):
        rotated = codes.clone()
        rotated[:, column] = (rotated[:, column] + 1) % golden.schema.n_levels[column]
        scale = vae.decode(golden["z"], rotated, golden.continuous("z_")).log_scale.exp()
        assert ((scale - golden["scale"]).abs() > 1e-3 * golden["scale"]).any(dim=1).all()

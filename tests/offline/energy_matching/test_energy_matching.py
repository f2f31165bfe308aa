"""Energy Matching against closed forms: translations, Gaussians, two modes in each of two states."""

import numpy as np
import pytest
import torch as th
from torch import nn

from sb3_energy import EnergyMatching
from sb3_energy.networks import PotentialNetwork
from sb3_energy.offline.energy_matching.objective import draw_negatives, joint_losses
from sb3_energy.offline.energy_matching.settings import Settings

SMALL = dict(net_arch=[48, 48], batch_size=128, n_steps=20, seed=0, device="cpu")


def small(**kwargs) -> EnergyMatching:
    return EnergyMatching(**{**SMALL, **kwargs})


def test_a_translation_is_the_slope_of_the_potential():
    shift = np.array([1.5, -0.8])
    data = np.random.default_rng(0).standard_normal((4000, 2)) + shift
    # Within a batch the best pairs are the translation up to the batch's luck, which larger batches have less of
    model = small(warm_up_steps=250, input_gain=1.0, batch_size=256, learning_rate=5e-3).fit(data, gradient_steps=250)
    points, step = np.random.default_rng(1).standard_normal((400, 2)) * 0.7 + 0.5 * shift, 1e-2
    for axis in range(2):
        way = step * np.eye(2)[axis]
        slopes = -(model.energy(points + way) - model.energy(points - way)) / (2.0 * step)
        assert slopes.mean() == pytest.approx(shift[axis], rel=0.05)
        assert slopes.std() < 0.15


def test_samples_of_a_gaussian_have_its_moments():
    mean, std = np.array([0.5, -0.5]), np.array([0.9, 0.4])
    data = mean + std * np.random.default_rng(0).standard_normal((5000, 2))
    model = small(warm_up_steps=100).fit(data, gradient_steps=400)
    samples = model.sample(4000)
    np.testing.assert_allclose(samples.mean(0), mean, atol=0.1)
    np.testing.assert_allclose(samples.std(0), std, rtol=0.12)
    assert model.energy(mean[None])[0] < model.energy((mean + 3.0 * std)[None])[0]


def bimodal(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """In state -1 the first coordinate is ±0.6, in state 1 the second; the other one is 0."""
    states = rng.choice([-1.0, 1.0], size=(n, 1))
    signs = rng.choice([-0.6, 0.6], size=n)
    actions = 0.06 * rng.standard_normal((n, 2))
    actions[np.arange(n), (states[:, 0] > 0).astype(int)] += signs
    return states, actions


def check_modes(model: EnergyMatching) -> None:
    draws = model.sample(1000, np.array([[-1.0], [1.0]]))
    assert np.abs(draws).max() <= 1.0
    for state, axis in ((0, 0), (1, 1)):
        along, across = draws[state, :, axis], draws[state, :, 1 - axis]
        for sign in (-1.0, 1.0):
            share = ((np.abs(along - 0.6 * sign) < 0.3) & (np.abs(across) < 0.3)).mean()
            assert 0.3 < share < 0.7, (state, sign, share)
        # A Gaussian of these moments has a fifth of its mass here, between the modes
        assert (np.abs(along) < 0.15).mean() < 0.08


def test_both_modes_of_each_state_are_kept():
    states, actions = bimodal(4000, np.random.default_rng(0))
    gaussian = actions[states[:, 0] < 0].mean(0) + actions[states[:, 0] < 0].std(0) * np.random.default_rng(1).normal(
        size=(1000, 2)
    )
    assert (np.abs(gaussian[:, 0]) < 0.15).mean() > 0.15, "a Gaussian clone acts between the modes"
    model = small(box="reflect", base="uniform", warm_up_steps=50).fit(actions, states, gradient_steps=350)
    check_modes(model)
    best, state = model.predict(np.array([[-1.0], [1.0]]), deterministic=True)
    assert state is None and abs(abs(best[0, 0]) - 0.6) < 0.15 and abs(abs(best[1, 1]) - 0.6) < 0.15
    np.testing.assert_array_equal(best[1], model.predict(np.array([1.0]), deterministic=True)[0])


def unequal(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """In state -1 two thirds of the actions are -0.3 and a third 0.7, in state 1 the other way round."""
    states = rng.choice([-1.0, 1.0], size=(n, 1))
    often = rng.random((n, 1)) < 2.0 / 3.0
    means = np.where(states < 0.0, np.where(often, -0.3, 0.7), np.where(often, 0.7, -0.3))
    return states, means + 0.06 * rng.standard_normal((n, 1))


@pytest.fixture(scope="module")
def of_unequal_modes():
    states, actions = unequal(4000, np.random.default_rng(0))
    return small(box="reflect", base="uniform", warm_up_steps=50).fit(actions, states, gradient_steps=350)


STATES = np.array([[-1.0], [1.0]])


def test_without_noise_it_acts_as_it_does_most_often(of_unequal_modes):
    shares = (of_unequal_modes.sample(2000, STATES)[..., 0] > 0.25).mean(axis=1)
    np.testing.assert_allclose(shares, [1.0 / 3.0, 2.0 / 3.0], atol=0.1)
    best, _ = of_unequal_modes.predict(STATES, deterministic=True)
    np.testing.assert_allclose(best[:, 0], [-0.3, 0.7], atol=0.1)


def test_draws_given_an_observation_are_those_of_the_posterior(of_unequal_modes):
    """``y = .5 s + x + .4 ξ`` was .4, of states as they are: a mode's weight is the prior's times its density of y."""
    seen, noise = 0.4, 0.4

    def observed(states, x):
        return 0.5 * ((0.5 * states.unsqueeze(1) + x - seen) / noise).square().sum(-1)

    found = of_unequal_modes.sample(2000, STATES, energy=observed)[..., 0]
    assert found.shape == (2, 2000)
    for state, draws, prior in zip((-1.0, 1.0), found, (1.0 / 3.0, 2.0 / 3.0), strict=True):
        variance, modes = 0.06**2 + noise**2, ((prior, 0.7), (1.0 - prior, -0.3))
        high, low = (weight * np.exp(-0.5 * (seen - 0.5 * state - mode) ** 2 / variance) for weight, mode in modes)
        assert (draws > 0.25).mean() == pytest.approx(high / (high + low), abs=0.08)
        assert abs(high / (high + low) - prior) > 0.2, "which is not the prior's"


def test_several_actions_of_a_state_are_paired_within_it():
    states = np.array([[-1.0], [1.0]])
    actions = np.stack([np.tile([[0.5]], (8, 1)), np.tile([[-0.5]], (8, 1))])
    model = small(box="reflect", warm_up_steps=20).fit(actions, states, gradient_steps=150)
    draws = model.sample(200, states)
    assert draws.shape == (2, 200, 1) and draws[0].mean() > 0.3 and draws[1].mean() < -0.3


def test_seeds_reproduce_and_torchs_own_numbers_are_left_alone(monkeypatch):
    monkeypatch.setattr(th.cuda, "manual_seed_all", None)  # a GPU's are as well
    data = np.random.default_rng(0).standard_normal((50, 2))
    th.default_generator.manual_seed(3)
    before = th.get_rng_state()
    first = small(warm_up_steps=2).fit(data, gradient_steps=4).sample(5)
    assert th.equal(before, th.get_rng_state())
    np.testing.assert_array_equal(first, small(warm_up_steps=2).fit(data, gradient_steps=4).sample(5))
    assert not np.array_equal(first, small(warm_up_steps=2, seed=1).fit(data, gradient_steps=4).sample(5))


@pytest.mark.parametrize("kwargs", [{}, dict(ema_decay=None, layer_norm=True), dict(spectral_norm=True, input_gain=1.0)])
def test_what_was_saved_goes_on_as_if_nothing_had_happened(kwargs, tmp_path):
    states, actions = bimodal(100, np.random.default_rng(0))
    model = small(warm_up_steps=2, activation_fn=nn.Tanh, **kwargs).fit(actions, states, gradient_steps=4)
    model.save(tmp_path / "clone")
    again = EnergyMatching.load(tmp_path / "clone", device="cpu")
    assert again.settings == model.settings and again.n_updates == 4
    for one in (model, again):
        one.fit(actions, states, gradient_steps=3)
    for old, new in zip(model.network.state_dict().values(), again.network.state_dict().values(), strict=True):
        assert th.equal(old, new)
    np.testing.assert_array_equal(model.predict(states)[0], again.predict(states)[0])
    assert (model.average is None) == ("ema_decay" in kwargs)


@pytest.mark.parametrize("ema_decay", [0.9, None])
def test_asking_does_not_change_normalised_weights(ema_decay):
    data = np.random.default_rng(0).standard_normal((50, 2))
    kwargs = dict(spectral_norm=True, input_gain=1.0, ema_decay=ema_decay, warm_up_steps=2)
    asked, silent = (small(**kwargs).fit(data, gradient_steps=3) for _ in range(2))
    np.testing.assert_array_equal(asked.energy(data), asked.energy(data))
    for model in (asked, silent):
        model.fit(data, gradient_steps=3)
    for old, new in zip(asked.network.state_dict().values(), silent.network.state_dict().values(), strict=True):
        assert th.equal(old, new)


@pytest.mark.parametrize(("rows", "n"), [(1, 10), (6, 1)])
@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_every_negative_is_drawn_whatever_the_split(rows, n, fraction):
    model = small().fit(np.zeros((4, 2)), gradient_steps=1)
    settings = small(noise_fraction=fraction).settings
    ends = th.zeros(rows, n, 2)
    assert draw_negatives(model.network, th.zeros(rows, 0), ends, settings, model.generator).shape == ends.shape


def test_the_data_half_of_the_chains_stays_near_the_data():
    settings = small(temperature=1e-6, noise_fraction=0.5).settings
    model = small().fit(np.zeros((4, 2)), gradient_steps=1)
    ends = th.full((1, 10, 2), 3.0)
    found = draw_negatives(model.network, th.zeros(1, 0), ends, settings, th.Generator().manual_seed(0))
    assert found.shape == ends.shape and not found.requires_grad
    distance = (found - 3.0).norm(dim=-1)[0]
    assert (distance[:5] < distance[5:].min()).all()


LOSSES = {"loss", "transport_loss", "divergence_loss", "magnitude"}


def test_joint_losses_hold_the_samples_fixed():
    model = small().fit(np.zeros((4, 2)), gradient_steps=1)
    losses = joint_losses(model.network, th.zeros(1, 0), th.zeros(1, 6, 2), model.settings, model.generator)
    assert set(losses) == LOSSES and losses["loss"].requires_grad


@pytest.mark.parametrize("transport_time, share", [(0.0, 0.5), (0.5, 0.75), (0.8, 0.9)])
def test_the_gate_lets_a_known_share_of_transport_through(transport_time, share):
    """The weight is 1 until τ* and falls to 0 at 1: of a flat potential, E|x_0|² times τ* + (1 - τ*) / 2 is left."""
    settings = small(transport_time=transport_time, n_steps=1).settings
    network = PotentialNetwork(0, 2, [4])  # 0 everywhere at first
    losses = joint_losses(network, th.zeros(300, 0), th.zeros(300, 100, 2), settings, th.Generator().manual_seed(0))
    assert losses["transport_loss"].item() == pytest.approx(2.0 * share, rel=0.03)


def test_the_loss_is_the_sum_of_its_terms():
    coefs = dict(transport_coef=0.3, divergence_coef=0.7, magnitude_coef=0.05)
    model = small(**coefs).fit(np.zeros((4, 2)), gradient_steps=3)
    ends = th.randn(1, 20, 2, generator=th.Generator().manual_seed(0))
    losses = joint_losses(model.network, th.zeros(1, 0), ends, model.settings, model.generator)
    named = dict(transport_coef="transport_loss", divergence_coef="divergence_loss")
    total = sum(coefs[name] * losses[key] for name, key in named.items()) + 0.05 * losses["magnitude"]
    th.testing.assert_close(losses["loss"], total)


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(temperature=0.0), ValueError, "temperature"),
        (dict(temperature="hot"), TypeError, "temperature"),
        (dict(transport_time=1.0), ValueError, "transport_time"),
        (dict(n_steps=0), ValueError, "n_steps"),
        (dict(batch_size=True), TypeError, "batch_size"),
        (dict(base="laplace"), ValueError, "base"),
        (dict(box="clip"), ValueError, "box"),
        (dict(noise_fraction=1.5), ValueError, "noise_fraction"),
        (dict(ema_decay=1.0), ValueError, "ema_decay"),
        (dict(net_arch=[]), ValueError, "net_arch"),
        (dict(activation_fn=nn.ReLU), ValueError, "activation_fn"),
        (dict(spectral_norm=True), ValueError, "input_gain"),
        (dict(seed=1.5), TypeError, "seed"),
        (dict(logger="stdout"), TypeError, "logger"),
    ],
)
def test_wrong_arguments_are_refused_at_once(kwargs, error, words):
    assert isinstance(small().settings, Settings)
    with pytest.raises(error, match=words):
        small(**kwargs)


def test_wrong_data_are_refused():
    good = np.zeros((4, 2))
    with pytest.raises(ValueError, match="finite"):
        small().fit(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="finite"):
        small().fit(good, np.full((4, 1), np.inf))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        small(box="reflect").fit(good + 2.0)
    with pytest.raises(ValueError, match="as many observations"):
        small().fit(good, np.zeros((3, 1)))
    with pytest.raises(ValueError, match="shape"):
        small().fit(np.zeros(4))
    with pytest.raises(TypeError, match="numbers"):
        small().fit("samples")
    with pytest.raises(ValueError, match="gradient_steps"):
        small().fit(good, gradient_steps=0)
    with pytest.raises(RuntimeError, match="fit"):
        small().sample()


def test_questions_that_do_not_fit_what_was_learned_are_refused(tmp_path):
    model = small().fit(np.zeros((4, 2)), gradient_steps=1)
    with pytest.raises(ValueError, match="without them"):
        model.sample(3, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="predict"):
        model.predict(np.zeros(1))
    with pytest.raises(ValueError, match="dimensions"):
        model.fit(np.zeros((4, 3)))
    with pytest.raises(ValueError, match="n must"):
        model.sample(0)
    (tmp_path / "other.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="no saved EnergyMatching"):
        EnergyMatching.load(tmp_path / "other.pt")


@pytest.mark.parametrize(
    ("energy", "error", "words"),
    [
        (1.0, TypeError, r"energy must be a function \(observations, x\) -> \(B, N\), got 1.0"),
        (lambda observations, x: x, ValueError, r"must return one number for each action, of shape \(B, N\)"),
        (lambda observations, x: x.detach().sum(-1), ValueError, "no gradient"),
        (lambda observations, x: (x - x.mean(1, keepdim=True)).sum(-1), ValueError, "its own energy"),
        (lambda x: x.sum(-1), ValueError, "failed"),
    ],
)
def test_energies_that_cannot_be_used_are_refused(energy, error, words):
    model = small().fit(np.zeros((4, 2)), gradient_steps=1)
    with pytest.raises(error, match=words):
        model.sample(3, energy=energy)


def test_an_energy_of_no_observations():
    model = small().fit(np.zeros((4, 2)), gradient_steps=1)
    seen = []
    assert model.sample(3, energy=lambda o, x: seen.append(o.shape) or x.square().sum(-1)).shape == (3, 2)
    assert seen[-1] == (1, 0)
    states, actions = bimodal(20, np.random.default_rng(0))
    clone = small().fit(actions, states, gradient_steps=1)
    assert clone.sample(3, states[:0], energy=lambda o, x: x.square().sum(-1)).shape == (0, 3, 2)


def test_a_loss_that_is_no_number_stops_before_the_parameters_change():
    model = small(warm_up_steps=0).fit(np.zeros((4, 2)), gradient_steps=1)
    with th.no_grad():
        model.network.network[-1].weight.fill_(float("nan"))
    before = [parameter.clone() for parameter in model.network.parameters()]
    with pytest.raises(FloatingPointError, match="learning_rate"):
        model.fit(np.zeros((4, 2)), gradient_steps=1)
    assert all(th.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(before, model.network.parameters(), strict=True))

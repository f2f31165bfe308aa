"""The landscape of a policy's energy: its arrays against the policy's own energy, its figures, the callback, the example."""

import importlib.util
import io
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Figure, KVWriter, Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sb3_energy import PGAC, EnergySAC, LandscapeCallback
from sb3_energy.energies import Composite
from sb3_energy.landscape.drawing import draw_landscape
from sb3_energy.landscape.landscape import N_BETWEEN, landscape_of, trajectories
from sb3_energy.refiners import refined_particles

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "landscape.py"
SMALL_NONE = dict(net_arch=[8], refiner="none", backbone="plain")
SMALL = dict(net_arch=[8], n_particles=4, refiner_steps=5, backbone="plain")
OBSERVATION = np.array([0.3, -0.7], dtype=np.float32)


class Nowhere(gym.Env):
    """Observations of two numbers, actions of any dimension, a reward that is their square."""

    observation_space = spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, action_dim: int):
        self.action_space = spaces.Box(-1.0, 1.0, (action_dim,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return OBSERVATION, {}

    def step(self, action):
        return self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32), float(np.square(action).sum()), False, False, {}


def make(action_dim: int, policy_kwargs=None, **kwargs) -> PGAC:
    settings = dict(learning_starts=5, batch_size=8, buffer_size=100, seed=0, policy_kwargs=SMALL | (policy_kwargs or {}))
    model = PGAC("MlpPolicy", Nowhere(action_dim), **(settings | kwargs))
    generator = th.Generator().manual_seed(1)
    with th.no_grad():  # a potential is 0 at first
        last = model.policy.potential.network[-1]
        last.weight.copy_(th.randn(last.weight.shape, generator=generator))
        model.policy.q_scale.spread.fill_(0.25)
    return model


def energy_sac(action_dim: int, **policy_kwargs) -> EnergySAC:
    kwargs = dict(net_arch=[8], backbone="plain") | policy_kwargs
    settings = dict(learning_starts=5, batch_size=8, buffer_size=100, seed=0, ent_coef=0.2)
    return EnergySAC("MlpPolicy", Nowhere(action_dim), policy_kwargs=kwargs, **settings)


def valley(observations, actions, weight=1.0):
    return weight * (actions - observations[:, None, :1]).square().sum(-1)


def stairs(observations, actions):
    return th.as_tensor(np.round(2.0 * np.abs(actions.numpy()))).sum(-1)  # numpy refuses tensors with a graph


def forbidding(observations, actions):
    return actions.square().sum(-1) + th.where(actions[..., 0] > 0.5, th.inf, 0.0)


@dataclass(frozen=True)
class Steep:
    """A potential's energy of the user's own, which does not name its terms."""

    temperature: float = 0.5
    needs_potential = True

    def bind(self, networks, obs):
        return partial(steep, networks.potential.bind(networks.critic.encode(obs)), self.temperature)


def steep(potential, temperature, actions):
    return (2.0 * potential(actions) + actions.sum(-1)) / temperature


@pytest.mark.parametrize(
    "action_dim, policy_kwargs",
    [
        (1, dict(energy_kwargs=dict(aggregate="min"))),
        (2, dict()),
        (3, dict(tolerance=0.1, trust_region=0.5)),
        (2, dict(refiner="none")),
        (2, dict(energy=valley, energy_kwargs=dict(weight=3.0))),
        (1, dict(energy=stairs, refiner="mppi")),
        (2, dict(energy=stairs, refiner="snis")),
    ],
)
def test_the_arrays_of_energy_sac_are_its_policys(action_dim, policy_kwargs):
    model = energy_sac(action_dim, **policy_kwargs)
    found = landscape_of(model, OBSERVATION, n_grid=5, n_particles=3)
    shown = (0, 1)[:action_dim]
    grid = (5,) * len(shown)
    policy, obs = model.policy, model.policy.obs_to_tensor(OBSERVATION)[0]
    actions = th.tensor(found.actions, dtype=th.float32).reshape(1, -1, action_dim)
    is_stairs = policy_kwargs.get("energy") is stairs
    actions.requires_grad_(not is_stairs)
    energies = policy.energy_fn(obs)(actions)
    np.testing.assert_allclose(found.energy, energies.detach().reshape(grid), rtol=1e-5, atol=1e-6)
    if is_stairs:
        assert found.velocity is None
    else:
        (slope,) = th.autograd.grad(-energies.sum(), actions)
        np.testing.assert_allclose(found.velocity, slope[0][:, : len(shown)].reshape(*grid, -1), rtol=1e-3, atol=1e-5)
    assert found.name == "E" and found.temperature == pytest.approx(0.2)
    np.testing.assert_allclose(-0.2 * np.log(found.density), found.energy - found.energy.min(), atol=1e-6)
    if "energy" in policy_kwargs:
        assert found.parts == {}
    else:
        np.testing.assert_allclose(found.parts["-Q"], found.energy)
        np.testing.assert_allclose(found.parts["-Q"], -found.q_values, rtol=1e-5, atol=1e-6)
    deterministic, _ = model.predict(OBSERVATION, deterministic=True)
    np.testing.assert_allclose(found.deterministic, deterministic, atol=1e-6)
    assert found.refiner == policy_kwargs.get("refiner", "mala")
    assert found.resamples == (found.refiner in ("mppi", "snis"))


def test_without_a_refiner_particles_are_draws_of_the_gaussian():
    model = energy_sac(2, refiner="none")
    found = landscape_of(model, OBSERVATION, n_grid=3, n_particles=2000)
    assert found.positions.shape == (1, 2000, 2) and found.paths.shape == (0, N_BETWEEN + 1, 2000, 2)
    assert found.noise.shape == (0,) and not found.resamples
    mean, std = (part[0] for part in model.policy.base(model.policy.obs_to_tensor(OBSERVATION)[0]))
    before = th.atanh(th.tensor(found.positions[0]))
    th.testing.assert_close(before.mean(0).float(), mean, rtol=0, atol=0.1)
    th.testing.assert_close(before.std(0).float(), std, rtol=0.1, atol=0)


@pytest.mark.parametrize("use_sde", [False, True])
def test_the_gaussians_density_is_that_of_its_draws(use_sde):
    kwargs = dict(use_sde=use_sde, sde_sample_freq=-1) if use_sde else {}
    model = EnergySAC("MlpPolicy", Nowhere(1), buffer_size=10, policy_kwargs=SMALL_NONE, seed=0, **kwargs)
    found = landscape_of(model, OBSERVATION, n_grid=401, n_particles=4000)
    cumulative = np.cumsum(found.gaussian) * 2.0 / 400.0
    assert cumulative[-1] == pytest.approx(1.0, abs=0.02)
    draws = np.sort(found.positions[0, :, 0])
    expected = np.interp(draws, found.axis, cumulative)
    assert np.abs(expected - (np.arange(4000) + 0.5) / 4000).max() < 0.04  # Kolmogorov-Smirnov


def test_an_energy_with_a_potential_that_does_not_name_its_terms():
    model = make(2, dict(energy=Steep, energy_kwargs={}))
    found = landscape_of(model, OBSERVATION, n_grid=5, n_particles=2)
    expected = 2.0 * found.parts["V"] + found.actions.sum(-1)
    np.testing.assert_allclose(found.energy, expected, rtol=1e-4, atol=1e-5)
    assert list(found.parts) == ["V"] and found.temperature == 0.5
    titles = [ax.get_title() for ax in draw_landscape(found).axes]
    assert any(title.startswith("Energy $U$, ") for title in titles)  # not a sum of its parts


@pytest.mark.parametrize("action_dim, dims", [(1, None), (2, None), (3, (2, 0)), (4, None)])
def test_the_arrays_are_the_policys_own(action_dim, dims):
    model = make(action_dim, dict(energy_kwargs=dict(guidance=2.0, temperature=0.3, aggregate="min")))
    found = landscape_of(model, OBSERVATION, dims, n_grid=5, n_particles=3)
    shown = dims or (0, 1)[:action_dim]
    grid = (5,) * len(shown)
    assert found.dims == shown and found.actions.shape == (*grid, action_dim)
    assert found.name == "U" and list(found.parts) == list(found.part_velocities) == ["V", "-λQ"]
    for values in (found.energy, found.q_values, found.density, found.gaussian, *found.parts.values()):
        assert values.shape == grid
    assert all(part.shape == (*grid, len(shown)) for part in (found.velocity, *found.part_velocities.values()))
    assert found.positions.shape == (6, 3, action_dim) and found.paths.shape == (5, N_BETWEEN + 1, 3, action_dim)

    policy, obs = model.policy, model.policy.obs_to_tensor(OBSERVATION)[0]
    actions = th.tensor(found.actions, dtype=th.float32).reshape(1, -1, action_dim).requires_grad_()
    features = policy.critic.encode(obs)
    potential = policy.potential(features, actions)
    q_values = policy.critic.evaluate(features, actions).min(dim=0).values
    guided = potential - 2.0 * q_values / 0.25
    for ours, theirs in ((found.parts["V"], potential), (found.q_values, q_values), (found.energy, guided)):
        np.testing.assert_allclose(ours, theirs.detach().reshape(grid), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.parts["-λQ"], (guided - potential).detach().reshape(grid), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sum(found.parts.values()), found.energy, rtol=1e-5, atol=1e-5)
    terms = ((found.part_velocities["V"], potential), (found.part_velocities["-λQ"], guided - potential))
    for ours, theirs in (*terms, (found.velocity, guided)):
        (slope,) = th.autograd.grad(-theirs.sum(), actions, retain_graph=True)
        np.testing.assert_allclose(ours, slope[0][:, list(shown)].reshape(*grid, -1), rtol=1e-3, atol=1e-4)
    assert found.temperature == 0.3 and found.density.max() == 1.0
    np.testing.assert_allclose(-0.3 * np.log(found.density), found.energy - found.energy.min(), atol=1e-6)

    deterministic, _ = model.predict(OBSERVATION, deterministic=True)
    np.testing.assert_allclose(found.deterministic, deterministic, atol=1e-6)
    hidden = [dim for dim in range(action_dim) if dim not in shown]
    np.testing.assert_allclose(
        found.actions[..., hidden], np.broadcast_to(deterministic[hidden], (*grid, len(hidden))), atol=1e-6
    )
    first = found.actions[..., shown[0]]
    np.testing.assert_allclose(first[:, 0] if len(shown) == 2 else first, found.axis)  # the first index is the first dimension


def test_trajectories_end_where_refined_particles_end():
    model = make(2)
    policy, obs = model.policy, model.policy.obs_to_tensor(np.stack([OBSERVATION, -OBSERVATION]))[0]
    chains = policy.simulate(obs, 6)
    for refiner in (chains.refiner, chains.refiner.deterministic()):
        arguments = (refiner, chains.particles, chains.target)
        found, ends = (
            fn(*arguments, n_steps=chains.n_steps, generator=th.Generator().manual_seed(3))
            for fn in (trajectories, refined_particles)
        )
        assert found.shape == (6, 2, 6, 2) and not found.requires_grad
        th.testing.assert_close(found[-1], ends, rtol=0, atol=0)
        th.testing.assert_close(found[0], chains.particles, rtol=0, atol=0)
        moves = (found[1:] != found[:-1]).any(dim=-1)
        assert moves.any(dim=(1, 2)).all() and (refiner is chains.refiner or moves.all()), (
            "some are rejected, and no descent is"
        )


def test_particles_stay_in_the_box_and_their_steps_hang_together():
    model = make(2, dict(energy_kwargs=dict(temperature=5.0)))  # hot: walls reflect most of them
    found = landscape_of(model, OBSERVATION, n_grid=2, n_particles=50)
    assert np.abs(found.paths).max() <= 1.0
    np.testing.assert_allclose(found.paths[:, 0], found.positions[:-1], atol=1e-5)
    np.testing.assert_allclose(found.paths[:, -1], found.positions[1:], atol=1e-5)
    # what is folded never jumps from wall to wall
    parts = np.diff(found.paths, axis=1)
    whole = np.abs(parts).max(axis=1)
    assert (np.abs(parts).sum(axis=1) >= np.abs(found.paths[:, -1] - found.paths[:, 0]) - 1e-5).all() and whole.max() < 1.0


@pytest.mark.parametrize("transport_time, n_still", [(0.4, 2), (0.0, 0), (0.75, 4), (1.0, 5)])
def test_stages_are_told_by_their_noise(transport_time, n_still):
    found = landscape_of(make(1, dict(transport_time=transport_time)), OBSERVATION, n_grid=3)
    assert found.noise.tolist() == [False] * n_still + [True] * (5 - n_still)


@pytest.mark.parametrize("refiner, steps", [("svgd", 2), ("mala", 2), ("mppi", 2), ("hmc", 1), ("snis", 1)])
def test_other_refiners_have_landscapes_too(refiner, steps):
    kwargs = dict(refiner=refiner, refiner_steps=steps, n_particles=8)
    found = landscape_of(make(2, kwargs), OBSERVATION, n_grid=3, n_particles=4)
    assert len(found.paths) == steps and len(found.positions) == steps + 1
    draw_landscape(found).savefig(io.BytesIO())


@pytest.mark.parametrize("refiner", ["flow", "mean_flow", "svgd"])
def test_steps_without_noise_are_drawn_as_such_and_lead_from_a_particle_to_itself(refiner):
    kwargs = dict(refiner=refiner, refiner_steps=2, n_particles=8, box="tanh")
    kwargs |= dict(refiner_kwargs=dict(step_size=1e-6)) if refiner == "svgd" else {}
    found = landscape_of(make(2, kwargs), OBSERVATION, n_grid=3, n_particles=8)
    assert found.noise.tolist() == [False, False]
    if refiner == "svgd":  # which has its particles in another order then, so that each may be the draw
        np.testing.assert_allclose(found.positions[-1], found.positions[0], atol=1e-3)


def test_looking_changes_nothing():
    model = make(2, dict(potential_kwargs=dict(spectral_norm=True)))
    model.policy.set_training_mode(True)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    modes = [module.training for module in model.policy.modules()]
    th.manual_seed(7)
    expected = th.rand(3)
    th.manual_seed(7)
    one, two = (landscape_of(model, OBSERVATION, n_grid=3, seed=seed) for seed in (0, 0))
    th.testing.assert_close(th.rand(3), expected, rtol=0, atol=0)
    assert (one.positions == two.positions).all()
    assert (landscape_of(model, OBSERVATION, n_grid=3, seed=1).positions != one.positions).any()
    assert modes == [module.training for module in model.policy.modules()] and any(modes)
    for name, value in model.policy.state_dict().items():
        th.testing.assert_close(value, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        (dict(dims=(0,)), ValueError, "dims must be None or two different ones of the 3 dimensions"),
        (dict(dims=(1, 1)), ValueError, "got \\(1, 1\\)"),
        (dict(dims=(0, 3)), ValueError, "got \\(0, 3\\)"),
        (dict(dims=1), ValueError, "got 1"),
        (dict(n_grid=1), ValueError, "n_grid"),
        (dict(n_particles=0), ValueError, "n_particles"),
        (dict(n_particles=2.5), TypeError, "n_particles"),
        (dict(observation=np.zeros((2, 2), np.float32)), ValueError, "observation must be a single one, got 2"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        landscape_of(make(3), **(dict(observation=OBSERVATION) | arguments))


def test_a_model_without_a_refined_policy_raises():
    model = SAC("MlpPolicy", Nowhere(2), buffer_size=10)
    with pytest.raises(TypeError, match="model must have a refined policy, as EnergySAC, PGAC and their policies do, got SAC"):
        landscape_of(model, OBSERVATION)
    with pytest.raises(TypeError, match="got SAC"):
        model.learn(1, callback=LandscapeCallback())


@pytest.mark.parametrize("action_dim, n_axes", [(1, 4), (2, 4 + 4)])
@pytest.mark.parametrize("guidance", [0.0, 1.0])
def test_pictures_are_1200_pixels_wide_and_say_what_they_show(action_dim, n_axes, guidance, tmp_path):
    import matplotlib.image

    model = make(action_dim, dict(energy_kwargs=dict(guidance=guidance), transport_time=0.5))
    figure = draw_landscape(landscape_of(model, OBSERVATION, n_grid=9, n_particles=5), "a title")
    figure.savefig(tmp_path / "picture.png")
    pixels = matplotlib.image.imread(tmp_path / "picture.png")
    assert pixels.shape[1] == 1200 and len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 50
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["start", "transport, without noise", "Langevin, with noise", "end", "deterministic action"]
    assert len(figure.axes) == n_axes and figure.get_suptitle() == "a title"
    shown = [ax.get_title() for ax in figure.axes] + [line.get_label() for ax in figure.axes for line in ax.lines]
    assert any("for comparison" in text for text in shown) == (guidance == 0.0)


def test_a_potential_of_zero_is_drawn():
    model = make(2, dict(energy="potential", energy_kwargs={}))
    with th.no_grad():
        model.policy.potential.network[-1].weight.zero_()
    figure = draw_landscape(landscape_of(model, OBSERVATION, n_grid=5))
    figure.savefig(io.BytesIO())
    assert sum(text.get_text() == "0 everywhere" for ax in figure.axes for text in ax.texts) == 1  # U, which is V
    assert sum("$U$ = $V$" in ax.get_title() for ax in figure.axes) == 1


@pytest.mark.parametrize(
    "policy_kwargs, titles, labels",
    [
        (
            dict(),
            [
                "Energy $E$ = $-Q$, $Q$ from",
                r"$\exp(-E / \alpha)$",
                "Gaussian policy",
                "5 particles, steps of mala: 3 with",
            ],
            ["start", "Langevin, with noise", "end", "deterministic action"],
        ),
        (
            dict(refiner="none"),
            ["Energy $E$ = $-Q$, $Q$ from", r"$\exp(-E / \alpha)$", "Gaussian policy", "5 draws of the Gaussian policy"],
            ["draw", "deterministic action"],
        ),
        (
            dict(energy=forbidding, refiner="mala", refiner_steps=2),
            [
                "Critic's $-Q$, for comparison",
                "Energy $E$, grey: infinite",
                "Gaussian policy",
                "5 particles, steps of mala: 2 with",
            ],
            ["start", "Langevin, with noise", "end", "deterministic action"],
        ),
        (
            dict(energy=stairs, refiner="snis", n_particles=8),
            ["Critic's $-Q$, for comparison", "Energy $E$", "Gaussian policy", "8 particles, steps of snis: 1 with noise"],
            ["start", "end", "deterministic action"],
        ),
    ],
)
def test_the_maps_of_energy_sac_say_what_they_show(policy_kwargs, titles, labels):
    figure = draw_landscape(landscape_of(energy_sac(2, **policy_kwargs), OBSERVATION, n_grid=9, n_particles=5))
    figure.savefig(io.BytesIO())
    shown = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert len(shown) == 4 and all(title.startswith(start) for title, start in zip(shown, titles, strict=True)), shown
    assert ("arrows" in shown[0] + shown[1]) == (policy_kwargs.get("energy") is not stairs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels
    assert not any("V" in text or "epsilon" in text for text in shown)
    boxes = [ax.get_position() for ax in figure.axes if ax.get_title()]
    assert all(box.width > 0.3 and box.height > 0.3 for box in boxes)


@pytest.mark.parametrize(
    "policy_kwargs, n_axes", [(dict(), 4), (dict(refiner="none"), 3), (dict(energy=stairs, refiner="mppi"), 3)]
)
def test_the_curves_of_energy_sac(policy_kwargs, n_axes):
    figure = draw_landscape(landscape_of(energy_sac(1, **policy_kwargs), OBSERVATION, n_grid=9, n_particles=5))
    figure.savefig(io.BytesIO())
    assert len(figure.axes) == n_axes
    lines = [line.get_label() for line in figure.axes[0].lines]
    assert ("critic's $-Q$, for comparison, scaled" in lines) == ("energy" in policy_kwargs)


@pytest.mark.parametrize(
    "make_model, terms, names",
    [
        (energy_sac, ("q", valley), ["q", "valley"]),
        (lambda dim, **kwargs: make(dim, kwargs), ("guided_potential", valley), ["V", "-λQ", "valley"]),
    ],
)
def test_a_sum_of_energies_names_its_terms(make_model, terms, names):
    model = make_model(2, energy=Composite, energy_kwargs=dict(terms=terms, weights=(1.0, 0.5)))
    found = landscape_of(model, OBSERVATION, n_grid=5, n_particles=2)
    assert list(found.parts) == list(found.part_velocities) == names
    np.testing.assert_allclose(sum(found.parts.values()), found.energy, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sum(found.part_velocities.values()), found.velocity, rtol=1e-4, atol=1e-5)
    unit = model.policy.energy.temperature if found.name == "U" else 1.0
    effort = 0.5 * unit * np.square(found.actions - OBSERVATION[0]).sum(-1)
    np.testing.assert_allclose(found.parts["valley"], effort, rtol=1e-5, atol=1e-6)


def test_named_terms_of_an_energy_are_drawn_beside_it():
    found = landscape_of(energy_sac(2), OBSERVATION, n_grid=9, n_particles=5)
    terms = {"q": found.energy, "effort": np.square(found.actions).sum(-1), "far_off": -found.actions[..., 0]}
    found = found._replace(parts=terms, energy=sum(terms.values()), part_velocities={"q": found.velocity})
    figure = draw_landscape(found)
    figure.savefig(io.BytesIO())
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert [title.split(",")[0] for title in titles] == [
        "Term q",
        "Term effort",
        "Term far_off",
        "Energy $E$ = q + effort + far_off",
        "Gaussian policy",
        "5 particles",
    ]


@pytest.mark.parametrize("action_dim", [1, 2])
@pytest.mark.parametrize("transport_time", [0.5, 1.0])
def test_what_is_drawn_fills_the_picture(action_dim, transport_time):
    """Also with one stage alone: a layout that has failed leaves slivers."""
    figure = draw_landscape(landscape_of(make(action_dim, dict(transport_time=transport_time)), OBSERVATION, n_grid=5))
    figure.savefig(io.BytesIO())
    boxes = [ax.get_position() for ax in figure.axes if ax.get_title()]
    assert len(boxes) == 4 and all(box.width > 0.3 and box.height > 0.3 for box in boxes)


def test_three_dimensions_say_which_plane_is_shown():
    found = landscape_of(make(3), OBSERVATION, (2, 0), n_grid=5, n_particles=2)
    heading = draw_landscape(found).get_suptitle()
    assert heading == "plane of $a_{3}$ and $a_{1}$ through the deterministic action, particles projected onto it"


def test_without_matplotlib_a_sentence_says_what_to_install(monkeypatch):
    found = landscape_of(make(1), OBSERVATION, n_grid=3)  # the numbers need none
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-energy\[plots\]'"):
        draw_landscape(found)
    with pytest.raises(ImportError, match=r"pip install 'sb3-energy\[plots\]'"):
        LandscapeCallback()


class Kept(KVWriter):
    """An output of the logger that keeps pictures."""

    def __init__(self):
        self.figures, self.written = {}, []

    def write(self, key_values, key_excluded, step=0):
        self.written += [step] if any(isinstance(value, Figure) for value in key_values.values()) else []
        self.figures |= {(step, key): value for key, value in key_values.items() if isinstance(value, Figure)}

    def close(self):
        pass


def logged(model, callback, n_steps=12) -> Kept:
    kept = Kept()
    model.set_logger(Logger(None, [kept]))
    model.learn(n_steps, callback=callback)
    return kept


def test_the_callback_draws_in_time_and_at_the_end():
    callback = LandscapeCallback(freq=5, n_grid=5, n_particles=3)
    kept = logged(make(2), callback)
    written = len(kept.written)
    callback.on_training_end()  # as the zoo does once more
    assert len(kept.written) == written == 3
    assert list(kept.figures) == [(step, "landscape/observation") for step in (5, 10, 12)]
    assert callback.observation.tolist() == OBSERVATION.tolist()  # what the environment began with
    assert kept.figures[(5, "landscape/observation")].figure.get_suptitle() == "after 5 steps"


@pytest.mark.parametrize("make", [make, energy_sac])
def test_training_does_not_notice_the_callback(make):
    plain = make(2).learn(12)
    watched = make(2)  # from the same seed
    logged(watched, LandscapeCallback(freq=1, n_grid=3, n_particles=2))
    assert plain._n_updates == watched._n_updates > 0
    for ours, theirs in zip(plain.policy.parameters(), watched.policy.parameters(), strict=True):
        th.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    "arguments, error", [(dict(freq=0), ValueError), (dict(freq="often"), TypeError), (dict(n_grid=1), ValueError)]
)
def test_the_callback_refuses_at_once(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        LandscapeCallback(**arguments)


@pytest.mark.parametrize(
    "arguments, message", [(dict(dims=(0, 5)), "dims must be"), (dict(observation=np.zeros(3, np.float32)), "shape")]
)
def test_the_callback_refuses_before_training(arguments, message):
    model = make(2)
    with pytest.raises(ValueError, match=message):
        logged(model, LandscapeCallback(**arguments))
    assert model.num_timesteps == 0


def test_a_logger_without_pictures_is_refused():
    with pytest.raises(ValueError, match=r"PGAC\(tensorboard_log=...\), got \['HumanOutputFormat'\]"):
        make(2, verbose=1).learn(1, callback=LandscapeCallback())


def test_the_callback_draws_an_energy_without_a_gradient():
    callback = LandscapeCallback(freq=10, n_grid=3, n_particles=2)
    kept = logged(energy_sac(1, energy=stairs, refiner="snis", n_particles=4), callback, n_steps=10)
    assert list(kept.figures) == [(10, "landscape/observation")]


def test_the_event_file_has_the_picture(tmp_path):
    model = make(2, tensorboard_log=str(tmp_path), verbose=1)  # verbose: no other output chokes on a picture
    model.learn(10, callback=LandscapeCallback(OBSERVATION, freq=6, n_grid=5, n_particles=3))
    events = EventAccumulator(str(tmp_path / "PGAC_1"), size_guidance={"images": 0}).Reload()
    images = events.Images("landscape/observation")
    assert [image.step for image in images] == [6, 10] and {image.width for image in images} == {1200}


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("landscape_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_example_trains_saves_and_draws(example, tmp_path, capsys):
    short = "--timesteps 24 --learning-starts 8 --net-arch 8 --grid 5 --particles 4 --device cpu".split()
    first = example.main([*short, "--save", str(tmp_path / "model.zip"), "--output", str(tmp_path / "one.png")])
    assert first.dims == (0, 1) and (tmp_path / "one.png").stat().st_size > 10_000
    again = example.main(
        ["--model", str(tmp_path / "model.zip"), *short[-6:], "--observation", "0", "0", "--output", str(tmp_path / "two.png")]
    )
    np.testing.assert_array_equal(first.energy, again.energy)
    np.testing.assert_array_equal(first.positions, again.positions)
    assert "trained for 24 steps" in capsys.readouterr().out


def test_the_example_draws_energy_sac(example, tmp_path):
    short = "--algo energy_sac --timesteps 24 --learning-starts 8 --net-arch 8 --grid 5 --particles 4 --device cpu".split()
    found = example.main([*short, "--output", str(tmp_path / "one.png")])
    assert found.name == "E" and list(found.parts) == ["-Q"] and (tmp_path / "one.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "arguments",
    ["--grid 1", "--particles 0", "--model nothing.zip", "--output nowhere/p.png", "--reward-scale 0", "--save nowhere/m.zip"],
)
def test_the_examples_wrong_arguments_are_one_sentence(example, arguments, capsys):
    with pytest.raises(SystemExit):
        example.parse(arguments.split())
    assert f"error: {arguments.split()[0]} must" in capsys.readouterr().err

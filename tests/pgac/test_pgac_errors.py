"""Wrong arguments of PGAC: one sentence says what and what instead, when the model is made."""

import pickle

import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_energy import PGAC, EnergySAC
from sb3_energy.energy_sac import MlpPolicy
from sb3_energy.pgac import MlpPolicy as PotentialMlpPolicy
from sb3_energy.pgac.persistent_chains import ChainReplayBuffer

COEFFICIENTS = ("transport_coef", "divergence_coef", "matching_coef", "end_to_end_coef")
OF_ONE = [
    case
    for name in COEFFICIENTS
    for case in (
        (dict([(name, -1.0)]), ValueError, f"{name} must be at least 0, got -1.0"),
        (dict([(name, float("nan"))]), ValueError, f"{name} must be finite, got nan"),
        (dict([(name, "much")]), TypeError, f"{name} must be a number, got 'much'"),
        (dict([(name, None)]), TypeError, f"{name} must be a number, got None"),
        (dict([(name, True)]), TypeError, f"{name} must be a number, got True"),
    )
]
OF_THE_ALGORITHM = [
    *OF_ONE,
    (dict(value_weight="abs"), ValueError, r"value_weight must be one of \['relu', 'exp'\] or None, got 'abs'"),
    (dict(value_weight=["exp"]), ValueError, r"value_weight must be one of .* or None, got \['exp'\]"),
    (dict(policy_delay=0), ValueError, "policy_delay must be at least 1, got 0"),
    (dict(policy_delay=1.5), TypeError, "policy_delay must be an integer, got 1.5"),
    (dict(policy_delay=None), TypeError, "policy_delay must be an integer, got None"),
    (dict(persistent_chains=1), TypeError, "persistent_chains must be True or False, got 1"),
    (
        dict(potential_training_kwargs=dict(steps=3)),
        TypeError,
        r"potential_training_kwargs of .* among \[.*\], got \['steps'\]",
    ),
    (dict(capture="cuda_graph"), ValueError, "capture='cuda_graph' needs updates without the host, .*; use None"),
    (
        dict(persistent_chains=True, divergence_coef=0.0),
        ValueError,
        "persistent_chains=True needs chains, and divergence_coef above 0, got 0.0",
    ),
    (dict(matching_coef=0.1), ValueError, r"matching_coef above 0 .* needs .*guidance=0.*, got guidance=\d.*"),
    (
        dict(end_to_end_coef=0.1, policy_kwargs=dict(refiner="mppi")),
        ValueError,
        "end_to_end_coef .* 'mala', 'langevin' or 'svgd', got MPPI",
    ),
    (dict(policy_kwargs=dict(energy="q")), ValueError, "energy must be made of the potential .*, got 'q'; EnergySAC .*"),
    (dict(use_sde=True), ValueError, "use_sde=True .* needs EnergySAC with refiner='none', got 'mala'"),
    (dict(policy=MlpPolicy), TypeError, "policy must be one of .*'MlpPolicy'.* or a PotentialPolicy, got RefinedPolicy"),
]
OF_THE_POLICY = [
    (dict(refiner="none"), ValueError, "refiner must be one that follows the potential, such as 'mala', got 'none'; .*"),
    (dict(potential_kwargs=dict(input_gain=0.0)), ValueError, "input_gain must be above 0, got 0.0"),
    (
        dict(potential_kwargs=dict(input_gain=2.0, spectral_norm=True)),
        ValueError,
        "input_gain must be 1.0 with spectral_norm, .*, got 2.0",
    ),
    (dict(potential_kwargs=[64]), TypeError, r"potential_kwargs must be a dict, got \[64\]"),
    (dict(potential_kwargs=dict(width=64)), TypeError, r"potential_kwargs must be among \[.*'net_arch'.*\], got \['width'\]"),
    (dict(potential_kwargs=dict(net_arch=[])), ValueError, r"net_arch of a potential must be .* at least one .*, got \[\]"),
    (
        dict(potential_kwargs=dict(activation_fn="ReLU")),
        ValueError,
        "activation_fn of a potential must be smooth, .*, got ReLU",
    ),
    (
        dict(potential_kwargs=dict(activation_fn="No")),
        ValueError,
        "activation_fn must be a class of torch.nn or its name, such as 'SiLU', got 'No'",
    ),
    (dict(potential_kwargs=dict(layer_norm="yes")), TypeError, "layer_norm must be True or False, got 'yes'"),
    (dict(sampling_time=0.0), ValueError, "sampling_time must be above 0, got 0.0"),
    (dict(sampling_time="long"), TypeError, "sampling_time must be a number, got 'long'"),
    (dict(sampling_time=True), TypeError, "sampling_time must be a number, got True"),
    (dict(transport_time=-0.5), ValueError, "transport_time must be at least 0, got -0.5"),
    (dict(transport_time="half"), TypeError, "transport_time must be a number, got 'half'"),
    (
        dict(refiner="hmc", sampling_time=1.0),
        ValueError,
        "sampling_time belongs to .*refiner='mala' or 'langevin', got 1.0 with 'hmc'",
    ),
    (dict(refiner="mppi", transport_time=0.0), ValueError, "transport_time belongs to .*'langevin', got 0.0 with 'mppi'"),
    (dict(refiner_kwargs=dict(step_size=0.1)), ValueError, r"refiner_kwargs .* leave \['step_size'\] to sampling_time .*"),
    (dict(refiner_kwargs=dict(noise_scale=0.1)), ValueError, r"refiner_kwargs .* leave \['noise_scale'\] to sampling_time .*"),
    (dict(refiner_steps=0), ValueError, "refiner_steps must be at least 1, got 0"),
    (dict(initial_particles="gaussian"), ValueError, r"initial_particles must be one of .*'normal'.*, got 'gaussian'"),
    (dict(energy_kwargs=dict(temperature=0.0)), ValueError, "temperature must be above 0, got 0.0"),
    (dict(energy_kwargs=dict(guidance=-1)), ValueError, "guidance must be at least 0, got -1"),
    (dict(trust_region="near"), TypeError, "trust_region must be a number or None, got 'near'"),
]
EVERY = OF_THE_ALGORITHM + [(dict(policy_kwargs=kwargs), *rest) for kwargs, *rest in OF_THE_POLICY]


@pytest.mark.parametrize("kwargs, error, match", EVERY, ids=lambda value: str(value)[:60])
def test_wrong_arguments(make_model, kwargs, error, match):
    with pytest.raises(error, match=f"^{match}$") as caught:
        make_model(**kwargs)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_matching_divides_by_the_entropy_coefficient(make_model):
    unguided = dict(energy_kwargs=dict(guidance=0.0))
    with pytest.raises(ValueError, match=r"^ent_coef is what matching_coef divides Q by and must be above 0, got 0.0$"):
        make_model(matching_coef=0.1, ent_coef=0.0, policy_kwargs=unguided)
    assert make_model(ent_coef=0.0).learn(23)._n_updates == 3


@pytest.mark.parametrize("chosen, name", [(ReplayBuffer, "ReplayBuffer"), (3, "3")])
def test_a_buffer_without_chains(make_model, chosen, name):
    match = f"^persistent_chains=True needs replay_buffer_class=None or one with PersistentChains, got {name}$"
    with pytest.raises(ValueError, match=match):
        make_model(persistent_chains=True, replay_buffer_class=chosen)


def test_n_steps_of_a_dictionary(make_model):
    env = SimpleMultiObsEnv(num_col=2, num_row=2, discrete_actions=False)
    with pytest.raises(ValueError, match=r"^n_steps must be 1 with observations that are a dictionary, got 2$"):
        make_model("MultiInputPolicy", env, persistent_chains=True, n_steps=2)


@pytest.mark.parametrize("n_chains", [None, 3])
def test_loading_a_buffer_that_cannot_keep_the_chains(make_model, tmp_path, n_chains):
    model = make_model(persistent_chains=True).learn(24)
    box = spaces.Box(-1.0, 1.0, (3,))
    other = ReplayBuffer(5, box, box) if n_chains is None else ChainReplayBuffer(5, box, box, n_chains=n_chains)
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps(other))
    before = model.replay_buffer
    with pytest.raises(ValueError, match=rf"^persistent_chains=True needs a buffer of 2 chains, got one of {n_chains or 0}$"):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is before and model.learn(2, reset_num_timesteps=False)


def test_each_algorithm_loads_its_own_files(make_model, tmp_path):
    make_model().save(tmp_path / "pgac")
    EnergySAC("MlpPolicy", "Pendulum-v1", buffer_size=10).save(tmp_path / "energy_sac")
    with pytest.raises(ValueError, match=r"is no saved EnergySAC: its policy is PotentialPolicy of .*; load it with"):
        EnergySAC.load(tmp_path / "pgac")
    with pytest.raises(ValueError, match=r"is no saved PGAC: its policy is RefinedPolicy of .*; load it with"):
        PGAC.load(tmp_path / "energy_sac")
    with pytest.raises(TypeError, match=r"^policy must be without a potential, which PGAC teaches, got PotentialPolicy$"):
        EnergySAC(PotentialMlpPolicy, "Pendulum-v1")

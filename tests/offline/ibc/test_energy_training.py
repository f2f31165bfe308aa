"""What is wrong in the settings of an energy's training, or would have no effect, is refused in one sentence."""

import pytest

from sb3_energy.offline.ibc import LOSSES
from sb3_energy.offline.ibc.energy_training import NEGATIVES, REFUSED
from tests.offline.ibc.small_ibc import small_ibc

LANGEVIN = dict(refiner="langevin", refiner_kwargs=dict(noise_scale=0.0))


def settings(**training):
    return dict(energy_training_kwargs=training)


def policy(**kwargs):
    return dict(policy_kwargs=kwargs)


def test_each_refusal_of_counter_examples_has_its_reason():
    with_some = {name: loss.negatives for name, loss in LOSSES.items() if loss.negatives}
    assert set(REFUSED) == {(name, kind) for name, kinds in with_some.items() for kind in NEGATIVES if kind not in kinds}


@pytest.mark.parametrize(
    ("kwargs", "error", "words"),
    [
        (dict(loss="mse"), ValueError, r"loss must be one of \['info_nce', .*, got 'mse'"),
        (settings(n_negative=3), TypeError, r"energy_training_kwargs .*\['n_negative'\]; did you mean 'n_negatives'"),
        (settings(n_negatives=0), ValueError, "n_negatives must be at least 1, got 0"),
        (settings(negatives="gaussian"), ValueError, "negatives must be one of"),
        (settings(uniform_fraction=1.5), ValueError, r"uniform_fraction must lie in \[0, 1\]"),
        (settings(box_margin=-0.1), ValueError, "box_margin must be at least 0"),
        (settings(gradient_margin=0.0), ValueError, "gradient_margin must be above 0"),
        (
            settings(penalty_coef=2.0),
            ValueError,
            r"energy_training_kwargs=dict\(penalty_coef=2.0\) needs a training",
        ),
        (
            settings(noise_std=0.2),
            ValueError,
            r"energy_training_kwargs=dict\(noise_std=0.2\) needs .* got loss='info_nce'",
        ),
        (settings(chain_steps=5), ValueError, r"energy_training_kwargs=dict\(chain_steps=5\) needs .* negatives='uniform'"),
        (settings(uniform_fraction=0.3), ValueError, r"energy_training_kwargs=dict\(uniform_fraction=0.3\) needs"),
        (
            settings(negatives="proposal"),
            ValueError,
            r"negatives must be one of .*: its optimum would be off",
        ),
        (settings(negatives="chain", chain="derivative_free"), ValueError, "chain must be a refiner that moves each"),
        (settings(negatives="chain", chain="none"), ValueError, "chain must be a refiner that moves each"),
        (settings(negatives="chain", chain="flow"), ValueError, "chain must be a refiner that moves each"),
        (
            settings(negatives="chain", chain_kwargs=dict(step=1)),
            TypeError,
            "refiner_kwargs of AnnealedGradient must be",
        ),
        (settings(negatives="both", uniform_fraction=0.0), ValueError, "uniform_fraction must leave counter-examples of both"),
        (
            dict(loss="r_nce") | settings(negatives="chain"),
            ValueError,
            r"negatives must be one of \['proposal'\] with loss='r_nce', got 'chain': where a chain has moved them",
        ),
        (dict(loss="r_nce") | settings(negatives="uniform"), ValueError, "negatives must be .* it is loss='info_nce'"),
        (
            dict(loss="r_nce") | settings(uniform_fraction=1.0),
            ValueError,
            "uniform_fraction must leave counter-examples that are drawn from the proposal",
        ),
        (
            dict(loss="r_nce") | settings(uniform_fraction=0.0, box_margin=0.2),
            ValueError,
            r"energy_training_kwargs=dict\(box_margin=0.2\) needs",
        ),
        (dict(loss="nce") | settings(negatives="both"), ValueError, "negatives must be .* their density is not known"),
        (
            dict(loss="contrastive_divergence") | settings(negatives="uniform"),
            ValueError,
            "negatives must be .* the loss has no bound",
        ),
        (
            dict(loss="denoising_score_matching") | settings(negatives="uniform") | policy(activation_fn="SiLU"),
            ValueError,
            "negatives must be None with loss='denoising_score_matching', which has no counter-examples, got 'uniform'",
        ),
        (
            dict(loss="denoising_score_matching") | settings(gradient_margin=1.0) | policy(activation_fn="SiLU"),
            ValueError,
            r"energy_training_kwargs=dict\(gradient_margin=1.0\) needs .* without counter-examples",
        ),
        (
            dict(loss="sliced_score_matching"),
            ValueError,
            "activation_fn must be smooth with loss='sliced_score_.*ReLU",
        ),
        (dict(loss="ebt") | policy(activation_fn="SiLU"), ValueError, "refiner must be the descent that loss='ebt' learns"),
        (
            dict(loss="ebt") | policy(activation_fn="SiLU", refiner="langevin"),
            ValueError,
            "refiner must be the descent that loss='ebt' learns through",
        ),
        (policy(temperature=0.0), ValueError, "temperature must be above 0"),
        (policy(spectral_norm=1), TypeError, "spectral_norm must be True or False"),
        (policy(backbone="flash"), ValueError, "backbone of an energy must not normalise over batches, got 'flash'"),
        (policy(refiner="none"), ValueError, "refiner must search the energy from anywhere in the box"),
        (policy(refiner="flow"), ValueError, "refiner must search the energy from anywhere in the box"),
        (policy(refiner="derivative_fre"), ValueError, "refiner must be one of .* did you mean 'derivative_free'"),
        (
            policy(refiner="mppi", refiner_kwargs=dict(warm_start=True)),
            ValueError,
            "refiner_kwargs must have warm",
        ),
        (
            policy(deterministic_particles=3),
            ValueError,
            "deterministic_particles needs a refiner that moves each",
        ),
        (policy(n_particles=0), ValueError, "n_particles must be at least 1"),
        (policy(refiner="annealed_gradient", refiner_steps=0), ValueError, "refiner_steps must be at least 1"),
        (
            dict(temperature=0.3),
            TypeError,
            r"temperature is an argument of the policy: write policy_kwargs=dict\(",
        ),
        (policy(loss="nce"), TypeError, "loss is an argument of IBC itself"),
        (policy(initial_particles="base"), TypeError, ".*initial_particles"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(kwargs, error, words):
    with pytest.raises(error, match=f"^{words}") as caught:
        small_ibc(**kwargs)
    assert "\n" not in str(caught.value)


def test_method_b_draws_uniform_counter_examples_whatever_the_loss_has():
    chosen = dict(refiner="autoregressive_derivative_free", activation_fn="SiLU")
    model = small_ibc(
        loss="denoising_score_matching", policy_kwargs=chosen, energy_training_kwargs=dict(n_negatives=8, box_margin=0.1)
    ).learn(2)
    assert float(model._latest_losses["prefix_loss"]) > 0.0

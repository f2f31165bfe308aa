"""Small models that train in moments, for the tests of whole algorithms."""

from sb3_energy import PGAC, EnergySAC

ALGORITHMS = {"langevin": EnergySAC, "mppi": EnergySAC, "pgac": PGAC}
REFINED = {
    "langevin": dict(refiner="langevin", refiner_steps=2, n_particles=4),
    "mppi": dict(refiner="mppi", refiner_steps=2, n_particles=4),
    "pgac": dict(refiner_steps=2, n_particles=4),
}
POTENTIAL_TRAINING = dict(n_observations=4, n_candidates=24, n_refined=2, top_k=3, n_negatives=4, negative_steps=2)


def small_model(kind, policy="MlpPolicy", env="Pendulum-v1", policy_kwargs=None, **kwargs):
    """
    :param kind: a key of :data:`ALGORITHMS`
    :param policy: name of the policy
    :param env: to learn from
    :param policy_kwargs: in place of those of a small policy
    :param kwargs: of the algorithm
    :return: the model
    """
    settings = dict(learning_starts=20, batch_size=16, buffer_size=500, seed=0, device="cpu") | kwargs
    if kind == "pgac":
        training = POTENTIAL_TRAINING | (settings.get("potential_training_kwargs") or {})
        if settings.get("divergence_coef") == 0.0:  # without which there are no negatives
            training = {name: value for name, value in training.items() if "negative" not in name}
        settings |= dict(potential_training_kwargs=training)
    small = dict(net_arch=[16]) | REFINED[kind] | (policy_kwargs or {})
    return ALGORITHMS[kind](policy, env, policy_kwargs=small, **settings)

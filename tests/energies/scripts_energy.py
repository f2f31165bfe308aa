"""A script that trains with a function of its own, as people write it: saved, loaded in the script, and elsewhere."""

import sys

import numpy as np

from sb3_energy import EnergySAC


def downhill(observations, actions):
    return (actions - 0.5).square().sum(-1)


if __name__ == "__main__":
    small = dict(net_arch=[8], energy=downhill)
    model = EnergySAC("MlpPolicy", "Pendulum-v1", learning_starts=20, batch_size=16, policy_kwargs=small, device="cpu")
    model.save(sys.argv[1])
    loaded = EnergySAC.load(sys.argv[1], device="cpu")
    assert loaded.policy.energy == model.policy.energy, "the function itself, not a copy"
    loaded.policy.save(sys.argv[1] + ".pth")
    print(*loaded.predict(np.zeros(3, np.float32), deterministic=True)[0])

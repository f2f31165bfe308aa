"""Critics of many actions as targets: stored as they were trained, and long chains that are right where the law is known."""

from pathlib import Path

import numpy as np
import pytest
import torch as th

from benchmarks import wide_critics
from benchmarks.wide_critics import at_its_observation, law, reference, train, trained_critics
from benchmarks.wide_samplers import SETTINGS
from benchmarks.wide_targets import Truth, wide_targets
from sb3_energy.refinement.bases import Gaussian

PAGE = Path(__file__).resolve().parents[2] / "docs" / "refiners.md"


def test_the_stored_critics_are_the_trained_ones_at_one_observation(tmp_path):
    model = train("Pendulum-v1", 1002)
    np.savez(tmp_path / "a.npz", **{f"Pendulum-v1/{name}": value for name, value in at_its_observation(model).items()})
    critic = trained_critics(tmp_path / "a.npz")["Pendulum-v1"]
    actions = th.linspace(-1.0, 1.0, 7).reshape(1, 7, 1)
    observation = th.as_tensor(model._last_obs, dtype=th.float32).repeat(7, 1)
    with th.no_grad():
        q_value = th.stack(model.critic(observation, actions[0])).mean(0).squeeze(1)
        found = critic.energy(actions)[0]
    sigma = model.critic.value_scale.sigma.item()
    assert critic.dimension == 1 and sigma != 1.0
    assert critic.temperature == pytest.approx(sigma * model.log_ent_coef.exp().item())
    th.testing.assert_close(found, -q_value / critic.temperature, rtol=1e-4, atol=1e-4)


def test_the_critics_of_the_package():
    critics = trained_critics()
    assert {task: critic.dimension for task, critic in critics.items()} == {"HalfCheetah-v5": 6, "Humanoid-v5": 17}
    for critic in critics.values():
        energies = critic.energy(2.0 * th.rand((1, 200, critic.dimension), generator=th.Generator().manual_seed(0)) - 1.0)
        assert energies.isfinite().all() and float(energies.std()) > 0.5  # not flat


@pytest.mark.parametrize("start", ["box", "smc, 30 rungs"])
def test_long_chains_reach_a_law_that_is_known(start):
    target = wide_targets(6)["correlated Gaussian"]
    truth, base = Truth(target), Gaussian(th.zeros(1, 6), th.full((1, 6), 0.2))
    th.manual_seed(0)
    found = law(reference(start, base, target.energy, 400, 600), target.energy)
    assert found.energy == pytest.approx(truth.energy, abs=0.06) and found.spread == pytest.approx(truth.spread, rel=0.06)
    few = law(reference("box", base, target.energy, 400, 2), target.energy)
    assert few.energy > truth.energy + 0.5  # chains that are no longer than this are seen


def first_cells(text):
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]


def test_the_page_has_the_rows_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(wide_critics, "FACTORS", (1.0,))  # a column each
    assert wide_critics.main(["--draws", "5", "--chain-steps", "2", "--output", str(tmp_path)]) == 0
    page = PAGE.read_text(encoding="utf-8").split("<!-- wide critics -->")[1].split("<!-- /wide critics -->")[0]
    made = first_cells((tmp_path / "table.md").read_text(encoding="utf-8"))
    assert made == first_cells(page) and set(made) >= set(SETTINGS)

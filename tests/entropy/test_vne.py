import math

import pytest
import torch as th

from sb3_energy.entropy import von_neumann_entropy


def test_particles_at_one_point_have_none():
    th.testing.assert_close(von_neumann_entropy(th.full((3, 7, 2), 0.4)), th.zeros(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_particles_far_apart_have_the_logarithm_of_their_number(n):
    particles = 10.0 * th.arange(n, dtype=th.float64).reshape(1, n, 1)
    th.testing.assert_close(von_neumann_entropy(particles), th.tensor([math.log(n)], dtype=th.float64))


def test_four_clusters_have_log_4_however_many_particles_they_hold():
    centres = th.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], dtype=th.float64)
    for each in (1, 8, 50):
        particles = centres.repeat_interleave(each, 0).unsqueeze(0)
        assert von_neumann_entropy(particles, 0.1).item() == pytest.approx(math.log(4.0), abs=1e-9)
        near = particles + 0.002 * th.randn(particles.shape, dtype=th.float64, generator=th.Generator().manual_seed(0))
        assert von_neumann_entropy(near, 0.1).item() == pytest.approx(math.log(4.0), abs=0.02)


def test_two_particles_have_the_entropy_of_two_numbers():
    kernel = math.exp(-(0.5**2) / (2.0 * 0.3**2))
    p, q = 0.5 * (1.0 + kernel), 0.5 * (1.0 - kernel)
    expected = -p * math.log(p) - q * math.log(q)
    assert von_neumann_entropy(th.tensor([[[0.0], [0.5]]])).item() == pytest.approx(expected, abs=1e-6)


def test_order_and_observation_do_not_matter():
    particles = th.randn(3, 6, 2, 2, dtype=th.float64, generator=th.Generator().manual_seed(0))
    found = von_neumann_entropy(particles)
    th.testing.assert_close(von_neumann_entropy(particles[:, th.randperm(6)]), found)
    for b in range(3):
        th.testing.assert_close(von_neumann_entropy(particles[b : b + 1]), found[b : b + 1])


def test_its_gradient_drives_particles_apart():
    particles = th.tensor([[[0.0], [0.2]]], requires_grad=True)
    (gradient,) = th.autograd.grad(von_neumann_entropy(particles).sum(), particles)
    assert gradient[0, 0] < 0.0 < gradient[0, 1]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"particles must have shape \(B, N, \*event\), got \(3, 2\)"):
        von_neumann_entropy(th.zeros(3, 2))
    for bandwidth in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"bandwidth must be (above 0|finite), got"):
            von_neumann_entropy(th.zeros(1, 3, 2), bandwidth)

"""Functions as data sets, and images of a dot: their answers, seeds and hulls."""

import numpy as np
import pytest
from scipy.spatial import Delaunay
from stable_baselines3.common.preprocessing import is_image_space

from sb3_energy.envs import DotImages, StepFunction, TwoValuedFunction, inside_hull, split_by_hull
from sb3_energy.envs.functions import hull_corners

SETS = [StepFunction(), TwoValuedFunction(), DotImages(size=16)]


@pytest.mark.parametrize("data", SETS, ids=lambda data: type(data).__name__)
def test_examples_lie_in_their_spaces_and_follow_the_seed(data):
    observations, actions = data.draw(40, seed=3)
    assert len(observations) == len(actions) == 40
    assert all(data.observation_space.contains(row) for row in observations)
    assert all(data.action_space.contains(row) for row in actions)
    again, other = data.draw(40, seed=3), data.draw(40, seed=4)
    np.testing.assert_array_equal(observations, again[0])
    np.testing.assert_array_equal(actions, again[1])
    assert not np.array_equal(actions, other[1])


def test_the_step_is_where_it_is_said():
    step = StepFunction((-0.2, 0.9), jump=0.3)
    assert step.answer(np.array([-1.0, 0.299, 0.3, 1.0])).tolist() == pytest.approx([-0.2, -0.2, 0.9, 0.9])
    x, y = step.draw(2000, seed=0)
    np.testing.assert_array_equal(y, step.answer(x))
    assert (y == np.float32(0.9)).mean() == pytest.approx(0.35, abs=0.03)
    assert x.min() < -0.99 and x.max() > 0.99


def test_noise_has_its_standard_deviation():
    clean, noisy = StepFunction().draw(4000, seed=0), StepFunction(noise_std=0.05).draw(4000, seed=0)
    np.testing.assert_array_equal(clean[0], noisy[0])
    assert (noisy[1] - clean[1]).std() == pytest.approx(0.05, rel=0.05)
    assert np.abs(StepFunction(noise_std=2.0).draw(100, seed=0)[1]).max() == 1.0


def test_two_values_are_drawn_by_their_share():
    data = TwoValuedFunction(distance=0.2, curvature=0.5, share=0.3)
    x, y = data.draw(4000, seed=0)
    lower, upper = data.answers(x).T
    np.testing.assert_allclose(upper, 0.2 + 0.5 * x[:, 0] ** 2, rtol=1e-5)
    np.testing.assert_array_equal(lower, -upper)
    is_upper = y[:, 0] == upper
    assert (is_upper | (y[:, 0] == lower)).all() and is_upper.mean() == pytest.approx(0.3, abs=0.03)
    assert np.corrcoef(is_upper, x[:, 0])[0, 1] == pytest.approx(0.0, abs=0.05)


def test_a_dot_is_where_its_coordinates_are():
    data = DotImages(size=21)
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [0.0, 0.5]])
    for image, place in zip(data.images(corners), [(0, 0), (0, 20), (20, 0), (15, 10)], strict=True):
        assert np.unravel_index(image[0].argmax(), (21, 21)) == place and image.max() == 255
    image = data.images(np.array([[0.13, -0.22]]))[0, 0].astype(float)  # between pixels, the centre of mass
    rows, columns = np.indices(image.shape)
    found = np.array([(image * columns).sum(), (image * rows).sum()]) / image.sum()
    np.testing.assert_allclose(found / 10.0 - 1.0, [0.13, -0.22], atol=0.01)
    assert is_image_space(data.observation_space) and data.in_pixels(0.1) == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(5))
def test_the_hull_is_scipy_s(seed):
    rng = np.random.default_rng(seed)
    of, points = rng.normal(size=(4 + 3 * seed, 2)), 1.5 * rng.normal(size=(500, 2))
    expected = Delaunay(of).find_simplex(points) >= 0
    np.testing.assert_array_equal(inside_hull(points, of), expected)
    inside, outside = split_by_hull(points, of)
    np.testing.assert_array_equal(inside, np.flatnonzero(expected))
    assert len(inside) + len(outside) == 500 and len(inside) >= 20


def test_hulls_of_few_points_and_of_one_dimension():
    triangle = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert inside_hull(triangle, triangle).all(), "corners are inside"
    points = np.array([[0.5, 0.5], [0.25, 0.25], [0.5, 0.4999], [2.0, 2.0]])
    assert inside_hull(points, triangle).tolist() == [True, True, True, False]
    line = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    assert inside_hull(points, line).tolist() == [True, True, False, False]
    assert inside_hull(points, points[:1]).tolist() == [True, False, False, False]
    assert len(hull_corners(np.repeat(triangle, 3, axis=0))) == 3
    assert inside_hull(np.array([[-1.0], [0.3], [2.0]]), np.array([[0.0], [2.0]])).tolist() == [False, True, True]


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: StepFunction((0.5, -0.5)), ValueError, r"values must ascend, got \(0.5, -0.5\)"),
        (lambda: StepFunction((-2.0, 0.0)), ValueError, r"values must lie in \[-1, 1\], got \(-2.0, 0.0\)"),
        (lambda: StepFunction(jump=1.0), ValueError, r"jump must lie in \(-1, 1\), got 1.0"),
        (lambda: StepFunction(jump="0"), TypeError, "jump must be a number, got '0'"),
        (lambda: StepFunction(noise_std=-0.1), ValueError, "noise_std must be at least 0, got -0.1"),
        (lambda: StepFunction().draw(0, 0), ValueError, "n must be at least 1, got 0"),
        (lambda: StepFunction().draw(1.5, 0), TypeError, "n must be an integer, got 1.5"),
        (lambda: StepFunction().draw(1, -1), ValueError, "seed must be at least 0, got -1"),
        (lambda: TwoValuedFunction(distance=0.0), ValueError, "distance must be above 0, got 0.0"),
        (lambda: TwoValuedFunction(0.8, 0.4), ValueError, "distance . curvature must be at most 1, .*, got 0.8 and 0.4"),
        (lambda: TwoValuedFunction(share=1.1), ValueError, r"share must lie in \[0, 1\], got 1.1"),
        (lambda: DotImages(size=4), ValueError, "size must be at least 8, got 4"),
        (lambda: DotImages(dot_std=0.0), ValueError, "dot_std must be above 0, got 0.0"),
        (lambda: DotImages().images(np.array([[0.0, 1.1]])), ValueError, r"coordinates must be \(n, 2\) in \[-1, 1\]"),
        (lambda: inside_hull(np.zeros((2, 3)), np.zeros((2, 3))), ValueError, "with D of 1 or 2 and m > 0"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()

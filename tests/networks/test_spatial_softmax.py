"""Places in images: of a bright pixel, of a dot, learned by a policy of Stable-Baselines3."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.vec_env import DummyVecEnv, VecTransposeImage
from torch import nn

from sb3_energy.envs import DotImages
from sb3_energy.networks import SpatialSoftmax, SpatialSoftmaxCNN

DOTS = DotImages(size=17)


def identity(space, n_channels=(1, 1), gain=30.0, **kwargs):
    """An encoder whose convolutions hand the image on."""
    encoder = SpatialSoftmaxCNN(space, n_channels, **kwargs)
    for layer in encoder.convolutions:
        if isinstance(layer, nn.Conv2d):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            centre = layer.kernel_size[0] // 2
            layer.weight.data[:, :, centre, centre] = gain / layer.in_channels
            gain = 1.0
    return encoder


@pytest.mark.parametrize("row, column", [(0, 0), (0, 12), (7, 3), (12, 12), (6, 6)])
def test_a_single_bright_pixel_s_coordinates_are_recovered(row, column):
    axis = th.linspace(-1.0, 1.0, 13)
    activations = th.zeros(2, 3, 13, 13)
    activations[:, 1, row, column] = 40.0
    found = SpatialSoftmax(axis, axis)(activations)
    assert found.shape == (2, 6)
    th.testing.assert_close(found[:, [1, 4]], th.tensor([[axis[column], axis[row]]] * 2))
    th.testing.assert_close(found[:, [0, 2, 3, 5]], th.zeros(2, 4))


@pytest.mark.parametrize("kwargs", [dict(), dict(stride=1), dict(kernel_size=5), dict(stride=4)], ids=str)
def test_the_encoder_says_where_a_bright_pixel_is(kwargs):
    step = kwargs.get("stride", 2)
    encoder = identity(DOTS.observation_space, **kwargs)
    places = [(row, column) for row in range(0, 17, step) for column in range(0, 17, step)]
    images = th.zeros(len(places), 1, 17, 17)
    for image, (row, column) in zip(images, places, strict=True):
        image[0, row, column] = 1.0
    expected = th.tensor(places)[:, [1, 0]] / 8.0 - 1.0
    th.testing.assert_close(encoder(images), expected, atol=1e-3, rtol=0.0)


def test_a_dot_between_pixels_and_in_an_oblong_image():
    space = spaces.Box(0, 255, (3, 9, 25), np.uint8)
    encoder = identity(space, gain=3.0, stride=1, temperature=1.0)
    rows, columns = th.meshgrid(th.arange(9.0), th.arange(25.0), indexing="ij")
    log_image = -0.5 * ((rows - 4.3) ** 2 + (columns - 15.6) ** 2)
    image = (2.0 + log_image / 3.0).clamp(min=0.0).expand(1, 3, -1, -1)  # above 0, where ReLU hands it on
    across, down = encoder(image)[0].tolist()
    assert (across + 1.0) * 12.0 == pytest.approx(15.6, abs=0.3)
    assert (down + 1.0) * 4.0 == pytest.approx(4.3, abs=0.3)


def test_a_lower_temperature_is_nearer_to_the_brightest_pixel():
    axis = th.linspace(-1.0, 1.0, 9)
    activations = th.zeros(1, 1, 9, 9)
    activations[0, 0, 4, 8] = 1.0
    found = [SpatialSoftmax(axis, axis, temperature)(activations)[0, 0].item() for temperature in (1.0, 0.2, 0.05)]
    assert 0.0 < found[0] < found[1] < found[2] <= 1.0 and found[2] > 0.99


def test_thirty_labels_suffice_for_a_place_to_be_learned():
    data = DotImages(size=24)
    th.manual_seed(0)
    (images, labels), (tests, answers) = data.draw(30, seed=0), data.draw(100, seed=1)
    encoder = SpatialSoftmaxCNN(data.observation_space, (16, 16))
    network = nn.Sequential(encoder, nn.Linear(encoder.features_dim, 2))
    optimizer = th.optim.Adam(network.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        (network(th.as_tensor(images) / 255.0) - th.as_tensor(labels)).square().mean().backward()
        optimizer.step()
    with th.no_grad():
        errors = (network(th.as_tensor(tests) / 255.0) - th.as_tensor(answers)).norm(dim=1)
    assert data.in_pixels(errors.mean().item()) < 1.0


class Pictures(gym.Env):
    """Shows a dot, channel last, as environments do, and wants to be told where it is."""

    observation_space = spaces.Box(0, 255, (16, 16, 1), np.uint8)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1.0, 1.0, 2)
        return self._image(), {}

    def step(self, action):
        reward = -float(np.square(action - self.place).sum())
        self.place = self.np_random.uniform(-1.0, 1.0, 2)
        return self._image(), reward, False, True, {}

    def _image(self):
        return DotImages(size=16).images(self.place[None])[0].transpose(1, 2, 0)


@pytest.mark.parametrize("normalize_images", [True, False])
def test_it_is_a_features_extractor_of_sb3_s_cnn_policy(tmp_path, normalize_images):
    settings = dict(
        features_extractor_class=SpatialSoftmaxCNN,
        features_extractor_kwargs=dict(n_channels=(4, 8)),
        net_arch=[16],
        normalize_images=normalize_images,
    )
    model = SAC("CnnPolicy", Pictures(), policy_kwargs=settings, learning_starts=10, buffer_size=100, seed=0, device="cpu")
    extractor = model.actor.features_extractor
    before = [parameter.clone() for parameter in model.critic.features_extractor.parameters()]
    model.learn(25)
    assert isinstance(extractor, SpatialSoftmaxCNN) and extractor.features_dim == 16
    after = list(model.critic.features_extractor.parameters())
    assert all(not th.equal(old, new) for old, new in zip(before, after, strict=True)), "the temperature learns, too"
    env = VecTransposeImage(DummyVecEnv([Pictures]))
    observation = env.reset()
    raw = th.as_tensor(observation).float()
    features = model.actor.extract_features(th.as_tensor(observation), model.actor.features_extractor)
    expected = model.actor.features_extractor(raw / 255.0 if normalize_images else raw)
    th.testing.assert_close(features, expected)
    action, _ = model.predict(observation, deterministic=True)
    model.policy.save(tmp_path / "policy")
    loaded = type(model.policy).load(tmp_path / "policy")
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], action)


@pytest.mark.parametrize(
    "args, kwargs, error, message",
    [
        ((spaces.Box(0, 1, (3,)),), {}, ValueError, r"observation_space must be one of images, a Box of shape \(C, H, W\)"),
        ((spaces.Discrete(3),), {}, ValueError, "observation_space must be one of images"),
        ((Pictures.observation_space,), {}, ValueError, r"must have its channels first, .* \(16, 16, 1\); VecTransposeImage"),
        ((DOTS.observation_space,), dict(n_channels=()), TypeError, r"n_channels must be a list of at least one integer"),
        ((DOTS.observation_space,), dict(n_channels=[4, 0]), ValueError, "n_channels must be at least 1, got 0"),
        ((DOTS.observation_space,), dict(kernel_size=4), ValueError, "kernel_size must be odd, .*, got 4"),
        ((DOTS.observation_space,), dict(stride=0), ValueError, "stride must be at least 1, got 0"),
        ((DOTS.observation_space,), dict(temperature=0.0), ValueError, "temperature must be above 0, got 0.0"),
    ],
)
def test_bad_arguments_are_named(args, kwargs, error, message):
    with pytest.raises(error, match=message):
        SpatialSoftmaxCNN(*args, **kwargs)

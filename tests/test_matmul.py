"""The library that multiplies matrices is chosen by trial, used in updates alone, and put back."""

import pytest
import torch as th

from sb3_energy import EnergySAC, matmul
from sb3_energy.fast_updates import lean_updates
from sb3_energy.matmul import MatmulPrecision, fast_matmul_gain, fast_matmul_is_exact
from sb3_energy.networks.by_hand.layers import prefers_mkl


@pytest.fixture(autouse=True)
def highest():
    th.set_float32_matmul_precision("highest")
    yield
    th.set_float32_matmul_precision("highest")


def test_precision_is_put_back():
    with MatmulPrecision("medium"):
        assert th.get_float32_matmul_precision() == "medium" and prefers_mkl(th.zeros(1))
        with MatmulPrecision("highest"):
            assert not prefers_mkl(th.zeros(1))
        assert th.get_float32_matmul_precision() == "medium"
    with pytest.raises(KeyError), MatmulPrecision("medium"):
        raise KeyError
    assert th.get_float32_matmul_precision() == "highest"


@pytest.fixture
def forgotten():
    fast_matmul_is_exact.cache_clear(), fast_matmul_gain.cache_clear()
    yield
    fast_matmul_is_exact.cache_clear(), fast_matmul_gain.cache_clear()


@pytest.mark.parametrize("error, is_exact", [(0.0, True), (5e-6, True), (2e-5, False), (4e-3, False)])
def test_a_product_is_exact_up_to_rounding(monkeypatch, forgotten, error, is_exact):
    """A library whose products at "medium" are off by so much of the product of absolute values."""
    multiply, asked = th.Tensor.__matmul__, []

    def off(a, b):
        if a.dtype == th.float64:
            return multiply(a, b)
        asked.append(th.get_float32_matmul_precision())
        exact, size = multiply(a.double(), b.double()), multiply(a.double().abs(), b.double().abs())
        return exact + error * size

    monkeypatch.setattr(th.Tensor, "__matmul__", off)
    assert fast_matmul_is_exact(1) is is_exact
    assert asked == ["medium"] and th.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("medium, gain", [(1.0, 3.0), (3.0, 1.0), (6.0, 0.5)])
def test_the_gain_is_a_ratio_of_the_shortest_times(monkeypatch, forgotten, medium, gain):
    """By a clock that stands still but for products: three seconds at "highest", and four times as long now and then."""
    now, counts = [0.0], {"highest": 0, "medium": 0}

    def product(a, b):
        precision = th.get_float32_matmul_precision()
        counts[precision] += 1
        now[0] += dict(highest=3.0, medium=medium)[precision] * (4.0 if counts[precision] % 3 == 0 else 1.0)

    monkeypatch.setattr(matmul.th, "mm", product)
    monkeypatch.setattr(matmul.time, "perf_counter", lambda: now[0])
    assert fast_matmul_gain(1) == pytest.approx(gain)
    assert counts["highest"] == counts["medium"] > 10 and th.get_float32_matmul_precision() == "highest"


def test_rounding_to_16_bits_is_noticed(monkeypatch, forgotten):
    multiply = th.Tensor.__matmul__

    def rounded(a, b):
        if th.get_float32_matmul_precision() == "medium":
            return multiply(a.bfloat16(), b.bfloat16()).float()
        return multiply(a, b)

    monkeypatch.setattr(th.Tensor, "__matmul__", rounded)
    assert not fast_matmul_is_exact(1)


def model(**kwargs):
    settings = dict(policy_kwargs=dict(net_arch=[8]), learning_starts=5, buffer_size=100, device="cpu") | kwargs
    return EnergySAC("MlpPolicy", "Pendulum-v1", **settings)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("gain", [1.0, 2.0])
def test_used_where_exact_and_faster(monkeypatch, exact, gain):
    monkeypatch.setattr(lean_updates, "fast_matmul_is_exact", lambda n: exact)
    monkeypatch.setattr(lean_updates, "fast_matmul_gain", lambda n: gain)
    assert model()._uses_fast_matmul == (exact and gain > 1.5)
    assert model(fast_matmul=True)._uses_fast_matmul and not model(fast_matmul=False)._uses_fast_matmul
    assert not model(update="reference")._uses_fast_matmul, "nothing but SB3's own arithmetic unless it is asked for"
    assert model(update="reference", fast_matmul=True)._uses_fast_matmul


def seen_in_updates(agent):
    seen = []
    update = agent._update_target
    agent._update_target = lambda: (seen.append(th.get_float32_matmul_precision()), update())
    agent.learn(8)
    assert th.get_float32_matmul_precision() == "highest"
    return set(seen)


def test_used_in_updates_alone(monkeypatch):
    assert seen_in_updates(model(fast_matmul=True)) == {"medium"}
    assert seen_in_updates(model(fast_matmul=False)) == {"highest"}
    monkeypatch.setattr(lean_updates, "fast_matmul_is_exact", lambda n: True)
    monkeypatch.setattr(lean_updates, "fast_matmul_gain", lambda n: 2.0)
    assert seen_in_updates(model(batch_size=matmul.FEWEST_ROWS)) == {"medium"}
    assert seen_in_updates(model(batch_size=matmul.FEWEST_ROWS - 1)) == {"highest"}, "slower for small batches"


def test_put_back_when_training_stops():
    agent = model(fast_matmul=True)
    agent.learn(6)
    agent.replay_buffer.rewards[:] = float("nan")
    with pytest.raises(FloatingPointError):
        agent.train(1, 16)
    assert th.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("used", [True, False])
def test_logged(used):
    agent = model(fast_matmul=used).learn(6)
    assert agent.logger.name_to_value["train/fast_matmul"] == float(used)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="fast_matmul must be True, False or None, got 'yes'"):
        model(fast_matmul="yes")
    with pytest.raises(ValueError, match=r"fast_matmul=True needs device='cpu', got 'meta'"):
        model(fast_matmul=True, device="meta")
    with pytest.raises(ValueError, match=r"update must be one of \['lean', 'reference'\], got 'fast'"):
        model(update="fast")

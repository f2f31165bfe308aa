"""The training loop with a learner of one parameter: callbacks, log, progress bar, Ctrl-C, NaN."""

import signal
import threading

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, ConvertCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_energy import EnergyMatching
from sb3_energy.offline.fit import as_callback, descend, fit, record_losses, uninterrupted

DATA = np.random.default_rng(0).standard_normal((40, 2))


class Lines(KVWriter):
    def __init__(self):
        self.lines = []

    def write(self, key_values, key_excluded, step=0):
        self.lines.append((step, dict(key_values)))

    def close(self):
        pass


class Parabola:
    """Descends ``(x - 3)²`` by SGD."""

    def __init__(self):
        self.x = th.zeros(1, requires_grad=True)
        self.optimizer = th.optim.SGD([self.x], lr=0.1)
        self.num_timesteps = 0
        self.output = Lines()
        self.logger = Logger(None, [self.output])
        self.ticks = []

    def update(self, tick):
        self.ticks.append(tick)
        loss = (self.x - 3.0).square().sum()
        descend(self.optimizer, loss, "the loss", "a lower learning_rate")
        self.num_timesteps += 1
        self.losses = dict(loss=loss.detach(), rate=0.1)
        return self.losses

    def dump_logs(self):
        record_losses(self.logger, self.losses)
        self.logger.dump(self.num_timesteps)


class Recorder(BaseCallback):
    def __init__(self, stop_at=None):
        super().__init__()
        self.events, self.stop_at = [], stop_at

    def _on_training_start(self):
        self.events.append("start")

    def _on_step(self):
        self.events.append((self.n_calls, self.num_timesteps, self.locals["tick"].step, self.locals["losses"]["loss"].item()))
        self.logger.record("custom/n", self.n_calls)
        return self.n_calls != self.stop_at

    def _on_training_end(self):
        self.events.append("end")


def test_it_makes_the_gradient_steps_and_logs_them():
    model = Parabola()
    fit(model, model.update, 25, log_interval=10)
    assert model.x.item() == pytest.approx(3.0 * (1.0 - 0.8**25)), "SGD on a parabola is geometric"
    assert [tick.step for tick in model.ticks] == list(range(25))
    assert model.ticks[0].remaining == 1.0 and model.ticks[-1].remaining == 0.0
    (first, losses), (second, _) = model.output.lines
    assert (first, second) == (10, 20)
    assert losses == {"train/loss": pytest.approx((3.0 * 0.8**9) ** 2), "train/rate": 0.1}


def test_without_a_log_interval_nothing_is_logged():
    model = Parabola()
    fit(model, model.update, 25, log_interval=None)
    assert model.output.lines == [] and model.num_timesteps == 25


def test_no_gradient_steps_are_a_start_and_an_end():
    model, recorder = Parabola(), Recorder()
    fit(model, model.update, 0, callback=recorder)
    assert recorder.events == ["start", "end"] and model.num_timesteps == 0


def test_callbacks_are_called_as_in_learn():
    model, recorder = Parabola(), Recorder()
    fit(model, model.update, 3, callback=recorder, log_interval=3)
    assert recorder.model is model and recorder.events[0] == "start" and recorder.events[-1] == "end"
    assert [event[:3] for event in recorder.events[1:-1]] == [(1, 1, 0), (2, 2, 1), (3, 3, 2)]
    assert recorder.locals["self"] is model and recorder.locals["total_timesteps"] == 3
    assert model.output.lines[0][1]["custom/n"] == 3, "what a callback records is in the log"
    fit(model, model.update, 2, callback=recorder)
    assert recorder.locals["total_timesteps"] == 5, "of all calls together, as with reset_num_timesteps=False"


@pytest.mark.parametrize("as_list", [False, True])
def test_a_callback_stops_the_training(as_list):
    model, recorder = Parabola(), Recorder(stop_at=4)
    fit(model, model.update, 50, callback=[recorder] if as_list else recorder)
    assert model.num_timesteps == 4 and recorder.events[-1] == "end"


@pytest.mark.parametrize("as_list", [False, True])
def test_a_function_is_called_with_locals_and_globals(as_list):
    model, seen = Parabola(), []

    def function(locals_, globals_):
        seen.append((locals_["self"], locals_["tick"].step, set(locals_["losses"]), type(globals_)))
        return len(seen) < 3

    fit(model, model.update, 50, callback=[Recorder(), function] if as_list else function)
    assert seen == [(model, step, {"loss", "rate"}, dict) for step in range(3)]


def test_what_is_no_callback_raises():
    assert isinstance(as_callback(None, Parabola()), ConvertCallback)
    with pytest.raises(TypeError, match="callback must be a BaseCallback, a list of them or a function, got 3"):
        fit(Parabola(), lambda tick: {}, 1, callback=3)
    with pytest.raises(ValueError, match="gradient_steps"):
        fit(Parabola(), lambda tick: {}, -1)
    with pytest.raises(ValueError, match="log_interval"):
        fit(Parabola(), lambda tick: {}, 1, log_interval=0)
    with pytest.raises(TypeError, match="progress_bar"):
        fit(Parabola(), lambda tick: {}, 1, progress_bar="yes")


def test_the_progress_bar_counts_gradient_steps(monkeypatch, capsys):
    rich = pytest.importorskip("tqdm.rich")
    bars = []

    class Bar(rich.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)

    monkeypatch.setattr(rich, "tqdm", Bar)
    model = Parabola()
    fit(model, model.update, 7, progress_bar=True)
    assert [(bar.total, bar.n) for bar in bars] == [(7, 7)]
    with pytest.raises(ZeroDivisionError):
        fit(model, lambda tick: 1 / 0, 7, progress_bar=True)
    assert bars[1].disable, "closed after an error too, or the terminal would stay without a cursor"


def test_without_tqdm_the_progress_bar_raises_sb3s_error(monkeypatch):
    monkeypatch.setattr("stable_baselines3.common.callbacks.tqdm", None)
    with pytest.raises(ImportError, match="tqdm and rich"):
        fit(Parabola(), lambda tick: {}, 1, progress_bar=True)


@pytest.fixture
def pythons_handler():
    """A shell starts what runs in its background with Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("pythons_handler")
def test_ctrl_c_lets_the_gradient_step_end():
    model = Parabola()

    def update(tick):
        if tick.step == 4:
            signal.raise_signal(signal.SIGINT)
        return model.update(tick)

    recorder = Recorder()
    with pytest.raises(KeyboardInterrupt):
        fit(model, update, 50, callback=recorder)
    assert model.num_timesteps == 5 and model.x.item() == pytest.approx(3.0 * (1.0 - 0.8**5))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    fit(model, model.update, 1)
    assert model.num_timesteps == 6


@pytest.mark.usefixtures("pythons_handler")
def test_a_second_ctrl_c_interrupts_at_once():
    reached = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
        signal.raise_signal(signal.SIGINT)
        reached.append(2)
    assert reached == [1] and signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("pythons_handler")
def test_an_error_of_the_step_goes_before_ctrl_c():
    with pytest.raises(ZeroDivisionError), uninterrupted():
        signal.raise_signal(signal.SIGINT)
        1 / 0  # noqa: B018


def test_other_threads_and_other_handlers_of_ctrl_c_are_left_alone():
    model = Parabola()
    thread = threading.Thread(target=lambda: fit(model, model.update, 3))
    thread.start()
    thread.join()
    assert model.num_timesteps == 3
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("value", "words"), [(float("nan"), "the loss is nan"), (float("inf"), "the loss is inf")])
def test_a_loss_that_is_not_finite_changes_nothing(value, words):
    x = th.ones(1, requires_grad=True)
    optimizer = th.optim.SGD([x], lr=0.1)
    with pytest.raises(FloatingPointError, match=f"{words}: training stops before .*; try a lower learning_rate"):
        descend(optimizer, (x * value).sum(), "the loss", "a lower learning_rate")
    with pytest.raises(FloatingPointError, match="the gradient of the loss contains NaN or infinity"):
        descend(optimizer, (0.0 * x).abs().sqrt().sum(), "the loss", "a lower learning_rate")
    assert x.item() == 1.0


def small():
    return EnergyMatching(net_arch=[8], batch_size=16, n_steps=3, n_particles=4, warm_up_steps=2, seed=0, device="cpu")


def parameters(model):
    return [*model.network.state_dict().values(), *model.average.state_dict().values()]


def test_energy_matching_interrupted_saved_and_loaded_goes_on(tmp_path):
    whole = small().fit(DATA, gradient_steps=6)
    model = small()

    class Interrupt(BaseCallback):
        def _on_step(self):
            if self.n_calls == 4:
                raise KeyboardInterrupt
            return True

    with pytest.raises(KeyboardInterrupt):
        model.fit(DATA, gradient_steps=6, callback=Interrupt())
    assert model.n_updates == model.num_timesteps == 4 and not model.network.training
    model.save(tmp_path / "model")
    again = EnergyMatching.load(tmp_path / "model", device="cpu")
    for one in (model, again):
        one.fit(DATA, gradient_steps=2)
    assert all(th.equal(old, new) for old, new in zip(parameters(model), parameters(again), strict=True))
    assert len(parameters(whole)) == len(parameters(again)) and again.n_updates == 6


def test_energy_matching_takes_sb3s_checkpoints_and_a_bar(tmp_path, capsys):
    model = small()
    checkpoints = CheckpointCallback(2, str(tmp_path), name_prefix="em")
    model.fit(DATA, gradient_steps=5, callback=checkpoints, progress_bar=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["em_2_steps.zip", "em_4_steps.zip"]
    assert EnergyMatching.load(tmp_path / "em_4_steps.zip").n_updates == 4


def test_a_callback_that_only_looks_changes_no_result():
    silent = small().fit(DATA, gradient_steps=5)
    watched = small().fit(DATA, gradient_steps=5, callback=lambda locals_, globals_: locals_["self"].energy(DATA).any())
    assert all(th.equal(old, new) for old, new in zip(parameters(silent), parameters(watched), strict=True))


def test_callbacks_that_need_an_environment_say_so():
    with pytest.raises(AttributeError, match="get_env"):
        small().fit(DATA, gradient_steps=1, callback=StopTrainingOnMaxEpisodes(1))


def test_the_log_is_printed_unless_there_is_a_logger(capsys):
    EnergyMatching(net_arch=[8], n_steps=2, verbose=1, seed=0).fit(DATA, gradient_steps=2, log_interval=2)
    assert "learning_rate" in capsys.readouterr().out
    output = Lines()
    model = EnergyMatching(net_arch=[8], n_steps=2, verbose=1, seed=0, logger=Logger(None, [output]))
    model.fit(DATA, gradient_steps=2, log_interval=1)
    assert [step for step, _ in output.lines] == [1, 2] and capsys.readouterr().out == ""
    assert output.lines[0][1]["train/learning_rate"] == model.settings.learning_rate
    assert set(output.lines[0][1]) == {"train/loss", "train/transport_loss", "train/learning_rate"}

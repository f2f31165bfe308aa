"""The speed benchmark: its formulas, its ratios, its page, and a small run of the whole."""

import math

import numpy as np
import pytest
import torch as th
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import speed, speed_floor, speed_measure, speed_memory
from benchmarks.speed_cases import BARS, SECTIONS, Bar, baseline, chain
from benchmarks.speed_floor import Evaluations, Shape, forward, input_gradients, weight_gradients
from benchmarks.speed_models import filled
from benchmarks.speed_page import bars_table, fit_table, growth_sentence, page
from benchmarks.speed_plot import draw
from benchmarks.speed_rows import Row, find, read_rows, updated, write_rows
from benchmarks.speed_timing import calibrated, interleaved, linear_fit, speedup
from sb3_energy.matmul import MatmulPrecision

SMALL = Shape(hidden=(32, 24), n_critics=3)


def counted(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_an_update_of_sac_needs_what_the_formula_says_and_wastes_the_rest():
    policy = dict(net_arch=list(SMALL.hidden), n_critics=SMALL.n_critics)
    model = filled("SAC", dict(policy_kwargs=policy))
    rows, critic = SMALL.batch, SMALL.critic
    # SAC's actor loss also makes gradients of the critics' weights, of observations, and of critics that are not the lowest
    made = SMALL.n_critics * (
        weight_gradients(critic, rows) + input_gradients(critic, rows, SMALL.observations + SMALL.actions)
    )
    wasted = made - input_gradients(critic, rows, SMALL.actions)
    assert counted(lambda: model.train(1, batch_size=rows)) == speed_floor.update(SMALL) + wasted


@pytest.mark.parametrize("asked", [Evaluations(energies=5), Evaluations(gradients=4), Evaluations(3, 2), Evaluations()])
def test_a_refinement_needs_what_the_formula_says(asked):
    critics = filled("SAC", dict(policy_kwargs=dict(net_arch=list(SMALL.hidden), n_critics=SMALL.n_critics))).critic
    critics.requires_grad_(False)
    obs, actions = th.randn(SMALL.batch, SMALL.observations), th.randn(SMALL.batch, SMALL.actions, requires_grad=True)

    def refine():
        for q_net in critics.q_networks:
            weight, rest = q_net[0].weight, q_net[1:]
            shared = F.linear(obs, weight[:, : SMALL.observations])
            for k in range(asked.energies + asked.gradients):
                value = rest(shared + F.linear(actions, weight[:, SMALL.observations :]))
                if k < asked.gradients:
                    th.autograd.grad(value.sum(), actions)

    needed = counted(refine) if asked != Evaluations() else 0
    assert needed == speed_floor.refinement(SMALL, asked)


def test_a_prediction_needs_what_the_formula_says():
    actor = filled("SAC", dict(policy_kwargs=dict(net_arch=list(SMALL.hidden)))).actor
    obs = th.randn(SMALL.batch, SMALL.observations)
    assert counted(lambda: actor(obs)) == forward(SMALL.actor, SMALL.batch) == speed_floor.prediction(SMALL, Evaluations())


def test_the_update_of_the_reference_is_never_below_its_floor():
    for steps in (0, 3):
        model = filled("EnergySAC", chain(steps, net_arch=list(SMALL.hidden), n_critics=3) | dict(update="reference"))
        floor = speed_floor.update(SMALL) + speed_floor.refinement(SMALL, Evaluations(gradients=steps))
        assert floor < counted(lambda model=model: model.train(1, batch_size=SMALL.batch)) < 2 * floor


def test_the_floor_is_operations_over_the_rate_of_products():
    assert speed_floor.floor_seconds(3 * 2 * 256**3, product_seconds=0.5) == pytest.approx(1.5)
    assert counted(lambda: speed_floor.product()(2)) == 2 * 2 * 256**3


class Machine:
    """A clock and a machine that becomes slower and slower."""

    def __init__(self):
        self.now, self.n_calls = 0.0, 0

    def clock(self):
        return self.now

    def call(self, cost):
        def called(n):
            for _ in range(n):
                self.now += cost * 1.001**self.n_calls
                self.n_calls += 1

        return called


def test_ratios_do_not_see_that_the_machine_slows_down():
    machine = Machine()
    calls = {"slow": machine.call(3.0), "fast": machine.call(1.0), "other": machine.call(9.0)}
    times = interleaved(calls, 15, 0.0, dict.fromkeys(calls, 2), clock=machine.clock)
    assert times["fast"][-1] > 1.05 * times["fast"][0]
    ratio = speedup(times["slow"], times["fast"])
    assert ratio.value == pytest.approx(3.0, rel=0.01) and ratio.low <= ratio.value <= ratio.high
    assert ratio.high - ratio.low < 0.05


def test_a_speedup_is_the_median_of_ratios_with_its_quartiles():
    assert speedup(np.array([2.0, 6.0, 4.0]), np.array([1.0, 2.0, 4.0])) == (2.0, 1.5, 2.5)


@pytest.mark.parametrize("cost, expected", [(0.001, 20), (0.5, 1)])
def test_slices_are_as_long_as_asked(cost, expected):
    machine = Machine()
    assert calibrated(machine.call(cost), 0.02, clock=machine.clock) == pytest.approx(expected, abs=1)


def test_what_is_timed_has_been_done_for_a_while():
    machine = Machine()
    interleaved({"it": machine.call(0.01)}, 1, 0.02, warm_up=2.0, clock=machine.clock)
    assert 180 <= machine.n_calls <= 220


def test_a_line_is_found_and_a_curve_is_told():
    x = np.array([0.0, 1.0, 5.0, 10.0])
    assert linear_fit(x, 2.0 * x + 3.0) == pytest.approx((2.0, 3.0, 1.0))
    assert linear_fit(x, x**3).r_squared < 0.95
    with pytest.raises(ValueError, match="x must have at least 3 different values"):
        linear_fit(x[:2], x[:2])


def rows(ms=4.0, predict_ratio=4.0):
    line = [
        Row("critics", f"K = 0, {n}", setting, "K = 0", float(n), 3, 2.0 * n + 1.0, 1.0, 0.9, 1.1, 0.5 * n)
        for n in (1, 2, 4)
        for setting in ("stock", "medium")
    ]
    return [
        Row("update", "SB3 SAC", "stock", "", math.nan, 3, 8.0, 1.25, 1.2, 1.3, 3.0),
        Row("update", "K = 0", "stock", "lean", 0.0, 3, ms, 10.0 / ms, 9.0 / ms, 11.0 / ms, 2.0),
        *line,
        Row("predict", "K = 0", "batch 1, sampled", ms=0.1, speedup=predict_ratio, low=3.0, high=5.0),
        Row("memory", "imports alone", "peak", mb=100.0),
        Row("memory", "K = 0", "peak", mb=150.0),
        Row("memory", "growth, K = 1", "2,000 updates", x=2000.0, mb=140.0),
        Row("memory", "growth, K = 1", "20,000 updates", x=20000.0, mb=141.5),
    ]


def test_bars_are_met_missed_or_not_measured():
    bars = [
        Bar("update", "K = 0", "stock", 2.1),
        Bar("update", "K = 0", "stock", 2.6),
        Bar("predict", "K = 0", "batch 1, sampled", 0.25, of_time=True),
        Bar("predict", "K = 0", "batch 1, sampled", 0.24, of_time=True),
        Bar("update", "K = 1", "stock", 1.0),
    ]
    lines = bars_table(rows(), bars).splitlines()[2:]
    assert [line.split("|")[-2].strip() for line in lines] == ["met", "missed", "met", "missed", "not measured"]
    assert "SAC / time ≥ 2.1 | 2.50 [2.25, 2.75]" in lines[0]
    assert "time / SAC ≤ 0.25 | 0.250 [0.200, 0.333]" in lines[2]


def test_the_page_has_the_tables_of_what_was_measured():
    text = page(rows(), "A machine.")
    assert text.startswith("A machine. Medians over 1 to 3 rounds")
    assert "| K = 0 | 4.00 | 2.00 | 2.50 [2.25, 2.75] | – | – |" in text
    assert "| critics | K = 0 | on | 2.00 | 0.500 | 1.00 | 1.0000 |" in fit_table(rows())
    assert "| K = 0 | 150 | 50 |" in text and "(+1.5 MB)" in growth_sentence(rows())
    assert "### Refiners" not in text and "### End to end" not in text


def test_rows_come_back_and_only_what_was_measured_again_is_replaced(tmp_path):
    write_rows(tmp_path / "speed.csv", rows())
    found = read_rows(tmp_path / "speed.csv")
    assert repr(found) == repr(rows())
    again = updated(found, [Row("update", "K = 0", "stock", ms=1.0)], list(SECTIONS))
    assert [row.ms for row in again if row.section == "update"] == [1.0]
    assert [row.section for row in again] == ["update", *["critics"] * 6, "predict", *["memory"] * 4]
    assert read_rows(tmp_path / "absent.csv") == []


def test_the_picture_needs_something_to_show(tmp_path):
    assert not draw([row for row in rows() if row.section == "memory"], tmp_path / "speed.png")
    assert draw(rows()[2:8], tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_every_bar_is_of_a_case_that_is_measured():
    names = {section: {case.name for case in [baseline(section), *make()]} for section, make in SECTIONS.items()}
    assert all(bar.case in names[bar.section] for bar in BARS)
    for section, make in SECTIONS.items():
        assert len(names[section]) == 1 + len(make())


def test_precision_is_what_it_was_afterwards():
    seen = []
    with MatmulPrecision("highest"):
        speed_measure.at("medium", lambda n: seen.append(th.get_float32_matmul_precision()))(1)
        assert seen == ["medium"] and th.get_float32_matmul_precision() == "highest"


def test_a_small_run_writes_tables_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "DOCS", tmp_path / "docs")
    command = ["--quick", "--rounds", "2", "--output", str(tmp_path / "out")]
    assert speed.main([*command, "--sections", "critics"]) == 0
    found = read_rows(tmp_path / "out" / "speed.csv")
    assert {row.case for row in found} == {case.name for case in [baseline("critics"), *SECTIONS["critics"]()]}
    for row in found:
        assert row.ms > row.floor_ms > 0.0 and row.low <= row.speedup <= row.high and row.rounds == 2
    assert find(found, "critics", "SB3 SAC", "highest").speedup == 1.0
    text = (tmp_path / "out" / "speed.md").read_text()
    assert text in capsys.readouterr().out and "### Straight lines" in text
    assert "With the setting, products of 256 × 256 matrices are" in text
    assert not (tmp_path / "docs").exists()
    assert speed.main([*command, "--report-only", "--docs"]) == 0
    assert (tmp_path / "docs" / "speed_tables.md").read_text() == f"{speed.HEADING}{speed.PICTURE}\n\n{text}"
    assert (tmp_path / "docs" / "speed.png").read_bytes() == (tmp_path / "out" / "speed.png").read_bytes()


def test_learning_is_timed_where_the_environment_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(speed_measure, "END_TO_END", ("Absent-v0", "Pendulum-v1"))
    found = speed_measure.measure("end_to_end", speed_measure.Effort(rounds=1, env_steps=2))
    assert "left out: Absent-v0" in capsys.readouterr().out
    assert {row.setting for row in found} == {"Pendulum-v1, stock", "Pendulum-v1, highest", "Pendulum-v1, medium"}
    assert all(row.ms > 0.0 for row in found)


def test_memory_of_a_child_is_its_own():
    ballast = np.ones(100_000_000)
    assert speed_memory.resident_mb() > ballast.nbytes / 1e6
    found = speed_memory.in_a_child("EnergySAC", chain(1, net_arch=[16]), [2, 4], batch=8)
    assert set(found) == {"2", "4", "peak"}
    assert 50.0 < found["2"] <= found["peak"] < 700.0


def test_a_child_that_fails_says_why():
    with pytest.raises(RuntimeError, match="backbone must be one of"):
        speed_memory.in_a_child("EnergySAC", chain(0, backbone="absent"), [1])


@pytest.mark.parametrize(
    "command, message",
    [
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--sections", "update,absent"], "--sections must be some of update,refiners"),
        (["--sections", ""], "--sections must be some of"),
    ],
)
def test_bad_command_lines_are_refused(capsys, command, message):
    with pytest.raises(SystemExit):
        speed.parse(command)
    assert message in capsys.readouterr().err


def test_a_report_of_nothing_is_refused(tmp_path, capsys):
    assert speed.main(["--report-only", "--output", str(tmp_path)]) == 2
    assert "--report-only needs" in capsys.readouterr().err

"""The benchmark of GPUs, as far as it goes without one."""

import csv

import pytest
import torch as th

from benchmarks import gpu


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    error = capsys.readouterr().err
    assert "needs a GPU" in error and error.count("\n") == 1


def test_eager_variants_are_timed(tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--quick", "--output", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    assert {(row["algorithm"], row["steps"]) for row in rows} == {("SAC", ""), ("EnergySAC", "0"), ("EnergySAC", "1")}
    updates = [row for row in rows if row["what"] == "update"]
    assert len(updates) == 3 and all(float(row["milliseconds"]) > 0.0 and row["rounds"] == "2" for row in updates)
    assert [row["ratio_to_sac"] for row in rows if row["algorithm"] == "SAC"] == ["1.00"] * 3
    page = (tmp_path / "gpu.md").read_text()
    assert page.count("\n|") == len(rows) + 2 and page.splitlines()[0] in capsys.readouterr().out
    assert {line.count("|") for line in page.splitlines()[2:]} == {7}


def test_captures_are_timed_where_there_is_something_to_capture():
    names = [(variant.steps, variant.capture, variant.device_buffer) for variant in gpu.variants("compile", (True,), False)]
    assert names == [(k, "compile", True) for k in (1, 5, 10, 20)]
    assert len(gpu.variants("cuda_graph", (False, True), False)) == 10


@pytest.mark.skipif(th.cuda.is_available(), reason="there is a GPU")
def test_a_hole_in_the_table_says_why(tmp_path):
    group = [gpu.Variant(None), gpu.Variant(1, "cuda_graph"), gpu.Variant(5)]
    gpu.ready(group[:2], "cpu", True, float("inf"))
    gpu.ready(group[2:], "cpu", True, 0.0)
    gpu.time_group(group, "cpu", True, 0.0)
    gpu.write(tmp_path, rows := gpu.rows_of([group]), "here")
    notes = [row["note"] for row in rows if row["algorithm"] == "EnergySAC"]
    assert (
        notes[0].startswith("failed: ValueError: capture='cuda_graph' needs a CUDA device") and notes[1] == "left out: no time"
    )
    assert {line.count("|") for line in (tmp_path / "gpu.md").read_text().splitlines()[2:]} == {7}

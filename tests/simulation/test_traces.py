"""Trace files: the published formats are read, mistakes are named by file and line, fitting is honest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadwise.errors import ConfigurationError
from loadwise.simulation.traces import TraceError, fit_lengths, load, thin, to_rate, window
from loadwise.simulation.workloads import Arrival, generate

PLAIN = "t_s,input_tokens,output_tokens\n0.000,374,44\n4.315,396,109\n"
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n"
    "2023-11-16 18:15:50.9951690,396,109\n"
)
AZURE_2024 = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:00.009930+00:00,2162,5\n"
    "2024-05-10 00:00:01.509930+00:00,2399,6\n"
)
BURSTGPT = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
    "46,GPT-4,417,0,417,API log\n"
)
MOONCAKE = "\n".join(
    json.dumps(row)
    for row in (
        {"timestamp": 0, "input_length": 6755, "output_length": 500, "hash_ids": [0, 1, 2]},
        {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]},
    )
)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_plain_csv_is_read_compressed_or_not(tmp_path: Path, name: str) -> None:
    assert load(write(tmp_path, name, PLAIN)) == [Arrival(0.0, 374, 44), Arrival(4.315, 396, 109)]


def test_further_columns_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    text = "\ufeff" + "client,t_s,input_tokens,output_tokens\nx,1.5,3,4\n\ny,2,5,6\n"
    assert load(write(tmp_path, "a.csv", text)) == [Arrival(1.5, 3, 4), Arrival(2.0, 5, 6)]


def test_the_azure_trace_begins_at_its_first_request(tmp_path: Path) -> None:
    first, second = load(write(tmp_path, "a.csv", AZURE))
    assert first == Arrival(0.0, 374, 44)
    assert second.t_s == pytest.approx(4.314579, abs=1e-5)
    assert [a.t_s for a in load(write(tmp_path, "b.csv", AZURE_2024))] == pytest.approx([0.0, 1.5])


def test_burstgpt_is_read_without_its_failed_requests(tmp_path: Path) -> None:
    assert load(write(tmp_path, "b.csv", BURSTGPT)) == [Arrival(5.0, 472, 18), Arrival(45.0, 1087, 230)]


def test_mooncake_times_are_milliseconds(tmp_path: Path) -> None:
    assert load(write(tmp_path, "m.jsonl.gz", MOONCAKE)) == [
        Arrival(0.0, 6755, 500),
        Arrival(27.482, 6955, 52),
    ]


def test_requests_come_in_order_of_time(tmp_path: Path) -> None:
    text = "t_s,input_tokens,output_tokens\n9,1,1\n3,2,2\n"
    assert [a.t_s for a in load(write(tmp_path, "a.csv", text))] == [3.0, 9.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            "when,in,out\n1,2,3\n",
            r"a\.csv, line 1: unknown columns when,in,out\. Known: t_s,input_tokens",
        ),
        ("a.csv", "", r"a\.csv, line 1: unknown columns \(none\)"),
        ("a.csv", "t_s,input_tokens,output_tokens\n", r"a\.csv holds no requests"),
        ("a.csv", PLAIN + "5,many,3\n", r"a\.csv, line 4: input_tokens must be a number .* not 'many'"),
        ("a.csv", PLAIN + "5,1\n", r"a\.csv, line 4: output_tokens must be a number .* not ''"),
        ("a.csv", PLAIN + "-5,1,1\n", r"a\.csv, line 4: t_s must be a number of at least 0, not '-5'"),
        ("a.csv", PLAIN + "nan,1,1\n", r"a\.csv, line 4: t_s"),
        ("a.csv", PLAIN + "1,1e3,1\n", r"a\.csv, line 4: input_tokens"),
        ("a.csv", PLAIN + "1,9999999999999,1\n", r"a\.csv, line 4: input_tokens"),
        ("a.csv", AZURE + "yesterday,1,1\n", r"a\.csv, line 4: TIMESTAMP must be .* not 'yesterday'"),
        ("a.csv", PLAIN + '1,"' + "x" * 200_000 + '",1\n', r"a\.csv, line 4: field larger than field limit"),
        ("m.jsonl", MOONCAKE + "\n{", r"m\.jsonl, line 3: no valid JSON"),
        ("m.jsonl", MOONCAKE + "\n[1]", r"m\.jsonl, line 3: expected an object, not list"),
        (
            "m.jsonl",
            '{"timestamp": 1, "output_length": 2}',
            r"m\.jsonl, line 1: input_length must be a number",
        ),
        ("m.jsonl", '{"timestamp": true, "input_length": 1, "output_length": 2}', r"line 1: timestamp"),
        ("m.jsonl", "\n\n", r"m\.jsonl holds no requests"),
    ],
)
def test_mistakes_are_named_by_file_and_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        load(write(tmp_path, name, text))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"Cannot read .*none\.csv: No such file"):
        load(tmp_path / "none.csv")
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip at all")
    with pytest.raises(TraceError, match=r"Cannot read .*a\.csv\.gz"):
        load(tmp_path / "a.csv.gz")
    (tmp_path / "b.csv.gz").write_bytes(gzip.compress(PLAIN.encode())[:-9])
    with pytest.raises(TraceError, match=r"Cannot read .*b\.csv\.gz"):
        load(tmp_path / "b.csv.gz")
    (tmp_path / "c.csv").write_bytes(b"t_s,input_tokens,output_tokens\n\xff\xfe,1,1\n")
    with pytest.raises(TraceError, match="no UTF-8 text"):
        load(tmp_path / "c.csv")


ARRIVALS = list(generate("poisson", 30.0, 100.0, 2))


def test_a_window_counts_from_its_offset() -> None:
    part = window([Arrival(1.0, 1, 1), Arrival(5.0, 2, 2), Arrival(9.0, 3, 3)], 5.0, 4.0)
    assert part == [Arrival(0.0, 2, 2)]


def test_thinning_keeps_the_times_of_what_it_keeps() -> None:
    kept = thin(ARRIVALS, 0.25, 1)
    assert set(kept) <= set(ARRIVALS)
    assert len(kept) / len(ARRIVALS) == pytest.approx(0.25, abs=0.03)
    assert thin(ARRIVALS, 0.25, 1) == kept
    with pytest.raises(ConfigurationError, match="keep_fraction"):
        thin(ARRIVALS, 1.1, 1)


@settings(max_examples=30, deadline=None)
@given(rate=st.floats(1.0, 200.0), seed=st.integers(0, 1000))
def test_thinned_or_merged_arrivals_reach_the_rate_within_the_duration(rate: float, seed: int) -> None:
    arrivals = to_rate(ARRIVALS, rate, 100.0, seed)
    assert len(arrivals) / 100.0 == pytest.approx(rate, rel=0.15, abs=0.6)
    assert [a.t_s for a in arrivals] == sorted(a.t_s for a in arrivals)
    assert all(0.0 <= a.t_s <= 100.0 for a in arrivals)


def test_merging_keeps_the_trace_itself_and_its_lengths() -> None:
    merged = to_rate(ARRIVALS, 60.0, 100.0, 4)
    assert set(ARRIVALS) <= set(merged)
    lengths = {(a.input_tokens, a.output_tokens) for a in ARRIVALS}
    assert {(a.input_tokens, a.output_tokens) for a in merged} == lengths


def test_no_arrivals_stay_none_and_senseless_rates_are_refused() -> None:
    assert to_rate([], 5.0, 10.0, 0) == []
    with pytest.raises(ConfigurationError, match="rate must be above 0"):
        to_rate(ARRIVALS, 0.0, 10.0, 0)


def test_lengths_are_divided_and_what_is_too_long_is_cut_and_counted() -> None:
    fitted = fit_lengths([Arrival(0.0, 1000, 100), Arrival(1.0, 1, 1), Arrival(2.0, 9000, 4000)], 10.0, 300)
    assert fitted.arrivals == [Arrival(0.0, 100, 10), Arrival(1.0, 1, 1), Arrival(2.0, 1, 299)]
    assert fitted.cut == 1


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 20_000)), max_size=20),
    divisor=st.floats(0.1, 100.0),
    context=st.integers(2, 5000),
)
def test_fitted_requests_always_fit(lengths: list[tuple[int, int]], divisor: float, context: int) -> None:
    fitted = fit_lengths([Arrival(0.0, *pair) for pair in lengths], divisor, context)
    for arrival in fitted.arrivals:
        assert min(arrival.input_tokens, arrival.output_tokens) >= 1
        assert arrival.input_tokens + arrival.output_tokens <= context


def test_senseless_fits_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="divided by a number above 0"):
        fit_lengths([], 0.0, 100)
    with pytest.raises(ConfigurationError, match="at least 2 tokens"):
        fit_lengths([], 1.0, 1)

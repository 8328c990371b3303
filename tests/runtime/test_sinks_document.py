"""docs/alerts.md says what is so."""

from __future__ import annotations

import re
import sqlite3
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest

from runtime.alerts import AlertPolicy, AlertRules
from runtime.cli import FILE_PATIENCE_S
from runtime.events import SCHEMA, Event
from runtime.leads import said
from runtime.monitor import BEGINS, ENDS
from runtime.sinks import delivery, known_urls, mqtt, open_sink, spool, wfdb_full, wfdb_strips


@pytest.fixture(scope="module")
def text(root: Path) -> str:
    return (root / "docs" / "alerts.md").read_text(encoding="utf-8")


def test_every_key_of_an_event_is_explained(text: str) -> None:
    table = text.partition("## Events")[2].partition("##")[0]
    keys = {name for row in re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert keys == {field.name for field in fields(Event)}
    assert SCHEMA in table


def test_every_key_of_a_policy_is_explained_with_what_is_shipped(text: str) -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| ([\d., ]+) \|", text.partition("## When an alert")[2], re.MULTILINE)
    shipped = {
        name: float(value)
        for names, values in rows
        for name, value in zip(re.findall(r"`(\w+)`", names), values.split(", "), strict=True)
    }
    assert shipped == asdict(AlertPolicy())


def test_the_example_of_a_file_is_one(text: str, tmp_path: Path) -> None:
    example = text.partition("    [policy] ")[2].partition("\n| Key")[0]
    path = tmp_path / "ward.toml"
    path.write_text("[policy]" + "\n".join(line.strip() for line in example.splitlines()), encoding="utf-8")
    rule = AlertRules.load(path, ("AFIB",))["AFIB"]
    assert (rule.severity, rule.policy.k, rule.policy.refractory_s) == ("high", 4, 300)
    assert rule.threshold == 0.8


def test_every_kind_of_sink_is_there(text: str) -> None:
    for url in known_urls():
        assert f"`{url.partition(':')[0]}" in text


def test_the_questions_to_the_database_have_answers(text: str, tmp_path: Path) -> None:
    sink = open_sink(f"sqlite:{tmp_path / 'alerts.db'}")
    for number, (kind, label) in enumerate([("onset", "A"), ("onset", "B"), ("update", "B"), ("offset", "A")]):
        sink.write(Event(kind, float(number), {}, "patch", label=label))
    sink.write(Event("quality", 4.0, {}, "patch", quality={"ok": False, "faults": {"II": "lead off"}}))
    # A run that was cut off, and another after it; what another device has open is not void.
    sink.write(Event("link", 0.0, {}, "bed", detail=BEGINS))
    sink.write(Event("onset", 1.0, {}, "bed", label="C"))
    sink.write(Event("onset", 2.0, {}, "bed", label="D"))
    sink.write(Event("link", 0.0, {}, "bed", detail=f"{BEGINS}: {said({'I': 'ECG'})}"))
    sink.write(Event("onset", 3.0, {}, "bed", label="D"))
    sink.close()
    database = sqlite3.connect(tmp_path / "alerts.db")
    questions = re.findall(r"^    -- .*?;$", text, re.MULTILINE | re.DOTALL)
    day, counts, still_open, faults = [database.execute(question).fetchall() for question in questions]
    database.close()
    assert [row[2:4] for row in day[:4]] == [("onset", "A"), ("onset", "B"), ("update", "B"), ("offset", "A")]
    assert sorted(counts) == [("bed", "C", 1), ("bed", "D", 2), ("patch", "A", 1), ("patch", "B", 1)]
    assert sorted(row[:2] for row in still_open) == [("bed", "D"), ("patch", "B")]
    assert faults[0][2] == '{"II":"lead off"}'


def test_the_threshold_of_a_sensitivity_is_what_the_line_prints(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = re.findall(r'^    python -c "(.*)"$', text, re.MULTILINE)
    y_true = np.repeat([[1, 0], [0, 1]], 1000, axis=0).astype(bool)
    y_prob = np.linspace(0.0, 1.0, 2000)[::-1, None].repeat(2, axis=1)
    np.savez(tmp_path / "p.npz", record=np.arange(2000), y_true=y_true, y_prob=y_prob)
    monkeypatch.chdir(tmp_path)
    exec(line)
    found = y_prob[:, 0] >= float(capsys.readouterr().out)
    assert np.mean(found[y_true[:, 0]]) == pytest.approx(0.95, abs=0.001)


def test_numbers_are_those_of_the_code(text: str) -> None:
    plain = " ".join(text.split())
    for words in (
        f"A queue holds {delivery.MAX_EVENTS:,} events and {delivery.MAX_BLOCKS:,} blocks",
        f"after {delivery.RETRY_S} s and then longer and longer, up to {delivery.LONGEST_RETRY_S:g} s",
        f"sinks have {delivery.FLUSH_S:g} s to take what is queued; after SIGTERM or Ctrl-C they have "
        f"{delivery.HURRIED_FLUSH_S} s",
        f"waits for a full queue instead, for {FILE_PATIENCE_S:g} s at most",
        f"The spool holds {spool.LIMIT:,} events",
        f"again every {mqtt.REFUSED_WAIT_S:g} s",
        f"from {wfdb_strips.BEFORE_S:g} s before each onset to {wfdb_strips.AFTER_S:g} s after it",
        f"every {wfdb_full.MAX_BYTES // 2**20} MiB",
        f"a gap of more than {wfdb_full.LONGEST_GAP_S:g} s",
    ):
        assert words in plain


def test_the_words_at_the_beginning_and_the_end_are_those_of_the_code(text: str) -> None:
    assert f"`{BEGINS}`" in text
    assert f"`{ENDS}`" in text

"""The Markdown report, read back by a Markdown parser that lets tags through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from cmr_monitor_callbacks import RunHistory
from cmr_monitor_callbacks.health import Phase
from cmr_monitor_callbacks.reports import report_of
from cmr_monitor_callbacks.reports.markdown import to_markdown
from tests.histories import end, store, transition
from tests.reported import HOSTILE, filled

PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def markdown_of(root: Path) -> str:
    with RunHistory(root) as history:
        return to_markdown(report_of(history))


def inlines(text: str) -> Iterator[Token]:
    for token in PARSER.parse(text):
        yield token
        yield from token.children or ()


def tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of the cells' plain texts by the heading above them, the last table of each."""
    found: dict[str, list[list[str]]] = {}
    heading, tokens = "", PARSER.parse(text)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            heading = tokens[i + 1].content
        elif token.type == "table_open":
            found[heading] = []
        elif token.type == "tr_open":
            found[heading].append([])
        elif token.type in ("th_open", "td_open"):
            children = tokens[i + 1].children or ()
            found[heading][-1].append("".join(child.content for child in children))
    return found


def test_texts_of_others_are_no_markup(tmp_path: Path) -> None:
    folder = tmp_path / "`<b>` *run* | __x__"
    layers = ("<script>alert(1)</script>", "a|b", "`tick", "\\", "[a](http://b)")
    opened = filled(
        folder / "history.sqlite", 20, layers, text=HOSTILE, host="<i>|", git_commit="`"
    )
    end(opened, f"ValueError: {HOSTILE}")
    text = markdown_of(folder)
    kinds = {token.type for token in inlines(text)}
    refused = {
        "html_inline",
        "html_block",
        "code_inline",
        "link_open",
        "image",
        "em_open",
        "s_open",
    }
    assert not kinds & refused
    one_line = " ".join(HOSTILE.split())
    found = tables(text)
    assert [row[0] for row in found["Memory by layer"][1:]] == sorted(layers)
    assert {len(row) for row in found["Memory by layer"]} == {len(found["Memory by layer"][0])}
    assert found["Errors"][1] == [
        *("model", "model", layers[0], "0", "4", "49 to 52"),
        f"KeyError: {one_line}",
    ]
    because = [row[3] for row in found["Alerts"][1:]]
    assert because[:2] == [f"{one_line}: {one_line}"] * 2
    assert found["Alerts"][1][1] == f"{one_line}, layer {layers[0]}"
    plain = [t.content for t in inlines(text) if t.type == "text"]
    [heading] = [t for t in PARSER.parse(text)[1:2]]
    assert "".join(c.content for c in heading.children or ()) == f"CMR run {folder.name}"
    assert one_line in "".join(plain)


def test_a_report_has_its_parts(tmp_path: Path) -> None:
    filled(tmp_path / "history.sqlite", 60)
    text = markdown_of(tmp_path)
    heads = [t.content for t in PARSER.parse(text) if t.type == "inline" and t.level == 1]
    for part in ("Health", "Memory by layer", "Trends", "Resources", "Alerts", "Errors", "Marks"):
        assert f"## {part}" in text and part in heads
    found = tables(text)
    assert found["Health"][1:] == [
        ["avg_latency", "25 ms"],
        ["throughput", found["Health"][2][1]],
        ["error_rate", found["Health"][3][1]],
    ]
    assert found["Trends"][1] == ["storage_efficiency", "worsening", "-77%"]
    assert "**critical** (score 50 of 100), state unknown. The largest part of a step" in text
    assert "60 windows, steps 4 to 299, 2023-11-14T22:13:24.000Z to" in text
    assert "- **firing** (warning) a bad state, layer 2: a bad state: a bad state" in text


@pytest.mark.parametrize("in_memory", [False, True])
def test_before_the_first_window_it_says_so(in_memory: bool, tmp_path: Path) -> None:
    opened = store(None if in_memory else tmp_path / "history.sqlite")
    text = to_markdown(report_of(RunHistory(opened)))
    assert "No window of training has ended in this range" in text and "None" not in text.replace(
        "None.", ""
    )


def test_of_many_alerts_the_newest_are_listed_and_the_others_counted(tmp_path: Path) -> None:
    opened = store(tmp_path / "history.sqlite")
    opened.alerts([transition(f"r{i}", i, Phase.FIRING) for i in range(50)], [])
    rows = tables(markdown_of(tmp_path))["Alerts"][1:]
    assert len(rows) == 21 and rows[0][1] == "30 earlier" and rows[-1][1] == "r49"

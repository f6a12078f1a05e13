"""Tables on narrow terminals: wrapped between words, or as lists; nothing is cut."""

import pytest

from mertool.cli.tables import fit_widths, table

COLUMNS = ["features", "clips", "weighted F1", "gain over frozen"]
ROWS = [["acoustic", 5030, "73.0 [70.1, 75.8]", "+1.2 [-0.3, +2.8], p = 0.110"], ["text", 12, "", ""]]
TITLE = "Cross-validation: 5 folds; per cent, 95 % intervals over speakers"


def print_table(capsys, monkeypatch, columns):
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    table(TITLE, COLUMNS, ROWS)
    return capsys.readouterr().out


def test_without_a_limit_every_row_is_one_line(capsys, monkeypatch):
    lines = print_table(capsys, monkeypatch, None).splitlines()
    assert lines[0].rstrip() == TITLE
    assert any("73.0 [70.1, 75.8]" in line and "+1.2 [-0.3, +2.8], p = 0.110" in line for line in lines)


@pytest.mark.parametrize("columns", [80, 60, 30, 20])
def test_no_word_is_cut(columns, capsys, monkeypatch):
    text = print_table(capsys, monkeypatch, columns)
    words = {word for line in text.splitlines() for word in line.replace("│", " ").replace("┃", " ").split()}
    expected = {word for row in [COLUMNS[1:], *ROWS] for cell in row for word in str(cell).split()}
    assert expected <= {word.rstrip(":;") for word in words}
    assert "…" not in text
    if columns >= 60:
        assert max(map(len, text.splitlines())) <= columns


def test_a_long_path_makes_a_list(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    path = "/home/somebody/experiments/" + "x" * 60 + "/held_out.csv"
    table("2 systems", ["predictions", "accuracy", "UAR"], [[path, 51.5, ""]])
    assert capsys.readouterr().out == f"2 systems\n  {path}\n    accuracy: 51.5\n"


def test_the_widest_column_is_narrowed_first():
    assert fit_widths([20, 10, 6], [5, 5, 5], 24) == [9, 9, 6]
    assert fit_widths([20, 10], [18, 2], 24) == [18, 6]


def test_markup_is_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    table("[bold]", ["[a]"], [["[/x]"]])
    out = capsys.readouterr().out
    assert all(text in out for text in ("[bold]", "[a]", "[/x]"))

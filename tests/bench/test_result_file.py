"""Result files: what a bench may continue, and that a file of another kind is not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgetta.bench.result_file import rows_to_continue, write_results
from edgetta.errors import UsageError


def test_rows_of_the_same_settings_are_continued(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    assert rows_to_continue(path, {"batch": 4}) == []
    write_results(path, [{"model": "net"}], {"batch": 4})
    assert rows_to_continue(path, {"batch": 4}) == [{"model": "net"}]


def test_rows_of_other_settings_or_versions_are_refused_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.json"
    write_results(path, [{"model": "net"}], {"batch": 4, "sizes": (1, 2)})
    before = path.read_text()
    assert rows_to_continue(path, {"batch": 4, "sizes": (1, 2)}) == [{"model": "net"}]
    with pytest.raises(UsageError, match=r"rows\.json was measured with other settings or versions \(batch\)"):
        rows_to_continue(path, {"batch": 5, "sizes": (1, 2)})
    monkeypatch.setattr("edgetta.__version__", "9.9")
    with pytest.raises(UsageError, match=r"\(edgetta\)"):
        rows_to_continue(path, {"batch": 4, "sizes": (1, 2)})
    assert path.read_text() == before


@pytest.mark.parametrize("content", ["{", "[]", "{}", "notes", "\x00\xff"])
def test_another_file_is_refused_and_kept(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"rows\.json is no result file"):
        rows_to_continue(path, {})
    assert path.read_text() == content
    with pytest.raises(UsageError, match="no result file"):
        rows_to_continue(tmp_path, {})

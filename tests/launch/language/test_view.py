"""Text reaches standard output as it was decoded."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from paceline.launch.console import make_console
from paceline.launch.language.view import StreamView
from tests.harness import ROOT

TEXT = "all:\n\tgcc -o x\r\n[bold]:smile: \x1b[0m \x0b\x00 größer 東京\u2028end  \n \t"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def streamed(path: Path, output: io.StringIO) -> None:
    view = StreamView(path, output, "say\t")
    view()
    with path.open("w") as file:
        for place, character in enumerate(TEXT):
            origin = ("draft", "refill", "plain")[place % 3]
            file.write(json.dumps([0, character, origin]) + "\n")
            file.flush()
            if place % 7 == 0:
                view()
        file.write("[0, ")
    view.close()


def test_a_stream_is_not_altered(tmp_path: Path) -> None:
    output = io.StringIO(newline="")
    streamed(tmp_path / "stream", output)
    assert output.getvalue() == "say\t" + TEXT + "\n"


def test_colour_is_for_terminals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    output = Terminal(newline="")
    streamed(tmp_path / "stream", output)
    assert output.getvalue().startswith("\x1b[2msay\t\x1b[0m\x1b[32ma\x1b[0m\x1b[33ml\x1b[0ml")
    monkeypatch.setenv("NO_COLOR", "1")
    output = Terminal(newline="")
    streamed(tmp_path / "plain", output)
    assert output.getvalue() == "say\t" + TEXT + "\n"


def test_names_in_tables_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[red]head", title="[b]title :cat:")
    table.add_row("[bold]x[/bold] :smile: [/nothing]")
    make_console().print(table)
    make_console().print("[bold]x :smile:")
    output = capsys.readouterr().out
    for text in ("[red]head", "[b]title :cat:", "[bold]x[/bold] :smile: [/nothing]", "[bold]x :smile:"):
        assert text in output


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_encoding_that_lacks_characters_ends_nothing(encoding: str) -> None:
    """Also the tables of a plan, which draw boxes and arrows."""
    code = (
        "import sys; from pathlib import Path; from paceline.launch import cli; from paceline.launch.language.view "
        "import StreamView; cli.app = lambda **_: StreamView(Path('/none'), sys.stdout, 'gr\u00f6\u00dfer "
        "\u6771\t').close(); cli.main()"
    )
    env = {"PYTHONIOENCODING": encoding, "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == "größer 東\t\n".encode(encoding, "backslashreplace")
    code = "from paceline.launch.cli import main; main()"
    argv = [sys.executable, "-c", code, "plan", "topologies/world-2.yaml"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"placement" in done.stdout

"""The command line: starts without torch, and says in one line what is wrong."""

import subprocess
import sys

import pytest

from minigpt4.cli import main, run_reporting_errors


def test_help_imports_no_torch():
    code = (
        "import sys; from minigpt4.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for command in ("quickstart", "chat", "export"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["quickstart", "chat", "caption", "export", "memory", "doctor"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0 and command in capsys.readouterr().out


def test_quickstart_names_an_impossible_budget(capsys):
    assert main(["quickstart", "--minutes", "0"]) == 2
    assert "--minutes is 0; expected more than 0" in capsys.readouterr().err


def test_errors_end_with_their_status(capsys):
    def interrupted():
        raise KeyboardInterrupt

    def full():
        raise OSError(28, "No space left on device")

    assert run_reporting_errors(interrupted, "name") == 130
    assert run_reporting_errors(full, "name") == 2
    assert "No space left on device" in capsys.readouterr().err

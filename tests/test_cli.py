"""The command as a user meets it: help, exit codes, one sentence for a user error."""

import subprocess
import sys

import pytest
from typer.main import get_command

from mgi.cli import app


def mgi(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "mgi", *map(str, arguments)], capture_output=True, text=True)


def commands(group=None, path=()):
    group = group or get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


@pytest.mark.parametrize("name, command", [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_every_command_explains_itself_with_an_example(name, command):
    assert command.help
    assert f"mgi {name}" in command.epilog
    assert all(getattr(parameter, "help", None) for parameter in command.params if parameter.name != "help")


def test_a_user_error_is_one_sentence_and_exit_code_1(tmp_path):
    result = mgi("pretrain", "--sources", "s", "--expression", "e", "--splits", tmp_path / "p.parquet", "-o", tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert f"error: table of splits not found: {tmp_path / 'p.parquet'}" in result.stderr


def test_wrong_usage_is_exit_code_2():
    assert mgi("split").returncode == 2
    assert mgi("nonsense").returncode == 2


def test_an_unknown_option_of_a_variant_suggests_the_nearest(tmp_path):
    paths = ("--sources", "s", "--expression", "e", "--splits", "p", "-o", tmp_path)
    result = mgi("finetune", *paths, "--options", '{"batch_image": 4}')
    assert result.returncode == 1
    assert "unknown key 'batch_image': did you mean 'batch_images'?" in result.stderr


def test_help_does_not_load_torch():
    code = "import sys; sys.argv = ['mgi', '--help']\ntry:\n    import mgi.cli; mgi.cli.main()\nfinally:\n"
    code += "    assert not {'torch', 'pandas', 'pyarrow'} & set(sys.modules), 'heavy imports'"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

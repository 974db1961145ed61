"""The command as a user meets it: help, exit codes, one sentence for a user error."""

import subprocess
import sys

import pytest
from typer.main import get_command

from mgi.cli import app, main
from mgi.console import log


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


@pytest.fixture
def refusal(monkeypatch, capsys):
    """A function that runs a command which must refuse, in this process, and gives the one line it ends with."""
    monkeypatch.setattr(log, "propagate", log.propagate)
    monkeypatch.setattr(log, "handlers", list(log.handlers))

    def run(words):
        monkeypatch.setattr(sys, "argv", ["mgi", *words])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 1
        return capsys.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def foreign(tmp_path):
    """A file that is no table of anything."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n")
    return path


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("evaluate {model} --images {foreign} -o {out}", "table of images {foreign} is not a Parquet file"),
        ("evaluate {model} --images {genes} -o {out}", "table of images {genes} lacks the column case_id; it has "),
        ("evaluate {foreign} --images {images} -o {out}", "description of a model not found"),
        ("evaluate {model} --images {images} --expression {foreign} -o {out}", "{foreign} is not a Parquet file"),
        ("evaluate {model} --images {images} -o {foreign}", "the system refuses: [Errno 17] File exists: '{foreign}'"),
        ("finetune {tables} --options {narrow} -o {out}", "'channels' cannot be [8, 18]: the last is divided among"),
        ("split {pair} --stratify-table {foreign} --stratify-column b -o {out}", "{foreign} lacks the column"),
        ("split {pair} --stratify-table {empty} --stratify-column b -o {out}", "{empty} is empty"),
        ("split {pair} --folds 9 -o {out}", "8 labelled patients are too few for 9 folds"),
        ("summarise {foreign} -o {out}", "predictions {foreign} is not a Parquet file"),
    ],
)
def test_bad_input_is_told_in_one_sentence(command, said, cohort, finetuned, foreign, refusal, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.touch()
    pair = f"--sources {cohort.sources} --expression {cohort.expression}"
    names = {
        "model": finetuned,
        "images": cohort.folder / "images" / "all.parquet",
        "genes": cohort.folder / "genes.parquet",
        "pair": pair,
        "tables": f"{pair} --splits {cohort.splits}",
        "narrow": '{"channels":[8,18]}',
        "foreign": foreign,
        "empty": empty,
        "out": tmp_path / "out",
    }
    words = [word for part in command.split() for word in part.format(**names).split()]
    assert said.format(**names) in refusal(words)


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

"""The command line as a person and a script meet it: help, results and narration apart, exit statuses, completion."""

from __future__ import annotations

import importlib
import json
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import jsonschema
import pytest
import world as worlds
from layouts import Layout
from world import BUILD, PROFILE, Done, Real, World, run, write_project

from builder import __version__
from builder import lock as locks
from builder.cli import main
from builder.cli.main import VERBS, cli
from builder.cli.model import VERBS as MODEL_VERBS
from builder.oci.digest import Digest

COMMANDS = [
    *([verb] for verb in VERBS),
    ["cache", "info"],
    ["cache", "gc"],
    *(["model", verb] for verb in MODEL_VERBS),
]
ESCAPE = "\x1b["


@pytest.fixture
def environment(world: World) -> dict[str, str]:
    """That of a child that shares the store in which all inputs and layers of the small project are."""
    return world.environment(world.root / "cache")


def command_of(words: Sequence[str]) -> click.Command:
    module, _, attribute = VERBS[words[0]].partition(":")
    found: click.Command = getattr(importlib.import_module(module), attribute)
    for word in words[1:]:
        found = below(found, word)
    return found


def below(group: click.Command, verb: str) -> click.Command:
    assert isinstance(group, click.Group)
    found = group.get_command(click.Context(group), verb)
    assert found
    return found


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_explains_itself_with_an_example_that_can_be_typed(words: list[str], tmp_path: Path) -> None:
    done = run([*words, "--help"], tmp_path, {"HOME": str(tmp_path)})
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: build {' '.join(words)}")
    example = " ".join(done.out[done.out.index("Example: ") :].split()).removeprefix("Example: ")
    for part in re.split(r" && ", example.replace('eval "$(', "").replace(')"', "").partition(" > ")[0]):
        program, *arguments = shlex.split(part)
        assert program == "build"
        command: click.Command = cli
        while isinstance(command, click.Group) and arguments:
            command = below(command, arguments[0])
            arguments = arguments[1:]
        command.make_context("build", arguments, resilient_parsing=True)
    assert all(len(line) <= 110 for line in done.out.splitlines())
    for option in command_of(words).params:
        if isinstance(option, click.Option) and "--help" not in option.opts:
            assert option.help, f"{option.name} has no help"


@pytest.mark.parametrize(
    "words",
    [
        ["lock", "none.yaml"],
        ["diff", "none.yaml", "none.yaml"],
        ["diff", "none.json", "none.json"],
        ["verify", "oci:none", "--lock", "none.json"],
        ["start", "oci:none", "--budget", "none.yaml"],
        ["advise", "none.json"],
        ["model", "publish", "none", "oci:out"],
        ["model", "convert", "none", "out", "--precision", "fp16"],
        ["inspect", "./none"],
    ],
    ids=" ".join,
)
def test_a_file_that_is_named_and_not_there_is_wrong_usage(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(words) == 2
    assert "none" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_readme_names_every_command() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `build ")}
    for verb in VERBS:
        row = next((row for words, row in rows.items() if words.split()[1] == verb), "")
        row = row or next(row for row in rows.values() if f"`build {verb} " in row)
        found = command_of([verb])
        below = found.list_commands(click.Context(found)) if isinstance(found, click.Group) else []
        assert [name for name in below if f"`{name}`" not in row] == []


def test_the_list_of_commands(tmp_path: Path) -> None:
    done = run(["--help"], tmp_path, {"HOME": str(tmp_path)})
    listed = re.findall(r"^  ([\w-]+) +\S", done.out.partition("Commands:")[2], re.MULTILINE)
    assert listed == list(VERBS)
    assert run(["-h"], tmp_path, {"HOME": str(tmp_path)}) == done


@pytest.mark.parametrize("name", ["build", "layerwright"])
def test_two_names_for_one_program(name: str, tmp_path: Path) -> None:
    done = run(["--version"], tmp_path, {"HOME": str(tmp_path)}, build=BUILD.with_name(name))
    assert (done.code, done.out) == (0, f"layerwright, version {__version__}\n")
    module = subprocess.run(["head", "-c", "2", str(BUILD.with_name(name))], capture_output=True, check=True)
    assert module.stdout == b"#!"


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from builder.cli.main import run; run(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"concurrent", "ctypes", "debian", "deflate", "email", "http", "hashlib", "jinja2", "packaging"}
    heavy |= {
        "multiprocessing",
        "socket",
        "ssl",
        "subprocess",
        "tempfile",
        "tomllib",
        "urllib3",
        "uv",
        "yaml",
        "zlib_ng",
    }
    assert loaded & heavy == set()
    ours = {name for name in done.stderr.split() if name.startswith("builder")}
    assert ours <= {"builder", "builder.errors", "builder.cli", "builder.cli.main"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["publsh", "x"], "There is no command 'publsh'. Did you mean publish?"),
        (["zzz"], "There is no command 'zzz'."),
        (["publish", "--ofline", "small.yaml"], "--offline"),
        (["publish", "nowhere.yaml"], "nowhere.yaml"),
        (["publish"], "PROFILE"),
        (["publish", "small.yaml", "--jobs", "0"], "--jobs"),
        (["publish", "small.yaml", "--format", "xml"], "'json'"),
        (["publish", "small.yaml", "docker:x"], "write oci:DIR"),
        (["publish", "small.yaml", "oci:"], "names no folder"),
        (["publish", "small.yaml", "oci:out:a b"], "is no tag"),
        (
            ["publish", "small.yaml", "oci://localhost:5000/x"],
            "hint: write localhost:5000/x for a registry, or oci:DIR",
        ),
        (["cache", "gc", "--max-size", "many"], "such as 20GB"),
        (["cache", "gcc"], "gcc"),
        (["completion", "csh"], "'bash'"),
        (["init", "Large Name"], "is no name of an image"),
        (["init", "some/where/hello"], "hint: build init hello -C some/where"),
        (["init", "hello.yaml"], "hint: build init hello"),
    ],
)
def test_wrong_usage_ends_with_2(
    arguments: list[str], message: str, small: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    done = run(arguments, small.parent, environment)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_what_fails_ends_with_1_and_says_what_to_do(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(["publish", small, f"oci:{tmp_path / 'file'}"], tmp_path, environment)
    assert (done.code, done.out) == (1, "")
    assert re.fullmatch(rf"error: {tmp_path}/file: .*\nhint: .*\n", done.err)


def test_a_profile_with_mistakes_names_them_all(environment: dict[str, str], tmp_path: Path) -> None:
    profile = write_project(
        tmp_path, PROFILE.replace("python:", "pyhton:").replace("port: 8080", "port: 8080, port: 1")
    )
    done = run(["publish", profile], tmp_path, environment)
    assert (done.code, done.out) == (1, "")
    assert "pyhton" in done.err
    assert "did you mean python" in done.err
    assert "port" in done.err


def test_results_to_stdout_and_narration_to_stderr(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = run(["publish", small, f"oci:{tmp_path / 'out'}"], tmp_path, environment)
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", done.out)
    assert f"oci:{tmp_path / 'out'}:latest: 3 layers" in done.err
    quiet = run(["publish", "-q", small, f"oci:{tmp_path / 'out'}"], tmp_path, environment)
    assert quiet == Done(0, done.out, "")
    failed = run(["publish", "-q", small, "oci:/proc/nowhere"], tmp_path, environment)
    assert failed.code == 1
    assert failed.err.startswith("error: ")


def test_publish_as_json(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    arguments = ["publish", small, f"oci:{tmp_path / 'one'}", f"oci:{tmp_path / 'two'}:v1", "--format", "json"]
    document = run(arguments, tmp_path, environment).json
    assert document["digest"] == run(["publish", "-q", small, "oci:x"], tmp_path, environment).out.strip()
    (layers,) = document["platforms"].values()
    assert list(document["platforms"]) == ["linux/amd64"]
    assert [layer["name"] for layer in layers] == ["debian bookworm", "3 wheels", "files"]
    for layer in layers:
        assert Layout(tmp_path / "one").path(Digest.parse(layer["digest"])).stat().st_size == layer["size"]
    one, two = document["destinations"]
    assert (one["destination"], two["destination"]) == (f"oci:{tmp_path / 'one'}:latest", f"oci:{tmp_path / 'two'}:v1")
    assert one["new"] == two["new"]
    blobs = [blob for blob in one["blobs"] if blob["name"] or "soci" in blob["mediaType"]]
    assert len(blobs) == 6  # three layers, a ztoc, a configuration, the empty one of the SOCI index
    assert one["new"]["blobs"] == len(one["blobs"]) == 11  # and what is attached
    assert one["present"] == {"blobs": 0, "bytes": 0}


def test_assemble_gives_what_publish_gives(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    done = run(["assemble", small, "-o", "oci:made:v1"], tmp_path, environment)
    published = run(["publish", small, "oci:made:v2"], tmp_path, environment)
    assert done.out == published.out
    assert run(["assemble", small], tmp_path, environment).out == done.out
    assert Layout(tmp_path / "out/small").blobs() == Layout(tmp_path / "made").blobs()


def test_plan_as_table_and_json(world: World, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    document = run(["plan", small, "--format", "json"], tmp_path, environment).json
    layers = document["platforms"]["linux/amd64"]["layers"]
    assert [layer["name"] for layer in layers] == ["debian bookworm", "3 wheels", "files"]
    for layer in layers:
        assert layer["size"] == sum(part["size"] for part in layer["inputs"])
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", layer["key"])
        assert layer["blob"]["size"] > 0
    assert {part["name"] for part in layers[1]["inputs"]} == {"alpha 1.0", "beta 1.1", "gamma 3.0"}
    fresh = world.environment(tmp_path / "cache", LAYERWRIGHT_OFFLINE="1")
    assert [
        layer["blob"]
        for layer in run(["plan", small, "--format", "json"], tmp_path, fresh).json["platforms"]["linux/amd64"][
            "layers"
        ]
    ] == [None] * 3
    assert not (tmp_path / "cache").exists()
    table = run(["plan", small], tmp_path, fresh)
    assert table.err == ""
    assert re.search(r"^2 +3 wheels +alpha, beta, gamma +[\d.]+ MB +to pack$", table.out, re.MULTILINE)


def test_inspect_as_table_and_json(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    published = run(["publish", small, "oci:out:v1", "--format", "json"], tmp_path, environment).json
    document = run(["inspect", "oci:out:v1", "--format", "json"], tmp_path, environment).json
    assert document["digest"] == published["digest"]
    text = run(["inspect", "oci:out"], tmp_path, environment)
    assert text.code == 0
    assert text.out.startswith(f"oci:out  {published['digest']}\n")
    for layer in published["platforms"]["linux/amd64"]:
        assert layer["digest"] in json.dumps(document)
        assert layer["digest"].removeprefix("sha256:")[:12] in text.out
        assert layer["name"] in text.out
    for arguments, message in (
        (["oci:nowhere"], "no image is in it"),
        (["oci:out:v2"], "it holds v1"),
        (["out"], "write oci:DIR"),
    ):
        refused = run(["inspect", *arguments], tmp_path, environment)
        assert refused.code in (1, 2)
        assert message in refused.err


def test_the_schema_accepts_the_profiles_that_are_shipped(tmp_path: Path) -> None:
    import yaml

    schema = run(["schema"], tmp_path, {"HOME": str(tmp_path)}).json
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    root = Path(__file__).parent.parent
    texts = [path.read_text() for path in (*root.glob("profiles/**/*.yaml"), *root.glob("tests/data/*.yaml"))]
    whole = [text for text in texts if "extends:" not in text]  # what one lays over another need not say everything
    assert whole
    for text in (*whole, PROFILE):
        assert list(validator.iter_errors(yaml.safe_load(text))) == []
    assert list(validator.iter_errors(yaml.safe_load(PROFILE.replace("files:", "fiels:"))))


def test_the_store_as_json(world: World, small: Path, tmp_path: Path) -> None:
    environment = world.environment(tmp_path / "cache", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))
    assert run(["cache", "info", "--format", "json"], tmp_path, environment).json["objects"] == 0
    run(["publish", small, "oci:out"], tmp_path, environment)
    info = run(["cache", "info", "--format", "json"], tmp_path, environment).json
    assert info["path"] == str(tmp_path / "cache/layerwright")
    assert info["inputs"] >= 8
    assert info["temporary"] == info["partial"] == 0
    assert str(info["objects"]) in run(["cache", "info"], tmp_path, environment).out
    would = run(["cache", "gc", "--max-size", "0", "--dry-run", "--format", "json"], tmp_path, environment).json
    assert would["objects"] == info["objects"]
    assert run(["cache", "gc", "--max-size", "0"], tmp_path, environment).code == 0
    assert run(["cache", "info", "--format", "json"], tmp_path, environment).json["bytes"] == 0
    again = run(["publish", small, "oci:out"], tmp_path, environment)
    assert again.digest == run(["publish", small, "oci:out"], tmp_path, world.environment(world.root / "cache")).digest


def test_offline_names_everything_that_is_missing(world: World, small: Path, tmp_path: Path) -> None:
    done = run(["publish", "--offline", small], tmp_path, world.environment(tmp_path / "cache"))
    assert (done.code, done.out) == (1, "")
    files = list(worlds.locked_files(locks.parse(small.with_suffix(".lock.json").read_text(), "lock")))
    assert f"{len(files)} files (" in done.err
    for file in files:
        assert f"{file.origin}: {file.path} (" in done.err
    assert "without --offline" in done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [[], ["--offline"]])
def test_nothing_is_asked_for_when_all_is_there(option: list[str], world: World, small: Path, tmp_path: Path) -> None:
    asked = len(world.index.requests)
    environment = world.environment(world.root / "cache", HTTP_PROXY="http://127.0.0.1:9")
    assert run(["publish", *option, small, "oci:out"], tmp_path, environment).code == 0
    assert len(world.index.requests) == asked


def on_a_terminal(argv: Sequence[str], cwd: Path, environment: Mapping[str, str]) -> str:
    """What a command that runs on a terminal writes there."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        argv, cwd=cwd, env={"TERM": "xterm", **environment}, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not block:
            break
        written += block
    os.close(ours)
    child.wait()
    return written.decode()


def test_colour_is_for_terminals_and_can_be_refused(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    argv = [str(BUILD), "publish", str(small), "oci:/proc/nowhere"]
    assert f"{ESCAPE}31m" in on_a_terminal(argv, tmp_path, environment)
    plain = on_a_terminal(argv, tmp_path, environment | {"NO_COLOR": "1"})
    assert re.search(r"error: .*nowhere", plain)
    assert f"{ESCAPE}3" not in plain
    assert ESCAPE not in on_a_terminal(argv, tmp_path, environment | {"NO_COLOR": "1", "TERM": "dumb"})
    assert ESCAPE not in run(argv[1:], tmp_path, environment).err


def test_progress_is_shown_on_a_terminal(world: World, small: Path, tmp_path: Path) -> None:
    environment = world.environment(tmp_path / "cache", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))
    written = on_a_terminal([str(BUILD), "publish", str(small), "oci:out"], tmp_path, environment)
    assert "fetch 8 files" in written
    assert "pack layers" in written
    assert re.search(r"sha256:[0-9a-f]{64}", written)


SHELLS = {"bash": ["bash", "-n"], "zsh": ["zsh", "-n"], "fish": ["fish", "--no-execute"]}


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_scripts(shell: str, environment: dict[str, str], tmp_path: Path) -> None:
    done = run(["completion", shell], tmp_path, environment)
    assert done.code == 0
    assert "_BUILD_COMPLETE" in done.out
    assert "_LAYERWRIGHT_COMPLETE" in done.out
    if shutil.which(SHELLS[shell][0]):
        (tmp_path / "script").write_text(done.out)
        subprocess.run([*SHELLS[shell], str(tmp_path / "script")], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("build pu", ["plain,publish"]), ("build publish --off", ["plain,--offline"]), ("build publish sm", ["file,sm"])],
)
def test_words_are_completed(words: str, expected: list[str], environment: dict[str, str], tmp_path: Path) -> None:
    asked = {"_BUILD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    assert run([], tmp_path, environment | asked).out.split() == expected


@pytest.mark.parametrize(
    "redirection", ["| head -c 0", ">&-", ">/dev/full", "2>&-", ">&- 2>&-", "2>/dev/full", "</dev/null"]
)
def test_whoever_reads_may_stop(redirection: str, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The work is done all the same, and nothing but an error of ours is printed."""
    command = f"{shlex.quote(str(BUILD))} publish {shlex.quote(str(small))} oci:out --format json {redirection}"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert (tmp_path / "out/index.json").exists()
    if redirection == ">/dev/full":
        assert (done.returncode, "No space left" in done.stderr) == (1, True)


def test_a_new_project_is_written_once(environment: dict[str, str], tmp_path: Path) -> None:
    done = run(["init", "my-service", "-C", "new"], tmp_path, environment)
    assert done.code == 0
    written = [tmp_path / line for line in done.out.splitlines()]
    assert written[0] == tmp_path / "new/my-service.yaml"
    assert all(path.is_file() for path in written)
    assert {path for path in (tmp_path / "new").rglob("*") if path.is_file()} == set(written)
    assert "next: build publish new/my-service.yaml" in done.err
    written[1].write_text("mine")
    again = run(["init", "my-service", "-C", "new"], tmp_path, environment)
    assert (again.code, again.out) == (1, "")
    assert "there already" in again.err
    assert written[1].read_text() == "mine"


def test_a_new_project_can_be_published_and_runs(tmp_path: Path) -> None:
    """`init`, `lock --check`, `publish`, `lock --check`, with the packages that are newest today."""
    environment = dict(os.environ)
    assert run(["init", "fresh"], tmp_path, environment).code == 0
    unlocked = run(["lock", "fresh.yaml", "--check"], tmp_path, environment)
    assert (unlocked.code, "there is no lock" in unlocked.err) == (3, True)
    assert run(["lock", "fresh.yaml"], tmp_path, environment).code == 0
    assert run(["lock", "fresh.yaml", "--check"], tmp_path, environment).code == 0
    published = Real.publish(tmp_path / "fresh.yaml", tmp_path)
    shown = run(["inspect", f"oci:{published.out}"], tmp_path, environment)
    assert published.digest in shown.out
    assert "numpy" in shown.out

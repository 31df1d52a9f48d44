"""The command `sparselens`: one file a command in `commands/`, found by its constant `COMMAND`.

Command files import only what their options need; models, tables and pages are imported when a command runs,
so that `--help` answers at once. What a user can get wrong ends in one line, `error: …`, and exit code 2.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module, metadata
from typing import Any

import typer

from sparselens.workbench import commands as folder

EXPECTED = (ValueError, OSError, NotImplementedError, ModuleNotFoundError)
"""What our code raises for bad input: shown as one line. Anything else is a fault of ours, with its trace."""


@cache
def commands() -> dict[str, Callable[..., None] | typer.Typer]:
    """Every command, or group of commands, by its name: the file's, with dashes."""
    found = {}
    for module in sorted(entry.name for entry in pkgutil.iter_modules(folder.__path__)):
        name = module.removesuffix("_").replace("_", "-")
        found[name] = import_module(f"{folder.__name__}.{module}").COMMAND
    return found


def application() -> typer.Typer:
    """The command line with all its commands."""
    app = typer.Typer(
        name="sparselens",
        help="When a language model's attention is made sparse, what is preserved and what is dropped?",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def version(shown: bool) -> None:
        if shown:
            print(f"sparselens {metadata.version('sparselens')}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(
            False, "--version", callback=version, is_eager=True, help="Print the version and leave."
        ),
    ) -> None:
        pass

    for name, command in commands().items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, 1 (ran and found fault), 2 (bad input), 130 (Ctrl-C)."""
    # Waiting threads sleep instead of spinning: on two busy cores spinning made a capture ten times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code: Any = application()(
            list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False
        )
        sys.stdout.flush()
    except typer.TyperException as error:
        message = getattr(error, "format_message", lambda: "")() or str(error)
        known = f" There are {', '.join(commands())}." if "o such command" in message else ""
        return _fail(message + known)
    except (KeyboardInterrupt, typer.Abort):
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output has left (`… | head`): not our error, and nothing more can be written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except EXPECTED as error:
        if os.environ.get("SPARSELENS_TRACEBACK"):
            raise
        return _fail(_message(error))
    return code if isinstance(code, int) else 0


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split()) or 'no command; see --help'}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())

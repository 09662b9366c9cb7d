"""The command line: ``walsh COMMAND``.

Bad input ends with one clear line and exit code 64; what a command found out is its own exit code. ``--debug`` anywhere
shows tracebacks.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Sequence
from typing import Any

import click

from walsh import __version__
from walsh.errors import BackendError, VectorError, WalshError
from walsh.suite.backend import AdapterBroken
from walsh.suite.runner import Exit

_INTERNAL = 70

COMMANDS: dict[str, tuple[str, str, str]] = {
    "conformance": ("walsh.commands.conformance:conformance", "torch", "Hold backends to the golden vectors."),
    "explain": ("walsh.commands.explain:explain", "torch", "Run one vector again and show its worst element."),
    "ops": ("walsh.commands.ops:ops", "torch", "List operations, calls and their vectors."),
    "mutants": ("walsh.commands.mutants:mutants", "torch", "Seed bugs and see that vectors catch them."),
    "data": ("walsh.commands.data:data", "train", "Fetch, tokenize and look at corpora."),
    "train": ("walsh.commands.train:train", "train", "Train a model."),
    "compress": ("walsh.commands.compress:compress", "train", "Make a small file for inference."),
    "verify": ("walsh.commands.verify:verify", "wasm", "Check a file with all readers."),
    "generate": ("walsh.commands.generate:generate", "train", "Continue a text."),
    "inspect": ("walsh.commands.inspect:inspect", "train", "Count parameters and bytes of a model."),
    "analyze": ("walsh.commands.analyze:analyze", "train", "Draw what the algebra does in a model."),
    "ablate": ("walsh.commands.ablate:ablate", "train", "Compare algebras at equal cost."),
    "convert": ("walsh.commands.convert:convert", "train", "Change a model's format."),
    "bench": ("walsh.commands.bench:bench", "torch", "Time kernels and jobs against honest baselines."),
    "report": ("walsh.commands.report:report", "report", "Make pages from stored measurements."),
    "ic": ("walsh.ic.cli:ic", "ic", "Count instructions of the Internet Computer; cost, serve and chat with models."),
}
"""Name: where it is, the extra that it needs, what it does."""


def _exit_code(error: WalshError) -> int:
    if isinstance(error, VectorError):
        return Exit.INCOMPLETE
    if isinstance(error, BackendError | AdapterBroken):
        return Exit.BROKEN
    return Exit.USAGE


def _missing(command: str, extra: str, error: ModuleNotFoundError) -> BackendError:
    """What to say of a package that a command needs.

    Raises:
        ModuleNotFoundError: ``error`` itself, if the module is one of walsh's own.
    """
    if (error.name or "").partition(".")[0] == "walsh":
        raise error
    return BackendError(f"walsh {command} needs {error.name}, which is not installed: pip install 'walsh[{extra}]'")


class WalshGroup(click.Group):
    """A group whose mistakes end in one line with walsh's exit codes, and whose commands are imported when used.

    A command needs the packages of its own extra and of no other: ``walsh conformance`` runs without PyTorch.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a package missing from inside it is told like one missing at its import."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name = ctx.invoked_subcommand or ""
            if name not in COMMANDS:
                raise
            raise _missing(name, COMMANDS[name][1], error) from error

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Names, in the order of ``COMMANDS``."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import a command.

        Raises:
            BackendError: if a package that it needs is not installed; names the extra.
        """
        if cmd_name not in COMMANDS:
            return None
        target, extra, _ = COMMANDS[cmd_name]
        module, _, attribute = target.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            raise _missing(cmd_name, extra, error) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """The table of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, _, purpose) in COMMANDS.items()])

    def main(self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]  # the other arguments are passed on
        """Run, and turn exceptions into messages and exit codes."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
        for stream in (sys.stdout, sys.stderr):
            # What was typed or what a backend says may not fit the terminal's encoding; that is no reason to stop.
            if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
                stream.reconfigure(errors="backslashreplace")
        try:
            code = super().main(given, standalone_mode=False, **extra)
        except click.UsageError as error:
            error.show()
            sys.exit(Exit.USAGE)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except WalshError as error:
            if "--debug" in given:
                raise
            click.echo(f"error: {error}", err=True)
            sys.exit(_exit_code(error))
        except Exception as error:
            if "--debug" in given:
                raise
            if isinstance(error, OSError) and error.filename is not None and error.strerror:
                # A path that was given, and that the system refuses.
                click.echo(f"error: {error.filename}: {error.strerror}; give another path", err=True)
                sys.exit(Exit.USAGE)
            if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
                click.echo(f"error: not enough memory; ask for something smaller ({error or 'MemoryError'})", err=True)
                sys.exit(_INTERNAL)
            click.echo(f"internal error: {type(error).__name__}: {error}; --debug shows where", err=True)
            sys.exit(_INTERNAL)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=WalshGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="walsh")
def main() -> None:
    """Verify and measure kernels of ternary hyper-complex language models; train, compress and run them."""

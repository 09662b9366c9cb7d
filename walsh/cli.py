"""The command line: ``walsh COMMAND``.

Bad input ends with one clear line and exit code 64; what a command found out is its own exit code. ``--debug`` anywhere
shows tracebacks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from walsh import __version__
from walsh.commands.bench import bench
from walsh.commands.conformance import conformance
from walsh.commands.explain import explain
from walsh.commands.mutants import mutants
from walsh.commands.ops import ops
from walsh.commands.report import report
from walsh.commands.validate import validate
from walsh.errors import BackendError, ParameterError, VectorError, WalshError
from walsh.suite.backend import AdapterBroken
from walsh.suite.runner import Exit

_INTERNAL = 70


def _exit_code(error: WalshError) -> int:
    if isinstance(error, VectorError):
        return Exit.INCOMPLETE
    if isinstance(error, BackendError | AdapterBroken):
        return Exit.BROKEN
    return Exit.USAGE if isinstance(error, ParameterError) else Exit.FAILURE


class WalshGroup(click.Group):
    """A group whose mistakes end in one line, with walsh's exit codes."""

    def main(self, args: Sequence[str] | None = None, standalone_mode: bool = True, **extra: Any) -> Any:  # type: ignore[override]  # the other arguments are passed on
        """Run, and turn exceptions into messages and exit codes."""
        if not standalone_mode:
            return super().main(args, standalone_mode=False, **extra)
        given = list(sys.argv[1:] if args is None else args)
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
            click.echo(f"internal error: {type(error).__name__}: {error}; --debug shows where", err=True)
            sys.exit(_INTERNAL)
        sys.exit(code if isinstance(code, int) else 0)


@click.group(cls=WalshGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="walsh")
def main() -> None:
    """Verify and measure kernels of ternary hyper-complex language models."""


conformance.add_command(validate)
main.add_command(bench)
main.add_command(conformance)
main.add_command(explain)
main.add_command(mutants)
main.add_command(ops)
main.add_command(report)

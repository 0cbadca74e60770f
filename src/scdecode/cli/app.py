"""The app, its global options, and how it ends: an error is one line; ``--debug`` shows the traceback.

Exit status: 0, 1 for an error, 2 for wrong usage, 130 after Ctrl-C, 141 if whoever reads the output has gone.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import warnings
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.main import get_command

from scdecode.errors import ScdecodeError, printable

ERROR, USAGE, INTERRUPTED, CLOSED_PIPE = 1, 2, 128 + signal.SIGINT, 128 + 13  # 13 is SIGPIPE, which Windows lacks

_NARROW = 72  # columns; in a narrower terminal the help is plain text, as boxes would cut the names of options
_RENAMED = {"--also": "--ensemble", "--line": "--no-spread", "--over": "--condition"}

_AS_OPTIONS = {"overwrite=True": "--overwrite", "use_rep=": "--use-rep"}  # what a message advises, as it is typed

# click's root of all errors, wherever the installed typer keeps it: click.ClickException
_CommandError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="scdecode",
    help="Turn any point of an scVI latent space into gene expression.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # here, as the help does not need it

        typer.echo(f"scdecode {version('scdecode')}")
        raise typer.Exit


@app.callback()
def _global(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options of every command; :func:`main` looks for --debug itself, wherever it stands."""


def main() -> None:
    """Run the command line and exit with its status."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1  # wherever it stands
    for stream in (sys.stdout, sys.stderr):  # a name that the encoding lacks is escaped; None if it is closed
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    if not debug:
        sys.excepthook = _show_unexpected
    interrupts = _Interrupts()
    try:
        status = _run(arguments)
    except typer.Exit as end:
        status = end.exit_code
    except BrokenPipeError:
        _silence_output()
        status = CLOSED_PIPE
    except SystemExit as end:
        if not isinstance(end.__context__, BrokenPipeError):  # which rich turns into one
            raise
        status = CLOSED_PIPE
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        status = INTERRUPTED
    except Exception as error:
        message = "interrupted" if interrupts.seen else _words_of(error)
        if message is None or (debug and not interrupts.seen and not isinstance(error, _CommandError)):
            raise
        _silence_output()
        if message:
            _say(message)
        status = INTERRUPTED if interrupts.seen else getattr(error, "exit_code", ERROR)
    finally:
        interrupts.end()
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    if any("\0" in argument for argument in arguments):
        raise typer.BadParameter("an argument has a NUL character, which no file name has")
    columns = shutil.get_terminal_size().columns
    app.rich_markup_mode = None if columns < _NARROW else "rich"
    command: Any = get_command(app)
    with command.make_context(
        "scdecode", arguments, terminal_width=columns - 2
    ) as context:  # not command.main, which ends at a closed pipe
        command.invoke(context)
    if sys.stdout is not None:
        sys.stdout.flush()
    return 0


def _words_of(error: Exception) -> str | None:
    """Return an error in one line; None if it is one that nobody expected."""
    if isinstance(error, ScdecodeError):
        text = str(error)
        for argument, option in _AS_OPTIONS.items():
            text = text.replace(argument, option)
        return f"error: {text}"
    if isinstance(error, _CommandError):
        return _words_of_usage(error)
    if isinstance(error, MemoryError):
        return f"error: not enough memory ({error}); ask for fewer points, cells or genes at once, or write to .zarr"
    if isinstance(error, OSError) and error.strerror:
        place = "standard output" if error.filename is None else os.fsdecode(error.filename)
        return f"error: {place}: {error.strerror}"
    return None


def _words_of_usage(error: Any) -> str:
    """Return click's message with the command whose help tells more; nothing if the help was shown."""
    name = getattr(error, "option_name", None)
    message = str(error.format_message()).strip()
    if name in _RENAMED:
        message = f"{name} is called {_RENAMED[name]} now"
    context = getattr(error, "ctx", None)
    if not message:
        return ""
    where = "scdecode" if context is None else context.command_path
    return f"error: {message.rstrip('.')}; see {where} --help"


class _Interrupts:
    """Remembers Ctrl-C: an interrupt amid foreign code may arrive as any other error."""

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None
        # a process in the background ignores Ctrl-C, and goes on doing so; only the main thread may set handlers
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            with suppress(ValueError):
                self._before = signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, number: int, frame: Any) -> None:
        self.seen = True
        signal.default_int_handler(number, frame)

    def end(self) -> None:
        """Give the signal back: from now on a further Ctrl-C ends the process at once if one came before."""
        if self._before is not None:
            signal.signal(signal.SIGINT, signal.SIG_DFL if self.seen else self._before)


def _say(text: str) -> None:
    """Write one line to standard error, if that can be written."""
    with suppress(OSError):
        typer.echo(printable(text), err=True)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")


def _show_unexpected(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
    """Show an error that nobody expected; Python then exits with status 1."""
    _say(f"error: {kind.__name__}: {error}; this is a fault of scdecode: please report what --debug shows")


def _silence_output() -> None:
    """Let nothing more be written to standard output, which would fail again at the end of the process."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):  # it may be no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

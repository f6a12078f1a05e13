"""The command line: a table of contents, one line per command. Heavy libraries load inside the commands."""

import os
import signal
import sys
from contextlib import suppress
from typing import Annotated, Any

import typer

from mertool import __version__
from mertool.cli import (
    align,
    corpora,
    doctor,
    evaluate,
    export,
    extract,
    finetune,
    fuse,
    manifest,
    models,
    predict,
    probe_layers,
    report,
    store,
)
from mertool.cli.help import CommandGroup
from mertool.cli.interrupts import Interrupted
from mertool.cli.options import add_command
from mertool.cli.streams import install_tolerant_streams
from mertool.cli.system_errors import explain_system_error, prepare_process
from mertool.errors import MertoolError

app = typer.Typer(
    name="mertool",
    cls=CommandGroup,
    help="Multimodal emotion recognition: from a folder of clips to predictions.",
    no_args_is_help=True,
    # Plain help: in the boxes of rich, names of options would be cut on a narrow terminal.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
add_command(app, "manifest", manifest.manifest, example=manifest.EXAMPLE)
app.add_typer(extract.app, name="extract")
add_command(app, "probe-layers", probe_layers.probe_layers, example=probe_layers.EXAMPLE)
add_command(app, "finetune", finetune.finetune, example=finetune.EXAMPLE)
add_command(app, "align", align.align, example=align.EXAMPLE)
add_command(app, "fuse", fuse.fuse, example=fuse.EXAMPLE)
add_command(app, "predict", predict.predict, example=predict.EXAMPLE)
add_command(app, "evaluate", evaluate.evaluate, example=evaluate.EXAMPLE)
add_command(app, "report", report.report, example=report.EXAMPLE)
app.add_typer(store.app, name="store")
add_command(app, "corpora", corpora.corpora, example=corpora.EXAMPLE)
add_command(app, "export", export.export, example=export.EXAMPLE)
add_command(app, "models", models.models, example=models.EXAMPLE)
add_command(app, "doctor", doctor.doctor, example=doctor.EXAMPLE)


def _show_version(requested: bool) -> None:
    if requested:
        print(f"mertool {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Multimodal emotion recognition: from a folder of clips to predictions."""


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 user's error, 2 usage, 3 too many clips failed."""
    install_tolerant_streams()
    signal.signal(signal.SIGINT, _interrupt)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        try:
            prepare_process()
            app()
        finally:  # from here on a signal only ends the process
            signal.signal(signal.SIGINT, _leave)
            signal.signal(signal.SIGTERM, _leave)
            sys.stdout.flush()
    except Exception as error:
        message = str(error) if isinstance(error, MertoolError) else explain_system_error(error)
        if message is None:
            raise
        print("error: " + " ".join(message.split()), file=sys.stderr)
        sys.exit(1)
    except Interrupted as stop:
        print(stop.message, file=sys.stderr)
        # Without the exit handlers: everything is closed by now, and libraries with threads of their own (Ray) may
        # abort a process that was signalled during interpreter shutdown.
        sys.stdout.flush()
        os._exit(stop.code)


def _interrupt(number: int, _: Any) -> None:
    # While the current part is saved, a second SIGTERM of a supervisor is ignored; a second Ctrl-C ends the process.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise Interrupted(128 + number)


def _leave(number: int, _: Any) -> None:
    # During interpreter shutdown an exception would print a traceback and lose the exit code.
    with suppress(OSError, ValueError, RuntimeError):
        sys.stdout.flush()
    os._exit(128 + number)

"""What a command prints: its result on stdout, everything else on stderr."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from shoal.cluster.errors import ShoalError

if TYPE_CHECKING:
    from rich.console import Console

    from shoal.cluster.progress import Reporter
    from shoal.yaml_file import Document


class Interrupted(Exception):  # noqa: N818 - no error: the user asked for it
    """Ctrl-C within a verb; typer would turn KeyboardInterrupt itself into a silent exit."""


@dataclass
class State:
    """What the last door needs to know of the command that it ends."""

    verb: str = ""
    json: bool = False
    debug: bool = False
    run: str | None = None
    job: str | None = None
    reporter: "Reporter | None" = None
    document: "Document | None" = None

    def reset(self, arguments: Sequence[str]) -> None:
        """Start anew. The flags are read here already, because a usage error comes before they are parsed."""
        options = arguments[: arguments.index("--")] if "--" in arguments else arguments
        self.verb = next((a for a in arguments if not a.startswith("-")), "")
        self.json, self.debug = "--json" in options, "--debug" in options
        self.run, self.job, self.reporter, self.document = None, None, None, None

    def remains(self) -> str:
        """Say what a command that ended early leaves behind."""
        if self.job is not None:
            return f"; job {self.job} goes on: shoal jobs status, logs and stop know it, and the same command finds it"
        if self.run is None:
            return "; nothing was written"
        return f"\nkept: {self.run} and what is finished beside it, such as the sharded dataset; the same command uses it"


state = State()


@dataclass(frozen=True)
class Output:
    """A command's result: plain values for `--json`, and the same for people."""

    data: dict[str, Any]
    text: Sequence[Any] = ()  # rich renderables or lines


def show(output: Output, quiet: bool = False) -> None:
    """Print a result on stdout."""
    if state.json:
        print(json.dumps(output.data, indent=2, ensure_ascii=False, allow_nan=False))
    elif not quiet:
        for item in output.text:
            if isinstance(item, str):
                print(item)
            else:
                stdout().print(item)


def fail(message: str, code: int) -> int:
    """Print why a command ended, on stderr (and as the JSON result), and return its exit code."""
    text = _masked(message)
    first, *rest = text.splitlines() or [""]
    print("\n".join([f"error: {first}", *(f"       {line}" for line in rest)]), file=sys.stderr)
    if state.json:
        print(json.dumps({"error": text, "exit_code": code}, ensure_ascii=False))
    return code


def stdout() -> "Console":
    """Return a console for results; plain text where stdout is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 110)


def stderr() -> "Console":
    """Return a console for progress; plain text where stderr is no terminal."""
    from rich.console import Console

    return Console(stderr=True, width=None if sys.stderr.isatty() else 110)


def _masked(message: str) -> str:
    if "://" not in message and "=" not in message:  # spares the import of pyarrow
        return message
    try:
        from shoal.cluster.filesystems import redact
    except ShoalError:
        return message
    return redact(message)

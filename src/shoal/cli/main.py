"""The entry point: runs a verb, and turns whatever ends it into a few lines and an exit code.

0 done; 1 the run failed; 2 the request was wrong; 130 interrupted. Nothing heavy is imported here:
``shoal --help`` must not wait for torch, ray, pandas or scikit-learn.
"""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

from shoal.cli.app import app
from shoal.cli.output import Interrupted, fail, state
from shoal.cluster.errors import ShoalError, StoppedError

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Read when torch is loaded: threads that spin for long make a fit on a busy machine 10 times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a model of the user's own lies beside the experiment
    state.reset(arguments)
    try:
        with _terminated_as_interrupted():
            code = app(arguments or ["--help"], prog_name="shoal", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # `shoal schema | head`; the interpreter would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Interrupted, KeyboardInterrupt, typer.Abort):
        return fail(f"interrupted{state.remains()}", INTERRUPTED)
    except SystemExit as ended:  # Ray's own handler, while it starts
        if ended.code != signal.SIGTERM:
            raise
        return fail(f"interrupted{state.remains()}", INTERRUPTED)
    except typer.TyperException as error:
        return fail(_usage(error.format_message()), 2)
    except StoppedError as error:
        return fail(str(error), INTERRUPTED)
    except ShoalError as error:
        _trace()
        text = str(error) if state.document is None else state.document.located(str(error))
        return fail(text, error.exit_code)
    except MemoryError:
        _trace()
        return fail(
            "out of memory; lower training.batch_size or cluster.num_workers, or use a larger machine", 1
        )
    except Exception as error:
        # The last door: nothing is hidden, it is only kept from the terminal until asked for.
        _trace()
        reason = (str(error).strip().splitlines() or [""])[0]
        return fail(
            f"unexpected {type(error).__name__}: {reason}\nthis is a fault of Shoal's; run again with --debug for "
            "the traceback",
            1,
        )
    return code if isinstance(code, int) else 0


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM end the command as Ctrl-C does, so that leases and Ray are given back; an ignored one stays so."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _usage(message: str) -> str:
    verbs = [
        str(command.name or getattr(command.callback, "__name__", "")) for command in app.registered_commands
    ]
    verbs += [str(group.name) for group in app.registered_groups]
    if state.verb in verbs:
        return f"{message}\nsee: shoal {state.verb} --help"
    return f"{message}\nverbs: {', '.join(verbs)}"


def _trace() -> None:
    if state.debug:
        traceback.print_exc()

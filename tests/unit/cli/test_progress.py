import io

import pytest
from rich.console import Console

from shoal.cli.progress import Live
from shoal.cluster.progress import EpochRecord

EPOCH = EpochRecord(1, 3, 10, 30, 0.5, "roc_auc", 0.9, True, 1.5, 1000.0)


def tell(terminal):
    stream = io.StringIO()
    live = Live(Console(file=stream, force_terminal=terminal, width=100))
    live.stage("reading s3://KEY:secret@bucket/x")
    live.advance(50, 100, "rows")
    live.notice("column 'a' is [left] out")
    live.stage("training")
    live.epoch(EPOCH)
    live.advance(1, 3, "steps")
    live.done()
    live.done()
    return stream.getvalue()


def test_without_a_terminal_there_are_plain_lines_only():
    text = tell(False)
    assert text.splitlines() == [
        "reading s3://***@bucket/x",
        "  column 'a' is [left] out",
        "training",
        str(EPOCH),
    ]


def test_on_a_terminal_one_live_line_moves_and_the_cursor_comes_back():
    text = tell(True)
    assert "\x1b[?25l" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "epoch 1/3" in text
    assert "roc_auc 0.9000" in text.split("epoch 1/3")[1]
    assert "secret" not in text


@pytest.mark.parametrize("done", [0, 5])
def test_a_stage_of_unknown_length_is_allowed(done):
    stream = io.StringIO()
    live = Live(Console(file=stream, force_terminal=True))
    live.advance(done, 0, "rows")
    live.done()
    assert stream.getvalue()

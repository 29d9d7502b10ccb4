"""What pydantic finds wrong with a value, in words of ours."""

from typing import Any

from pydantic_core import ErrorDetails

MOST = 80  # characters of a value in a message

_ALLOWED = {
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "too_short": "a list of at least {min_length}",
    "string_too_short": "a text of at least {min_length} character",
    "too_long": "a list of at most {max_length}",
}
_BOUNDS = ("greater_than", "greater_than_equal", "less_than", "less_than_equal")
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a section of names and values",
    "model": "a section of keys",
    "datetime": "a date such as 2026-10-01 or a time stamp",
    "date": "a date such as 2026-10-01",
    "time": "a duration such as 90s, 10m, 6h, 60d",
}


def must_be(details: ErrorDetails, form: str = "", bounds: str = "") -> str:
    """Return what a value must be; `form` describes the pattern of a text, `bounds` both bounds of a number."""
    kind = details["type"]
    if bounds and kind in _BOUNDS:
        return bounds
    if kind == "string_pattern_mismatch":
        return f"of the form {form or details['ctx']['pattern']}"
    if kind in _ALLOWED:
        return _ALLOWED[kind].format(**details.get("ctx", {})).replace("'", "")
    prefix = kind.split("_", 1)[0]
    if prefix in _KINDS:
        return _KINDS[prefix]
    return details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")


def shown(value: Any) -> str:
    """Return a value as Python writes it, cut where it is long."""
    return cut(repr(value))


def cut(text: str) -> str:
    """Return the first `MOST` characters of a text, and that there are more."""
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from shoal.cluster.errors import ConfigError
from shoal.yaml_file import Document, dump, load, parse

# YAML 1.2.2, section 10.3.2 (core schema): what each plain scalar is.
CORE = {
    "1e-3": 1e-3,
    "1E1": 10.0,
    ".5": 0.5,
    "+12": 12,
    "0o17": 15,
    "017": 17,
    "0xfF": 255,
    "-.INF": -math.inf,
    "~": None,
    "null": None,
    "": None,
    "true": True,
    "FALSE": False,
    "no": "no",
    "yes": "yes",
    "on": "on",
    "1_000": "1_000",
    "0b1": "0b1",
    "12:30": "12:30",
    "2026-10-01": "2026-10-01",
    "1e": "1e",
    "tRue": "tRue",
    "=": "=",
    "!!str 12": "12",
    "'1'": "1",
}


@pytest.mark.parametrize(("text", "value"), CORE.items())
def test_plain_scalars_follow_the_core_schema_everywhere(text, value):
    data, _ = parse(f"a: {text}\nb:\n  c: [{text or 'null'}, {{d: {text}}}]\n", "f")
    for found in (data["a"], data["b"]["c"][0], data["b"]["c"][1]["d"]):
        assert found == value
        assert type(found) is type(value)


def test_nan_and_a_yaml_1_1_header():
    data, _ = parse("%YAML 1.1\n---\na: no\nb: .nan\n", "f")
    assert data["a"] == "no"
    assert math.isnan(data["b"])


def test_merge_keys_are_not_in_the_core_schema():
    assert parse("<<: 1", "f")[0] == {"<<": 1}


def test_every_key_knows_its_line():
    _, places = parse("a:\n  b: 1\n  c:\n    - x\n    - {d: 2}\n", "e.yaml")
    assert places[("a",)] == "e.yaml:1"
    assert places[("a", "c")] == "e.yaml:3"
    assert places[("a", "c", 1, "d")] == "e.yaml:5"
    assert Document({}, places).place(("a", "missing", "deeper")) == "e.yaml:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "f:3: a is written twice, first on line 1"),
        ("a: {b: 1, b: 2}", "f:1: a.b is written twice"),
        ("a:\n  - [1", "f:2: not valid YAML"),
        ("a: b: c", "f:1: not valid YAML"),
        ("a: *x", "undefined alias"),
        ("a: &x [*x]", "part of"),
        ("---\na: 1\n---\nb: 2", "f:3: not valid YAML: expected a single document"),
        ("a: !!python/object:os.system x", "f:1: the tag"),
        ("a: !!int x", "f:1: the tag"),
        ("? [1]\n: 2", "f:1: a key must be"),
        ("a: \x01", "f: not valid YAML"),
    ],
)
def test_what_is_not_plain_data_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError) as error:
        parse(text, "f")
    assert message in str(error.value)


def test_an_alias_repeats_its_value():
    assert parse("a: &x {b: 1}\nc: *x", "f")[0] == {"a": {"b": 1}, "c": {"b": 1}}


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Co", "Cn"]), max_size=12)
    | st.sampled_from([*CORE, "017", "- a", "a: b", "#", "multi\nline\n"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("abc:# 01-", min_size=1, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "no", "1", "x y", "1e3"]), plain, max_size=4))
def test_dump_and_parse_are_inverses_and_other_readers_agree(data):
    text = dump(data)
    assert parse(text, "f")[0] == data or (not data and parse(text, "f")[0] in ({}, None))
    oracle = YAML(typ="safe", pure=True)
    assert set(oracle.load(text) or {}) >= {k for k in data if k in ("a", "x y")}
    if data:
        flow = dump(data, flow=True)
        assert flow.count("\n") == len(data)
        assert parse(flow, "f")[0] == data


def test_load_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"shoal init"):
        load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"top level is \[1\]"):
        load(tmp_path / "list.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "bytes.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path)


def test_aliases_that_multiply_and_depth_without_end_are_refused() -> None:
    bomb = "a0: &a0 [1, 1]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    for text in (
        bomb,
        "a: " + "[" * 90 + "]" * 90 + "\n" + "b: " + "{c: " * 5000 + "}" * 5000,
        "{a: " * 150 + "1" + "}" * 150,
    ):
        with pytest.raises(ConfigError, match=r"aliases \(\*\) of aliases|lie too deep"):
            parse(text, "bomb.yaml")

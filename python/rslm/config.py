"""Configs: one frozen dataclass is flags, TOML and JSON record at once.

A field is an option. Its name is the TOML key and, with dashes, the flag; its docstring is
the help; a nested dataclass is a TOML table and a dotted flag, a tuple of dataclasses an array of
tables, which has no flag. Later sources win: default,
then preset, then file, then flag. A key that no field has is an error that names the closest
one. TOML has no null, so a field that may be None has None as its default and is left out.
Paths are relative to the working folder, wherever the TOML file lies.
"""

import dataclasses
import difflib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

Config = TypeVar("Config")
Record = dict[str, Any]

SOURCE_FLAGS = ("--preset", "--config")


def to_record(config: object) -> Record:
    """A config as nested dicts of plain values, which JSON can hold."""
    assert dataclasses.is_dataclass(config)
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_record(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_record(config_type: type[Config], record: Mapping[str, Any], source: str = "") -> Config:
    """Builds a config from nested dicts; `source` is the file that error messages name.

    Raises:
        ValueError: a key is unknown or missing, or a value has the wrong type or is refused
            by the config itself.
    """
    checked = check_record(config_type, record, source)
    missing = [f.name for f in dataclasses.fields(_dataclass(config_type)) if _lacks(f, checked)]
    if missing:
        raise ValueError(f"{missing[0]} must be given{_within(source)}")
    for name, hint in _nested(config_type).items():
        if name in checked:
            checked[name] = from_record(hint, checked[name], source)
    for name, hint in _listed(config_type).items():
        if name in checked:
            checked[name] = tuple(from_record(hint, item, source) for item in checked[name])
    return config_type(**checked)


def _lacks(field: "dataclasses.Field[Any]", record: Mapping[str, Any]) -> bool:
    defaults = (field.default, field.default_factory)
    return field.name not in record and all(d is dataclasses.MISSING for d in defaults)


def check_record(config_type: type, record: Mapping[str, Any], source: str = "") -> Record:
    """The record with its values converted to the types of the fields; keys may be absent.

    Raises:
        ValueError: a key is unknown or a value has the wrong type.
    """
    return _check(config_type, record, source, root=config_type, prefix="")


def _check(
    config_type: type, record: Mapping[str, Any], source: str, *, root: type, prefix: str
) -> Record:
    hints = typing.get_type_hints(config_type)
    nested, listed = _nested(config_type), _listed(config_type)
    checked: Record = {}
    for key, value in record.items():
        name = f"{prefix}{key}"
        if key not in hints:
            close = closest_key(root, name)
            hint = f"the closest known one is {close}"
            if close == name:
                table, _, last = name.rpartition(".")
                hint = f"it is {last} of the table {table}, not a name with a dot"
            raise ValueError(f"unknown key {name}{_within(source)}; {hint}")
        if key in listed:
            if not isinstance(value, list | tuple) or not all(
                isinstance(v, Mapping) for v in value
            ):
                raise ValueError(_mismatch(name, "an array of tables", value, source))
            checked[key] = [
                _check(listed[key], item, source, root=root, prefix=f"{name}.") for item in value
            ]
        elif key not in nested:
            checked[key] = _convert(value, hints[key], name, source)
        elif isinstance(value, Mapping):
            checked[key] = _check(nested[key], value, source, root=root, prefix=f"{name}.")
        else:
            raise ValueError(_mismatch(name, "a table", value, source))
    return checked


def _convert(value: Any, hint: Any, name: str, source: str) -> Any:
    """A TOML or JSON value as the type of its field."""
    choices = typing.get_args(hint)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        inner = [choice for choice in choices if choice is not type(None)]
        assert len(inner) == 1, f"{name}: a config field is one type, or that and None"
        return _convert(value, inner[0], name, source)
    if typing.get_origin(hint) is Literal:
        if value in choices:
            return value
        raise ValueError(_mismatch(name, f"one of {', '.join(map(str, choices))}", value, source))
    if typing.get_origin(hint) in (tuple, list):
        if isinstance(value, list | tuple):
            items = [_convert(item, choices[0], name, source) for item in value]
            return typing.get_origin(hint)(items)
        raise ValueError(_mismatch(name, "a list", value, source))
    return _convert_scalar(value, hint, name, source)


def _convert_scalar(value: Any, hint: Any, name: str, source: str) -> Any:
    kind, accepted = {
        bool: ("true or false", bool),
        int: ("a whole number", int),
        float: ("a number", int | float),
        str: ("a string", str),
        Path: ("a path", str | Path),
    }[hint]
    # To Python a bool is an int; to a config file it never is.
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ValueError(_mismatch(name, kind, value, source))
    # As a path it would be the working folder, which nobody means by it.
    if hint is Path and value == "":
        raise ValueError(_mismatch(name, kind, value, source))
    try:
        return hint(value)
    except OverflowError:
        raise ValueError(_mismatch(name, "at most 1.8e308", value, source)) from None


def _mismatch(name: str, expected: str, value: Any, source: str) -> str:
    return f"{name} must be {expected}{_within(source)}, got {value!r}"


def _within(source: str) -> str:
    return f" in {source}" if source else ""


def _dataclass(config_type: type) -> Any:
    assert dataclasses.is_dataclass(config_type)
    return config_type


def _nested(config_type: type) -> dict[str, type]:
    """The fields that are dataclasses themselves, with their types."""
    hints = typing.get_type_hints(config_type).items()
    return {name: cast(type, hint) for name, hint in hints if dataclasses.is_dataclass(hint)}


def _listed(config_type: type) -> dict[str, type]:
    """The fields that are tuples of dataclasses, with the types of their items."""
    hints = typing.get_type_hints(config_type).items()
    items = {name: typing.get_args(h)[0] for name, h in hints if typing.get_origin(h) is tuple}
    return {
        name: cast(type, item) for name, item in items.items() if dataclasses.is_dataclass(item)
    }


def known_keys(config_type: type, prefix: str = "") -> list[str]:
    """Every option of a config, dotted."""
    nested = _nested(config_type) | _listed(config_type)
    keys: list[str] = []
    for field in dataclasses.fields(_dataclass(config_type)):
        name = f"{prefix}{field.name}"
        inside = nested.get(field.name)
        keys += [name] if inside is None else known_keys(inside, f"{name}.")
    return keys


def closest_key(config_type: type, key: str) -> str:
    """The known key most like `key`, by its whole dotted name or by its last part."""

    def likeness(known: str) -> float:
        pairs = ((key, known), (key.rpartition(".")[2], known.rpartition(".")[2]))
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    return max(known_keys(config_type), key=likeness)


def merge_records(below: Mapping[str, Any], above: Mapping[str, Any]) -> Record:
    """Two nested records as one; where both have a value, that of `above` holds."""
    merged = dict(below)
    for key, value in above.items():
        inside = merged.get(key)
        both = isinstance(value, Mapping) and isinstance(inside, Mapping)
        merged[key] = merge_records(cast(Record, inside), value) if both else value
    return merged


def to_toml(config: object) -> str:
    """A config as TOML: plain values first, then the tables.

    Reading it back with `read_config` gives an equal config.

    Raises:
        ValueError: a value has no UTF-8, as the name of a file may.
    """
    return "\n".join(_toml_lines(config, "", ""))


def _toml_lines(config: Any, table: str, header: str) -> list[str]:
    nested, listed = _nested(type(config)), _listed(type(config))
    lines = [header] if header else []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None:
            assert field.default is None, f"{field.name}: None must be the default to be left out"
        elif field.name not in nested and field.name not in listed:
            require_utf8(f"{table}.{field.name}" if table else field.name, value)
            lines.append(f"{field.name} = {_toml_value(_plain(value))}")
    lines.append("")
    for name in [*nested, *listed]:
        inner, value = f"{table}.{name}" if table else name, getattr(config, name)
        for item in [value] if name in nested else value:
            lines += _toml_lines(item, inner, f"[{inner}]" if name in nested else f"[[{inner}]]")
    return lines


def require_utf8(name: str, value: Any) -> None:
    """Refuses a string or path, or several, with bytes of a command line that are not UTF-8.

    Raises:
        ValueError: there is one; `name` says where.
    """
    for item in value if isinstance(value, tuple | list) else [value]:
        try:
            str(item).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} must be UTF-8, got {str(item)!r}") from None


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, str):
        # A TOML basic string is a JSON string, but for DEL, which TOML wants escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else f"{'-' if value < 0 else ''}inf"
    return repr(value)


def read_toml(path: str | os.PathLike[str]) -> Record:
    """The nested dicts of a TOML file.

    Raises:
        ValueError: it is not TOML.
        OSError: it cannot be read.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path} must be a regular file, to be read as TOML")
    return _parse_toml(Path(path).read_bytes(), os.fspath(path))


def _parse_toml(data: bytes, source: str) -> Record:
    try:
        # Some editors begin a file with a byte-order mark, which is no part of its text.
        return tomllib.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is not a TOML file: {error}") from None


def read_config(config_type: type[Config], path: str | os.PathLike[str]) -> Config:
    """Builds a config from a TOML file alone.

    Raises:
        ValueError: the file is not TOML or does not fit the config.
        OSError: it cannot be read.
    """
    return from_record(config_type, read_toml(path), os.fspath(path))


def preset_names() -> list[str]:
    """The presets that ship with the package."""
    files = resources.files("rslm").joinpath("presets").iterdir()
    return sorted(file.name[:-5] for file in files if file.name.endswith(".toml"))


def read_preset(name: str) -> Record:
    """The nested dicts of a preset.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in preset_names():
        raise ValueError(f"preset must be one of {', '.join(preset_names())}, got {name!r}")
    file = resources.files("rslm").joinpath("presets", f"{name}.toml")
    return _parse_toml(file.read_bytes(), f"preset {name}")


def read_sources(config_type: type, args: Sequence[str]) -> Record:
    """What `--preset NAME` and `--config FILE` among the arguments say, checked and merged.

    The file wins over the preset, wherever the flags stand. The arguments are only looked at:
    both flags still have to be declared where the rest is parsed.

    Raises:
        ValueError: a source is missing, is not TOML or does not fit the config.
        OSError: the file cannot be read.
    """
    record: Record = {}
    for flag, read in zip(SOURCE_FLAGS, (read_preset, read_toml), strict=True):
        value = _flag_value(flag, args)
        if value is not None:
            source = f"preset {value}" if flag == "--preset" else value
            record = merge_records(record, check_record(config_type, read(value), source))
    return record


def _flag_value(flag: str, args: Sequence[str]) -> str | None:
    """The last value given to a flag, as `--flag value` or `--flag=value`."""
    found = None
    for position, argument in enumerate(args):
        if argument == flag and position + 1 < len(args):
            found = args[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found


def flag_defaults(options_type: type[Config], record: Mapping[str, Any]) -> Config:
    """The `default=` for `tyro.cli`: the record where it has a value, else the defaults.

    Required fields that the record lacks are marked as missing, so that tyro asks for them.
    The result is only for tyro: the checks of `__post_init__` have not run on it, as they run
    on what tyro makes of it and the flags.
    """
    import tyro

    defaults = object.__new__(options_type)
    nested = _nested(options_type)
    for field in dataclasses.fields(_dataclass(options_type)):
        value: Any
        if field.name in nested:
            value = flag_defaults(nested[field.name], record.get(field.name, {}))
        elif field.name in record:
            value = record[field.name]
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = tyro.MISSING if field.default is dataclasses.MISSING else field.default
        object.__setattr__(defaults, field.name, value)
    return defaults


def parse_flags(
    options_type: type[Config],
    args: Sequence[str],
    *,
    prog: str,
    record: Mapping[str, Any] | None = None,
) -> Config:
    """Parses flags into a dataclass; `record` holds what stands in for flags not given.

    To read presets and files, let the options hold the config without a prefix of its own,
    `run: Annotated[TrainConfig, tyro.conf.arg(name="")]`, and pass
    `record={"run": read_sources(TrainConfig, args)}`.

    Raises:
        SystemExit: 0 after --help; 2 when the flags do not fit, as tyro has explained.
    """
    import tyro

    default = flag_defaults(options_type, record or {})
    return tyro.cli(options_type, args=args, prog=prog, default=default)

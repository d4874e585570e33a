"""Configs by the schema: made from it, checked by it, completed from it.

RUN/config.json  ->  complete  ->  config  ->  check_fields
"""

from typing import Any

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.fields import NEEDED, SAME, Field
from gptjax.core.schema import BASE, DECIDES_WEIGHTS, GONE, REWARD_PART, SCHEMA

Fields = dict[str, Field]  # of a section, by name


# ---- sections from their defaults


def base_config() -> ConfigDict:
    """The sections that every experiment has, with their defaults."""
    config = ConfigDict()
    for name, fields in BASE.items():
        is_section = isinstance(fields, dict)
        config[name] = make_section(fields) if is_section else fields.default
    return config


def make_section(fields: Fields, **values: Any) -> ConfigDict:
    """A section with these values and otherwise its defaults, locked."""
    section = lock({name: make_default(field) for name, field in fields.items()})
    section.update(values)
    return section


def make_default(field: Field) -> Any:
    """A field's default; where it holds sections, with their own defaults."""
    if isinstance(field.range, dict):
        entries = field.default.items()
        return {name: make_section(field.range, **entry) for name, entry in entries}
    return dict(field.default) if isinstance(field.default, dict) else field.default


def lock(fields: dict) -> ConfigDict:
    """A section to which no field can be added.

    What is nested in it has names of the user's own, and takes new ones.
    """
    section = ConfigDict(fields).lock()
    for value in section.values():
        if isinstance(value, ConfigDict):
            value.unlock()
    return section


# ---- what is refused


def check_fields(config: ConfigDict) -> None:
    """Refuses a value that a field may not have, in whichever sections are there.

    Sections that the schema does not know are the user's own, except `parts`: it
    holds whole configs, of the stages that `overoptimize` goes through.
    """
    stages = config.get('parts', {}).items()
    configs = {'': config} | {f'parts.{name}.': stage for name, stage in stages}
    for prefix, checked in configs.items():
        _refuse_unknown_model(checked)
        for name, fields in SCHEMA.items():
            if name in checked:
                _check(prefix + name, checked[name], fields)


def _check(name: str, value: Any, field: Field | Fields) -> None:
    if isinstance(field, dict):  # a section
        for inner, inner_field in field.items():
            if inner in value:
                _check(f'{name}.{inner}', value[inner], inner_field)
        return
    if not field.allows(value):
        raise UserError(f'{name}={value!r}: {field.advice(value)}')
    if isinstance(field.range, dict):
        for entry, section in value.items():
            _check(f'{name}.{entry}', section, field.range)


def _refuse_unknown_model(config: ConfigDict | dict) -> None:
    """Refuses a model with a field that this code does not know.

    It would compute something else. In other sections such a field is ignored.
    """
    for field, value in config.get('model', {}).items():
        if field not in SCHEMA['model']:
            raise UserError(
                f'model.{field}={value!r}: no such field here: use the version of '
                'gptjax that has it, or leave it out'
            )


# ---- runs of other versions


def complete(config: dict) -> dict:
    """The config of a run, as nested dicts, with every field that it lacks.

    A run that is older than a field has the field's `before`. A section that only
    some experiments have stays absent. Refused are a field that is gone and had an
    effect, and a model that this code cannot make.
    """
    config = {
        name: dict(section) if isinstance(section, dict) else section
        for name, section in config.items()
    }
    for name, value in GONE.items():
        section, field = name.split('.')
        given = config.get(section, {}).pop(field, value)
        if given != value:
            raise UserError(
                f'{name}={given!r}: this field is gone, as if it were {value!r}: use '
                'the version of gptjax that has it'
            )
    _refuse_unknown_model(config)
    for name, fields in SCHEMA.items():
        if name in config and isinstance(fields, dict):
            config[name] = _complete_section(name, config[name], fields)
        elif name in BASE and name not in config:
            config[name] = base_config()[name]
    if 'parts' in config:
        stages = config['parts'].items()
        config['parts'] = {name: complete(stage) for name, stage in stages}
    return _to_dicts(config)


def _complete_section(name: str, section: dict, fields: Fields) -> dict:
    completed = dict(section)
    for inner, field in fields.items():
        if inner not in section:
            if field.before is NEEDED:
                raise UserError(f'{name}.{inner} is missing: give it a value')
            is_same = field.before is SAME
            completed[inner] = make_default(field) if is_same else field.before
        # A reward's entry stays as written: a checkpoint's identity is a hash of it.
        elif isinstance(field.range, dict) and field.range is not REWARD_PART:
            completed[inner] = {
                entry: _complete_section(f'{name}.{inner}.{entry}', value, field.range)
                for entry, value in section[inner].items()
            }
    return completed


def _to_dicts(value: Any) -> Any:
    if isinstance(value, ConfigDict | dict):
        return {name: _to_dicts(inner) for name, inner in value.items()}
    return value


def decides_weights(name: str) -> bool:
    """Whether a section, or a field as 'train.num_steps', decides a run's weights.

    A field that the schema does not know is of another version, and does not.
    """
    section, _, field = name.partition('.')
    if section not in DECIDES_WEIGHTS or not field:
        return section in DECIDES_WEIGHTS
    known = SCHEMA[section].get(field.split('.')[0])
    return known is not None and not known.free

"""Configs by the schema: their sections made, checked, and those of old runs filled in.

config.json of a run  ->  complete  ->  config  ->  check_fields
"""

from typing import Any

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.fields import NEEDED, SAME, Field
from gptjax.core.schema import BASE, DECIDES_WEIGHTS, GONE, SCHEMA

Fields = dict[str, Field]


# ---- sections from their defaults


def base_config() -> ConfigDict:
    """The sections that every experiment has, with their defaults."""
    config = ConfigDict()
    for name, fields in BASE.items():
        config[name] = make_section(fields) if isinstance(fields, dict) else fields[0]
    return config


def make_section(fields: Fields, **values: Any) -> ConfigDict:
    """A section with these values and otherwise its defaults, locked."""
    config = lock({name: default_of(field) for name, field in fields.items()})
    config.update(values)
    return config


def default_of(field: Field) -> Any:
    """A field's default; of a dict of sections, those with their own defaults."""
    if isinstance(field.range, dict):
        return {n: make_section(field.range, **v) for n, v in field.default.items()}
    return dict(field.default) if isinstance(field.default, dict) else field.default


def lock(fields: dict) -> ConfigDict:
    """A section to which no field can be added.

    What is nested in it has names of the user's own, and takes new ones.
    """
    config = ConfigDict(fields).lock()
    for value in config.values():
        if isinstance(value, ConfigDict):
            value.unlock()
    return config


# ---- what is refused


def check_fields(config: ConfigDict) -> None:
    """Refuses a value that a field may not have, in whichever sections are there.

    Sections that the schema does not know are the user's own, but for `parts`, which
    holds the whole configs of the stages that `overoptimize` goes through.

    Raises:
        UserError: it names the field and what to use instead.
    """
    for prefix, its in {'': config, **_parts(config)}.items():
        _refuse_other_model(its)
        for name, fields in SCHEMA.items():
            if name in its:
                _check(prefix + name, its[name], fields)


def _parts(config: ConfigDict) -> dict[str, ConfigDict]:
    return {f'parts.{name}.': its for name, its in config.get('parts', {}).items()}


def _check(name: str, value: Any, field: Field | Fields) -> None:
    if isinstance(field, dict):  # a section
        for own, its in field.items():
            if own in value:
                _check(f'{name}.{own}', value[own], its)
        return
    if not field.allows(value):
        raise UserError(f'{name}={value!r}: {field.advice(value)}')
    if isinstance(field.range, dict):
        for entry, section in value.items():
            _check(f'{name}.{entry}', section, field.range)


def _refuse_other_model(config: ConfigDict | dict) -> None:
    """Refuses a model with a field that this code does not know: it would compute
    something else. In other sections such a field is passed over.
    """
    for field, value in config.get('model', {}).items():
        if field not in SCHEMA['model']:
            raise UserError(
                f'model.{field}={value!r}: no such field here: use the version of '
                'gptjax that has it, or leave it out'
            )


# ---- runs of other versions


def complete(config: dict) -> dict:
    """The nested dict of a run's config, with every field that it lacks.

    A run that is older than a field has its `before`. A section that only some
    experiments have stays absent.

    Raises:
        UserError: it has a field that is gone, or a model that this code cannot make.
    """
    config = {name: dict(x) if isinstance(x, dict) else x for name, x in config.items()}
    for name, value in GONE.items():
        section, field = name.split('.')
        given = config.get(section, {}).pop(field, value)
        if given != value:
            raise UserError(
                f'{name}={given!r}: there is no such field any more, and all acts as '
                f'by {value!r}: use the version of gptjax that has it'
            )
    _refuse_other_model(config)
    for name, fields in SCHEMA.items():
        if name in config and isinstance(fields, dict):
            config[name] = _completed(name, config[name], fields)
        elif name in BASE and name not in config:
            config[name] = base_config()[name]
    if 'parts' in config:
        config['parts'] = {name: complete(x) for name, x in config['parts'].items()}
    return _as_dicts(config)


def _completed(name: str, section: dict, fields: Fields) -> dict:
    section = dict(section)
    for own, field in fields.items():
        if own not in section:
            if field.before is NEEDED:
                raise UserError(f'{name}.{own} is missing: give it a value')
            old = default_of(field) if field.before is SAME else field.before
            section[own] = old
        elif isinstance(field.range, dict):
            section[own] = {
                entry: _completed(f'{name}.{own}.{entry}', its, field.range)
                for entry, its in section[own].items()
            }
    return section


def _as_dicts(value: Any) -> Any:
    if isinstance(value, ConfigDict | dict):
        return {name: _as_dicts(its) for name, its in value.items()}
    return value


def decides_weights(name: str) -> bool:
    """Whether a field, as 'train.num_steps', or a section decides a run's weights.

    A field that the schema does not know is of another version, and does not.
    """
    section, _, field = name.partition('.')
    if section not in DECIDES_WEIGHTS or not field:
        return section in DECIDES_WEIGHTS
    known = SCHEMA[section].get(field.split('.')[0])
    return known is not None and not known.free

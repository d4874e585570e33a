"""Makes, checks and completes configs by the schema.

a --config file  ->  complete_new  ->  check_fields
RUN/config.json  ->  complete      ->  check_fields
"""

import difflib
import sys
from typing import Any

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.fields import NEEDED, SAME, Field
from gptjax.core.files import replace_surrogates
from gptjax.core.schema import (
    AUGMENTATION,
    BASE,
    DEFAULT_CONTEXT,
    REWARD_PART,
    SCHEMA,
    SOURCE,
)

Fields = dict[str, Field]  # the fields of a section by name

# Removed fields, and the only value with which an older run can still be read.
GONE = {'policy.top_k': 0, 'policy.top_p': 1.0, 'policy.min_p': 0.0}

# After the first checkpoint of a run, only `free` fields of these sections may change.
# The data and tokenizer stages check their own sections, `data` without AUGMENTATION.
DECIDES_WEIGHTS = (
    *('seed', 'model', 'optim', 'train', 'start', 'sft', 'lora'),
    *('reward', 'preference', 'task', 'policy', 'ppo', 'grpo'),
)


# ---- sections with their defaults


def base_config() -> ConfigDict:
    """The sections that every experiment has, with their defaults."""
    config = ConfigDict()
    for name, fields in BASE.items():
        is_section = isinstance(fields, dict)
        config[name] = make_section(fields) if is_section else fields.default
    return config


def make_section(fields: Fields, **values: Any) -> ConfigDict:
    """A locked section with these values, and defaults for its other fields."""
    section = lock({name: make_default(field) for name, field in fields.items()})
    section.update(values)
    return section


def make_default(field: Field) -> Any:
    """The default of a field, with complete entries."""
    if isinstance(field.range, dict):
        entries = field.default.items()
        return {name: make_section(field.range, **entry) for name, entry in entries}
    return dict(field.default) if isinstance(field.default, dict) else field.default


def lock(fields: dict) -> ConfigDict:
    """A section to which no field can be added.

    New entries can be added to its nested sections: the user chooses their names.
    """
    section = ConfigDict(fields).lock()
    for value in section.values():
        if isinstance(value, ConfigDict):
            value.unlock()
    return section


# ---- checks


def check_fields(config: ConfigDict) -> None:
    """Raises UserError for a value that its field may not have.

    Sections that the schema does not know belong to the user and may have any value
    that RUN/config.json can hold, except `parts`, which holds one whole config for each
    stage of `overoptimize`.
    """
    config = config.to_dict()
    stages = config.get('parts', {}).items()
    configs = {'': config} | {f'parts.{name}.': stage for name, stage in stages}
    for prefix, checked in configs.items():
        for name, fields in SCHEMA.items():
            if name in checked:
                _check(prefix + name, checked[name], fields)
    for name, value in config.items():
        _check_json(name, value)


def _check_json(name: str, value: Any) -> None:
    if isinstance(value, dict) and all(isinstance(inner, str) for inner in value):
        for inner, inner_value in value.items():
            _check_json(f'{name}.{inner}', inner_value)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_json(name, item)
    elif isinstance(value, str) and value != replace_surrogates(value):
        raise UserError(
            f'{name}={value!a}: half of a surrogate pair is no character: write whole '
            'characters'
        )
    elif not isinstance(value, str | int | float | None):
        raise UserError(
            f'{name}={value!r}: RUN/config.json cannot hold this value: use numbers, '
            'texts, True or False, lists of these, or sections with texts as names'
        )


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
            if field.range is SOURCE and (entry == '' or '/' in str(entry)):
                raise UserError(
                    f'{name}: {entry!r} cannot be the name of a source, because it is '
                    'also that of a folder: use letters, digits, - and _'
                )
            _check(f'{name}.{entry}', section, field.range)


# ---- a new config


def add_missing_fields(config: ConfigDict, whole: ConfigDict | None = None) -> None:
    """Completes the config of a --config file in place, so that references stay."""
    whole = complete_new(config) if whole is None else whole
    for name, value in whole.items():
        if name not in config:
            with config.unlocked():
                config[name] = value
        elif isinstance(value, ConfigDict):
            add_missing_fields(config[name], value)


def complete_new(config: ConfigDict) -> ConfigDict:
    """The config of a --config file, with the default of every field that it lacks.

    Only `data.sources` stays empty if it is missing: no run may train on text that its
    config does not name.

    Raises UserError for a field that the schema does not know, such as a misspelt one.
    """
    given = config.to_dict()
    _refuse_unknown_fields(given, SCHEMA)
    return ConfigDict(complete(given, is_new=True))


def _refuse_unknown_fields(section: dict, fields: dict, prefix: str = '') -> None:
    for name, value in section.items():
        field, full_name = fields.get(name), f'{prefix}{name}'
        if field is None and fields is SCHEMA and isinstance(value, dict):
            # Another section belongs to the user; `parts` holds whole configs.
            for part, stage in value.items() if name == 'parts' else ():
                _refuse_other_types(f'parts.{part}', stage)
                _refuse_unknown_fields(stage, SCHEMA, f'parts.{part}.')
        elif field is None:
            nearest = difflib.get_close_matches(name, fields, 1)
            fix = f'use {prefix}{nearest[0]}, or ' if nearest else ''
            raise UserError(
                f'{full_name}={value!r}: there is no such field: {fix}see '
                'gptjax/core/schema.py, which lists all fields'
            )
        elif isinstance(field, dict):
            _refuse_other_types(full_name, value)
            _refuse_unknown_fields(value, field, f'{full_name}.')
        elif isinstance(field.range, dict):
            _refuse_other_types(full_name, value, field)
            for entry, inner in value.items():
                _refuse_unknown_fields(inner, field.range, f'{full_name}.{entry}.')


def _refuse_other_types(name: str, value: Any, field: Field | None = None) -> None:
    """Raises UserError if a section, or a field with entries, is something else."""
    if not isinstance(value, dict):
        advice = field.advice(value) if field else 'use a section with fields'
        raise UserError(f'{name}={value!r}: {advice}')
    for entry, section in value.items() if field else ():
        _refuse_other_types(f'{name}.{entry}', section)


# ---- how many of the model's positions are used


def default_context(longest: int, known: int = 0) -> int:
    """The context of a model with `longest` positions, if no number is given.

    It is `longest`, but at most DEFAULT_CONTEXT, or `known`, which worked before. The
    memory of the cache, and that of a row in training, grows with it.
    """
    return min(longest, max(DEFAULT_CONTEXT, known))


def choose_context(run: str, longest: int, flag: int | None, known: int = 0) -> int:
    """The value of --context, checked; else the default, with a line if that is less.

    `run` is the name of the model that has `longest` positions; `known` is the
    `data.context` that it was trained with.
    """
    if flag is None:
        context = default_context(longest, known)
        if context < longest:
            print(
                f'{run}: the context has {context:,} of {longest:,} tokens: use '
                '--context=N for more, which takes more memory',
                file=sys.stderr,
            )
        return context
    if not 2 <= flag <= longest:
        raise UserError(
            f'--context={flag}: {run} has {longest} positions: use a number from 2 to '
            f'{longest}'
        )
    return flag


def cache_context(longest: int, needed: int) -> int:
    """Positions of a cache for prompts and replies of `needed` tokens at most.

    They are a multiple of 128, the smallest page of a cache, if the model has so many.
    A model of at most DEFAULT_CONTEXT positions has a cache of all of them, as it had
    in older versions: log-probabilities depend on the length of the cache by rounding.
    """
    if longest <= DEFAULT_CONTEXT:
        return longest
    return min(longest, -(-needed // 128) * 128)


# ---- runs of other versions


def complete(config: dict, is_new: bool = False) -> dict:
    """The config of a run, as nested dicts, with every field that it lacks.

    In a run that is older than a field, the field has the value `before`; in a new
    run it has the default. A section that only some experiments have stays absent.

    Raises UserError for a field that is gone and had an effect, and for a field of
    `model` that this version does not know: the model would compute something else.
    Other unknown fields, of a later version, are ignored.
    """
    for name, value in config.items():
        if isinstance(SCHEMA.get(name), dict) or name == 'parts':
            _refuse_other_types(name, value)
    config = {
        name: dict(section) if isinstance(section, dict) else section
        for name, section in config.items()
    }
    if is_new:
        config['data'] = dict(sources={}) | config.get('data', {})
    for name, value in GONE.items():
        section, field = name.split('.')
        given = config.get(section, {}).pop(field, value)
        if given != value:
            raise UserError(
                f'{name}={given!r}: this field is gone, as if it were {value!r}: use '
                'the version of gptjax that has it'
            )
    for field, value in config.get('model', {}).items():
        if field not in SCHEMA['model']:
            raise UserError(
                f'model.{field}={value!r}: this version has no such field: use the '
                'version of gptjax that has it, or leave it out'
            )
    for name, fields in SCHEMA.items():
        if name in config and isinstance(fields, dict):
            config[name] = _complete_section(name, config[name], fields, is_new)
        elif name in BASE and name not in config:
            config[name] = base_config()[name]
    if 'parts' in config:
        for part, stage in config['parts'].items():
            _refuse_other_types(f'parts.{part}', stage)
            config['parts'][part] = complete(stage, is_new)
    return _to_dicts(config)


def _complete_section(name: str, section: dict, fields: Fields, is_new: bool) -> dict:
    completed = dict(section)
    for inner, field in fields.items():
        if inner not in section:
            if is_new or field.before is SAME:
                completed[inner] = make_default(field)
            elif field.before is NEEDED:
                raise UserError(f'{name}.{inner} is missing: give it a value')
            else:
                completed[inner] = field.before
        elif (
            is_new and type(field.default) is int and isinstance(section[inner], float)
        ):
            if section[inner].is_integer():
                completed[inner] = int(section[inner])  # 2.0 layers are 2
        elif isinstance(field.range, dict):
            _refuse_other_types(f'{name}.{inner}', section[inner], field)
            if field.range is REWARD_PART:
                continue  # as written: a checkpoint's identity is a hash of it
            completed[inner] = {
                entry: _complete_section(
                    f'{name}.{inner}.{entry}', value, field.range, is_new
                )
                for entry, value in section[inner].items()
            }
    return completed


def _to_dicts(value: Any) -> Any:
    if isinstance(value, ConfigDict | dict):
        return {name: _to_dicts(inner) for name, inner in value.items()}
    return value


def decides_weights(name: str) -> bool:
    """Whether a section, or a field such as 'train.num_steps', decides the weights.

    A field that the schema does not know comes from another version and does not.
    """
    section, _, field = name.partition('.')
    if section == 'data':
        return field in AUGMENTATION
    if section not in DECIDES_WEIGHTS or not field:
        return section in DECIDES_WEIGHTS
    known = SCHEMA[section].get(field.split('.')[0])
    return known is not None and not known.free

"""Where a run came from, and the commands that make it again."""

import shlex

STAGES_BEFORE = ('data', 'tokenizer', 'prepare')  # `pretrain` runs them itself
STAGES_AFTER = ('eval', 'sample', 'report')


def commands(environment: dict) -> list[str]:
    """The shell commands that repeat the run, from the checkout of its code on."""
    words = shlex.split(environment.get('command') or '')
    config = environment.get('config') or _flags(words, '--config')
    # The first three are those of `import`.
    names = '--from', '--base', '--dtype', '--workdir'
    flags = config + [word for name in names for word in _flags(words, name)]
    workdir_flag = _flags(words, '--workdir') or ['--workdir', 'RUN']
    lines = []
    if environment.get('revision'):
        revision = environment['revision']
        lines.append(f'git checkout {revision.rstrip("+")}')
        if revision.endswith('+'):
            lines[-1] += '   # and changes that were not committed'
    stage = stage_of(environment)
    later_stages = ('report',) if stage == 'reward' else STAGES_AFTER
    calls = [(stage, flags), *((name, workdir_flag) for name in later_stages)]
    lines += [shlex.join(['python', '-m', 'gptjax', name, *f]) for name, f in calls]
    return lines


def stage_of(environment: dict) -> str:
    """The stage that trains the run; `pretrain` if the environment names none."""
    words = shlex.split(environment.get('command') or '')[3:]
    others = (*STAGES_BEFORE, *STAGES_AFTER)
    return words[0] if words and words[0] not in others else 'pretrain'


def flatten(fields: dict, prefix: str = '') -> list[tuple[str, str]]:
    """{'model': {'width': 192}} → [('model.width', '192')]."""
    pairs = []
    for name, value in fields.items():
        if isinstance(value, dict):
            pairs += flatten(value, f'{prefix}{name}.')
            continue
        if isinstance(value, list):
            value = ', '.join(map(str, value)) or '()'
        text = '–' if value is None else repr(value) if value == '' else str(value)
        pairs.append((prefix + name, text))
    return pairs


def _flags(words, name):
    """The words of the flags `name VALUE`, `name=VALUE` and `name.field=VALUE`."""
    kept = []
    for number, word in enumerate(words):
        if word == name:
            kept += words[number : number + 2]
        elif word.startswith((f'{name}=', f'{name}.')):
            kept.append(word)
    return kept

import json

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.data import preference_pairs
from tests.data.made_templates import TEMPLATES, make_tokenizer


def test_a_file_that_grew_is_refused(run, tmp_path):
    run.copy_tokenizer(tmp_path)
    path = tmp_path / 'mine.jsonl'
    question = dict(role='user', content='where is the cat?')
    lines = [
        dict(prompt=[question] * n, chosen='it sat', rejected='off') for n in (1, 2, 3)
    ]
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    config = common.base()
    config.preference = common.preference_section()
    config.preference.path = str(path)
    manifest = preference_pairs.build_pairs(config, tmp_path)
    assert preference_pairs.build_pairs(config, tmp_path) == manifest
    with open(path, 'a') as file:
        file.write(json.dumps(lines[0]) + '\n')
    with pytest.raises(UserError, match='preference.path=.*1 files of .* delete'):
        preference_pairs.build_pairs(config, tmp_path)


def test_pairs_that_the_template_refuses_are_left_out(tmp_path):
    """Gemma 2 takes no system message."""
    make_tokenizer(tmp_path, TEMPLATES['gemma_2'])
    (tmp_path / 'run').rename(tmp_path / 'tokenizer')
    question, system = dict(role='user', content='Hi'), dict(role='system', content='x')
    prompts = [dict(question, content='Ho')], [question], [system, question]
    path = tmp_path / 'mine.jsonl'
    config = common.base()
    config.preference = common.preference_section()
    config.preference.path, config.chat.template = str(path), 'turns'
    config.data.context = 128

    def build(prompts):
        lines = [dict(prompt=p, chosen='yes', rejected='no') for p in prompts]
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
        return preference_pairs.build_pairs(config, tmp_path)

    why = 'the chat template of the model refuses the messages: no system messages'
    with pytest.raises(UserError, match=f'mine.jsonl: no pair is left: 1 of 1 .*{why}'):
        build(prompts[2:])
    manifest = build(prompts)
    assert sum(split['pairs'] for split in manifest['splits'].values()) == 2
    assert manifest['refused'] == {why: 1}
    assert f'"{why}" left out 1 of 3 pairs' in preference_pairs.PAIRS.details(manifest)

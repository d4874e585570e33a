import json

import pytest

from configs import common
from gptjax.core.console import UserError
from gptjax.data import preference_pairs


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

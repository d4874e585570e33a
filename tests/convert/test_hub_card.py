"""README.md of an export: the Hub's library reads it; it says what the files say."""

import re
import shlex

import numpy as np
import pytest
from ml_collections import ConfigDict

from gptjax.convert import hub_card
from gptjax.core import storage
from gptjax.train.load_model import Trained
from tests.serve.test_model_card import ENGINE, evaluation, item, run  # noqa: F401

huggingface_hub = pytest.importorskip('huggingface_hub')
ENGLISH = 'The weather was fine, so we walked along the river to the old mill. ' * 3


def write(run, folder, **options):  # noqa: F811
    """The card of the run, read by the Hub's library, and its text."""
    trained = Trained(ConfigDict(dict(context=128)), dict(w=np.zeros(1000)), ENGINE, 50)
    hub_card.write_card(
        folder, folder.name, run, trained, 'LlamaForCausalLM', **options
    )
    card = huggingface_hub.ModelCard.load(folder / 'README.md')
    return card.data, card.text


@pytest.fixture
def folder(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(hub_card, 'model_fingerprint', lambda trained: 'these weights')
    held_out = run.parent / 'base/documents/validation.jsonl'
    held_out.write_text(f'{{"text": "{ENGLISH}"}}\n{{"text": "Vier"}}\n')
    manifest = storage.read_json(held_out.with_name('manifest.json'))
    steps = dict(
        drop_short=dict(documents_dropped=3, characters_removed=21),
        mask_emails=dict(documents_changed=0),
    )
    counts = dict(read=dict(documents=12), kept=dict(documents=9), steps=steps)
    manifest['sources']['books'] |= counts
    storage.write_json(held_out.with_name('manifest.json'), manifest)
    (tmp_path / 'My model').mkdir()
    return tmp_path / 'My model'


def test_the_header_is_what_the_hub_reads(run, folder):  # noqa: F811
    storage.write_json(run / 'eval.json', evaluation({}, [item('add', '2 + 2')]))
    data, text = write(run, folder)
    fields = data.to_dict()
    assert fields.pop('model-index')[0]['name'] == 'My model'
    assert fields == dict(
        license='other',
        license_name='mit-and-not-stated',
        language=['en'],
        library_name='transformers',
        pipeline_tag='text-generation',
        tags=['gptjax', 'pretrain', 'sft', 'reward', 'grpo'],
    )
    results = {result.metric_type: result for result in data.eval_results}
    assert results['accuracy'].metric_value == 0.8
    assert results['accuracy'].metric_args['interval'] == [0.75, 0.8 + 0.05]
    assert '| task | accuracy | 0.800 | 0.750 … 0.850 | 0.100 always' in text
    assert '12 documents read, 9 kept; drop\\_short: 3 dropped' in text
    assert 'mask' not in text
    assert 'rounded' in write(run, folder, rounded=True)[1]


def test_figures_of_other_weights_are_left_out(run, folder):  # noqa: F811
    other = evaluation({}, [item('add', '2')], fingerprint='others')
    storage.write_json(run / 'eval.json', other)
    data, text = write(run, folder, rounded=True)
    assert data.eval_results is None and '0.800' not in text
    assert 'has not been evaluated' in text and 'rounded' not in text


def test_texts_of_the_files_are_no_markup(run, folder):  # noqa: F811
    path = run.parent / 'base/documents/manifest.json'
    evil = 'a|b\n# <script>`x`</script> [y](z)\n---\n'
    manifest = storage.read_json(path)
    manifest['sources'] = {evil: dict(manifest['sources']['books'], licence=evil)}
    storage.write_json(path, manifest)
    steps = {evil: dict(documents_dropped=3)}
    manifest['sources'][evil] |= dict(steps=steps, skipped={evil: 1})
    storage.write_json(path, manifest)
    change(run / 'config.json', optim=dict(name=evil, schedule=evil))
    command = ['python', '-m', 'gptjax', evil + '\r# <script>\u2028# <script>']
    for name in ('assistant', 'judge'):
        words = shlex.join(command)
        change(run.parent / name / 'environment.json', command=words, processor=evil)
    data, text = write(run, folder)
    assert data.tags == ['gptjax', 'pretrain', 'sft']
    lines = [line for line in text.splitlines() if not line.startswith('    ')]
    assert 'Made by:' in lines
    assert not re.search(r'(?<!\\)(<script|`x)|^# <', '\n'.join(lines), re.MULTILINE)
    assert data.license == 'other'
    assert re.fullmatch('[a-z0-9.-]{1,96}', data.license_name)
    rows = [line for line in text.split('\n') if line.startswith('| pretrain')]
    assert [len(re.findall(r'(?<!\\)\|', row)) for row in rows[:1]] == [6]


def change(path, **fields):
    storage.write_json(
        path, (storage.read_json(path) if path.exists() else {}) | fields
    )


def test_one_licence_is_that_of_all_weights_and_records(run, folder):  # noqa: F811
    """A tuned model on MIT data is MIT only if it starts from MIT data, too."""
    tuned, base = run.parent / 'sft', run.parent / 'base'
    talk = dict(licence='MIT', version='', splits=dict(train=dict(conversations=5)))

    def header(**source):
        path = tuned / 'dialogue/manifest.json'
        storage.write_json(path, dict(sources=dict(talk=talk | source), splits={}))
        fields = write(tuned, folder)[0].to_dict()
        return fields['license'], fields.get('license_name')

    assert header() == ('mit', None)
    # Records that state another licence, and a config that leaves some of them out.
    records = dict(licences={'': 1, 'CC-BY-NC-4.0': 99, 'MIT': 2})
    assert header(**records) == ('other', 'cc-by-nc-4.0-and-mit-and-not-stated')
    assert 'CC-BY-NC-4.0, MIT' in (folder / 'README.md').read_text()
    allowed = {'data.licences': [' mit']}
    manifest = dict(sources=dict(talk=talk | records), splits={}, settings=allowed)
    storage.write_json(tuned / 'dialogue/manifest.json', manifest)
    assert write(tuned, folder)[0].license == 'mit'
    # An imported model: its documents are there for `eval`.
    change(base / 'imported/manifest.json', folder='/home/me/llama')
    assert header() == ('other', 'mit-and-not-stated')
    assert (
        '| pretrain (base) | not named | – | not stated | – |'
        in (folder / 'README.md').read_text()
    )
    # A run that is gone.
    base.rename(run.parent / 'elsewhere')
    assert header() == ('other', 'mit-and-not-stated')


def test_the_text_of_ppo_is_data(run, folder):  # noqa: F811
    config = storage.read_json(run / 'config.json')
    ppo = dict(ptx=0.1, ptx_run=str(run.parent / 'base'))
    change(run / 'config.json', ppo=ppo)
    row = '| grpo (assistant) | books | 1.0 | MIT | 9 documents |'
    assert row in write(run, folder)[1]
    change(run / 'config.json', ppo=ppo | dict(ptx_run='gone/text'))
    assert '| grpo (assistant) | text | – | not stated' in write(run, folder)[1]
    storage.write_json(run / 'config.json', config)
    assert row not in write(run, folder)[1]


def test_runs_of_the_same_name_have_their_own_stages(run, folder):  # noqa: F811
    """text/control and dialogue/control."""
    control = run.parent / 'dialogue/base'
    control.parent.mkdir()
    (run.parent / 'sft').rename(control)
    text = write(control, folder)[1]
    training = text.split('## Training')[1]
    assert '| pretrain (base) |' in training and '| sft (base) |' in training


@pytest.mark.parametrize(
    'stated, licence',
    [
        (['MIT', 'mit'], dict(license='mit')),
        (['Apache License 2.0'], dict(license='apache-2.0')),
        (['CC BY-SA 4.0'], dict(license='cc-by-sa-4.0')),
        (['BSD', 'MIT'], dict(license='other', license_name='bsd-and-mit')),
        (['My own (1)'], dict(license='other', license_name='my-own-1')),
        ([''], dict(license='other', license_name='not-stated')),
        ([], dict(license='other', license_name='not-stated')),
    ],
)
def test_licences(stated, licence):
    assert hub_card.choose_licence(stated) == licence


def test_the_base_model_has_its_name_on_the_hub(tmp_path):
    def base_model(folder, **config):
        manifest = tmp_path / 'imported/manifest.json'
        storage.write_json(manifest, dict(folder=folder))
        storage.write_json(tmp_path / 'imported/config.json', config)
        return hub_card._base_model(tmp_path)

    assert hub_card._base_model(tmp_path) is None
    cache = '/home/me/hub/models--org--small/snapshots/12ab'
    assert base_model(cache) == 'org/small'
    assert base_model('/home/me/small', _name_or_path='org/small') == 'org/small'
    assert base_model('/home/me/small', _name_or_path='/home/me/small') is None

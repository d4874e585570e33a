"""The report: its content, missing parts, and escaping of every text."""

import json
import re
from html.parser import HTMLParser

import markupsafe
import pytest

from gptjax.core import storage
from gptjax.eval.report import provenance
from gptjax.eval.report.run_report import FILES, write_report

VOID = {'meta', 'br', 'hr', 'img', 'link', 'input'}
EVIL = '<script>alert("&")</script>'


class Balance(HTMLParser):
    """Fails if tags are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(run):
    page = write_report(run).read_text(encoding='utf-8')
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    return page


def text_of(page):
    return re.sub(r'\s+', ' ', re.sub(r'<[^>]*>', ' ', page))


def put(run, name, value):
    path = run / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding='utf-8')


@pytest.fixture
def run(tmp_path):
    """A finished run with two sources."""
    run = tmp_path / 'a <run>'
    run.mkdir()
    constant = dict(split='train', grad_norm=1.0, learning_rate=0.003, tokens=2048)
    constant.update(tokens_per_second=1000.0, step_seconds=2.0, skipped=1)
    constant.update(mfu_causal=0.3, mfu_full=0.35)
    records = [
        dict(constant, step=step, loss=None if step == 7 else 8 / step + 2)
        for step in range(1, 101)
    ]
    records.append(dict(step=100, split='validation', loss=2.1, bits_per_byte=1.7))
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (run / 'metrics.jsonl').write_text(lines + '{"step": 101, "spl')
    part = dict(loss=2.0, token_perplexity=7.39, bits_per_byte=1.6)
    part.update(word_perplexity=float('inf'))
    part.update(tokens=1000, bytes=1800, words=300, documents=12)
    results = dict(part, by_source=dict(one=part, two=part), context=64, stride=32)
    bits = dict(xz=2.5, xz_given_train=2.0, token_unigram=2.8, byte_unigram=4.5)
    baselines = dict(bits_per_byte=bits, about=dict(xz='alone'))
    evaluation = dict(results=results, baselines=baselines, checkpoint_step=90)
    put(run, 'eval.json', evaluation)
    sample = dict(prompt='Hi <b>', text=EVIL, seed=0, temperature=0.8)
    put(run, 'samples.json', [sample])
    put(run, 'config.json', dict(seed=3, model=dict(width=192, windows=[0, 64])))
    environment = dict(
        command='python -m gptjax pretrain --config=configs/tiny.py --workdir runs/a '
        '--config.optim.name=lion --step 4',
        revision='abc123+',
        packages=dict(jax='0.10.2', clu=None),
    )
    put(run, 'environment.json', environment)
    count = dict(documents_changed=4, documents_dropped=3, characters_removed=55)
    source = dict(
        licence='MIT',
        read=dict(documents=20, characters=900),
        steps=dict(drop_short=count, mask_emails=dict.fromkeys(count, 0)),
        kept=dict(documents=17, characters=845),
    )
    splits = dict(train=dict(documents=16, bytes=800))
    put(run, 'documents/manifest.json', dict(splits=splits, sources=dict(mine=source)))
    prepared = dict(splits=dict(train=dict(mine=dict(predicted_tokens=4321))))
    put(run, 'prepared/manifest.json', prepared)
    tokenizer = dict(vocab_size=2048, sha256='f' * 64, bytes_per_token=3.4)
    put(run, 'tokenizer/manifest.json', tokenizer)
    return run


def test_says_what_is_in_the_run(run):
    page = page_of(run)
    text = text_of(page)
    assert '1.600 bits per byte on 12 documents' in text
    assert '* 0.3556)' in page and '* 1.0000)' in page  # bars of 1.6 and of 4.5
    assert '20% fewer than xz -9e needs' in text
    assert 'The checkpoint of step 90 read whole documents in windows of 64' in text
    assert 'skipped because they were not finite: 1.' in text
    for words in ('on one', 'on two', '1.56×', '4,321', '2,048 tokens', '∞'):
        assert words in text
    # 20 documents read, 3 dropped
    assert re.search(r'drop short 4 3 55 17', text)
    assert re.search(r'mask emails – – – 17', text)


def test_figures_that_are_not_finite_are_a_dash(run):
    evaluation = json.loads((run / 'eval.json').read_text())
    names = ('loss', 'token_perplexity', 'bits_per_byte', 'word_perplexity')
    results = evaluation['results']
    results.update(dict.fromkeys(names))
    results['by_source']['one']['word_perplexity'] = None
    put(run, 'eval.json', evaluation)
    text = text_of(page_of(run))
    assert '– bits per byte on 12 documents that it was not trained on.' in text
    assert 'this model – – – – 12 1,000' in text
    assert 'on one 1.600 2.000 7.39 – 12' in text
    assert 'on two 1.600 2.000 7.39 ∞ 12' in text  # an eval.json of an older version
    assert re.search(r'given training text 2\.000 –', text)


def test_a_model_worse_than_its_baseline(run):
    evaluation = json.loads((run / 'eval.json').read_text())
    evaluation['baselines']['bits_per_byte']['xz_given_train'] = 1.28
    put(run, 'eval.json', evaluation)
    assert '25% more than xz -9e needs' in text_of(page_of(run))
    del evaluation['baselines']
    put(run, 'eval.json', evaluation)
    assert 'There are no baselines' in text_of(page_of(run))


def test_the_page_fetches_nothing_and_escapes_texts(run):
    page = page_of(run)
    assert not re.search(r'<script|<link|<img|<iframe|src=|@import|url\(|https?:', page)
    assert page.count('<figure>') == 6
    assert 'prefers-color-scheme: dark' in page
    assert EVIL not in page and 'Hi &lt;b&gt;' in page and 'a &lt;run&gt;' in page
    assert markupsafe.escape(EVIL) in page


def test_replies_of_validations_and_charts_of_reinforcement_learning(tmp_path):
    records = [
        dict(step=step, split=split, reward=0.5, kl=0.1, truncation_rate=0.25)
        for step in (2, 4)
        for split in ('train', 'validation')
    ]
    lines = ''.join(json.dumps(record) + '\n' for record in records)
    (tmp_path / 'metrics.jsonl').write_text(lines)
    for step in range(0, 20, 2):
        sample = dict(id='p', prompt=[dict(role='user', content='1 + <1>')])
        sample.update(answer='2', reply=f'{step}<|user|>', reward=0.5, tokens=3)
        sample['truncated'] = step > 4
        path = tmp_path / 'samples' / 'validation' / f'{step:08d}.json'
        storage.write_json(path, dict(step=step, samples=[sample, sample]))
    page = page_of(tmp_path)
    text = text_of(page)
    assert '1 + &lt;1&gt; 2 18&lt;|user|&gt; 0.500 3 truncated' in text
    shown = re.findall(r'After (\d+) updates: mean .* 2 replies 0.500, (\d) tr', page)
    assert shown == [('0', '0'), ('2', '0')] + [
        (s, '2') for s in ('6', '10', '14', '18')
    ]
    assert page.count('<figure>') == 3 and 'no metrics.jsonl' not in text
    path.write_bytes(b'')  # the last one is damaged
    assert 'After 18 updates' not in page_of(tmp_path)


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('eval.json', 'There is no eval.json: run python -m gptjax eval'),
        ('samples.json', 'There is no samples.json: run python -m gptjax sample'),
        ('metrics.jsonl', 'There is no metrics.jsonl: run python -m gptjax pretrain'),
        ('config.json', 'There is no config.json'),
        ('environment.json', 'There is no environment.json'),
        ('documents/manifest.json', 'There are no documents'),
        ('prepared/manifest.json', 'train 16 800 –'),
        ('tokenizer/manifest.json', 'Cleaning of mine'),
    ],
)
def test_the_page_names_missing_files(run, name, words):
    assert words not in text_of(page_of(run)) or 'Cleaning' in words
    (run / name).unlink()
    assert words in text_of(page_of(run))


@pytest.mark.parametrize('name', FILES.values())
def test_a_damaged_file_is_as_one_that_is_missing(run, name, capsys):
    put(run, name, 3)
    assert page_of(run)
    assert f'{run / name} is damaged: it is ignored' in capsys.readouterr().err


def test_an_empty_run_has_a_page(tmp_path):
    assert page_of(tmp_path).count('class="missing"') == 6


def test_the_commands_make_the_run_again():
    environment = dict(
        command='python -m gptjax eval --config=configs/tiny.py --workdir runs/a '
        '--config.optim.name=lion --seed 4',
        revision='abc123+',
    )
    assert provenance.commands(environment) == [
        'git checkout abc123   # and changes that were not committed',
        'python -m gptjax pretrain --config=configs/tiny.py '
        '--config.optim.name=lion --workdir runs/a',
        'python -m gptjax eval --workdir runs/a',
        'python -m gptjax sample --workdir runs/a',
        'python -m gptjax report --workdir runs/a',
    ]
    assert provenance.commands({})[0] == 'python -m gptjax pretrain'


def test_the_table_of_tasks_has_baselines(run):
    evaluation = json.loads((run / 'eval.json').read_text())
    evaluation['results']['intervals'] = dict(bits_per_byte=[1.2, 1.3])
    figure = dict(value=31.5, interval=[30.25, 33.0])
    baselines = {'another <reference>': dict(value=12.0, interval=[11.0, 13.0])}
    evaluation['tasks'] = dict(
        perplexity=dict(figures=dict(loss=figure)),
        reply=dict(figures=dict(bleu=dict(figure, baselines=baselines))),
    )
    put(run, 'eval.json', evaluation)
    text = text_of(page_of(run))
    assert '(1.200 … 1.300)' in text
    assert 'reply BLEU 31.5 (30.2 … 33.0) 12.0 another &lt;reference&gt;' in text


def test_replies_to_problems_say_which_are_right(run):
    evaluation = json.loads((run / 'eval.json').read_text())
    item = dict(messages=[dict(role='user', content='2 <b> 2')], answer='4')
    items = [dict(item, reply='4', statistics=[0, 1]) for _ in range(9)]
    items += [dict(item, reply=reply, statistics=[1, 0]) for reply in ('five', 'six')]
    task = dict(columns=['drawn', 'greedy'], items=[dict(id='old'), *items])
    evaluation['tasks'] = dict(task=dict(task, figures={}))
    put(run, 'eval.json', evaluation)
    text = text_of(page_of(run))
    assert text.count('2 &lt;b&gt; 2 4 ✓ 4') == 9
    assert '2 &lt;b&gt; 2 4 five' in text and '4 six' not in text


def test_the_config_comes_from_an_earlier_command_if_the_last_has_none():
    environment = dict(
        command='python -m gptjax prepare --workdir runs/a',
        config=['--config=configs/tiny.py', '--config.seed=3'],
    )
    assert provenance.commands(environment)[0] == (
        'python -m gptjax pretrain --config=configs/tiny.py --config.seed=3 '
        '--workdir runs/a'
    )
    environment['command'] = 'python -m gptjax sft --workdir runs/b'
    assert provenance.commands(environment)[0].startswith('python -m gptjax sft --conf')


def test_an_imported_adapter_is_repeated_with_its_base():
    command = 'python -m gptjax import --from a --base runs/b --workdir runs/c'
    assert provenance.commands(dict(command=command))[0] == command

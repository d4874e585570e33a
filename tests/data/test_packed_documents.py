import numpy as np
import pytest

from gptjax.core import storage
from gptjax.core.console import UserError
from gptjax.data import packed_documents, packing
from gptjax.data.packed_dataset import PackedDataset
from gptjax.data.packed_documents import build_packed_documents
from gptjax.data.packing import unpack
from tests.data.conftest import write_documents


def stored_rows(run, split, source):
    folder = run.prepared / split / source
    return np.concatenate([np.load(p) for p in sorted(folder.glob('tokens-*.npy'))])


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_rows_starts_and_ids_are_the_documents(run, split):
    tokenizer = run.tokenizer
    for source, documents in run.documents[split].items():
        batch = unpack(stored_rows(run, split, source), *range(3))
        predicted = batch['targets'][batch['weights'] > 0]
        ends = np.flatnonzero(predicted == tokenizer.eos_id)
        texts = [tokenizer.decode(part) for part in np.split(predicted, ends + 1)[:-1]]
        assert texts == [text for _, text in documents]
        folder = run.prepared / split / source
        ids = list(storage.read_jsonl(folder / 'documents.jsonl'))
        assert ids == [key for key, _ in documents]
        lengths = [len(tokenizer.encode(text)) + 1 for _, text in documents]
        expected = np.cumsum([0, *lengths[:-1]])
        assert np.load(folder / 'starts.npy').tolist() == expected.tolist()


def test_the_manifest_counts_what_is_there(run):
    manifest = storage.read_json(run.prepared / 'manifest.json')
    assert manifest['context'] == 16
    assert manifest['tokenizer'] == run.tokenizer.fingerprint
    assert manifest['licences'] == {'a': 'MIT', 'b': 'CC0'}
    for split, sources in run.documents.items():
        for source, documents in sources.items():
            entry = manifest['splits'][split][source]
            rows = stored_rows(run, split, source)
            assert entry['documents'] == len(documents)
            assert entry['bytes'] == sum(len(text.encode()) for _, text in documents)
            assert entry['rows'] == len(rows)
            assert entry['dtype'] == rows.dtype.name == 'uint16'
            weights = unpack(rows, *range(3))['weights']
            assert entry['predicted_tokens'] == weights.sum()
            assert entry['padding'] == (weights == 0).sum() < 16
            for name, written in entry['files'].items():
                path = run.prepared / split / source / name
                assert written['bytes'] == path.stat().st_size
                assert written['sha256'] == storage.sha256_of_file(path)


def test_shards_and_batches_of_text_change_no_row(run, new_run, monkeypatch):
    monkeypatch.setattr(packing, 'SHARD_TOKENS', 5 * 17)
    monkeypatch.setattr(packed_documents, 'BATCH_CHARACTERS', 300)
    other = new_run()
    shards = sorted((other.prepared / 'train' / 'a').glob('tokens-*.npy'))
    assert [len(np.load(path)) for path in shards[:-1]] == [5] * (len(shards) - 1)
    assert len(shards) > 3
    for source in 'ab':
        rows = stored_rows(other, 'train', source)
        assert (rows == stored_rows(run, 'train', source)).all()
    packed = PackedDataset(other.prepared, 'train')
    rows = stored_rows(other, 'train', 'a')
    some = np.array([len(rows) - 1, 0, 5, 4, 5])
    assert (packed.sources[0].read(some) == rows[some]).all()


def test_prepared_once_and_another_config_is_refused(run, tmp_path):
    path = run.prepared / 'manifest.json'
    written = path.stat().st_mtime_ns
    assert build_packed_documents(run.config, run.workdir) == storage.read_json(path)
    assert path.stat().st_mtime_ns == written

    def refuses(pattern, workdir=run.workdir, **fields):
        config = run.config.copy_and_resolve_references()
        config.data.update_from_flattened_dict(fields)
        with pytest.raises(UserError, match=pattern):
            build_packed_documents(config, workdir)

    refuses('data.context: 16 there, 32 here', context=32)
    refuses('sources.b.weight: 0.0 there, 0.5 here', **{'sources.b.weight': 0.5})
    refuses('data.context=0: give at least 1', context=0)
    refuses('documents is not there: run .* `data`', tmp_path)


def test_empty_and_special_looking_documents(new_run):
    run = new_run()
    texts = ['', '<bos>', '<|user|><pad>']
    documents = [(f'{i}\n', 'a', text) for i, text in enumerate(texts)]
    write_documents(run.workdir / 'documents' / 'train.jsonl', documents)
    (run.prepared / 'manifest.json').unlink()
    entry = build_packed_documents(run.config, run.workdir)['splits']['train']['a']
    assert entry['documents'] == 2
    batch = unpack(stored_rows(run, 'train', 'a'), *range(3))
    text = run.tokenizer.decode(batch['targets'][batch['weights'] > 0])
    assert text == '<bos><|user|><pad>'
    packed = PackedDataset(run.prepared, 'train')
    assert packed.sources[0].documents(0, 16)[:1] == ['1\n']


def test_a_large_vocabulary_is_stored_in_32_bits(new_run, monkeypatch):
    run = new_run()
    (run.prepared / 'manifest.json').unlink()
    tokenizer = run.tokenizer
    encode = tokenizer.encode_arrays
    tokenizer.vocab_size = 70_000
    tokenizer.encode_arrays = lambda *args: [
        tokens + 69_000 for tokens in encode(*args)
    ]
    monkeypatch.setattr(packed_documents, 'load_tokenizer', lambda folder: tokenizer)
    entry = build_packed_documents(run.config, run.workdir)['splits']['train']['a']
    rows = stored_rows(run, 'train', 'a')
    assert entry['dtype'] == rows.dtype.name == 'uint32'
    assert rows.max() > 2**16

"""The reader of TensorFlow Datasets: our own builders, any by name, any on disk.

TFDS writes and reads the files of our builders without TensorFlow, which takes
seconds to import; only datasets in its older formats need it.
"""

import contextlib
import difflib
import errno
import importlib
import io
import os
from collections.abc import Iterator
from functools import partial

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import Advance, exists, import_tensorflow, is_remote
from gptjax.data.sources.records import Document, Source, record_id

OWN_BUILDERS = ('chitchat', 'chatterbot')  # NAME_builder.py in this folder
CATALOG = 'https://www.tensorflow.org/datasets/catalog'


def open_tfds(field: str, source: ConfigDict, data_dir: str | os.PathLike) -> Source:
    """Finds a dataset, making it where it is not on disk."""
    builder = prepare_builder(field, source, data_dir)
    total = count_examples(field, source, builder)
    info = builder.info
    for option in ('text_field', 'id_field'):
        name = source[option]
        if (name or option == 'text_field') and name not in info.features:
            raise UserError(
                f'{field}.{option}={name}: {source.path} has no such feature, it has '
                f'{", ".join(info.features)}'
            )
    read = partial(_read, field, source, builder)
    return Source(read, total, 'documents', describe_dataset(source, builder))


def count_examples(field: str, source: ConfigDict, builder) -> int:
    """The examples of the split; UserError if the dataset has no such split."""
    splits = builder.info.splits
    try:
        return splits[source.split].num_examples
    except (KeyError, ValueError) as error:
        raise UserError(
            f'{field}.split={source.split}: {source.path} has no such split, it has '
            f'{", ".join(splits)}'
        ) from error


def describe_dataset(source: ConfigDict, builder) -> dict:
    """What the manifest says of a dataset."""
    info = builder.info
    return dict(
        licence=source.licence or info.redistribution_info.license or '',
        citation=info.citation,
        homepage=info.homepage,
        version=info.full_name,
    )


def prepare_builder(field: str, source: ConfigDict, data_dir):
    """The TFDS builder with its data on disk, made now if it was not."""
    import tensorflow_datasets as tfds

    path = source.path
    if path.startswith(('/', './', '../', '~')) or is_remote(path):
        folder = os.path.expanduser(path)
        if not exists(os.path.join(folder, 'dataset_info.json'), f'{field}.path'):
            raise UserError(
                f'{field}.path={path}: no prepared TFDS dataset: give the folder that '
                'holds its dataset_info.json'
            )
        return tfds.builder_from_directory(folder)
    name = path.split('/')[0].split(':')[0]
    try:
        if name in OWN_BUILDERS:
            return _own_builder(name, path, data_dir)
        import_tensorflow()  # TFDS will: see that it is quiet, and off the devices
        builder = tfds.builder(path)
        if not builder.is_prepared():
            builder = tfds.builder(path, file_format='array_record')
            builder.download_and_prepare()
        return builder
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(name, {*OWN_BUILDERS, *tfds.list_builders()})
        meant = f'did you mean {" or ".join(near)}? ' if near else ''
        raise UserError(
            f'{field}.path={path}: TFDS has no such dataset: {meant}See {CATALOG}'
        ) from error
    except Exception as error:  # a data set's own code raises what it likes
        if isinstance(error, ValueError) and 'BuilderConfig' in str(error):
            configs = ', '.join(tfds.builder_cls(name).builder_configs)
            raise UserError(
                f'{field}.path={path}: {name} has no such config, it has {configs}'
            ) from error
        if name in OWN_BUILDERS:  # in RUN: `main` says why that cannot be written to
            raise
        raise UserError(
            f'{field}.path={path}: TFDS cannot make it: {_cause(error)}'
        ) from error


def _cause(error: Exception) -> str:
    """What went wrong in code that is not ours, in one line, and the way on."""
    why = ' '.join(f'{type(error).__name__}: {error}'.split())
    why = why if len(why) <= 400 else f'{why[:400]}…'
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.split('.')[0].replace('_', '-')
        return f'{why}: `pip install {package}`, or give another source'
    return f'{why}: mend that, or give another source'


def _own_builder(name: str, path: str, data_dir):
    import tensorflow_datasets as tfds

    importlib.import_module(f'gptjax.data.sources.{name}_builder')  # registers it
    builder = tfds.builder(path, data_dir=data_dir, file_format='array_record')
    tfds.disable_progress_bar()  # our builders have their own
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # what TFDS says of it
            builder.download_and_prepare()
    except OSError as error:
        if error.filename2 and error.errno in (errno.EMFILE, errno.ENOTSUP):
            # A bucket knows no folders: gcsfuse renames as far as it is told to.
            raise UserError(
                f'{data_dir}: TFDS cannot rename a folder there ({error.strerror}): '
                'use another --workdir or, if it is in a bucket, mount that with '
                '`gcsfuse --rename-dir-limit=100000`'
            ) from error
        if error.errno is not None or 'Not enough disk space' not in str(error):
            raise
        # TFDS looked, and told it in words alone: as a full disk tells it.
        raise OSError(errno.ENOSPC, str(error), os.fspath(data_dir)) from error
    finally:
        tfds.enable_progress_bar()
    return builder


def _read(
    field: str, source: ConfigDict, builder, advance: Advance
) -> Iterator[Document]:
    info = builder.info
    fields = source.text_field, source.id_field or 'id'
    chosen = [name for name in fields if name in info.features]
    for place, example in enumerate(read_examples(builder, source.split, chosen)):
        location = f'{field}.path={source.path}: example {place}'
        text = example[source.text_field]
        if not isinstance(text, bytes):
            raise UserError(
                f'{field}.text_field={source.text_field}: holds no string in '
                f'{source.path}: name another of {", ".join(info.features)}'
            )
        identity = record_id(
            example, field, source, location, f'{source.split}#{place}'
        )
        yield identity, text.decode('utf-8', errors='replace')
        advance(1)


def read_examples(builder, split: str, names: list[str]) -> Iterator[dict]:
    """The examples of a prepared dataset in order, with the features `names` alone."""
    import tensorflow_datasets as tfds

    info = builder.info
    if info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        # Parsing two features of many, not all: three times as fast.
        features = tfds.features.FeaturesDict({n: info.features[n] for n in names})
        table = builder.as_data_source(
            split=split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        for place in range(len(table)):
            yield features.deserialize_example_np(table[place])
    else:  # files that TensorFlow reads, in order
        import_tensorflow()
        only = tfds.decode.PartialDecoding(dict.fromkeys(names, True))
        yield from tfds.as_numpy(
            builder.as_dataset(split=split, decoders=only, shuffle_files=False)
        )

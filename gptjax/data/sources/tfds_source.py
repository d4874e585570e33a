"""Reads TensorFlow Datasets: our own builders, datasets by name, prepared folders.

TFDS writes and reads the files of our builders without TensorFlow, whose import takes
seconds. Only datasets in older file formats need it.
"""

import contextlib
import difflib
import errno
import importlib.metadata
import importlib.util
import io
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from gptjax.core.console import UserError
from gptjax.core.files import Advance, exists, import_tensorflow, is_remote
from gptjax.data.sources.records import (
    LicensedDocument,
    Source,
    check_fields,
    record_id,
    record_licence,
)

OWN_BUILDERS = ('chitchat', 'chatterbot')  # NAME_builder.py in this folder
CATALOG = 'https://www.tensorflow.org/datasets/catalog'


def open_tfds(field: str, source: ConfigDict, data_dir: str | os.PathLike) -> Source:
    """Opens a dataset of documents; makes it first if it is not on disk."""
    builder = prepare_builder(field, source, data_dir)
    total = count_examples(field, source, builder)
    check_fields(field, source, source.path, builder.info.features)
    read = partial(_read_texts, field, source, builder)
    return Source(read, total, 'documents', describe_dataset(source, builder))


def count_examples(field: str, source: ConfigDict, builder) -> int:
    """The examples of `source.split`; UserError if there is no such split."""
    splits = builder.info.splits
    try:
        return splits[source.split].num_examples
    except (KeyError, ValueError) as error:
        raise UserError(
            f'{field}.split={source.split}: {source.path} has no such split, it has '
            f'{", ".join(splits)}'
        ) from error


def describe_dataset(source: ConfigDict, builder) -> dict:
    """The manifest's entry for a dataset."""
    info = builder.info
    return dict(
        licence=source.licence or info.redistribution_info.license or '',
        citation=info.citation,
        homepage=info.homepage,
        version=info.full_name,
    )


def prepare_builder(field: str, source: ConfigDict, data_dir):
    """Returns a TFDS builder whose data is on disk; makes the data if needed."""
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
            return _prepare_own_builder(name, path, data_dir)
        import_tensorflow()  # before TFDS does: without its log, off the accelerators
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
    except Exception as error:  # a dataset's own code may raise anything
        if isinstance(error, ValueError) and 'BuilderConfig' in str(error):
            configs = ', '.join(tfds.builder_cls(name).builder_configs)
            raise UserError(
                f'{field}.path={path}: {name} has no such config, it has {configs}'
            ) from error
        if name in OWN_BUILDERS:  # `main` explains why RUN cannot be written to
            raise
        why = ' '.join(f'{type(error).__name__}: {error}'.split())
        why = why if len(why) <= 400 else f'{why[:400]}…'
        fix = 'mend that'
        if isinstance(error, ModuleNotFoundError) and error.name:
            package = error.name.split('.')[0].replace('_', '-')
            fix = f'`pip install {package}`'
        raise UserError(
            f'{field}.path={path}: TFDS cannot make it: {why}: {fix}, or give another '
            'source'
        ) from error


def _prepare_own_builder(name: str, path: str, data_dir):
    import tensorflow_datasets as tfds

    importlib.import_module(f'gptjax.data.sources.{name}_builder')  # registers it
    builder = tfds.builder(path, data_dir=data_dir, file_format='array_record')
    tfds.disable_progress_bar()  # our builders have a progress bar
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # drops what TFDS prints
            builder.download_and_prepare()
    except OSError as error:
        if error.filename2 and error.errno in (errno.EMFILE, errno.ENOTSUP):
            # Buckets have no folders: gcsfuse renames only as many files as allowed.
            raise UserError(
                f'{data_dir}: TFDS cannot rename a folder there ({error.strerror}): '
                'use another --workdir or, if it is in a bucket, mount that with '
                '`gcsfuse --rename-dir-limit=100000`'
            ) from error
        if error.errno is not None or 'Not enough disk space' not in str(error):
            raise
        # TFDS checks the free space, and raises an error without a number or a path.
        raise OSError(errno.ENOSPC, str(error), os.fspath(data_dir)) from error
    finally:
        tfds.enable_progress_bar()
    return builder


def find_package(distribution: str) -> tuple[Path, str]:
    """(folder, version) of an installed corpus package, found without importing it.

    The version has the form that TFDS needs, 'major.minor.patch'. A dataset carries
    the version of its package, so a new release makes a new dataset.
    """
    spec = importlib.util.find_spec(distribution.replace('-', '_'))
    if spec is None:
        raise UserError(
            f'the package {distribution} is not installed: '
            f'pip install {distribution}, or choose other data.sources'
        )
    numbers = re.findall(r'\d+', importlib.metadata.version(distribution))
    return Path(spec.origin).parent, '.'.join((numbers + ['0', '0', '0'])[:3])


def _read_texts(
    field: str, source: ConfigDict, builder, advance: Advance
) -> Iterator[LicensedDocument]:
    for identity, _, text, licence in read_feature(
        field, source, builder, source.text_field, advance
    ):
        if not isinstance(text, bytes):
            raise UserError(
                f'{field}.text_field={source.text_field}: holds no string in '
                f'{source.path}: name another of {", ".join(builder.info.features)}'
            )
        yield identity, text.decode('utf-8', errors='replace'), licence


def read_feature(
    field: str, source: ConfigDict, builder, name: str, advance: Advance
) -> Iterator[tuple]:
    """Yields (id, location for an error, the feature `name`, licence) by example."""
    id_field = source.id_field or 'id'
    names = {name, id_field, source.licence_field} & {*builder.info.features}
    for place, example in enumerate(
        read_examples(builder, source.split, sorted(names))
    ):
        location = f'{field}.path={source.path}: example {place}'
        default = f'{source.split}#{place}'
        identity = record_id(example, field, source, location, default)
        licence = record_licence(example, field, source, location)
        yield identity, location, example[name], licence
        advance(1)


def read_examples(builder, split: str, names: list[str]) -> Iterator[dict]:
    """Yields the features `names` of each example of a prepared dataset, in order."""
    import tensorflow_datasets as tfds

    info = builder.info
    if info.file_format == tfds.core.FileFormat.ARRAY_RECORD:
        # Parsing two features instead of all is three times as fast.
        features = tfds.features.FeaturesDict({n: info.features[n] for n in names})
        table = builder.as_data_source(
            split=split,
            deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES,
        )
        for place in range(len(table)):
            yield features.deserialize_example_np(table[place])
    else:  # an older format, which only TensorFlow reads
        import_tensorflow()
        only = tfds.decode.PartialDecoding(dict.fromkeys(names, True))
        yield from tfds.as_numpy(
            builder.as_dataset(split=split, decoders=only, shuffle_files=False)
        )

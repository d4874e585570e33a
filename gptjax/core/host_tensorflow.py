"""TensorFlow for reading data on the host: no accelerator, no chatter."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def import_tensorflow():
    """The module `tensorflow`, kept off the accelerators; seconds the first time."""
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    with _no_standard_error():
        import tensorflow as tf

        for kind in ('GPU', 'TPU'):
            if tf.config.get_visible_devices(kind):
                tf.config.set_visible_devices([], kind)
    return tf


@contextmanager
def _no_standard_error() -> Iterator[None]:
    """Drops what C++ prints to standard error; exceptions pass as ever.

    TensorFlow's libraries say which accelerators they did not find before any log
    level is heard.
    """
    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as dropped:
            os.dup2(dropped.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)

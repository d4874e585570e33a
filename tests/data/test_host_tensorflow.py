import os

import pytest

from gptjax.core import host_tensorflow


def test_tensorflow_sees_no_accelerator():
    tf = host_tensorflow.import_tensorflow()
    assert {device.device_type for device in tf.config.get_visible_devices()} == {'CPU'}


def test_only_what_is_printed_meanwhile_is_dropped(capfd):
    os.write(2, b'before ')
    with pytest.raises(ValueError), host_tensorflow._no_standard_error():
        os.write(2, b'meanwhile ')
        raise ValueError
    os.write(2, b'after')
    assert capfd.readouterr().err == 'before after'

"""Peak rates of devices."""

from types import SimpleNamespace

import jax
import pytest

from gptjax.train import hardware


def test_the_configured_peak_goes_first():
    assert hardware.peak_tflops(12.5) == 12.5


@pytest.mark.parametrize(
    'kind, expected',
    (('TPU v5 lite', 197.0), ('TPU v5', 459.0), ('TPU v5p', 459.0),
     ('TPU v6 lite', 918.0), ('NVIDIA H100 80GB HBM3', 989.0)),
)  # fmt: skip
def test_table(kind, expected, monkeypatch):
    device = SimpleNamespace(device_kind=kind, platform='tpu')
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    assert hardware.peak_tflops() == expected


def test_a_cpu_is_measured_and_shared_by_its_devices(monkeypatch):
    monkeypatch.setattr(hardware, '_measured_tflops', lambda: 0.8)
    assert hardware.peak_tflops() == pytest.approx(0.8 / jax.device_count())
    monkeypatch.undo()
    assert hardware._measured_tflops(size=64, rounds=1) > 0

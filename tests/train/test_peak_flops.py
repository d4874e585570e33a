"""Peak rates of devices."""

import math
from types import SimpleNamespace

import jax
import pytest

from gptjax.train import peak_flops


def test_the_configured_peak_goes_first():
    assert peak_flops.peak_tflops(12.5) == 12.5


@pytest.mark.parametrize(
    'kind, expected',
    (('TPU v5 lite', 197.0), ('TPU v5', 459.0), ('TPU v5p', 459.0),
     ('TPU v6 lite', 918.0), ('NVIDIA H100 80GB HBM3', 989.0),
     ('NVIDIA H100 PCIe', 756.0), ('NVIDIA A100-SXM4-40GB', 312.0),
     ('NVIDIA L4', 121.0)),
)  # fmt: skip
def test_table(kind, expected, monkeypatch):
    device = SimpleNamespace(device_kind=kind, platform='tpu')
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    assert peak_flops.peak_tflops() == expected


@pytest.mark.parametrize('kind', ('NVIDIA L40S', 'TPU v99'))
def test_what_is_in_no_table_is_said_and_not_measured(kind, monkeypatch, capsys):
    device = SimpleNamespace(device_kind=kind, platform='gpu')
    monkeypatch.setattr(jax, 'devices', lambda: [device])
    assert math.isnan(peak_flops.peak_tflops())
    assert f'the peak of {kind} is unknown' in capsys.readouterr().out


def test_a_cpu_is_measured_and_shared_by_its_devices(monkeypatch):
    monkeypatch.setattr(peak_flops, '_measure_tflops', lambda: 0.8)
    assert peak_flops.peak_tflops() == pytest.approx(0.8 / jax.device_count())
    monkeypatch.undo()
    assert peak_flops._measure_tflops(size=64, repeats=1) > 0

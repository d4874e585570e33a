"""Every test runs on the CPU, split into eight devices."""

import os

# Before jax is imported anywhere. Eight devices stand for a small pod.
os.environ['JAX_PLATFORMS'] = 'cpu'
_FLAG = '--xla_force_host_platform_device_count=8'
if _FLAG not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAG}'.strip()
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')

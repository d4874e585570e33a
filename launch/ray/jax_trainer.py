"""Runs a stage of gptjax on TPU slices of a Ray cluster, by Ray Train's JaxTrainer.

`python -m gptjax launch ray` submits this with its arguments:
    jax_trainer.py '{"hosts": 4, "slices": 1, …}' STAGE --config=… --workdir=…
JaxTrainer starts a worker on each host, joins them and sets MEGASCALE_* for several
slices; the stage then finds that its process has joined the others.
"""

import json
import os
import sys

MEGASCALE = ('COORDINATOR_ADDRESS', 'NUM_SLICES', 'SLICE_ID', 'PORT')
USER_ERROR = 2


def run_stage(settings: dict) -> None:
    """Runs on each host. Raises RuntimeError, after which Ray starts all again."""
    from gptjax.cli import main

    missing = [f'MEGASCALE_{name}' for name in MEGASCALE]
    missing = [name for name in missing if not os.environ.get(name)]
    if settings['slices'] > 1 and missing:
        raise RuntimeError(f'Ray did not set {", ".join(missing)}')
    code = main(['gptjax', *settings['words']])
    if code not in (0, USER_ERROR):  # another attempt would end in the same error
        raise RuntimeError(f'the stage ended with exit code {code}')
    import ray.train

    ray.train.report({'exit_code': code})


def train(machine: dict, words: list[str]) -> int:
    """Trains on `machine` until the stage ends or its attempts are used up.

    Returns the exit code of the stage: 0, or 2 for a wrong command.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.jax import JaxTrainer

    environment = {'JAX_COORDINATOR_PORT': str(machine['port'])}
    ray.init(runtime_env={'env_vars': environment})
    trainer = JaxTrainer(
        run_stage,
        train_loop_config=dict(words=words, slices=machine['slices']),
        scaling_config=ScalingConfig(
            use_tpu=True,
            num_workers=machine['hosts'] * machine['slices'],
            topology=machine['topology'],
            accelerator_type=machine['accelerator_type'],
            resources_per_worker={'TPU': machine['chips_per_host']},
            label_selector=machine['label_selector'] or None,
        ),
        run_config=RunConfig(
            name=machine['name'],
            failure_config=FailureConfig(max_failures=machine['max_restarts']),
        ),
    )
    return trainer.fit().metrics['exit_code']


if __name__ == '__main__':
    sys.exit(train(json.loads(sys.argv[1]), sys.argv[2:]))

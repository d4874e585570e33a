"""Faults of one of several processes, at a place of the training loop."""

# What a process does at a place, for `before` of `runs.start_cluster`. The threads of
# a process that sleeps go on; those of a stopped one do not.
ACTIONS = dict(
    kill='os.kill(os.getpid(), signal.SIGKILL)',
    stop='os.kill(os.getpid(), signal.SIGSTOP)',
    stall='time.sleep(600)',
)
FAULT = """
import os, signal, time
from gptjax.parallel import watchdog
at = watchdog.at
def faulty(name, step=None, progress=None):
    at(name, step, progress)
    place = watchdog.DOG and watchdog.DOG[0].place
    if place and jax.process_index() == {number} and name == {name!r}:
        if place['step'] >= {step}:
            {action}
watchdog.at = faulty
"""


def fault(action: str, name: str, step: int = 0, number: int = 1) -> str:
    """Code: process `number` fails in the place `name` from a step on."""
    return FAULT.format(action=ACTIONS[action], name=name, step=step, number=number)

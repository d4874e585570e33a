"""The process itself: its exit codes, its signals, and its memory pages.

A run that SIGTERM or Ctrl-C stops ends with a code, and is never deaf to either.
"""

import gc
import os
import signal
import sys
import threading

INTERRUPTED = 75  # SIGTERM stopped a run, which the same command goes on with
CTRL_C = 130  # the same, by the shell's convention
TUNABLES = 'GLIBC_TUNABLES'


def take() -> dict:
    """Makes SIGTERM an exit code, and Ctrl-C sure; returns what was before.

    Data in the making is lost, and made anew by the same command; training has
    a better way, which saves.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # signals are the main thread's
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _leave)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _leave)
    return before


def give_back(before: dict) -> None:
    """Puts back what was there before `take`."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _leave(number, frame):
    """Raises what ends the program, once somebody can take it."""
    collecting = {getattr(callback, '__code__', None) for callback in gc.callbacks}
    while frame:
        # Python only prints what is raised where garbage is collected; JAX, for
        # one, has a callback there.
        if frame.f_code in collecting or frame.f_code.co_name == '__del__':
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(INTERRUPTED)


def use_large_pages() -> None:
    """Begins this process anew, once, with pages of 2 MB for large blocks.

    XLA for CPU asks for a step's intermediate arrays anew at every step. glibc takes
    blocks of that size from the system and gives them back each time, and the system
    hands them out, zeroed, in pages of 4 KB: a fifth of a training step. Since 2.35 it
    can be told to ask for large pages, by the environment that a process begins with.

    An environment that has `GLIBC_TUNABLES`, if empty, is left as it is; so is one
    that is not Linux. Where the system has no large pages nothing changes.
    """
    if sys.platform == 'linux' and TUNABLES not in os.environ:
        os.environ[TUNABLES] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

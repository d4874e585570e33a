"""The process itself: its exit codes, its signals, and its memory pages."""

import gc
import os
import signal
import sys
import threading

INTERRUPTED = 75  # SIGTERM stopped a run, which the same command goes on with
CTRL_C = 130  # the same, by the shell's convention
TUNABLES = 'GLIBC_TUNABLES'


def install_handlers() -> dict:
    """Makes SIGTERM an exit code, and Ctrl-C reliable; returns the earlier handlers.

    Data that is being made is lost, and made anew by the same command. Training
    replaces these handlers by its own, which save.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # signals are the main thread's
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _leave)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _leave)
    return before


def restore_handlers(before: dict) -> None:
    """Restores the handlers that `install_handlers` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _leave(number, frame):
    """Raises the exception that ends the program, once it can be caught."""
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
    """Starts this process again, once, with pages of 2 MB for large blocks.

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

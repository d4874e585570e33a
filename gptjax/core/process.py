"""Exit codes, signal handlers and memory pages of the process."""

import gc
import os
import signal
import sys
import threading

INTERRUPTED = 75  # SIGTERM stopped a run, which the same command resumes
CTRL_C = 130  # SIGINT did, by the convention of shells
LOST = 76  # another process died, or none made progress; the same command resumes
TUNABLES = 'GLIBC_TUNABLES'


def install_handlers() -> dict:
    """Makes SIGTERM and Ctrl-C end the program; returns the earlier handlers.

    An artifact that is being built is lost, and the same command builds it again.
    Training installs other handlers, which save a checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}  # only the main thread can set handlers
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, _leave)}
    if (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):  # it is not ignored
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _leave)
    return before


def restore_handlers(before: dict) -> None:
    """Restores the handlers that `install_handlers` returned."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _leave(number, frame):
    """Raises the exception that ends the program, where Python does not drop it."""
    collecting = {getattr(callback, '__code__', None) for callback in gc.callbacks}
    while frame:
        # Python only prints an exception that is raised during garbage collection, as
        # in a callback of JAX: send the signal again a little later.
        if frame.f_code in collecting or frame.f_code.co_name == '__del__':
            signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
            signal.setitimer(signal.ITIMER_REAL, 0.01)
            return
        frame = frame.f_back
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(INTERRUPTED)


def use_large_pages() -> None:
    """Starts this process again, once, with memory pages of 2 MB for large blocks.

    XLA on a CPU allocates the intermediate arrays again at every step. glibc gets such
    large blocks from the system each time, in zeroed pages of 4 KB, which takes a fifth
    of a training step. Since version 2.35, glibc uses large pages if the environment
    variable GLIBC_TUNABLES says so when the process starts.

    Nothing happens if that variable is set (even to nothing), or not on Linux.
    """
    if sys.platform == 'linux' and TUNABLES not in os.environ:
        os.environ[TUNABLES] = 'glibc.malloc.hugetlb=1'
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

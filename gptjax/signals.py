"""SIGTERM and Ctrl-C: a run that is stopped ends with a code, and is never deaf."""

import gc
import signal
import threading

INTERRUPTED = 75  # SIGTERM stopped a run, which the same command goes on with
CTRL_C = 130  # the same, by the shell's convention


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

import subprocess
import sys
import threading
import time

from dsvlp.engine.stop import HUNG
from dsvlp.engine.watchdog import Watchdog

HANG = """
import threading
from dsvlp.engine.watchdog import Watchdog

def stuck_in_a_collective():
    threading.Event().wait()

with Watchdog(0.5) as watchdog:
    watchdog.progress("step 7")
    stuck_in_a_collective()
"""


def test_a_hung_process_ends_with_its_code_and_the_stacks_of_its_threads():
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60)
    assert done.returncode == HUNG
    assert "stuck_in_a_collective" in done.stderr
    assert "step 7" in done.stderr


def test_progress_keeps_a_slow_process_alive():
    ended = threading.Event()
    with Watchdog(0.4, end=ended.set) as watchdog:
        for step in range(10):
            watchdog.progress(f"step {step}")
            time.sleep(0.1)
    assert not ended.is_set()


def test_a_closed_watchdog_no_longer_bites():
    ended = threading.Event()
    with Watchdog(0.2, end=ended.set):
        pass
    time.sleep(0.5)
    assert not ended.is_set()

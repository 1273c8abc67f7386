"""What a user waits for before anything happens: `law --help` and `import AC_policy`.

    python benchmarks/startup.py

Best of five, each in a fresh process; the interpreter's own start stands beside them.
"""

import subprocess
import sys
import time

CALLS = {
    "python -c pass": ["-c", "pass"],
    "law --help": ["-m", "llava", "--help"],
    "import AC_policy": ["-c", "import AC_policy"],
    "law policy --help": ["-m", "llava", "policy", "--help"],
}


def main() -> None:
    """Prints seconds per call."""
    for name, arguments in CALLS.items():
        times = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            times.append(time.perf_counter() - start)
        print(f"{name:<20} {min(times):.3f} s")


if __name__ == "__main__":
    main()

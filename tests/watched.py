"""Runs commands, and says what files they opened for writing or changed, and what they executed.

    python tests/watched.py FOLDER < COMMANDS

COMMANDS is a JSON list of lists of arguments of `compressor`. Prints a JSON object: `codes`, what every
command exited with; `changed`, the paths that Python changed; `executed`, what was started, or loaded
as code from below FOLDER. What native code writes, it writes to paths that Python gave it: the test
looks at what is in those folders before and after.
"""

import json
import os
import sys
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# The events that change files, and which of their arguments are paths.
CHANGING = {
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    **dict.fromkeys(
        ("os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod", "os.chown"), (0,)
    ),
    **dict.fromkeys(("os.utime", "os.setxattr", "os.removexattr", "tempfile.mkstemp"), (0,)),
}
STARTING = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.startfile",
)
REACHING = ("socket.connect", "socket.getaddrinfo", "urllib.Request", "pickle.find_class")
NO_FILES = ("/dev/null",)


class Watch:
    def __init__(self, folder: Path):
        self.folder, self.on = str(folder.resolve()), False
        self.changed: set[str] = set()
        self.executed: set[str] = set()

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, str | bytes | os.PathLike) and flags and flags & WRITING:
                self.note(path)
        elif event in CHANGING:
            for place in CHANGING[event]:
                self.note(arguments[place])
        elif event in (*STARTING, *REACHING):
            self.executed.add(f"{event} {arguments[:2]}"[:300])
        elif event == "compile" and isinstance(file := arguments[1], str | bytes):
            file = os.fsdecode(file)
            if os.path.isabs(file) and os.path.realpath(file).startswith(self.folder):
                self.executed.add(f"compile {file}")
        elif event == "import" and str(arguments[0]).endswith("evil"):
            self.executed.add(f"import {arguments[0]}")

    def note(self, path) -> None:
        if not isinstance(path, int) and os.fsdecode(path) not in NO_FILES:
            self.changed.add(os.path.realpath(os.fsdecode(path)))


def main(folder: str) -> None:
    from compressor.cli.running import run
    from compressor.cli.stages import stages

    watch = Watch(Path(folder))
    sys.addaudithook(watch)
    codes = []
    for command in json.load(sys.stdin):
        watch.on = True
        codes.append(run(stages, command))
        watch.on = False
    told = {"codes": codes, "changed": sorted(watch.changed), "executed": sorted(watch.executed)}
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1])

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
# The events that change files: where among their arguments a path is, and the folder that it is of.
CHANGING = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    **dict.fromkeys(("os.remove", "os.rmdir"), ((0, 1),)),
    **dict.fromkeys(("os.truncate", "os.setxattr", "os.removexattr"), ((0, None),)),
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
            for place, folder in CHANGING[event]:
                self.note(arguments[place], -1 if folder is None else arguments[folder])
        elif event in (*STARTING, *REACHING):
            self.executed.add(f"{event} {arguments[:2]}"[:300])
        elif event == "compile" and isinstance(file := arguments[1], str | bytes):
            file = os.fsdecode(file)
            if os.path.isabs(file) and os.path.realpath(file).startswith(self.folder):
                self.executed.add(f"compile {file}")
        elif event == "import" and str(arguments[0]).endswith("evil"):
            self.executed.add(f"import {arguments[0]}")

    def note(self, path, folder: int = -1) -> None:
        """folder: an open one that the path is relative to, if not negative."""
        if isinstance(path, int) or os.fsdecode(path) in NO_FILES:
            return
        top = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else ""
        self.changed.add(os.path.realpath(os.path.join(top, os.fsdecode(path))))


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

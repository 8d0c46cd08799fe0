"""Stands in for a trainer where what is tested is how programs are started, stopped and continued:
it writes what a run leaves, within milliseconds. The field task_name says what it does.
"""

import json
import signal
import sys
import time
from pathlib import Path

options = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[1:])
folder, does = Path(options["save_dir"]), options.get("task_name", "")
folder.mkdir(parents=True, exist_ok=True)
started = folder / "started"
with open(started, "a") as file:
    file.write(f"resume={options['resume']}\n")
starts = len(started.read_text().splitlines())


def save(*_: object) -> None:
    (folder / "saved").touch()
    sys.exit("SIGTERM at step 3: state saved")


signal.signal(signal.SIGTERM, save)
for field in ("load_model",):
    if options.get(field):
        for path in options[field].split("+"):
            assert Path(path).is_file(), path
if does == "fails" or (does == "fails_once" and starts == 1):
    print("something", "went wrong here\x1b[2J", sep="\n")
    sys.exit(3)
if does == "waits" and starts == 1:
    while True:
        time.sleep(0.01)
record = {"step": 10, "wall": 1.0, "score/score": (float(options["seed"]) + starts) / 10}
(folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
for name in ("latest.pt", "model0.pt"):
    (folder / name).write_text("weights")

"""The main job on a real shop in a terminal: `vlm2rec demo --data FOLDER --model real`, with a word where no shop is
given. Run by `make demo-real DATA=folder`; further options of `vlm2rec demo` follow the folder."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELP = """Which shop? make demo-real DATA=folder

The folder holds two tables and the pictures:
  items.csv          item_id, title and any other texts, image (a file under the folder, such as images/17.jpg)
  interactions.csv   user_id, item_id, timestamp
Columns may have other well-known names; .parquet and .jsonl are read as well (docs/own_data.md).

Public sets are read as they are published:
  DATA=movielens:ml-1m                                MovieLens 100K to 32M
  DATA=amazon:reviews.json.gz,meta.json.gz            Amazon Reviews 2014, 2018, 2023
  DATA=microlens:MicroLens-100k                       MicroLens
  DATA=hm:h-and-m                                     H&M
A large one is cut down by OPTIONS='--core 5'; OPTIONS takes every option of `vlm2rec demo`."""


def main():
    data, *options = sys.argv[1:] or ['']
    if not data:
        sys.exit(HELP)
    sys.path.insert(0, str(ROOT))
    from vlm2rec_lab.cli import main as vlm2rec

    out = [] if '--out' in options else ['--out', 'report-real.html']
    return vlm2rec(['demo', '--data', data, '--model', 'real', *out, *options])


if __name__ == '__main__':
    sys.exit(main())

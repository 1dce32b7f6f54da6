"""What tests type and what they get back, and a small shop on disk to type it for."""

import contextlib
import io
import os
import pty

import numpy as np
import pandas as pd
import warm
from PIL import Image

from vlm2rec_lab.commands.parser import make_parser
from vlm2rec_lab.shop.drawn import make_studio


def said(*argv):
    "Exit status, output and error stream of a command."
    from vlm2rec_lab.cli import main  # it enters every command, and a notebook that borrows from here tests its own

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(list(map(str, argv)))
        except SystemExit as e:
            status = e.code
    return status, out.getvalue(), err.getvalue()


def typed_in(
    folder,  # where commands are run
    shown=None,  # function of what a command prints -> what is shown of it; None: it is shown as it comes
):  # -> function of the words after `vlm2rec` -> the command's status
    "Commands that are entered, run as a shell in a folder would; their errors are raised."

    def vlm2rec(*argv):
        kept = io.StringIO()
        words = [str(a) for a in argv]
        with contextlib.chdir(folder), contextlib.redirect_stdout(kept) if shown else contextlib.nullcontext():
            o = make_parser().parse_args(words)
            o.command = ' '.join(['vlm2rec', *words])
            status = o.run(o)
        if shown:
            print(shown(kept.getvalue()))
        return status

    return vlm2rec


def own_shop(folder, items=40, ending='png'):  # -> the folder
    "So many products with pictures, and forty customers with six purchases each, as a folder of one's own."
    shop = make_studio('balanced', seed=0, items=items, users=40, length=6)
    (folder / 'images').mkdir()
    names = [f'images/{i}.{ending}' for i in range(items)]
    for name, picture in zip(names, shop.catalogue.content['image']):
        Image.fromarray(picture).save(folder / name)
    products = shop.catalogue.table[['title', 'description']].assign(item_id=shop.catalogue.ids, image=names)
    products.to_csv(folder / 'items.csv', index=False)
    bought = [shop.catalogue.ids[i] for i in shop.interactions.items]
    sold = dict(user_id=np.repeat(np.arange(40), 6), item_id=bought, timestamp=np.tile(np.arange(6), 40))
    pd.DataFrame(sold).to_csv(folder / 'interactions.csv', index=False)
    return folder


def in_a_terminal(argv, columns, where=None, **env):  # -> str, with line ends as in a pipe
    "What a command writes to a terminal of that many columns; without colours unless `env` asks for them."
    main_end, end = pty.openpty()
    plain = {'TERM': 'xterm', 'NO_COLOR': '1'} if not env else {}
    asked = {k: v for k, v in os.environ.items() if k not in ('NO_COLOR', 'FORCE_COLOR')}
    how = dict(terminal=end, cwd=where, env={**asked, 'COLUMNS': str(columns), **plain, **env})
    process = warm.Started(['-m', 'vlm2rec_lab', *argv], **how)
    os.close(end)
    parts = []
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while part := os.read(main_end, 65536):
            parts.append(part)
    os.close(main_end)
    process.wait()
    return b''.join(parts).decode().replace('\r\n', '\n')

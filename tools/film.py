"""The moving picture of the README: a picture space that dies under SFT and comes back.

python tools/film.py draws nbs/images/collapse.gif from data/film.npz.
python tools/film.py --train makes data/film.npz anew: one short training of the tiny VLM on the drawn studio, 40 steps
of SFT and then 80 of a loss for each modality, looked at every 4 and every 8 steps (half a minute on a quiet core).

Places are those of `spaces_over`: every checkpoint along its own two widest directions, one scale for all checkpoints
of a space. Between two checkpoints the dots move straight.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from vlm2rec_lab.base.files import write_bytes
from vlm2rec_lab.base.theme import LIGHT, PALETTE

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / 'data' / 'film.npz'
GIF = ROOT / 'nbs' / 'images' / 'collapse.gif'
HEAVIEST = 400_000  # bytes
SIDE, GAP, TOP, BELOW = 296, 24, 64, 76  # pixels of a panel, between panels, above and below them
BETWEEN = 2  # pictures between two checkpoints, the second one counted
PHASES = {'before': 'before any training', 'SFT': 'SFT, step {}', 'repair': 'a loss for each modality, step {}'}


def train_film(sft=40, repair=80, items=120, users=400, looks=10):  # -> dict of arrays
    "Train and look: places uint16 [frames, spaces, items, 2], kinds [items], and what each frame is called and ranks."
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.tiny import tiny_vlm
    from vlm2rec_lab.show.frames import Checkpoints
    from vlm2rec_lab.studio import make_studio
    from vlm2rec_lab.train import train

    studio = make_studio('text-easy', seed=0, items=items, users=users)
    split = studio.split(train=users * 5 // 8, valid=users * 3 // 10, test=users * 3 // 40, history=4)
    embedder = VLMEmbedder.from_pretrained(tiny_vlm(), lora=8)
    run = dict(batch=16, lr=3e-3, eval_every=0, progress=False)
    seen = Checkpoints(embedder, split).note('before')
    train(embedder, split, 'sft', steps=sft, callback=seen.watch('SFT', sft // looks), **run)
    more = dict(steps=repair, callback=seen.watch('repair', repair // looks))
    train(embedder, split, 'per-modality', fuse='concat', **more, **run)
    drawing = seen.drawing(colour='category', fuse=None)
    spaces, frames = drawing.meta['film']['spaces'], drawing.meta['film']['frames']
    places = np.frombuffer(drawing.blobs['film'], np.uint16).reshape(len(frames), len(spaces), -1, 2)
    told = dict(frames=frames, spaces=spaces, ranked=[[seen.alone[f][s] for s in spaces] for f in frames])
    kinds = np.unique(studio.attributes['category'], return_inverse=True)[1].astype(np.uint8)
    return dict(places=places, kinds=kinds, told=np.array(json.dumps(told)))


def read_film(path=STORED):  # -> places, kinds, dict of names
    "What was stored."
    with np.load(path, allow_pickle=False) as found:
        return found['places'], found['kinds'], json.loads(str(found['told']))


def heading(frame):
    "What a frame is called on the picture."
    name, _, step = frame.partition(' ')
    return PHASES[name].format(step)


def draw(places, kinds, told, at):  # places float [spaces, items, 2] in 0 to 1; `at`: number of the frame
    "One picture."
    spaces = told['spaces']
    width = len(spaces) * SIDE + (len(spaces) + 1) * GAP
    img = Image.new('RGB', (width, TOP + SIDE + BELOW), LIGHT['bg'])
    pen, big, small = ImageDraw.Draw(img), ImageFont.load_default(20), ImageFont.load_default(16)
    pen.text((GAP, 10), heading(told['frames'][at]), LIGHT['ink'], big)
    for k, space in enumerate(spaces):
        left = GAP + k * (SIDE + GAP)
        pen.text((left, TOP - 24), f'{space} space of {len(kinds)} products', LIGHT['soft'], small)
        pen.rectangle((left, TOP, left + SIDE, TOP + SIDE), outline=LIGHT['line'], width=2)
        spots = places[k] * [1, -1] * SIDE * 0.92 + [left + 0.04 * SIDE, TOP + 0.96 * SIDE]
        for (x, y), kind in zip(spots, kinds):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=PALETTE[kind % len(PALETTE)])
        said = f'NDCG@10 by {space} alone {told["ranked"][at][k]:.3f}'
        pen.text((left, TOP + SIDE + 8), said, LIGHT['ink'], small)
    _draw_course(pen, told['frames'], at, width)
    return img


def _draw_course(pen, frames, at, width):
    "Where in the training a picture stands."
    y, step = TOP + SIDE + 52, (width - 2 * GAP) / (len(frames) - 1)
    pen.line((GAP, y, width - GAP, y), fill=LIGHT['line'], width=4)
    pen.line((GAP, y, GAP + step * at, y), fill=LIGHT['ink'], width=4)
    for k, frame in enumerate(frames):
        if k and frame.split()[0] != frames[k - 1].split()[0]:
            x = GAP + step * (k - 1)
            pen.line((x, y - 8, x, y + 8), fill=LIGHT['soft'], width=2)


def pictures(places, kinds, told):  # -> [PIL image], [milliseconds]
    "All pictures of the film: checkpoints, and the way between them."
    places, out, times = places / 65535, [], []
    turns = {k for k in range(len(places) - 1) if told['frames'][k].split()[0] != told['frames'][k + 1].split()[0]}
    for k in range(len(places)):
        for part in range(1, BETWEEN) if k else ():
            share = part / BETWEEN
            between = (1 - share) * places[k - 1] + share * places[k]
            out.append(draw(between, kinds, told, k - 1))
            times.append(90)
        out.append(draw(places[k], kinds, told, k))
        times.append(2500 if k == len(places) - 1 else 1200 if k in turns else 90)
    return out, times


def _mixed(one, other, share):  # colours -> '#rrggbb'
    "A colour between two."
    pairs = zip(ImageColor.getrgb(one), ImageColor.getrgb(other))
    return '#' + ''.join(f'{round((1 - share) * a + share * b):02x}' for a, b in pairs)


def as_gif(images, times):  # -> bytes
    "A film that is shown three times and then stands still."
    inks = [LIGHT[name] for name in ('bg', 'ink', 'soft', 'line')]
    shades = [_mixed(LIGHT['bg'], ink, k / 4) for ink in inks[1:3] for k in (1, 2, 3)]  # edges of letters
    palette = Image.new('P', (1, 1))
    palette.putpalette([part for colour in [*inks, *PALETTE, *shades] for part in ImageColor.getrgb(colour)])
    few = [i.quantize(palette=palette, dither=Image.Dither.NONE) for i in images]
    few[0].save(out := io.BytesIO(), 'GIF', save_all=True, append_images=few[1:], duration=times, loop=2, optimize=True)
    return out.getvalue()


def main():
    if '--train' in sys.argv:
        np.savez_compressed(whole := io.BytesIO(), **train_film())
        write_bytes(STORED, whole.getvalue())
        print(f'{STORED.relative_to(ROOT)}: {STORED.stat().st_size / 1e3:.0f} kB')
    images, times = pictures(*read_film())
    film = as_gif(images, times)
    if len(film) > HEAVIEST:
        sys.exit(f'{GIF.name} would have {len(film) / 1e3:.0f} kB, more than {HEAVIEST / 1e3:.0f}')
    write_bytes(GIF, film)
    print(f'{GIF.relative_to(ROOT)}: {len(film) / 1e3:.0f} kB, {len(images)} pictures, {sum(times) / 1e3:.1f} s')


if __name__ == '__main__':
    main()

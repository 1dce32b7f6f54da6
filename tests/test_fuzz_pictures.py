"""Odd and damaged pictures under hostile names, seeded: each is read, or counted and named; none is lost in silence."""

import io
import re
import time

import numpy as np
import pandas as pd
from PIL import Image
from test_images import frames, huge_gif, huge_png, only_ours

from vlm2rec_lab.shop.catalogue import Catalogue
from vlm2rec_lab.shop.images import decode_images, read_manifest, with_images
from vlm2rec_lab.shop.pictures import MAX_PIXELS, MAX_RATIO, image_trouble
from vlm2rec_lab.shop.tables import read_images

KINDS = {  # format: modes that it can hold
    'PNG': ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'],
    'JPEG': ['L', 'RGB', 'CMYK'],
    'GIF': ['1', 'L', 'P', 'RGB'],
    'BMP': ['1', 'L', 'P', 'RGB'],
    'TIFF': ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16', 'F', 'I'],
    'WEBP': ['L', 'RGB', 'RGBA'],
    'PPM': ['1', 'L', 'RGB'],
    'ICO': ['RGBA'],  # not among those that are read
    'TGA': ['RGB'],
    'PCX': ['RGB'],
}
SIDES = (1, 2, 3, 7, 27, 28, 29, 64, 200, 201, 601, 900)
NAMES = (  # what a file may be called on a disk
    'plain',
    'mit Umlaut ü',
    '例え',
    'line\nend',
    'bell\x07 \x1b[2J',
    '\u202egpj.exe',
    '-rf',
    '~',
    '%00%2e%2e',
    "quote' \"",
    '$(touch x)',
    ' spaces ',
    '..dots..',
    'a' * 180,
    'C:x',
    '\\back\\slash',
    '*?[a]',
)


def drawn(rng, mode, size):
    "A picture of noise of a mode."
    if mode in ('I;16', 'I', 'F'):
        kind = {'I;16': np.uint16, 'I': np.int32, 'F': np.float32}[mode]
        return Image.fromarray(rng.integers(0, 60_000, size[::-1]).astype(kind))
    return Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).convert('RGB').convert(mode)


def encoded(rng):
    "The bytes of a picture of any format, mode and shape, turned by its EXIF flag."
    if rng.random() < 0.1:
        return frames(str(rng.choice(['GIF', 'WEBP'])))
    if rng.random() < 0.08:
        w, h = (int(v) for v in rng.choice([0, 1, 9000, 60_000, 65_535], 2))
        return huge_gif(w, h) if rng.random() < 0.5 else huge_png(w, h)
    kind = str(rng.choice(list(KINDS)))
    size = tuple(int(v) for v in rng.choice(SIDES, 2))
    img, out, how = drawn(rng, str(rng.choice(KINDS[kind])), size), io.BytesIO(), {}
    if kind in ('JPEG', 'PNG', 'WEBP', 'TIFF'):
        exif = Image.Exif()
        exif[0x0112] = int(rng.integers(0, 12))
        how['exif'] = exif
    if kind == 'JPEG':
        how['progressive'] = bool(rng.random() < 0.5)
    try:
        img.save(out, kind, **how)
    except (ValueError, OSError):
        img.convert('RGB').save(out, 'PNG')
    return out.getvalue()


def damaged(rng, data):
    "The bytes as they are, or cut, flipped, padded, overwritten in the head, or none at all."
    way = rng.integers(0, 8)
    data = bytearray(data)
    if way == 1:
        return bytes(data[: rng.integers(0, len(data) + 1)])
    if way == 2:
        for at in rng.integers(0, len(data), rng.integers(1, 20)):
            data[at] ^= 1 << int(rng.integers(0, 8))
    if way == 3:
        data[:64] = bytes(rng.integers(0, 256, min(64, len(data)), dtype=np.uint8))
    if way == 4:
        at = int(rng.integers(0, len(data)))
        data[at:at] = rng.bytes(int(rng.integers(1, 300)))
    if way == 5:
        at = int(rng.integers(0, min(len(data), 60)))
        data[at : at + 4] = b'\xff\xff\xff\xff'
    if way == 6:
        return bytes(data) + rng.bytes(500)
    if way == 7 and rng.random() < 0.3:
        return rng.bytes(int(rng.integers(0, 400)))
    return bytes(data)


def folder_of(rng, place, n):
    "A folder of pictures under hostile names; the names."
    place.mkdir()
    names = [f'{k:03} {rng.choice(NAMES)}{rng.choice([".png", ".jpg", "", ".GIF"])}' for k in range(n)]
    for name in names:
        data = damaged(rng, encoded(rng))
        (place / name).write_bytes(data)
    return names


def usable(img):
    "Is this what the rest of the lab is promised?"
    w, h = img.size
    return img.mode == 'RGB' and 0 < w * h <= MAX_PIXELS and max(w, h) <= MAX_RATIO * min(w, h)


def count_of(messages, words):
    "The number with which the one message that has these words begins; 0 where there is none."
    said = [m for m in messages if words in m]
    assert len(said) <= 1, said
    return int(re.search(r'([\d,]+) image', said[0])[1].replace(',', '')) if said else 0


def test_pictures(tmp_path, capfd):
    rng, end = np.random.default_rng(0), time.monotonic() + 25
    cases = read = refused = silent = rounds = 0
    while time.monotonic() < end and cases < 900:
        place = tmp_path / f'shop-{rounds}'
        names = folder_of(rng, place, 60)
        ids = [str(k) for k in range(len(names))]
        bare = Catalogue(ids, {'text': ids}, {'text': 'text'}, pd.DataFrame({'file': names}))
        with only_ours() as heard:
            found = with_images(bare, place, column='file', check=False, progress=False)
        there = ~found.missing()['image']
        unmatched = [m for m in map(str, (w.message for w in heard)) if "without 'image'" in m]
        assert sum(int(re.search(r'(\d+) items? of', m)[1]) for m in unmatched) == (~there).sum()
        with only_ours() as heard:
            out = decode_images(found, tmp_path / f'cache-{rounds}', progress=False)
        rows = read_manifest(tmp_path / f'cache-{rounds}').rows.set_index('item')
        gone = out.missing()['image']
        failed = {i for i in rows.index if rows.status[i] != 'ok'}
        # decoded or a row of the manifest with its reason; the rows are counted in one message
        assert set(rows.index) == set(np.array(ids)[there])
        silent += sum(gone[k] and there[k] and i not in failed for k, i in enumerate(ids))
        assert all(rows.reason[i] for i in failed)
        assert count_of([str(w.message) for w in heard], 'cannot be used') == len(failed)
        # what the check refuses is counted as well, and what it lets pass can be opened whenever it is asked for
        with only_ours() as heard:
            checked = with_images(bare, place, column='file', progress=False)
        lost = checked.missing()['image'] & there
        assert count_of([str(w.message) for w in heard], 'cannot be decoded') == lost.sum()
        silent += sum(usable(checked.image('image', k)) is False for k in np.flatnonzero(~checked.missing()['image']))
        # the same through a table of paths
        notes = []
        with only_ours():
            paths = read_images(place, pd.Series([n.strip() for n in names]), progress=False, notes=notes)
        for k, path in enumerate(paths):
            assert (path is None) == bool(image_trouble(place / names[k].strip())), names[k]
        cases, rounds = cases + len(names), rounds + 1
        read, refused = read + int((~gone).sum()), refused + int(gone.sum())
    assert capfd.readouterr() == ('', '')
    print(f'pictures: {cases} cases, {read} read, {refused} refused, {silent} silent losses')
    assert (silent, read + refused) == (0, cases) and min(read, refused) > cases / 10


def test_a_name_is_no_reason_to_lose_a_picture(tmp_path):
    "A fine picture under each of the names."
    for k, name in enumerate(NAMES):
        Image.new('RGB', (30 + k, 30), 'red').save(tmp_path / f'{name}.png', 'PNG')
    ids = [str(k) for k in range(len(NAMES))]
    for files in ([f'{n}.png' for n in NAMES], list(NAMES)):
        bare = Catalogue(ids, {'text': ids}, {'text': 'text'}, pd.DataFrame({'file': [n.strip() for n in files]}))
        with only_ours() as heard:
            found = with_images(bare, tmp_path, column='file', progress=False)
        lost = np.flatnonzero(found.missing()['image'])
        said = ' '.join(str(w.message) for w in heard)
        assert len(lost) == 0 or f'{len(lost)} items of {len(NAMES)} without' in said or '1 item of' in said, said
        assert len(lost) < 4
        for k in set(range(len(NAMES))) - set(lost):
            assert found.image('image', int(k)).width == 30 + k

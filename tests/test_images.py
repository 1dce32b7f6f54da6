"""Pictures from everywhere: broken and odd ones, archives, a hostile web, killed writers.

Each is a picture or a counted entry; nothing crashes, nothing leaks.
"""

import io
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import urllib3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

import vlm2rec_lab.shop.fetch as fetching
import vlm2rec_lab.shop.images as images
from vlm2rec_lab.base.files import LOCK, sole_writer
from vlm2rec_lab.base.store import INDEX, VALUES
from vlm2rec_lab.data import Catalogue, DataError, DataWarning, LazyImage, open_image
from vlm2rec_lab.shop.fetch import fetch_images
from vlm2rec_lab.shop.images import (
    MANIFEST,
    ImageFault,
    PixelCache,
    decode_images,
    find_images,
    model_size,
    read_manifest,
    with_images,
)

ROOT = Path(__file__).resolve().parent.parent


def encode(img, kind='JPEG', **how):
    out = io.BytesIO()
    img.save(out, kind, **how)
    return out.getvalue()


def photo(seed=0, size=(96, 72)):
    "Soft noise: compresses like a photograph."
    small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@contextmanager
def only_ours():
    "Warnings of this library are collected, any other is an error."
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter('always')
        yield heard
    assert all(issubclass(w.category, DataWarning) for w in heard), [str(w.message) for w in heard]


def catalogue(sources, **table):
    ids = list(sources)
    return Catalogue(ids, {'image': list(sources.values())}, {'image': 'image'}, pd.DataFrame(table) if table else None)


def decode(sources, cache, **how):
    "(pictures by id, manifest rows by id, warnings)"
    with only_ours() as heard:
        c = decode_images(catalogue(sources), cache, progress=False, **how)
    rows = read_manifest(cache).rows
    return (
        dict(zip(c.ids, c.content['image'])),
        {r['item']: r for r in rows.to_dict('records')},
        [str(w.message) for w in heard],
    )


# broken and odd pictures


def chunk(kind, data):
    return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))


def huge_png(w, h):
    return (
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))
        + chunk(b'IDAT', zlib.compress(bytes(1000)))
        + chunk(b'IEND', b'')
    )


def huge_gif(w, h):
    return (
        b'GIF89a'
        + struct.pack('<HH', 10, 10)
        + b'\xf0\0\0'
        + bytes(6)
        + b','
        + struct.pack('<HHHH', 0, 0, w, h)
        + b'\0\x02\x02\x4c\x01\0;'
    )


def frames(kind):
    return encode(
        Image.new('RGB', (60, 60), 'red'),
        kind,
        save_all=True,
        append_images=[Image.new('RGB', (60, 60), c) for c in ('lime', 'blue')],
        duration=50,
        **({'lossless': True} if kind == 'WEBP' else {}),
    )


def growing_gif():
    "An animation of small frames whose second is enormous."
    first = frames('GIF')
    at = first.index(b',', first.index(b',') + 1)
    return first[:at] + b',' + struct.pack('<HHHH', 0, 0, 60000, 60000) + first[at + 9 :]


def palette():
    img = Image.new('P', (60, 60), 1)
    img.putpalette([255, 0, 0, 0, 0, 255])
    img.paste(0, (0, 0, 30, 60))
    return encode(img, 'PNG', transparency=0)


EPS = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 60\n%%EndComments\n(SPOT) (w) file closefile\nshowpage\n%%EOF\n'
PDF = b'%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n%%EOF'
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><image href="file:///etc/passwd"/></svg>'

BROKEN = {  # file name: (bytes, reasons)
    'zero.jpg': (b'', {'empty file'}),
    'one-byte.png': (b'\x89', {'not an image'}),
    'text.jpg': (b'just words\n' * 40, {'not an image'}),
    'page.jpg': (b'<!doctype html><html><body>404 not found</body></html>', {'not an image'}),
    'drawing.svg': (SVG, {'not an image'}),
    'letter.png': (PDF, {'not an image'}),
    'script.png': (EPS, {'not an image'}),
    'script.jpg': (
        b'\xc5\xd0\xd3\xc6' + struct.pack('<6I', 30, len(EPS), 0, 0, 0, 0) + b'\0\0' + EPS,
        {'not an image'},
    ),
    'code.jpg': (b'\x80\x04cos\nsystem\n(S"touch SPOT"\ntR.', {'not an image'}),
    'cut.jpg': (encode(photo())[:-200], {'broken'}),
    'cut-in-head.jpg': (encode(photo())[:40], {'broken', 'not an image'}),
    'cut.png': (encode(photo(), 'PNG')[:-3000], {'broken'}),
    'cut.webp': (encode(photo(), 'WEBP')[:-100], {'broken', 'not an image'}),
    'cut.gif': (encode(photo(), 'GIF')[:-2000], {'broken'}),
    'cut.tif': (encode(photo(), 'TIFF')[:-2000], {'broken', 'not an image'}),
    'bomb.png': (huge_png(60000, 60000), {'too large'}),
    'bomb-below-the-decoders-own-limit.png': (huge_png(8000, 8000), {'too large'}),
    'bomb.gif': (huge_gif(20000, 20000), {'too large'}),
    'most.gif': (huge_gif(65535, 65535), {'too large'}),
    'no-size.png': (huge_png(0, 7), {'broken', 'not an image', 'too large'}),
    'strip.png': (encode(Image.new('RGB', (1, 10000)), 'PNG'), {'too long'}),
    'flat.png': (encode(Image.new('RGB', (4100, 20)), 'PNG'), {'too long'}),
}
CALM = dict(red=(255, 0, 0), white=(255, 255, 255), blue=(0, 0, 255), teal=(0, 128, 128), grey=(128, 128, 128))
ODD = {  # file name: (bytes, colour of the corner)
    'moving.gif': (frames('GIF'), 'red'),
    'moving.webp': (frames('WEBP'), 'red'),
    'growing.gif': (growing_gif(), 'red'),
    'palette.png': (palette(), 'white'),
    'print.jpg': (encode(Image.new('CMYK', (60, 60), (0, 255, 255, 0)), quality=95), 'red'),
    'deep.png': (encode(Image.fromarray(np.full((60, 60), 128 * 257, np.uint16)), 'PNG'), 'grey'),
    'grey.jpg': (encode(Image.new('L', (60, 60), 128)), 'grey'),
    'see-through.png': (encode(Image.new('RGBA', (60, 60), (9, 9, 9, 0)), 'PNG'), 'white'),
    'one-bit.png': (encode(Image.new('1', (60, 60), 1), 'PNG'), 'white'),
    'profile.jpg': (
        encode(
            Image.new('RGB', (60, 60), 'teal'),
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile('sRGB')).tobytes(),
            quality=95,
        ),
        'teal',
    ),
    'dot.png': (encode(Image.new('RGB', (1, 1), 'blue'), 'PNG'), 'blue'),
    'wrong-name.txt': (encode(Image.new('RGB', (60, 60), 'teal'), 'PNG'), 'teal'),
    'no-name': (encode(Image.new('RGB', (60, 60), 'teal'), 'BMP'), 'teal'),
    'trailing.jpg': (encode(Image.new('RGB', (60, 60), 'red'), quality=95) + b'<script>alert(1)</script>' + EPS, 'red'),
    'narrow.png': (encode(Image.new('RGB', (2, 399), 'red'), 'PNG'), 'red'),
}


def test_broken_and_odd_pictures(tmp_path, monkeypatch, capfd):
    "A folder of them, through the whole way: what is a picture is decoded, everything else is named with its reason."
    monkeypatch.chdir(tmp_path)
    shop = tmp_path / 'shop'
    shop.mkdir()
    for name, (data, _) in (BROKEN | ODD).items():
        (shop / name).write_bytes(data.replace(b'SPOT', str(tmp_path / 'spot').encode()))
    names = [*BROKEN, *ODD]
    bare = Catalogue(names, {'text': names}, {'text': 'text'})
    with only_ours() as heard:
        found = with_images(bare, shop, check=False)
    assert not heard
    for exact in (True, False):
        with only_ours() as heard:
            out = decode_images(found, tmp_path / 'cache', exact=exact, progress=False)
        rows = read_manifest(tmp_path / 'cache').rows.set_index('item')
        got = dict(zip(out.ids, out.content['image']))
        for name, (_, reasons) in BROKEN.items():
            assert (
                got[name] is None
                and rows.status[name] == 'failed'
                and rows.reason[name] in reasons
                and rows.source[name] == name
            ), (name, rows.loc[name].tolist())
        for name, (_, colour) in ODD.items():
            assert rows.status[name] == 'ok', (name, rows.loc[name].tolist())
            assert np.abs(got[name][2, 2].astype(int) - CALM[colour]).max() <= 4, (name, got[name][2, 2])
            assert got[name].shape[0] % 28 == 0 and got[name].shape[1] % 28 == 0 and got[name].dtype == np.uint8
        assert f'{len(BROKEN)} images' in str(heard[0].message)
        assert str(tmp_path) not in str(heard[0].message)
        assert '0x' not in str(heard[0].message)
    with only_ours() as heard:
        # the same without the cache
        checked = with_images(bare, shop, progress=False)
    assert set(np.array(names)[checked.missing()['image']]) == set(BROKEN)
    assert not (tmp_path / 'spot').exists() and not list(tmp_path.glob('w*')) and capfd.readouterr() == ('', '')


STORED = {  # what a camera does to the upright picture
    1: None,
    2: 'FLIP_LEFT_RIGHT',
    3: 'ROTATE_180',
    4: 'FLIP_TOP_BOTTOM',
    5: 'TRANSPOSE',
    6: 'ROTATE_90',
    7: 'TRANSVERSE',
    8: 'ROTATE_270',
}


@pytest.mark.parametrize('exact', (True, False))
@pytest.mark.parametrize('size', ((112, 84), (1120, 560)))
def test_pictures_stand_upright(tmp_path, exact, size):
    upright = Image.new('RGB', size, 'white')
    for colour, at in (('red', (0, 0)), ('lime', (size[0] // 2, 0)), ('blue', (0, size[1] // 2))):
        upright.paste(colour, (*at, at[0] + size[0] // 2, at[1] + size[1] // 2))
    sources = {}
    for flag, turn in STORED.items():
        exif = Image.Exif()
        exif[0x0112] = flag
        sources[str(flag)] = encode(
            upright.transpose(getattr(Image.Transpose, turn)) if turn else upright, exif=exif, quality=95, subsampling=0
        )
    got, rows, heard = decode(sources, tmp_path, exact=exact)
    assert not heard and len({p.shape for p in got.values()}) == 1
    for flag, p in got.items():
        h, w = p.shape[:2]
        for at, colour in (
            ((h // 4, w // 4), (255, 0, 0)),
            ((h // 4, 3 * w // 4), (0, 255, 0)),
            ((3 * h // 4, w // 4), (0, 0, 255)),
            ((3 * h // 4, 3 * w // 4), (255, 255, 255)),
        ):
            assert np.abs(p[at].astype(int) - colour).max() < 12, flag


def test_a_broken_flag_of_rotation_costs_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(photo(), exif=exif)
    at = data.index(b'Exif')
    sources = {str(k): data[: at + 6] + bytes(k) + data[at + 6 + k :] for k in (1, 2, 8, 20)} | {
        'flag': data.replace(b'\x12\x01\x03\x00', b'\x12\x01\x02\x00').replace(b'\x01\x12\x00\x03', b'\x01\x12\x00\x02')
    }
    got, rows, heard = decode(sources, tmp_path)
    assert all((got[k] is not None) == (rows[k]['status'] == 'ok') for k in got)


VALID = [
    encode(photo(), 'JPEG'),
    encode(photo(), 'PNG'),
    encode(photo(), 'GIF'),
    encode(photo(), 'WEBP'),
    encode(photo(), 'TIFF'),
    frames('GIF'),
    encode(Image.new('CMYK', (30, 30)), 'JPEG'),
    palette(),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=12),
    st.one_of(st.none(), st.integers(0, 2**14)),
    st.binary(max_size=20),
)
@example(VALID[1], [(19, 255), (18, 255), (17, 255)], None, b'')
def test_mutated_pictures(data, changes, cut, tail):
    "Whatever is done to a file's bytes, there is a picture or an entry that names it."
    data = bytearray(data)
    for at, value in changes:
        data[at % len(data)] = value
    data = bytes(data[:cut]) + tail
    with tempfile.TemporaryDirectory() as place:
        got, rows, heard = decode({'victim': data, 'fine': VALID[0]}, place, workers=1)
        assert got['fine'] is not None and rows['fine']['status'] == 'ok'
        assert (got['victim'] is not None) == (rows['victim']['status'] == 'ok')
        assert got['victim'] is not None or 'victim' in heard[0] and rows['victim']['reason']


# archives and tables


def test_members_of_an_archive(tmp_path):
    "Encrypted, damaged, swollen and mis-named members are entries; the others are pictures. Nothing is extracted."
    path, good = tmp_path / 'shop.zip', encode(photo(), 'PNG')
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr('fine.png', good)
        z.writestr('deep/er/below.png', good)
        z.writestr('hurt.png', os.urandom(20) + good)
        z.writestr('locked.png', good)
        z.writestr('bomb.png', bytes(30_000_000))
        z.writestr('liar.png', bytes(3_000_000))
        z.writestr('odd.png', good)
        for name in ('../up.png', '/root.png', 'a\\..\\b.png', 'C:/x.png'):
            z.writestr(name, good)
        z.writestr('__MACOSX/._fine.png', b'fork')
        z.writestr('folder/', b'')
        where = {i.filename: i for i in z.infolist()}
    raw = bytearray(path.read_bytes())
    at = where['hurt.png'].header_offset
    raw[at + 60 : at + 70] = bytes(10)  # its content no longer fits its checksum

    def central(name, offset, value):
        entry = raw.index(name.encode(), raw.index(b'PK\x01\x02')) - 46
        raw[entry + offset : entry + offset + len(value)] = value

    central('locked.png', 8, struct.pack('<H', 1))
    central('liar.png', 24, struct.pack('<I', 100))  # it promises 100 bytes
    central('odd.png', 10, struct.pack('<H', 77))  # a compression that nobody knows
    path.write_bytes(raw)
    ids = ['fine', 'below', 'hurt', 'locked', 'bomb', 'liar', 'odd', 'up', 'root']
    with only_ours() as heard:
        found = with_images(Catalogue(ids, {'text': ids}, {'text': 'text'}), path, check=False, max_bytes=10_000_000)
    assert '4 members with a name that leads elsewhere' in str(heard[0].message)
    assert '2 items of 9' in str(heard[1].message)
    with only_ours() as heard:
        out = decode_images(found, tmp_path / 'cache', progress=False)
    rows = read_manifest(tmp_path / 'cache').rows.set_index('item')
    assert rows.reason.to_dict() == {
        'fine': '',
        'below': '',
        'hurt': 'broken',
        'locked': 'encrypted',
        'bomb': 'too large',
        'liar': rows.reason['liar'],
        'odd': 'broken',
    }
    assert rows.reason['liar'] in ('broken', 'not an image')
    assert rows.detail['bomb'].startswith('30,000,000 bytes')  # as announced: it was not read
    assert rows.source['hurt'] == 'shop.zip/hurt.png'
    assert np.array_equal(out.content['image'][0], out.content['image'][1])
    assert sorted(p.name for p in tmp_path.iterdir()) == ['cache', 'shop.zip']


def test_an_archive_read_by_many_threads(tmp_path):
    some = {f'{i}.png': encode(photo(i), 'PNG') for i in range(40)}
    with zipfile.ZipFile(tmp_path / 'shop.zip', 'w') as z:
        for name, data in some.items():
            z.writestr(name, data)
    files = find_images(tmp_path / 'shop.zip').files
    got = list(images._parallel(lambda n: (n, files[n].read()), list(some) * 5, 8, ordered=False))
    assert len(got) == 200 and all(some[n] == data for n, data in got)


@pytest.mark.parametrize('kind', ('bytes', 'struct', 'large', 'paths'))
def test_tables_of_bytes(tmp_path, kind):
    data = [encode(photo(i), 'PNG') for i in range(7)] + [None, b'', b'no picture']
    cells = (
        pa.array(data, pa.large_binary())
        if kind == 'large'
        else pa.array(data, pa.binary())
        if kind == 'bytes'
        else pa.array([{'bytes': d, 'path': f'{i}.png'} for i, d in enumerate(data)])
    )
    table = pa.table(
        {'nr': pa.array(range(10), pa.int64()), 'title': [f'item {i}' for i in range(10)], 'picture': cells}
    )
    pq.write_table(table.drop(['nr']) if kind == 'paths' else table, tmp_path / 'shop.parquet', row_group_size=3)
    ids = [str(i) for i in range(11)]
    with only_ours() as heard:
        found = with_images(
            Catalogue(ids, {'text': ids}, {'text': 'text'}),
            tmp_path / 'shop.parquet',
            item='nr',
            image=None if kind == 'bytes' else 'picture',
            check=False,
        )
    assert len(heard) == 1
    assert '1 item of 11' in str(heard[0].message)
    assert isinstance(found.content['image'][0], LazyImage)
    with only_ours() as heard:
        out = decode_images(found, tmp_path / 'cache', progress=False)
    assert [p is None for p in out.content['image']] == [False] * 7 + [True] * 4
    assert read_manifest(tmp_path / 'cache').counts() == {'ok': 7, 'empty file': 2, 'not an image': 1}
    with pytest.raises(DataError, match="did you mean 'nr'"):
        with_images(Catalogue(ids, {'text': ids}, {'text': 'text'}), _plain(tmp_path, table), item='n')


def _plain(tmp_path, table):
    pq.write_table(table.set_column(2, 'picture', pa.array([b'x'] * 10)), tmp_path / 'plain.parquet')
    return tmp_path / 'plain.parquet'


def test_files_of_a_folder(tmp_path):
    "Numbered folders, zeros in front, links that lead out, things that are no files."
    shop = tmp_path / 'shop'
    for i in range(12):
        (shop / f'{i % 3:03}').mkdir(parents=True, exist_ok=True)
        (shop / f'{i % 3:03}' / f'01{i:02}.jpg').write_bytes(encode(photo(i)))
    (tmp_path / 'secret.jpg').write_bytes(encode(photo()))
    (shop / 'out.jpg').symlink_to(tmp_path / 'secret.jpg')
    (shop / 'in.jpg').symlink_to(shop / '000' / '0100.jpg')
    os.mkfifo(shop / 'pipe.jpg')
    ids = [f'01{i:02}' for i in range(12)] + ['out', 'in', 'pipe', 'a.b']
    (shop / 'a.b.jpg').write_bytes(encode(photo()))
    with only_ours() as heard:
        found = with_images(Catalogue(ids, {'text': ids}, {'text': 'text'}), shop, check=False)
    assert [str(w.message).split(':')[1][:20] for w in heard] == [
        ' 1 link out of the f',
        " 1 item of 16 withou",
    ]
    assert found.missing()['image'].sum() == 1
    with only_ours() as heard:
        decode_images(found, tmp_path / 'cache', progress=False)
    assert read_manifest(tmp_path / 'cache').counts() == {'ok': 14, 'no such file': 1}  # nobody waits at the pipe
    with pytest.raises(DataError, match=r"none of 15 files \(.*\) fits an id of 2 items \(100, 101\)"), only_ours():
        with_images(Catalogue(['100', '101'], {'text': ['x', 'y']}, {'text': 'text'}), shop)


# the model's size, and the embedder


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 9000),
    st.integers(1, 9000),
    st.integers(28 * 28, 2_000_000),
    st.floats(0, 1),
    st.sampled_from((28, 14, 32)),
)
@example(1, 200, 50176, 0.0625, 28)
@example(14, 42, 50176, 0.0625, 28)
def test_sizes_are_those_of_the_model(height, width, most, share, multiple):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    most = max(most, multiple**2)
    least = int(most * share)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ImageFault, match='200 times'):
            model_size(height, width, most, least, multiple)
        with pytest.raises(ValueError):
            smart_resize(height, width, multiple, least, most)
    else:
        assert model_size(height, width, most, least, multiple) == smart_resize(height, width, multiple, least, most)


@pytest.fixture(scope='module')
def embedder():
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.tiny import tiny_vlm

    e = VLMEmbedder.from_pretrained(tiny_vlm('even'), max_pixels=12544)
    e.image_processor.size = {'shortest_edge': 3136, 'longest_edge': 50176}  # the tiny one knows only squares of 56
    return e


def test_the_embedder_sees_the_same_from_the_cache(tmp_path, embedder):
    "Equal vectors from the files and from the cache, to the last bit; with draft decoding nearly."
    sizes = [(640, 480), (480, 640), (56, 56), (30, 20), (333, 777), (900, 100), (1200, 1200), (57, 400)]
    sources = {}
    for i, size in enumerate(sizes):
        p = tmp_path / f'{i}.{("jpg", "png")[i % 2]}'
        p.write_bytes(encode(photo(i, size), ('JPEG', 'PNG')[i % 2]))
        sources[str(i)] = p
    plain = catalogue(sources)
    with only_ours() as heard:
        exact, draft = (
            decode_images(plain, tmp_path / 'cache', max_pixels=12544, exact=e, progress=False) for e in (True, False)
        )
    assert not heard
    want, got, near = (embedder.encode_items(c, progress=False)['image'].numpy() for c in (plain, exact, draft))
    assert np.array_equal(want, got) and len({tuple(v) for v in want.round(3)}) == len(sizes)
    assert (want * near).sum(1).min() > 0.99
    assert not all(np.array_equal(a, b) for a, b in zip(exact.content['image'], draft.content['image']))


def test_the_tiny_vlm_as_shipped(tmp_path):
    from vlm2rec_lab.embed import VLMEmbedder
    from vlm2rec_lab.model.tiny import tiny_vlm

    e, plain = (
        VLMEmbedder.from_pretrained(tiny_vlm('even')),
        catalogue({str(i): encode(photo(i, (80, 80))) for i in range(3)}),
    )
    cached = decode_images(plain, tmp_path, max_pixels=3136, progress=False)
    assert np.array_equal(*(e.encode_items(c, progress=False)['image'].numpy() for c in (plain, cached)))
    with pytest.warns(DataWarning, match='1 image of .* sizes once more'):
        decode_images(catalogue({'a': photo(0, (60, 90))}), tmp_path, max_pixels=3136, progress=False)


# the cache


def many(place, n=60, size=(500, 400)):
    place.mkdir()
    for i in range(n):
        (place / f'{i:03}.jpg').write_bytes(encode(photo(i, size)))
    return {p.stem: p for p in sorted(place.iterdir())}


def store(cache):
    return next(p for p in Path(cache).iterdir() if p.is_dir())


CHILD = '''
import sys; from pathlib import Path
from vlm2rec_lab.data import Catalogue
from vlm2rec_lab.shop.images import decode_images
files = sorted(Path(sys.argv[1]).iterdir())
c = Catalogue([p.stem for p in files], {'image': files}, {'image': 'image'})
decode_images(c, sys.argv[2], checkpoint=1, workers=2, progress=False)
'''


def start(code, *args):
    return subprocess.Popen(
        [sys.executable, '-c', code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.processes
def test_a_killed_writer_is_resumed(tmp_path):
    "Killed in the middle while others read; the next run ends with the same bytes as one that was never killed."
    files = many(tmp_path / 'shop')
    want, _, _ = decode(files, tmp_path / 'whole')
    by_key = {r.sha256: want[r.item] for r in read_manifest(tmp_path / 'whole').rows.itertuples()}
    child, cache = start(CHILD, tmp_path / 'shop', tmp_path / 'cache'), tmp_path / 'cache'
    try:
        seen, until = 0, time.time() + 600
        while seen < 12 and time.time() < until and child.poll() is None:
            if not cache.exists() or not list(cache.glob(f'*/{INDEX}')):
                time.sleep(0.01)
                continue
            now = PixelCache(store(cache))  # a reader beside the writer
            for key in now.places:
                assert np.array_equal(now.get(key), by_key[key.hex()])
            seen = len(now)
        assert child.poll() is None and seen >= 12, child.communicate()[1][-2000:]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    left = len(PixelCache(store(cache)))
    assert 12 <= left < 60 and not (cache / MANIFEST).exists()
    with open(store(cache) / VALUES, 'ab') as f:
        f.write(b'half a picture')
    got, rows, heard = decode(files, cache)
    assert not heard and all(np.array_equal(got[k], want[k]) for k in want)
    for name in (VALUES, INDEX):
        assert (store(cache) / name).read_bytes() == (store(tmp_path / 'whole') / name).read_bytes()
    assert (cache / MANIFEST).read_bytes() == (tmp_path / 'whole' / MANIFEST).read_bytes()
    assert sorted(p.name for p in store(cache).iterdir()) == [INDEX, 'lock', 'settings.json', VALUES]


HOLDER = '''
import sys; from vlm2rec_lab.base.store import writing
with writing(sys.argv[1]):
    print("held", flush=True); sys.stdin.read()
'''


@pytest.mark.processes
def test_one_writer_many_readers(tmp_path):
    files = many(tmp_path / 'shop', 5)
    want, _, _ = decode(files, tmp_path / 'cache')
    command = [sys.executable, '-c', HOLDER, str(store(tmp_path / 'cache'))]
    holder = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b'held\n'
        # what is there can be read meanwhile
        assert all(np.array_equal(decode(files, tmp_path / 'cache')[0][k], want[k]) for k in want)
        with pytest.raises(DataError, match='is being written by another process: wait for it'):
            decode(files | {'new': encode(photo(99))}, tmp_path / 'cache')
    finally:
        holder.kill()
        holder.communicate()
    # the lock of a killed one is free
    assert decode(files | {'new': encode(photo(99))}, tmp_path / 'cache')[0]['new'] is not None


@pytest.mark.parametrize('turn', range(8))
def test_only_one_thread_writes(tmp_path, turn):
    "Of many who want to write, one at a time does, also where a killed writer of an earlier version left its file."
    (tmp_path / LOCK).write_text(f'{socket.gethostname()} 999999999 1')
    inside, most, won, lost = [], [], [], []

    def work():
        for _ in range(10):
            try:
                with sole_writer(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
                    won.append(1)
            except DataError:
                lost.append(1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert max(most) == 1 and won and len(won) + len(lost) == 80
    assert [p.name for p in tmp_path.iterdir()] == [LOCK]


def test_what_is_in_the_cache_is_not_decoded(tmp_path, monkeypatch):
    files = many(tmp_path / 'shop', 5, (90, 70))
    want, _, _ = decode(files, tmp_path / 'cache')
    monkeypatch.setattr(images, 'open_image', lambda *a: 1 / 0)
    got, _, heard = decode(files, tmp_path / 'cache')
    assert not heard and all(np.array_equal(got[k], want[k]) for k in want)


def test_a_changed_picture_is_decoded_anew_and_twins_are_stored_once(tmp_path):
    p = tmp_path / 'a.jpg'
    p.write_bytes(encode(photo(1)))
    first, _, _ = decode({'a': p, 'b': p, 'c': p.read_bytes()}, tmp_path / 'cache', workers=1)
    assert len(PixelCache(store(tmp_path / 'cache'))) == 1 and np.array_equal(first['a'], first['c'])
    stamp = p.stat()
    p.write_bytes(encode(photo(2)).ljust(stamp.st_size)[: max(stamp.st_size, len(encode(photo(2))))])
    os.utime(p, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # the clock says nothing has happened
    second, _, _ = decode({'a': p}, tmp_path / 'cache')
    assert not np.array_equal(first['a'], second['a']) and len(PixelCache(store(tmp_path / 'cache'))) == 2
    other, _, _ = decode({'a': p}, tmp_path / 'cache', max_pixels=3136, min_pixels=784)
    assert other['a'].shape != second['a'].shape and len([q for q in (tmp_path / 'cache').iterdir() if q.is_dir()]) == 2
    with pytest.raises(ValueError):
        second['a'][0, 0, 0] = 1


def test_workers_do_not_change_the_bytes(tmp_path):
    files = many(tmp_path / 'shop', 20, (90, 70))
    for n in (1, 2, 7):
        decode(files, tmp_path / str(n), workers=n)
    assert len({(store(tmp_path / str(n)) / VALUES).read_bytes() for n in (1, 2, 7)}) == 1


def test_nothing_to_decode(tmp_path):
    got, _, heard = decode({'a': None}, tmp_path)
    assert got == {'a': None} and not heard and read_manifest(tmp_path).counts() == {'ok': 0}
    got, rows, heard = decode({'a': b'', 'b': LazyImage('gone', lambda: 1 / 0), 'c': tmp_path / 'none.jpg'}, tmp_path)
    assert [rows[k]['reason'] for k in 'abc'] == ['empty file', 'broken', 'no such file']
    assert not any(v is not None for v in got.values())


# the web

GOOD = encode(photo(5))


class Web(BaseHTTPRequestHandler):
    protocol_version, timeout = 'HTTP/1.1', 20

    def log_message(self, *_):
        pass

    def send(self, body=GOOD, status=200, length=None, **headers):
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k.replace('_', '-'), v)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.server.asked.append((self.path, self.headers['Host'], self.client_address[1]))
        _, what, *rest = self.path.split('?')[0].split('/')
        times = sum(p == self.path for p, _, _ in self.server.asked)
        try:
            getattr(self, what.replace('-', '_').split('.')[0])(*rest, times=times)
        except (OSError, AttributeError):
            self.close_connection = True

    def ok(self, n='5', times=0):
        self.send(encode(photo(int(n.split('.')[0]))))

    def gone(self, times):
        self.send(b'no such thing', 404)

    def flaky(self, n, times):
        self.send(b'', 500) if times <= int(n) else self.send()

    def busy(self, seconds, times):
        self.send(b'', 429, Retry_After=seconds) if times < 2 else self.send()

    def asleep(self, times):
        time.sleep(4)
        self.send()

    def page(self, times):
        self.send(b'<html>sold out</html>')

    def empty(self, times):
        self.send(b'')

    def packed(self, times):
        self.send(GOOD, Content_Encoding='gzip')

    def boast(self, times):
        self.send(GOOD, length=10**12)

    def short(self, times):
        self.close_connection = True
        self.send(GOOD[:-100], length=len(GOOD))

    def modest(self, times):
        self.close_connection = True
        self.send(GOOD, length=len(GOOD) - 100)

    def hang_up(self, times):
        self.close_connection = True

    def noise(self, times):
        self.close_connection = True
        self.wfile.write(b'\x00\x01 what?\r\n\r\n')

    def to(self, *rest, times):
        self.send(b'moved', 302, Location=bytes.fromhex(rest[0]).decode())

    def nowhere(self, times):
        self.send(b'', 302)

    def hops(self, n, times):
        self.send(b'', 307, Location=f'/hops/{int(n) - 1}' if int(n) else '/ok/5.jpg')

    def around(self, times):
        self.send(b'', 301, Location='/around')

    def drip(self, times):
        "A byte now and then: no single wait is long."
        self.send_response(200)
        self.send_header('Content-Length', str(len(GOOD)))
        self.end_headers()
        for b in GOOD:
            self.wfile.write(bytes([b]))
            time.sleep(0.05)

    def head_drip(self, times):
        self.wfile.write(b'HTTP/1.1 200 OK\r\n')
        while True:
            self.wfile.write(b'x')
            time.sleep(0.05)

    def endless(self, how, times):
        self.close_connection = True
        self.send_response(200)
        if how == 'chunked':
            self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        while True:
            self.wfile.write((b'10000\r\n' + bytes(65536) + b'\r\n') if how == 'chunked' else bytes(65536))
            self.server.poured += 65536

    def cut_chunks(self, times):
        self.close_connection = True
        self.send_response(200)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        self.wfile.write(b'ffff\r\n' + GOOD[:100])

    def chunks(self, times):
        self.send_response(200)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()
        for i in range(0, len(GOOD), 500):
            part = GOOD[i : i + 500]
            self.wfile.write(b'%x\r\n' % len(part) + part + b'\r\n')
        self.wfile.write(b'0\r\n\r\n')

    def until_closed(self, times):
        self.close_connection = True
        self.send_response(200)
        self.end_headers()
        self.wfile.write(GOOD)


@pytest.fixture
def web():
    with ThreadingHTTPServer(('127.0.0.1', 0), Web) as server:
        server.daemon_threads, server.asked, server.poured = True, [], 0
        server.here = f'127.0.0.1:{server.server_port}'
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def fetch(web, paths, folder, **how):
    "(rows by path, warnings)"
    times = dict(retries=1, backoff=0.01, timeout=3, patience=15)
    usual = dict(hosts=[web.here], private=[web.here], progress=False, max_bytes=200_000, **times)
    with only_ours() as heard:
        m = fetch_images([p if '://' in p else f'http://{web.here}/{p}' for p in paths], folder, **(usual | how))
    return {p: r for p, r in zip(paths, m.rows.to_dict('records'))}, [str(w.message) for w in heard]


WAYS = {  # path: (reason, words of the detail, how often it is asked for)
    'ok/5.jpg': ('', '', 1),
    'chunks': ('', '', 1),
    'until-closed': ('', '', 1),
    'flaky/1': ('', '', 2),
    'busy/0': ('', '', 2),
    'hops/4': ('', '', 1),
    'ok/5.jpg?size=a b&c=%20': ('', '', 1),
    'gone': ('HTTP 404', 'Not Found', 1),
    'flaky/9': ('HTTP 500', '', 2),
    'busy/4000': ('HTTP 429', 'asks to wait 4,000 s, more than 30', 1),
    'page': ('not an image', '', 1),
    'empty': ('not an image', '', 1),
    'packed': ('not an image', 'compressed', 1),
    'boast': ('too large', '1,000,000,000,000 bytes announced', 1),
    'endless/chunked': ('too large', 'more than 200,000', 1),
    'endless/plain': ('too large', 'more than 200,000', 1),
    'short': ('cut short', '', 2),
    'cut-chunks': ('cut short', '', 2),
    'modest': ('broken', '', 1),
    'asleep': ('timeout', '', 2),
    'drip': ('timeout', 'patience', 2),
    'head-drip': ('timeout', 'patience', 2),
    'hang-up': ('no connection', '', 2),
    'noise': ('no connection', '', 2),
    'around': ('redirects', 'circle', 1),
    'hops/5': ('redirects', 'more than 5', 1),
    'nowhere': ('HTTP 302', '', 1),
}


def test_what_servers_do(tmp_path, web):
    rows, heard = fetch(web, list(WAYS), tmp_path, workers=len(WAYS), patience=4.5)
    for path, (reason, words, times) in WAYS.items():
        row = rows[path]
        assert row['reason'] == reason and row['status'] == ('failed' if reason else 'ok') and words in row['detail'], (
            path,
            row,
        )
        asked = [p for p, _, _ in web.asked if p == '/' + path.replace(' ', '%20')]
        more = {0}
        if path in ('ok/5.jpg', 'hops/4'):
            more = {1}  # the hops lead there
        if path in ('hang-up', 'noise'):
            more = {0, 1}  # a kept connection that closes is not held against the server
        assert len(asked) - times in more, (path, len(asked))
        if not reason:
            assert open_image(tmp_path / row['file']).size == (96, 72)
            assert (tmp_path / row['file']).stat().st_size == row['bytes']
    assert web.poured < 60_000_000
    assert f'{sum(bool(w[0]) for w in WAYS.values())} pictures of {len(WAYS)} not fetched' in heard[0]
    assert {h for _, h, _ in web.asked} == {web.here}
    assert not list(tmp_path.glob('**/.*'))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['files', MANIFEST, LOCK]
    assert len(list((tmp_path / 'files').rglob('*.jpg'))) == 1  # all good answers are the same picture
    assert (tmp_path / MANIFEST).read_bytes().count(b'\n') == len(WAYS)


def test_connections_are_kept(tmp_path, web):
    fetch(web, [f'ok/{i}.jpg' for i in range(20)], tmp_path, workers=1)
    assert len({port for _, _, port in web.asked}) == 1 and len(web.asked) == 20


def test_nothing_is_sent_but_the_request(tmp_path, web, monkeypatch):
    "No proxies of the environment, which would look up names by themselves, and no cookies; the host is named."
    for name in ('http_proxy', 'HTTP_PROXY', 'https_proxy', 'all_proxy', 'ALL_PROXY'):
        monkeypatch.setenv(name, 'http://127.0.0.1:9')
    heads = []

    class Sweet(Web):
        def ok(self, n='5', times=0):
            heads.append(dict(self.headers))
            self.send(GOOD, Set_Cookie='id=7; Path=/')

    web.RequestHandlerClass = Sweet
    rows, _ = fetch(web, [f'ok/{i}.jpg' for i in range(3)], tmp_path, workers=1, retries=0)
    assert all(r['status'] == 'ok' for r in rows.values())
    assert heads == [{'Host': web.here, **fetching.HEADERS}] * 3


@pytest.mark.parametrize(
    'place, host',
    [
        (('http', 'a.example', 80), 'a.example'),
        (('https', 'a.example', 443), 'a.example'),
        (('https', 'a.example', 80), 'a.example:80'),
        (('http', '::1', 80), '[::1]'),
        (('http', '::1', 81), '[::1]:81'),
    ],
)
def test_hosts_are_named_with_their_port(place, host):
    assert fetching._headers(*place)['Host'] == host


def test_a_kept_connection_that_was_closed(tmp_path, web):
    class Curt(Web):
        def ok(self, n='5', times=0):
            super().ok(n, times)
            self.connection.shutdown(socket.SHUT_RDWR)

    web.RequestHandlerClass = Curt
    rows, _ = fetch(web, [f'ok/{i}.jpg' for i in range(5)], tmp_path, workers=1, retries=0)
    assert all(r['status'] == 'ok' for r in rows.values())


def test_a_server_with_a_certificate(tmp_path, web, monkeypatch):
    "Over TLS the certificate must be of the host and of somebody trusted."
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj', '/CN=shop.example']
    files = ['-keyout', tmp_path / 'key.pem', '-out', tmp_path / 'cert.pem']
    made = subprocess.run([*command, *files, '-addext', 'subjectAltName=DNS:shop.example'], capture_output=True)
    assert made.returncode == 0, made.stderr

    def trusting():
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(tmp_path / 'cert.pem')
        return context

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / 'cert.pem', tmp_path / 'key.pem')
    web.socket = context.wrap_socket(web.socket, server_side=True)
    names = [f'{n}.example:{web.server_port}' for n in ('shop', 'other')]
    how = dict(hosts=names, private=names, resolve=lambda h, p: ['127.0.0.1'], timeout=5)

    def ask(name, paths, folder):
        return fetch(web, [f'https://{name}/{p}' for p in paths], tmp_path / folder, **how)[0]

    (row,) = ask(names[0], ['ok/1.jpg'], 'unknown').values()
    assert row['reason'] == 'no connection' and 'certificate' in row['detail'].lower() and not web.asked
    monkeypatch.setattr(ssl, 'create_default_context', trusting)
    rows = ask(names[0], ['ok/1.jpg', 'ok/2.jpg', f"to/{f'http://{names[0]}/ok/1.jpg'.encode().hex()}"], 'known')
    assert [r['reason'] for r in rows.values()] == ['', '', 'redirects'] and {h for _, h, _ in web.asked} == {names[0]}
    (row,) = ask(names[1], ['ok/1.jpg'], 'mistaken').values()
    assert row['reason'] == 'no connection' and 'other.example' in row['detail']


def test_redirects_are_checked_again(tmp_path, web):
    port = web.server_port

    def to(url):
        return f'to/{url.encode().hex()}'

    with ThreadingHTTPServer(('127.0.0.1', 0), Web) as other:
        other.asked, other.daemon_threads = [], True
        threading.Thread(target=other.serve_forever, daemon=True).start()
        want = {
            to('/ok/5.jpg'): '',
            to(f'http://{web.here}/ok/5.jpg'): '',
            to(f'//{web.here}/ok/5.jpg'): '',
            to('../ok/5.jpg'): '',
            to('http://elsewhere.example/x.jpg'): 'not allowed',
            to(f'http://127.0.0.1:{other.server_port}/ok/5.jpg'): 'not allowed',
            to(f'http://localhost:{port}/ok/5.jpg'): 'private address',
            to('http://127.0.0.1/ok.jpg'): 'not allowed',
            to(f'http://127.0.0.2:{port}/ok/5.jpg'): 'not allowed',
            to('file:///etc/passwd'): 'not allowed',
            to('ftp://127.0.0.1/x'): 'not allowed',
            to('data:image/png;base64,iVBORw0KGgo='): 'not allowed',
            to('gopher://127.0.0.1/'): 'not allowed',
            to(f'http://user:secret@{web.here}/ok/5.jpg'): 'not allowed',
            to('http://169.254.169.254/latest/meta-data'): 'not allowed',
            to('http://['): 'redirects',
            to(f'http://[::ffff:127.0.0.1]:{port}/ok/5.jpg'): 'not allowed',
            to(f'http://2130706433:{port}/ok/5.jpg'): 'not allowed',
            to(f'http://0x7f.1:{port}/ok/5.jpg'): 'not allowed',
            to(f'https://{web.here}/ok/5.jpg'): 'no connection',
        }
        rows, _ = fetch(web, list(want), tmp_path, hosts=[web.here, f'localhost:{port}'], retries=0)
        assert {p: r['reason'] for p, r in rows.items()} == want and not other.asked
        assert 'localhost leads to' in rows[to(f'http://localhost:{port}/ok/5.jpg')]['detail']
        assert b'secret' not in (tmp_path / MANIFEST).read_bytes()
        other.shutdown()


def test_links_in_disguise(tmp_path, web):
    port = web.server_port
    links = [
        f'http://{h}:{port}/ok/5.jpg'
        for h in (
            '2130706433',
            '0x7f.1',
            '0x7f000001',
            '127.1',
            '0177.0.0.1',
            '[::ffff:127.0.0.1]',
            '[::ffff:7f00:1]',
            '[::1]',
            'localhost',
            '127.0.0.1.',
            '127.0.0.1%2eevil.example',
            '①②⑦.⓪.⓪.①',
            '127。0。0。1',
        )
    ]
    links += [
        f'http://good.example@127.0.0.1:{port}/',
        f'http://user:secret@{web.here}/ok/5.jpg',
        f'http://{web.here}\\@evil.example/',
        f'http://127.0.0.1:{port}0/',
        'http://127.0.0.1:abc/',
        'http://127.0.0.1:-1/',
        f'ftp://{web.here}/',
        f'file://{web.here}/etc/passwd',
        '//127.0.0.1/',
        'mailto:a@b.example',
        'data:,x',
        'http://',
        f'http://{web.here}/\r\nX: y',
        'not a link',
    ]
    private = [f'{h}:{port}' for h in ('127.0.0.1', 'localhost')]
    with only_ours():
        m = fetch_images(
            links, tmp_path, hosts=['good.example', '*.good.example'], private=private, retries=0, progress=False
        )
    assert m.counts() == {'ok': 0, 'not allowed': len(links)}
    assert not web.asked
    assert 'secret' not in repr(m.rows.to_dict()) + m._repr_html_()
    assert b'secret' not in (tmp_path / MANIFEST).read_bytes()


def test_names_that_lead_home(tmp_path, web, monkeypatch):
    """The name is allowed, its address is not.

    It is looked up once per connection, and the connection goes to the address that was looked at.
    """
    port, asked, reached = web.server_port, [], []
    real = urllib3.util.connection.create_connection

    def connect(address, *a, **k):
        reached.append(address)
        if address[0] == '8.8.8.8':
            raise ConnectionRefusedError('nobody there')
        return real(address, *a, **k)

    monkeypatch.setattr(urllib3.util.connection, 'create_connection', connect)

    def answers(*turns):
        turns = list(turns)

        def resolve(host, at):
            asked.append(host)
            return turns.pop(0) if len(turns) > 1 else turns[0]

        return resolve

    def go(resolve, name, **how):
        asked.clear()
        reached.clear()
        return fetch(
            web,
            [f'http://shop.example:{port}/ok/5.jpg'],
            tmp_path / name,
            hosts=[f'shop.example:{port}'],
            resolve=resolve,
            **how,
        )[0].popitem()[1]

    for home in (
        '127.0.0.1',
        '10.0.0.7',
        '169.254.169.254',
        '::1',
        '::ffff:127.0.0.1',
        'fe80::1',
        '0.0.0.0',
        '224.0.0.1',
        '64:ff9b::7f00:1',
    ):
        row = go(answers([home]), home.replace(':', '_'), private=[])
        assert row['reason'] == 'private address' and home in row['detail'] and not reached and len(asked) == 1
    assert go(answers(['8.8.8.8', '127.0.0.1']), 'mixed', private=[])['reason'] == 'private address' and not reached
    # public when it was looked at, private when it is tried again
    row = go(answers(['8.8.8.8'], ['127.0.0.1']), 'rebinding', private=[])
    assert row['reason'] == 'private address' and reached == [('8.8.8.8', port)] and len(asked) == 2
    row = go(answers(['8.8.8.8'], ['127.0.0.1']), 'once', private=[], retries=0)
    assert row['reason'] == 'no connection' and reached == [('8.8.8.8', port)] and len(asked) == 1
    row = go(answers(['127.0.0.1']), 'permitted', private=[f'shop.example:{port}'])
    assert row['status'] == 'ok' and reached == [('127.0.0.1', port)] and web.asked[-1][1] == f'shop.example:{port}'

    def nobody(host, at):
        raise socket.gaierror(-2, 'Name or service not known')

    assert go(nobody, 'unknown', private=[])['reason'] == 'no connection'
    assert go(answers([]), 'none', private=[])['reason'] == 'no connection'
    assert go(answers(['what']), 'odd', private=[])['reason'] == 'private address'
    assert not web.asked[1:]


def test_a_run_is_resumed(tmp_path, web):
    "What is there and whole is not fetched again; what failed for good is left; the rest is tried."
    paths = ['ok/1.jpg', 'gone', 'page', 'flaky/4', 'ok/2.jpg', 'modest']
    first, _ = fetch(web, paths, tmp_path, retries=0)
    n = len(web.asked)
    (tmp_path / first['ok/2.jpg']['file']).write_bytes(b'x' * first['ok/2.jpg']['bytes'])
    with open(tmp_path / MANIFEST, 'ab') as f:
        f.write(b'{"source": "http://half a li')
    second, _ = fetch(web, [*paths, 'ok/3.jpg'], tmp_path, retries=9)
    assert sorted(p for p, _, _ in web.asked[n:]) == ['/flaky/4'] * 4 + ['/modest', '/ok/2.jpg', '/ok/3.jpg']
    assert second['flaky/4']['status'] == 'ok'
    assert read_manifest(tmp_path).counts() == {'ok': 4, 'HTTP 404': 1, 'not an image': 1, 'broken': 1}
    n = len(web.asked)
    fetch(web, paths, tmp_path, again=True)
    assert sorted(p for p, _, _ in web.asked[n:]) == ['/gone', '/modest', '/page']
    rows = [json.loads(x) for x in (tmp_path / MANIFEST).read_text().splitlines()]
    assert len(rows) == 7
    with open(tmp_path / MANIFEST, 'ab') as f:
        f.write(b'{"source": "http://half a li')

    def fail_at(n):
        def work(u):
            return dict(source=u, status='failed', reason='test', detail='') if u != n else 1 / 0

        return lambda old: work

    with pytest.raises(ZeroDivisionError):
        fetching._fetch_all(['http://1', 'http://2'], tmp_path, fail_at('http://2'), 1, threading.Event(), False)
    with only_ours() as heard:
        assert len(read_manifest(tmp_path)) == 8 and not heard  # stopped twice, and no line is spoilt
    evil = [
        dict(rows[0], file='../../../etc/passwd'),
        dict(rows[0], source='http://x/', file='/etc/passwd'),
        dict(rows[0], source='http://y/', file=7),
    ]
    # a manifest from elsewhere leads nowhere
    (tmp_path / MANIFEST).write_text(''.join(json.dumps(r) + '\n' for r in evil))
    assert not find_images(read_manifest(tmp_path)).files
    assert fetch(web, ['ok/1.jpg'], tmp_path)[0]['ok/1.jpg']['file'].startswith('files/')


FETCHER = '''
import sys; from vlm2rec_lab.shop.fetch import fetch_images
here, folder = sys.argv[1:]
links = [f'http://{here}/ok/{i}.jpg' for i in range(80)]
fetch_images(links, folder, hosts=[here], private=[here], workers=3, progress=False)
'''


@pytest.mark.processes
def test_a_killed_fetch_is_resumed(tmp_path, web):
    class Calm(Web):
        def ok(self, n='5', times=0):
            time.sleep(0.02)
            super().ok(n, times)

    web.RequestHandlerClass = Calm
    child = start(FETCHER, web.here, tmp_path)
    try:
        until = time.time() + 600
        while (
            time.time() < until
            and child.poll() is None
            and not ((tmp_path / MANIFEST).exists() and (tmp_path / MANIFEST).read_bytes().count(b'\n') > 15)
        ):
            time.sleep(0.005)
        assert child.poll() is None, child.communicate()[1][-2000:]
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    with open(tmp_path / MANIFEST, 'r+b') as f:
        f.truncate(f.seek(0, 2) - 25)  # as if killed within the last line
    there = {r['source'] for r in read_manifest(tmp_path).rows.to_dict('records')}
    n = len(web.asked)
    assert 15 <= len(there) < 80
    rows, heard = fetch(web, [f'ok/{i}.jpg' for i in range(80)], tmp_path, workers=3)
    assert not heard and all(r['status'] == 'ok' for r in rows.values())
    assert sorted(p for p, _, _ in web.asked[n:]) == sorted(
        f'/ok/{i}.jpg' for i in range(80) if f'http://{web.here}/ok/{i}.jpg' not in there
    )
    assert (tmp_path / MANIFEST).read_bytes().count(b'\n') == 80
    assert sorted(p.name for p in tmp_path.iterdir()) == ['files', MANIFEST, LOCK]


@pytest.mark.processes
def test_an_interrupted_fetch_ends_soon(tmp_path, web):
    "Ctrl-C: what is there stays listed, the lock is free, and nobody waits for the other seventy."

    class Calm(Web):
        def ok(self, n='5', times=0):
            time.sleep(0.3)
            super().ok(n, times)

    web.RequestHandlerClass = Calm
    child = start(FETCHER, web.here, tmp_path)
    try:
        until = time.time() + 600
        while (
            time.time() < until
            and child.poll() is None
            and not ((tmp_path / MANIFEST).exists() and b'\n' in (tmp_path / MANIFEST).read_bytes())
        ):
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        said = child.communicate(timeout=600)[1]
    finally:
        child.kill()
        child.communicate()
    assert b'KeyboardInterrupt' in said and 1 <= read_manifest(tmp_path).counts()['ok'] < 40
    with sole_writer(tmp_path):
        pass


def test_two_fetches_do_not_mix(tmp_path, web):
    with sole_writer(tmp_path), pytest.raises(DataError, match='being written by another process'):
        fetch(web, ['ok/1.jpg'], tmp_path)


def test_from_links_to_the_cache(tmp_path, web):
    "Links of a table, one in a list, two alike, some bad: fetched, matched, decoded, and every item accounted for."

    def at(name):
        return f'http://{web.here}/{name}'

    links = [at('ok/1.jpg'), [at('ok/2.jpg'), at('gone')], at('ok/1.jpg'), at('gone'), None, at('page')]
    ids = list('abcdef')
    c = Catalogue(ids, {'text': ids}, {'text': 'text'}, pd.DataFrame({'image_url': links}))
    with only_ours() as heard:
        m = fetch_images(c, tmp_path / 'fetched', hosts=[web.here], private=[web.here], progress=False)
        got = decode_images(with_images(c, m, check=False), tmp_path / 'cache', progress=False)
    assert m.counts() == {'ok': 2, 'HTTP 404': 1, 'not an image': 1}
    assert [p is None for p in got.content['image']] == [False, False, False, True, True, True]
    assert got.content['image'][0] is not got.content['image'][1]
    assert [str(w.message).split(':')[0] for w in heard] == [
        "2 pictures of 4 not fetched (1 HTTP 404, 1 not an image)",
        'fetched',
    ]
    assert "3 items of 6 without 'image'" in str(heard[1].message)
    with only_ours():
        assert with_images(c, read_manifest(tmp_path / 'fetched'), check=False).missing()['image'].sum() == 3

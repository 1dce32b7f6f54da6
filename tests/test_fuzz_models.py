"""Damaged folders of models, seeded: each loads the very same vectors, or is an error that names the folder."""

import contextlib
import io
import json
import shutil
import struct
import time
import warnings

import numpy as np
import pytest
from PIL import Image

from vlm2rec_lab.cli import main
from vlm2rec_lab.model.embedder import NOTE, VLMEmbedder
from vlm2rec_lab.model.families import load_model
from vlm2rec_lab.shop.catalogue import Catalogue

WORDS = [f'red mug {k}' for k in range(3)]
CATALOGUE = Catalogue(
    ['a', 'b', 'c'],
    {'text': WORDS, 'image': [Image.new('RGB', (60 + k, 50), (k * 90, 10, 99)) for k in range(3)]},
    {'text': 'text', 'image': 'image'},
)
INDEX = 'model.safetensors.index.json'


@pytest.fixture(scope='module')
def folders(checkpoint, tmp_path_factory):
    "{kind: a whole folder}: a foreign one, the same in several files, one of the lab, adapters, adapters apart."
    place = tmp_path_factory.mktemp('models')
    shutil.copytree(checkpoint, place / 'foreign')
    model, tokenizer, image_processor = load_model(checkpoint, device='cpu')
    model.save_pretrained(place / 'parts', max_shard_size='100KB')
    for part in (tokenizer, image_processor):
        part.save_pretrained(place / 'parts')
    assert (place / 'parts' / INDEX).is_file()
    VLMEmbedder.from_pretrained(checkpoint, device='cpu').save_pretrained(place / 'whole')
    for name, adapters in (('adapters', None), ('apart', ('text', 'image'))):
        VLMEmbedder.from_pretrained(checkpoint, lora=2, adapters=adapters, device='cpu').save_pretrained(place / name)
    return {p.name: p for p in sorted(place.iterdir())}


def vectors(folder):
    "What a folder makes of three items."
    embedder = VLMEmbedder.from_pretrained(folder, device='cpu')
    return {m: np.asarray(z) for m, z in embedder.encode_items(CATALOGUE, progress=False).items()}


@pytest.fixture(scope='module')
def whole(folders):
    return {kind: vectors(folder) for kind, folder in folders.items()}


SHAPES = (b'', b'[]', b'null', b'3', b'"x"', b'{', b'{}', b'[' * 20_000, b'\x00' * 40, b'\xff\xfe{', b'{"a": NaN}')


def cut(rng, data):
    "Less than all of it."
    return data[: rng.integers(0, len(data))]


def flipped_head(rng, data):
    "One bit of the description of the tensors is another."
    data, (n,) = bytearray(data), struct.unpack('<Q', data[:8])
    data[int(rng.integers(0, 8 + n))] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)


def flipped(rng, data):
    "One bit of it is another."
    data = bytearray(data)
    data[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
    return bytes(data)


def changed(rng, data):
    "A value of a JSON object is of another kind, or gone."
    found = json.loads(data)
    key = str(rng.choice(sorted(found)))
    if rng.random() < 0.3:
        del found[key]
    else:
        found[key] = [None, -1, 'x', [], {}, {'x': [1]}, 1e400][int(rng.integers(0, 7))]
    return json.dumps(found).encode()


def elsewhere(rng, data):
    "An index that names a file outside, or one that is not there."
    found = json.loads(data)
    names = ['../foreign/model.safetensors', '/etc/passwd', '..', 'sub/x.safetensors', '..\\x', 'none.safetensors', '']
    found['weight_map'][str(rng.choice(sorted(found['weight_map'])))] = str(rng.choice(names))
    return json.dumps(found).encode()


def damage(rng, folder, kind):
    "Damage one file of a folder; what was done, in words. What the lab has not written has no digests to go by."
    ours = kind in ('whole', 'adapters', 'apart')
    files = sorted(p for p in folder.rglob('*') if p.suffix in ('.json', '.safetensors', '.jinja'))
    file = files[int(rng.integers(0, len(files)))]
    ways = ['cut', 'gone', 'folder', 'loop']
    if file.suffix == '.safetensors':
        ways += ['flipped_head'] * 3 + (['flipped'] * 4 if ours else [])
    if file.suffix == '.json':
        ways += ['shape'] * 5
    if file.name == NOTE or file.suffix == '.json' and ours:
        ways += ['changed'] * 5
    if file.name == INDEX:
        ways += ['elsewhere'] * 12
    way, data = str(rng.choice(ways)), file.read_bytes()
    file.unlink()
    if way == 'folder':
        file.mkdir()
    elif way == 'loop':
        file.symlink_to(file.name)
    elif way == 'shape':
        file.write_bytes(SHAPES[int(rng.integers(0, len(SHAPES)))])
    elif way != 'gone':
        file.write_bytes(globals()[way](rng, data))
    return f'{kind}: {file.relative_to(folder)} {way}'


def outcome(folder, expected):
    "'same', 'error', or what went wrong, in words."
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = vectors(folder)
    except (ValueError, OSError) as e:
        return 'error' if folder.name in str(e) else f'an error without the folder: {type(e).__name__}: {e}'
    except Exception as e:
        return f'not ours: {type(e).__name__}: {e}'
    same = set(found) == set(expected) and all(np.array_equal(found[m], expected[m]) for m in expected)
    return 'same' if same else 'other vectors'


def test_models(folders, whole, tmp_path):
    rng, end = np.random.default_rng(0), time.monotonic() + 25
    found, wrong = {'same': 0, 'error': 0}, []
    kinds = sorted(folders)
    while time.monotonic() < end and sum(found.values()) + len(wrong) < 400:
        kind = kinds[int(rng.integers(0, len(kinds)))]
        folder = tmp_path / 'damaged'
        shutil.copytree(folders[kind], folder)
        what = damage(rng, folder, kind)
        result = outcome(folder, whole[kind])
        if result in found:
            found[result] += 1
        else:
            wrong.append(f'{what}: {result[:300]}')
        shutil.rmtree(folder)
    cases = sum(found.values()) + len(wrong)
    print(f'models: {cases} cases, {found["same"]} the same, {found["error"]} named errors, {len(wrong)} wrong')
    assert not wrong, '\n'.join(wrong)
    assert found['error'] > cases / 2


def test_whole_folders_load_the_same_each_time(folders, whole):
    for kind, folder in folders.items():
        assert outcome(folder, whole[kind]) == 'same', kind


def test_a_link_to_weights_elsewhere_is_no_index(folders, tmp_path):
    "A store of downloads keeps the files themselves elsewhere, behind links of plain names."
    shutil.copytree(folders['parts'], tmp_path / 'parts')
    for file in (tmp_path / 'parts').glob('*.safetensors'):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    vectors(tmp_path / 'parts')


def write(name, data):
    "A damage: a file with other bytes."

    def way(folder):
        (folder / name).write_bytes(data)

    return way


def halved(folder):
    file = folder / 'model.safetensors'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def looped(folder):
    for name in ('config.json', 'adapter_config.json'):
        if (folder / name).exists():
            (folder / name).unlink()
    (folder / 'config.json').symlink_to('config.json')


OUTSIDE = json.dumps({'metadata': {}, 'weight_map': {'lm_head.weight': '../model.safetensors'}}).encode()


@pytest.mark.parametrize(
    'kind, way, said',
    [
        ('foreign', halved, 'the weights cannot be read'),
        ('foreign', write('tokenizer.json', b'{"model": 3}'), 'the tokenizer cannot be read'),
        ('foreign', write('config.json', b'[]'), 'config.json cannot be read'),
        ('foreign', write('preprocessor_config.json', b'{'), 'preprocessor_config.json cannot be read'),
        ('foreign', write(INDEX, OUTSIDE), "names '../model.safetensors': weights must lie in the same folder"),
        ('foreign', looped, 'holds no model'),
        ('whole', write('embedder.json', b'[]'), 'embedder.json: an object such as'),
        ('whole', write('embedder.json', b'{"files": 3}'), 'embedder.json: files is 3, where dict is wanted'),
        ('whole', write('embedder.json', b'{"prompts": {"item": "x"}}'), 'embedder.json cannot be read'),
        ('whole', halved, 'model.safetensors differ from what was saved'),
    ],
)
def test_at_the_command_it_is_a_line(kind, way, said, folders, tmp_path):
    folder = tmp_path / 'damaged'
    shutil.copytree(folders[kind], folder)
    way(folder)
    argv = [
        'train',
        '--data',
        'studio:balanced',
        '--users',
        '6',
        '--steps',
        '1',
        '--losses',
        'sft',
        '--model',
        str(folder),
    ]
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = main([*argv, '--out', str(tmp_path / 'run')])
    lines = [line for line in err.getvalue().splitlines() if 'note:' not in line]
    assert (status, len(lines)) == (2, 1), err.getvalue()
    assert str(folder) in lines[0] and said in lines[0], lines

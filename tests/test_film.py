"""The moving picture of the README: drawn by the present code from what is stored, light, and it stands still in the
end."""

import io
import re
from pathlib import Path

import film
import numpy as np
import pytest
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def stored():
    return film.read_film()


def test_the_film_is_what_the_code_draws(stored):
    images, times = film.pictures(*stored)
    assert film.GIF.stat().st_size < film.HEAVIEST
    with Image.open(film.GIF) as gif:
        assert (gif.n_frames, gif.size) == (len(images), images[0].size)
        for k in (0, len(images) // 2, len(images) - 1):
            gif.seek(k)
            away = np.asarray(ImageChops.difference(gif.convert('RGB'), images[k])).mean()
            assert away < 2, f'picture {k} is another one: run python tools/film.py'
        assert gif.info['loop'] == 2, 'it is shown three times, and then it rests'
    assert len(times) == len(images) and max(times) == times[-1]


def test_it_shows_a_collapse_and_a_repair(stored):
    places, kinds, told = stored
    image, text = told['spaces'].index('image'), told['spaces'].index('text')
    last_sft = max(k for k, f in enumerate(told['frames']) if f.startswith('SFT'))
    wide = places.astype(float).std(axis=2).mean(-1)
    assert wide[last_sft, image] < 0.5 * wide[0, image] < wide[0, image] and wide[-1, image] > wide[last_sft, image]
    ranked = np.array(told['ranked'])
    assert ranked[last_sft, image] < ranked[0, image] < ranked[-1, image]
    assert ranked[last_sft, text] > ranked[0, text]
    readme = (ROOT / 'README.md').read_text()
    for at in (0, last_sft, -1):
        assert f'{ranked[at, image]:.3f}' in readme, 'the README has another figure than the film'
    assert re.search(r'!\[[^\]]{40,}\]\(nbs/images/collapse\.gif\)', readme), 'a picture with a text'
    assert f'{len(kinds)} products' in readme


@pytest.mark.filterwarnings('ignore::vlm2rec_lab.data.DataWarning')
def test_a_film_is_trained_and_drawn(tmp_path):
    np.savez_compressed(tmp_path / 'film.npz', **film.train_film(sft=2, repair=4, items=48, users=120, looks=2))
    places, kinds, told = film.read_film(tmp_path / 'film.npz')
    assert places.shape == (5, 2, 48, 2) and len(kinds) == 48 and told['frames'][1] == 'SFT 1'
    images, times = film.pictures(places, kinds, told)
    with Image.open(io.BytesIO(film.as_gif(images[:3], times[:3]))) as gif:
        assert gif.n_frames == 3

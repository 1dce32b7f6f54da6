"""HTML in texts and zeros in front of ids, where a user meets them: in a folder, in the readers, in a profile."""

import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from vlm2rec_lab.data import Catalogue, DataError, Dataset, DataWarning, Interactions, load_folder, profile, with_images
from vlm2rec_lab.shop.markup import clean_text, entities_in, tags_in
from vlm2rec_lab.shop.readers import hugging_face, log_file, sequence_file
from vlm2rec_lab.studio import make_studio

LOG = pd.DataFrame(
    {
        'user_id': np.repeat(['ann', 'bob', 'cal'], 3),
        'item_id': ['00001', '00002', '00003'] * 3,
        'timestamp': np.arange(9),
    }
)
ITEMS = pd.DataFrame(
    {
        'item_id': ['00001', '00002', '00003'],
        'title': ['Salt &amp; <b>Pepper</b>', 'Cr&egrave;me br&ucirc;l&eacute;e', 'Fish &amp; chips'],
        'description': ['For <i>two</i>', '<p>&nbsp;</p>', 'AT&T, I <3 it'],
    }
)
CLEAN = ['Salt & Pepper. description: For two', 'Crème brûlée', 'Fish & chips. description: AT&T, I <3 it']


@pytest.fixture
def folder(tmp_path):
    "A shop whose titles were copied from a web page."
    ITEMS.to_csv(tmp_path / 'items.csv', index=False)
    LOG.to_csv(tmp_path / 'interactions.csv', index=False)
    return tmp_path


def quiet(f, *args, **how):
    "(What `f` gives, its warnings)."
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = f(*args, **how)
    return found, [str(w.message) for w in caught if w.category is DataWarning]


# --- what counts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'text',
    ['AT&T', 'fish&notchips', 'a &foo; b', 'I <3 cats', '5 <six> 7', 'x<b and c>d', 'a < b > c', '&;&#;', '<>', 'R&D;'],
)
def test_what_only_looks_like_markup_stays(text):
    assert entities_in(text) == tags_in(text) == [] and clean_text(text) == text


@pytest.mark.parametrize(
    'text, clean',
    [
        ('Tea &amp;amp; milk', 'Tea & milk'),
        ('a<br/>b<BR>c', 'a b c'),
        ('<a href="x?a=1&amp;b=2">Mug</a>s', 'Mugs'),
        ("<img src='x.png' alt=\"a > b\"/>Mug", 'Mug'),
        ('&lt;p&gt;Mug&lt;/p&gt;', 'Mug'),
        ('&#39;&#x27;&quot;', '\'\'"'),
        ('<style>p {}</style>Mug<!-- old -->', 'Mug'),
        ('&#0;&#xD800;Mug', None),
        ('<p> &nbsp; </p>', ''),
    ],
)
def test_markup_is_taken_out(text, clean):
    found = clean_text(text)
    assert found == (clean or None) if clean is not None else 'Mug' in found
    assert not found or not (entities_in(found) or tags_in(found))
    assert clean_text(found) == found
    (found or '').encode()


def test_a_hostile_text_costs_no_more_than_its_length():
    for part in ('<!--', '<script>', '&amp', '<b ', '<a x=', '< ', '&#', '&amp;'):
        start = time.process_time()
        clean_text(part * 50_000)
        assert time.process_time() - start < 3, part


# --- where texts enter ----------------------------------------------------------------------------------------------


def test_nothing_is_changed_unasked(folder):
    ds, _ = quiet(load_folder, folder)
    assert ds.catalogue.content['text'][0] == 'Salt &amp; <b>Pepper</b>. description: For <i>two</i>'
    assert ds.catalogue.title(0) == 'Salt &amp; <b>Pepper</b>'


def test_a_folder_is_read_clean(folder):
    ds, _ = quiet(load_folder, folder, clean=True)
    assert ds.catalogue.content['text'] == CLEAN
    assert ds.catalogue.title(0) == 'Salt & Pepper'
    assert 'items.csv: 5 cells of text cleaned of HTML; nothing else was in 1 cell: row 3' in ds.notes


def test_a_text_of_which_nothing_is_left_is_counted_as_missing(folder):
    ITEMS.assign(title=['<br>', 'Mug', 'Tea'], description=None).to_csv(folder / 'items.csv', index=False)
    ds, said = quiet(load_folder, folder, clean=True)
    assert ds.catalogue.content['text'] == [None, 'Mug', 'Tea']
    assert any("1 item of 3 without 'text'" in s for s in said)


def test_the_readers_hand_it_on(folder):
    log, items = folder / 'interactions.csv', folder / 'items.csv'
    ds, _ = quiet(log_file, log, items, clean=True)
    assert ds.catalogue.content['text'] == CLEAN and ds.catalogue.title(0) == 'Salt & Pepper'
    assert quiet(log_file, log, items)[0].catalogue.title(0) == 'Salt &amp; <b>Pepper</b>'
    assert quiet(hugging_face, LOG, ITEMS, clean=True)[0].catalogue.content['text'] == CLEAN
    (folder / 'seq.txt').write_text('ann 00001 00002 00003\n')
    assert quiet(sequence_file, folder / 'seq.txt', items, clean=True)[0].catalogue.content['text'] == CLEAN


def test_a_catalogue_of_ones_own_is_cleaned_too():
    c = Catalogue(
        ('a', 'b'), {'text': ['Tea &amp; milk', None]}, {'text': 'text'}, pd.DataFrame({'name': ['<b>Tea', 1]})
    )
    clean = replace(c, clean=True)
    assert clean.content['text'] == ['Tea & milk', None] and clean.title(0) == 'Tea'
    assert c.content['text'][0] == 'Tea &amp; milk' and replace(clean, ids=('x', 'y')).title(0) == 'Tea'


# --- in a profile ---------------------------------------------------------------------------------------------------


def test_a_profile_counts_it_and_names_the_remedy(tmp_path):
    studio = make_studio(items=60, users=300)
    texts = [
        f'<b>{t}</b>' if i < 5 else f'{t} &amp; co' if i < 12 else t
        for i, t in enumerate(studio.catalogue.content['text'])
    ]
    web = replace(studio, catalogue=replace(studio.catalogue, content=dict(studio.catalogue.content, text=texts)))
    p = profile(web, progress=False)
    found = p.finding('markup')
    assert found.evidence | dict(example=0) == dict(items=12, entities=7, tags=5, example=0)
    assert (found.severity, found.modality, found.ids[0]) == ('caution', 'text', studio.catalogue.ids[0])
    assert 'clean=True' in found.remedy and texts[0] in found.sentence and '<b>' in found.sentence
    page, text = p._repr_html_(), p.save(tmp_path / 'p.md').read_text()
    assert '<b>' + studio.catalogue.content['text'][0] not in page + text
    assert '&lt;b&gt;' in page and '&amp;amp;' in page and '&lt;b&gt;' in text and '&amp;amp;' in text
    assert profile(replace(web, catalogue=replace(web.catalogue, clean=True)), progress=False).finding('markup') is None


def test_titles_are_told_where_no_text_has_them():
    titles = pd.DataFrame({'title': ['Tea &amp; milk', 'Mug', 'Cup']})
    c = Catalogue(tuple('abc'), {'text': ['tea', 'mug', 'cup']}, {'text': 'text'}, titles)
    ds = Dataset(c, Interactions.of_sequences([[0, 1, 2]]), 'three')
    found = [x for x in profile(ds, progress=False).findings if x.name == 'markup']
    assert len(found) == 1 and '1 of 3 titles hold HTML' in found[0].sentence
    both = replace(ds, catalogue=replace(c, content={'text': list(titles.title)}))
    assert len([x for x in profile(both, progress=False).findings if x.name == 'markup']) == 1


def test_a_shop_without_markup_has_no_such_finding():
    assert profile(make_studio(items=60, users=300), progress=False).finding('markup') is None


# --- zeros in front of ids ------------------------------------------------------------------------------------------

REMEDY = 'read the ids of both tables as text'


def test_lost_zeros_are_named_in_a_folder(folder):
    LOG.assign(item_id=[1, 2, 3] * 3).to_csv(folder / 'interactions.csv', index=False)
    with pytest.raises(DataError, match='of 3 unknown ids 3 would be known with other zeros in front') as e:
        quiet(load_folder, folder)
    assert "('1' is '00001' there)" in str(e.value) and REMEDY in str(e.value)


def test_lost_zeros_of_the_items_are_named_as_well(folder):
    ITEMS.assign(item_id=[1, 2, 3]).to_csv(folder / 'items.csv', index=False)
    with pytest.raises(DataError, match=f"'00001' is '1' there.*{REMEDY}"):
        quiet(load_folder, folder)


def test_other_unknown_items_have_the_usual_remedy(folder):
    LOG.assign(item_id='x1').to_csv(folder / 'interactions.csv', index=False)
    with pytest.raises(DataError, match='add the item to the catalogue') as e:
        quiet(load_folder, folder)
    assert REMEDY not in str(e.value)


def test_a_reader_names_lost_zeros(folder):
    "Where no id fits it is an error, where some do a warning; the zeros are told in both."
    log = LOG.assign(item_id=[1, 2, 3] * 3)
    with pytest.raises(DataError, match=REMEDY):
        quiet(hugging_face, log, ITEMS)
    log.loc[0, 'item_id'] = 9
    some = pd.concat([ITEMS, ITEMS.iloc[:1].assign(item_id='9')])
    ds, said = quiet(hugging_face, log, some, unseen=False)
    assert any('3 items of 4 not in items' in s and REMEDY in s for s in said)
    assert len(ds.catalogue) == 4


def test_pictures_by_id_name_lost_zeros(folder):
    (folder / 'photos').mkdir()
    for k in (1, 2):
        Image.new('RGB', (20, 20), (90 * k, 0, 0)).save(folder / 'photos' / f'{k}.png')
    ds, _ = quiet(load_folder, folder)
    with pytest.raises(DataError, match=f"'00001' is '1' there.*{REMEDY}"):
        with_images(ds, folder / 'photos', progress=False)
    Image.new('RGB', (20, 20)).save(folder / 'photos' / '00003.png')
    _, said = quiet(with_images, ds, folder / 'photos', progress=False)
    assert any('of 2 unknown ids 2 would be known' in s for s in said)

"""What a profile says: spoilt shops, each with its finding, and the words of it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from vlm2rec_lab.data import Catalogue, Dataset, Interactions, profile
from vlm2rec_lab.shop.profile_figures import (
    content_figures,
    image_figures,
    log_figures,
    order_figures,
    text_figures,
    time_figures,
)
from vlm2rec_lab.shop.profile_findings import (
    FINDINGS,
    LIMITS,
    content_findings,
    finds,
    log_findings,
    time_findings,
    with_limits,
)
from vlm2rec_lab.studio import make_studio

NOW = pd.Timestamp('2026-01-01', tz='UTC').timestamp()
DAY = 86_400.0
STUDIO = make_studio(items=200, users=400)
LOG = STUDIO.interactions
RNG = np.random.default_rng(0)
START = np.repeat(NOW - DAY * RNG.uniform(40, 400, 400), 9)
TIMES = START + DAY * np.tile(np.arange(9), 400) + RNG.uniform(0, DAY, 3600)
CUSTOMERS = tuple(f'u{k}' for k in RNG.permutation(400))


def shop(times=TIMES, items=LOG.items, lengths=LOG.lengths, **content):
    "The studio with times, or with other times, items, lengths or contents."
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    catalogue = replace(STUDIO.catalogue, content={**STUDIO.catalogue.content, **content})
    return Dataset(catalogue, Interactions(CUSTOMERS[: len(lengths)], offsets, items, times), 'a shop')


def said_of(ds, findings):
    "What is said of the log or its times: {name: Finding}."
    f = dict(
        log_figures(ds.interactions, ds.catalogue.ids),
        time=time_figures(ds.interactions, NOW),
        order=order_figures(ds.interactions, ds.catalogue.ids),
    )
    return {x.name: x for x in findings(f, with_limits())}


def about(ds, tokenizer=None, **options):
    "What is said of the content: {name: Finding}."
    c = ds.catalogue
    f = dict(
        log_figures(ds.interactions, c.ids),
        content=content_figures(c, ds.interactions),
        modalities={
            m: text_figures(c, m, tokenizer) if c.kinds[m] == 'text' else image_figures(c, m, **options)[0]
            for m in c.content
        },
    )
    return {x.name: x for x in content_findings(f, with_limits())}


def every(n, modality, other):
    "The contents of a modality, each n-th one replaced by a function of it."
    return [other(v) if i % n == 0 else v for i, v in enumerate(STUDIO.catalogue.content[modality])]


# --- times ----------------------------------------------------------------------------------------------------------


def test_positions_are_no_trouble():
    assert said_of(shop(np.tile(np.arange(9.0), 400)), time_findings) == {}


def test_one_time_for_everything_is_said_of_numbers_too():
    assert 'one time' in said_of(shop(TIMES * 0 + 5), time_findings)['ties'].sentence


def test_times_in_whole_weeks():
    ties = said_of(shop(np.floor(TIMES / 7 / DAY) * 7 * DAY), time_findings)['ties']
    assert 'whole days' in ties.sentence and ties.evidence['tied_targets'] > 200


def test_half_of_the_log_in_one_night_is_serious():
    night = np.where(np.arange(3600) % 9 < 5, NOW - 450 * DAY, TIMES)
    assert said_of(shop(night), time_findings)['one_time'].severity == 'serious'


def test_ties_of_a_night_are_not_in_whole_days():
    night = np.where(RNG.random(3600) < 0.4, NOW - 450 * DAY, TIMES)
    night = np.sort(night.reshape(400, 9)).ravel()
    assert not said_of(shop(night), time_findings)['ties'].evidence['whole_days']


@pytest.mark.parametrize('factor', [1e3, 1e6, 1e9, 1e-3])
def test_another_unit_is_the_only_finding(factor):
    assert list(said_of(shop(TIMES * factor), time_findings)) == ['unit']


def test_how_to_repair_a_unit():
    small, large = (said_of(shop(TIMES * k), time_findings)['unit'] for k in (1e-3, 1e3))
    assert 'Multiply' in small.remedy and 'Divide' in large.remedy
    assert large.evidence['unit'] == 'ms'


def test_one_date_in_the_future():
    late = TIMES.copy()
    late[8] = NOW + 5
    found = said_of(shop(late), time_findings)['odd_dates']
    assert (found.evidence['future'], found.severity, found.ids) == (1, 'caution', (CUSTOMERS[0],))


@pytest.mark.parametrize('days, start', [(7, 0), (3, 0), (30, 0), (7, 22 * 3600), (7, 18.5 * 3600)])
def test_a_log_by_the_day_is_not_called_imported(days, start):
    "Each of seven days has a seventh, whatever the time zone; the same log by the second has no common time either."
    day = np.sort(np.random.default_rng(days).integers(0, days, (400, 9)), 1).ravel()
    assert 'one_time' not in said_of(shop(NOW - 60 * DAY + start + day * DAY), time_findings)


def test_an_imported_day_in_a_log_by_the_day_is_told():
    day = np.sort(np.random.default_rng(0).integers(0, 60, (400, 9)), 1).ravel()
    imported = np.where(np.arange(3600) % 9 < 4, -100, day)
    found = said_of(shop(NOW - 90 * DAY + imported * DAY), time_findings)['one_time']
    assert found.severity == 'caution' and found.evidence['share'] == pytest.approx(4 / 9)


def test_imported_nights_in_a_log_by_the_second_are_told():
    "Coarse times are those on the quarter hours; nights among seconds are odd however many they are."
    place = np.arange(3600) % 9
    nights = np.select([place < 2, place < 4, place < 6], [NOW - k * DAY for k in (502, 501, 500)], TIMES)
    assert said_of(shop(nights), time_findings)['one_time'].evidence['share'] == pytest.approx(2 / 9)


# --- the log --------------------------------------------------------------------------------------------------------


def test_a_small_catalogue_is_not_judged_by_shares_of_it():
    "Ten items: a hundredth of them, and an order of them, mean nothing."
    log = Interactions.of_sequences([[0] * 199] + [list(range(k)) for k in range(1, 10)] * 30)
    ten = Dataset(Catalogue(tuple('abcdefghij'), {'text': ['x'] * 10}, {'text': 'text'}), log, 'ten items')
    assert set(said_of(ten, log_findings)) & {'order_items', 'concentration', 'bots'} == set()


def test_a_script_is_told_with_its_length():
    lengths = np.full(400, 7)
    lengths[5] = 807
    assert said_of(shop(np.sort(TIMES), lengths=lengths), log_findings)['bots'].evidence['longest'] == 807


def test_a_shop_sorted_by_sales():
    items = np.minimum(RNG.geometric(0.02, 3600) - 1, 199)
    assert said_of(shop(items=items), log_findings)['order_items'].severity == 'caution'


# --- the content ----------------------------------------------------------------------------------------------------

GREY = np.full((90, 120, 3), 200, np.uint8)


def test_a_placeholder_in_a_sample_is_extrapolated():
    found = about(shop(image=every(3, 'image', lambda v: GREY)), max_images=100)['placeholder']
    assert found.sentence.startswith('Some ')


def test_items_without_anything_are_named():
    bare = shop(image=every(5, 'image', lambda v: None), text=every(10, 'text', lambda v: None))
    assert about(bare)['empty'].ids[:2] == ('p0000', 'p0010')


def test_long_texts_are_counted_in_tokens_or_in_words():
    novels = shop(text=every(2, 'text', lambda v: v + ' and so on' * 40))
    assert 'in tokens it is more' in about(novels)['cut'].sentence
    cut = about(novels, letters)['cut']
    assert 'in tokens' not in cut.sentence and cut.evidence['unit'] == 'tokens'
    assert 'longer than 64 tokens of letters' in cut.sentence


def letters(texts, add_special_tokens):
    "A tokenizer with a token for each letter."
    return {'input_ids': [list(t) for t in texts]}


def test_lengths_say_whose_tokens_they_are():
    "Words without a tokenizer, else tokens of the named one, in the lines, on the page and in the protocol."
    plain, named = (STUDIO.profile(tokenizer=t, now=NOW, progress=False) for t in (None, letters))
    assert 'words: median' in repr(plain) and 'text in words' in plain.protocol and 'tokens of' not in repr(plain)
    assert 'tokens of letters: median' in repr(named) and 'text in tokens of letters' in named.protocol
    assert 'text: tokens of letters' in named._repr_html_()
    assert named.figures['modalities']['text']['tokenizer'] == named.settings['tokenizer'] == 'letters'


def test_lookalikes_are_no_placeholder():
    "A chain of pictures, each near the next one: its two ends are not in one group, and nobody is told to delete them."
    scene = np.random.default_rng(0).integers(0, 60, (8, 9, 1)).repeat(3, -1).repeat(10, 0).repeat(10, 1)
    chain = [(scene + k).astype(np.uint8) for k in range(100)]
    found = about(shop(image=chain + list(STUDIO.catalogue.content['image'][100:])))
    near = found['near']
    assert 'placeholder' not in found and near.evidence['near'] >= 95 and near.evidence['largest'] <= 11
    assert near.remedy.startswith('Look at the groups') and 'look alike' in near.remedy


def test_many_round_one_picture_are_told_however_large_the_catalogue():
    "Sixty of 5,000 are one in a hundred: too few for a share, and more than a shelf of variants."
    tiny = np.random.default_rng(0).integers(0, 200, (8, 9, 3)).repeat(10, 0).repeat(10, 1)
    alike = [(tiny + 4 * (k % 2) + k // 30).astype(np.uint8) for k in range(60)]
    other = dict(items=0, texts=0, ids=[])
    f = image_figures(shop(image=alike + list(STUDIO.catalogue.content['image'][60:])).catalogue, 'image')[0]
    f = dict(f, readable=5000, looked=5000, present=5000)
    told = {x.name for part in FINDINGS['image'].values() for x in part('image', f, with_limits())}
    assert f['near']['largest'] == 60 and 'near' in told
    few = dict(f, near=dict(f['near'], largest=40), same=dict(f['same'], unlike=other))
    assert 'near' not in {x.name for part in FINDINGS['image'].values() for x in part('image', few, with_limits())}


def test_one_picture_of_one_product_is_no_placeholder():
    "The same picture: with as many texts a placeholder, with one text and title a product under several ids."
    table = STUDIO.catalogue.table.assign(title='One mug')
    same = shop(image=every(3, 'image', lambda v: GREY), text=every(3, 'text', lambda v: 'One mug'))
    found = about(shop(image=every(3, 'image', lambda v: GREY)))
    assert '67 different texts' in found['placeholder'].sentence
    assert found['placeholder'].remedy.startswith('Look at it first')
    one = about(replace(same, catalogue=replace(same.catalogue, table=table)))
    assert 'placeholder' not in one and 'near' in one


def test_an_empty_catalogue_has_no_findings():
    none = content_figures(Catalogue((), {'text': []}, {'text': 'text'}), Interactions.of_sequences([]))
    assert content_findings(dict(size=dict(items=0), modalities={}, content=none), with_limits()) == []


def test_one_title_of_many_items():
    ds, titles = shop(), list(STUDIO.catalogue.table.title)
    table = pd.DataFrame({'title': ['Untitled' if i % 4 == 0 else t for i, t in enumerate(titles)]})
    untitled = replace(ds, catalogue=replace(ds.catalogue, table=table))
    found = about(untitled)
    assert set(found) == {'titles'} and "50 items are called 'Untitled'" in found['titles'].sentence


# --- all together ---------------------------------------------------------------------------------------------------


def test_limits_that_are_lowered_or_raised():
    assert profile(STUDIO, now=NOW, limits={'missing': 0}).findings == ()
    spoilt = shop(image=every(3, 'image', lambda v: GREY))
    assert profile(spoilt, now=NOW).finding('placeholder').severity == 'serious'
    assert profile(spoilt, now=NOW, limits={'placeholder': 100, 'near': 1}).findings == ()


def test_every_function_is_registered_once_under_its_name():
    names = [name for part in FINDINGS.values() for name in part]
    assert len(names) == len(set(names))
    assert all(f.__name__ == f'_{name}' and f.__doc__ for part in FINDINGS.values() for name, f in part.items())


def test_a_finding_of_ones_own(monkeypatch):
    "One function and one registration: it is asked for a part of the figures, and told with the others."
    from vlm2rec_lab.shop.profile_findings import Finding

    monkeypatch.setitem(FINDINGS, 'log', dict(FINDINGS['log']))

    @finds('log')
    def _round(f, L):
        "A number of users that is round."
        if f['size']['users'] % 100 == 0:
            yield Finding('round', 'note', f'{f["size"]["users"]} users: somebody cut here.', 'Ask.', {})

    assert [x.name for x in profile(STUDIO, now=NOW).findings] == ['round']
    assert 'round' not in LIMITS

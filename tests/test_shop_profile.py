"""The value of a profile: what is saved, and what is shown of users."""

import numpy as np

from vlm2rec_lab.data import Catalogue, profile
from vlm2rec_lab.shop.profile import sample_users, thumbnails
from vlm2rec_lab.shop.profile_page import charts_html
from vlm2rec_lab.studio import make_studio


def test_a_suffix_in_capitals_is_the_same_form(tmp_path):
    p = profile(make_studio(items=60, users=40), progress=False)
    assert p.save(tmp_path / 'p.HTML').read_text() == p.save(tmp_path / 'p.html').read_text()
    assert charts_html(p.to_dict()) in p._repr_html_()


def test_each_sampled_user_has_the_last_items():
    told, lists = sample_users(make_studio(items=60, users=40), 2, 5)
    assert [len(x['items']) for x in told] == [5, 5] and [len(x) for x in lists] == [5, 5]


def test_a_bad_picture_has_no_thumbnail(tmp_path):
    (tmp_path / 'text.png').write_text('no picture')
    images = [make_studio(items=20, users=1).catalogue.content['image'][0], tmp_path / 'gone.png', None]
    images += [tmp_path / 'text.png', np.zeros((10, 100, 3), np.uint8)]
    c = Catalogue(tuple('abcde'), {'image': images}, {'image': 'image'})
    assert [bool(t) for t in thumbnails(c, range(5))] == [True, False, False, False, True]

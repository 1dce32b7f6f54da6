"""Files in the forms that readers know, for the tests of readers."""

import gzip
import io
import json
import re

from PIL import Image


def put(folder, name, content):
    "A file in a folder, packed where its name ends in .gz; returns its path."
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode('utf-8', 'surrogatepass')
    path.write_bytes(gzip.compress(data) if name.endswith('.gz') else data)
    return path


def lines(rows):
    "Rows as lines of JSON."
    return ''.join(json.dumps(r) + '\n' for r in rows)


def png(colour='red', kind='PNG'):
    "A small picture as the bytes of a file."
    out = io.BytesIO()
    Image.new('RGB', (6, 4), colour).save(out, kind)
    return out.getvalue()


def sequences(ds):
    "{user: [item ids]} of a dataset."
    return {u: [ds.catalogue.ids[i] for i in s] for u, s in zip(ds.interactions.user_ids, ds.interactions.sequences)}


def said_of(pattern, notes):
    "The sum of the numbers that a pattern finds in the notes."
    found = (re.search(pattern, note) for note in notes)
    return sum(int(m[1].replace(',', '')) for m in found if m)


def repeats(notes):
    "How many rows the notes say were repeats."
    return said_of(r': ([\d,]+) rows? repeating', notes)


def malformed(notes):
    "How many lines the notes say were malformed."
    return said_of(r': ([\d,]+) of [\d,]+ lines? malformed', notes)


def review_14(user, item, time, stars=5.0):
    "A review of Amazon's edition of 2014."
    return {
        'reviewerID': user,
        'asin': item,
        'reviewerName': 'Ann "A" Ünsal',
        'helpful': [0, 0],
        'reviewText': 'He said "good"\nand <br> more',
        'overall': stars,
        'summary': '::',
        'unixReviewTime': time,
        'reviewTime': '01 2, 2014',
    }


def review_18(user, item, time, stars=5.0, **more):
    "A review of Amazon's edition of 2018."
    return {
        'overall': stars,
        'verified': True,
        'reviewTime': '01 2, 2018',
        'reviewerID': user,
        'asin': item,
        'style': {'Color:': ' Red'},
        'reviewText': 'x',
        'unixReviewTime': time,
        **more,
    }


def review_23(user, item, time, stars=5.0):
    "A review of Amazon's edition of 2023."
    return {
        'rating': stars,
        'title': 'Nice',
        'text': 'x',
        'images': [{'small_image_url': 'http://x/r.jpg'}],
        'asin': 'child' + item,
        'parent_asin': item,
        'user_id': user,
        'timestamp': time,
        'helpful_vote': 0,
        'verified_purchase': True,
    }

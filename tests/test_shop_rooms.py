"""Whatever room a split or a dataset comes from, it has all its methods; the surface keeps its names."""

import subprocess
import sys
from pathlib import Path

import pytest

import vlm2rec_lab.data

ROOT = Path(__file__).resolve().parent.parent
ROOMS = [
    ('rows', 'Split', 'save fingerprint'),
    ('leave_one_out', 'Split', 'save fingerprint'),
    ('dataset', 'Dataset', 'profile'),
    ('tables', 'Dataset', 'profile'),
]
NAMES = """
PAD TEXT_COLUMNS MAX_PIXELS LONGEST SUFFIXES DataError DataWarning known differing write_bytes gather Ragged LazyImage
open_image to_rgb image_trouble Catalogue thumbnail Interactions as_ids as_times Dataset Rows rows_at Split
leave_one_out hold_out_users check_split is_member keep_modalities drop_content warm_items read_table compose_text
modality_columns inside read_images load_folder
"""


@pytest.mark.parametrize('room, name, methods', ROOMS)
def test_a_room_alone_gives_whole_objects(room, name, methods):
    code = (
        f'from vlm2rec_lab.shop.{room} import {name}; print([m for m in "{methods}".split() if not hasattr({name}, m)])'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr


@pytest.mark.parametrize('name', NAMES.split())
def test_the_surface_keeps_its_names(name):
    assert name in vlm2rec_lab.data.__all__
    assert hasattr(vlm2rec_lab.data, name)

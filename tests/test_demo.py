"""The main job, end to end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_demo_prints_and_writes(demo):
    out, printed, seconds = demo
    for word in ('sft', 'vlm2rec', 'per-modality', 'verdict', 'NDCG', 'clear of zero', '=> '):
        assert word in printed
    html = (out / 'report.html').read_text()
    assert not re.search(
        r'''(?:src|href)\s*=\s*["']?(?:https?:)?//''', re.sub(r'<script.*?</script>', '', html, flags=re.S)
    ), 'the report asks for something outside'
    assert 'sft' in html and 'vlm2rec' in html and 'class="headline' in html
    for text in (printed, html):
        assert 'with contents exchanged between items the same training reaches' in text
    assert len(html) < 3e6 and not re.search(r'Plotly\.|plotly\.js v', html), 'a figure that needs a library'
    assert len(re.findall('data-blob="sheet0"', html)) == 1, "the products' pictures are there once"
    print(f'demo took {seconds:.0f} s')


@pytest.mark.slow
@pytest.mark.browser
def test_report_in_a_browser(demo, page):
    page.goto((demo[0] / 'report.html').as_uri())
    page.wait_for_timeout(1500)
    assert 'vlm2rec' in page.inner_text('body')
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth + 1'), 'wider than the window'
    assert page.locator('figure svg path').count() >= 10
    assert page.locator('.better').count() and page.locator('.pair .pill.healthy').count()
    tiles = page.locator('[data-v2r-view="topology"] canvas.tile[data-ready="picture"]')
    assert tiles.count() >= 2, 'the second view finds the pictures of the first'
    assert not page.outside and not page.errors, (page.outside, page.errors)


def test_readme_python_block(tmp_path):
    "The ten lines of the README run as they stand."
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    assert blocks
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', '\n'.join(blocks)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]

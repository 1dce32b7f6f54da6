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
    for word in ('sft', 'vlm2rec', 'verdict', 'NDCG'):
        assert word in printed
    html = (out / 'report.html').read_text()
    assert not re.search(
        r'''(?:src|href)\s*=\s*["']?(?:https?:)?//''', re.sub(r'<script.*?</script>', '', html, flags=re.S)
    ), 'the report asks for something outside'
    assert 'sft' in html and 'vlm2rec' in html
    print(f'demo took {seconds:.0f} s')


@pytest.mark.slow
@pytest.mark.browser
def test_report_in_a_browser(demo, page):
    page.goto((demo[0] / 'report.html').as_uri())
    page.wait_for_timeout(1500)
    assert 'vlm2rec' in page.inner_text('body')
    assert page.evaluate('document.documentElement.scrollWidth <= window.innerWidth + 1'), 'wider than the window'
    assert page.locator('.js-plotly-plot .main-svg').count() >= 1
    assert not page.outside and not page.errors, (page.outside, page.errors)


def test_readme_python_block(tmp_path):
    "The ten lines of the README run as they stand."
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S)
    assert blocks
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', '\n'.join(blocks)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]

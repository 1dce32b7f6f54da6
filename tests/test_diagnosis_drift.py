"A report held against an earlier one: intervals, false alarms, what cannot be compared, and what machines are told."

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shell import said

from vlm2rec_lab.base.errors import DataError
from vlm2rec_lab.diagnosis.alarms import Check, annotation, annotations, checks_of, junit_xml, not_obeyed
from vlm2rec_lab.diagnosis.drift import compare_reports, difference, paired, read_report, with_drift, with_users
from vlm2rec_lab.diagnosis.drift_shown import drift_html, drift_markdown
from vlm2rec_lab.diagnosis.evidence import Task, fused_gain, knockout_mean
from vlm2rec_lab.diagnosis.report import collapse_report
from vlm2rec_lab.diagnosis.worlds import hurt, world
from vlm2rec_lab.ranking.vectors import write_vectors

WORKFLOW = Path(__file__).parent.parent / 'docs/_extra/vlm2rec-watch.yml'
QUICK = dict(bootstrap=200, permutations=2, missing=(), progress=False)
NAMES = st.text(st.characters(), min_size=1, max_size=20)  # halves of characters and controls, too


def weeks(users=300, items=80, seed=0, noise=None):
    "The vectors of two weeks of one shop: the same items, other users."
    both = world(2 * users, items, seed=seed, noise=noise or {'text': 0.3, 'image': 0.6})
    halves = slice(0, users), slice(users, None)
    return [
        dict(items=both['items'], sequences={m: z[h] for m, z in both['sequences'].items()}, targets=both['targets'][h])
        for h in halves
    ]


@pytest.fixture(scope='module')
def reports():
    "Last week, a sound week, a week with broken pictures."
    first, second = weeks()
    all_three = first, second, hurt(second, 'image', 'noise', 1.0, seed=1)
    return [collapse_report(**w, name=f'week {n}', **QUICK) for n, w in enumerate(all_three)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    "The same as files: the vectors of three weeks, and the first report."
    folder = tmp_path_factory.mktemp('weeks')
    first, second = weeks()
    for name, w in (('first', first), ('second', second), ('broken', hurt(second, 'image', 'noise', 1.0, seed=1))):
        write_vectors(folder / f'{name}.npz', w | dict(seen=None))
    with contextlib.chdir(folder):
        status, _, error = said('report', 'first.npz', '--out', 'last-week.json')
    assert status == 0, error
    return folder


# ---- intervals


def test_the_difference_is_that_of_a_fresh_bootstrap():
    "Of two samples the standard errors add up; of one sample twice, the pairs tell."
    rng = np.random.default_rng(0)
    a, b = rng.gamma(0.3, 0.4, 800), rng.gamma(0.3, 0.5, 500)
    found = difference(*(dict(value=x.mean(), error=x.std(ddof=1) / len(x) ** 0.5) for x in (a, b)))
    draws = [rng.choice(b, len(b)).mean() - rng.choice(a, len(a)).mean() for _ in range(4000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    wide = high - low
    assert abs(found['low'] - low) < 0.06 * wide and abs(found['high'] - high) < 0.06 * wide
    c = a + rng.normal(0, 0.01, 800)
    same = paired(a, c)
    assert same['high'] - same['low'] < 0.1 * wide


def test_intervals_of_several_modalities_hold_together(reports):
    "Each is wider than alone by the ratio of the two quantiles."
    before, after = reports[0].data, reports[1].data
    alone = compare_reports({**before, 'modalities': {'text': before['modalities']['text']}}, after)
    both = compare_reports(before, after)
    wide = [d.data['modalities']['text']['difference'] for d in (alone, both)]
    ratio = (wide[1]['high'] - wide[1]['low']) / (wide[0]['high'] - wide[0]['low'])
    assert ratio == pytest.approx(2.241403 / 1.959964, rel=1e-5)
    assert 'together for 2 modalities (Bonferroni)' in both.data['how'] and 'Bonferroni' not in alone.data['how']


def contributions(w):
    "What a comparison needs of a report."
    task = Task.of(w['items'], w['sequences'], w['targets'])
    fused = fused_gain(task)
    lost = {m: fused - knockout_mean(task, m) for m in task.items}
    values = {m: dict(value=float(x.mean()), low=None, high=None) for m, x in lost.items()}
    errors = {m: float(x.std(ddof=1) / len(x) ** 0.5) for m, x in lost.items()}
    ms = {m: dict(verdict='', evidence=dict(drop_mean=v)) for m, v in values.items()}
    return dict(modalities=ms, errors=dict(drop_mean=errors), k=10, users=len(fused), items=task.n_items, fuse='sum')


def test_false_alarms_are_rare_and_true_ones_come():
    "60 pairs of weeks of three modalities; a family-wise 2.5 % would give one or two, 7 are too many for it."
    noise = {'text': 0.3, 'image': 0.6, 'audio': 0.5}
    pairs = [weeks(seed=s, noise=noise) for s in range(60)]
    quiet = sum(bool(compare_reports(*map(contributions, p)).alarms) for p in pairs)
    broken = [compare_reports(contributions(a), contributions(hurt(b, 'image', 'noise', 1.0))) for a, b in pairs[:20]]
    assert quiet < 7
    assert all('image' in d.alarms for d in broken)


def test_a_size_is_what_a_fall_must_exceed(reports):
    drift = compare_reports(reports[0].data, reports[2])
    high = drift.data['modalities']['image']['difference']['high']
    assert drift.alarms == ('image',)
    assert compare_reports(reports[0].data, reports[2], size=-high - 1e-9).alarms == ('image',)
    assert compare_reports(reports[0].data, reports[2], size=-high + 1e-9).alarms == ()


def test_the_same_users_are_compared_one_by_one(reports):
    "A small harm that independent intervals do not see; the JSON has no figures of users unless they are asked for."
    first, _ = weeks()
    kept = with_users(reports[0])
    harmed = with_users(collapse_report(**hurt(first, 'image', 'noise', 0.3, seed=1), **QUICK))
    sharp, plain = compare_reports(kept.data, harmed), compare_reports(reports[0].data, harmed)
    assert sharp.data['paired'] and not plain.data['paired']
    width = [d.data['modalities']['image']['difference'] for d in (sharp, plain)]
    assert width[0]['high'] - width[0]['low'] < 0.8 * (width[1]['high'] - width[1]['low'])
    assert width[0]['value'] == pytest.approx(width[1]['value'])
    assert 'per_user' not in reports[0].data
    assert not compare_reports(kept.data, with_users(reports[1])).data['paired'], 'other users'


@pytest.mark.parametrize('damaged', [3, {}, {'lost': 3}, {'users': None, 'lost': {'text': ['x'], 'image': [1]}}])
def test_damaged_figures_of_users_are_left_aside(reports, damaged):
    kept = with_users(reports[0])
    drift = compare_reports(kept.data | dict(per_user=damaged), kept)
    assert not drift.data['paired'] and not drift.unknown


# ---- old files, other settings


def test_a_report_of_before_can_be_read(reports):
    "Without standard errors: from its intervals, which is said."
    old = {k: v for k, v in reports[0].data.items() if k not in ('errors', 'masked')}
    new, drift = compare_reports(reports[0].data, reports[2]), compare_reports(old, reports[2])
    assert drift.alarms == ('image',) and drift.unknown == {}
    assert 'keeps no standard errors' in ' '.join(drift.data['care'])
    for m, x in drift.data['modalities'].items():
        exact = new.data['modalities'][m]['difference']
        wide = exact['high'] - exact['low']
        assert abs(x['difference']['high'] - exact['high']) < 0.1 * wide


@pytest.mark.parametrize(
    'change, why',
    [
        (dict(k=5), 'NDCG@10, this one NDCG@5'),
        (dict(fuse='concat'), 'the fusions are others, sum and concat'),
        (dict(fuse={'text': 1.0, 'image': 2.0}), 'the fusions are others'),
        (dict(masked=True), 'leaves out what users had seen'),
    ],
)
def test_what_cannot_be_compared_is_not(reports, change, why):
    drift = compare_reports(reports[0].data, reports[2].data | change)
    assert set(drift.unknown) == {'text', 'image'} and drift.alarms == ()
    assert why in ' '.join(drift.data['cannot'])
    assert drift.data['said'].startswith('Nothing could be compared.')
    assert all(x['difference'] is None for x in drift.data['modalities'].values())
    outcomes = {c.outcome for c in checks_of(with_drift(reports[2], reports[0].data | change)) if c.name != 'verdict'}
    assert outcomes == {'error'}, 'no silent pass'


@pytest.mark.parametrize(
    'change, why',
    [
        (dict(items=70), '80 items then, 70 now'),
        (dict(users=90), '90 users in one report'),
        (dict(users=2000), '300 users then, 2,000 now'),
        (dict(ceiling='reference'), 'another ceiling'),
        (dict(rules={}), 'other rules'),
    ],
)
def test_what_must_be_read_with_care_is_said(reports, change, why):
    drift = compare_reports(reports[0].data, reports[2].data | change)
    assert why in ' '.join(drift.data['care']) and drift.unknown == {}


def test_another_name_is_another_modality(reports):
    d = reports[2].data
    renamed = d | dict(modalities={{'image': 'picture'}.get(m, m): x for m, x in d['modalities'].items()})
    drift = compare_reports(reports[0].data, renamed)
    assert drift.unknown == {
        'picture': 'no figure with an interval in one of the reports',
        'image': 'not there today',
    } or (drift.unknown == {'picture': 'not there then', 'image': 'not there today'})
    assert 'picture was not there then' in drift.data['care'][0]
    assert drift.data['modalities']['text']['difference'] is not None


def test_verdicts_that_changed_are_named(reports):
    drift = compare_reports(reports[0].data, reports[2])
    was, now = (r.modalities['image']['verdict'] for r in (reports[0], reports[2]))
    assert was != now and drift.verdicts == {'image': (was, now)}
    assert f'image from {was} to {now}' in drift.data['said']


@pytest.mark.parametrize(
    'text, why',
    [
        ('', 'no JSON'),
        ('{' * 5000, 'no JSON'),
        ('[' * 200_000, 'no JSON'),
        ('[]', 'no modalities'),
        ('{"modalities": {}}', 'no modalities'),
        (
            '{"modalities": {"a": {"verdict": 1, "evidence": {}}}, "k": 1, "users": 1, "items": 1}',
            'verdict or evidence',
        ),
        ('{"modalities": {"a": {"verdict": "x", "evidence": {}}}, "k": NaN, "users": 1, "items": 1}', 'no k'),
        ('{"modalities": {"a": {"verdict": "x", "evidence": {}}}, "k": 1, "users": 1, "items": 1}', 'of version None'),
    ],
)
def test_a_file_that_is_no_report(tmp_path, text, why):
    (tmp_path / 'x.json').write_text(text)
    with pytest.raises(DataError, match=why):
        read_report(tmp_path / 'x.json')


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers(-9, 9) | st.text(max_size=5),
    lambda x: (
        st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(['value', 'low', 'high', 'text']), x, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(evidence=JSON, errors=JSON, fuse=JSON, per_user=JSON, protocol=JSON)
def test_a_strange_report_is_compared_or_not_and_never_breaks(reports, evidence, errors, fuse, per_user, protocol):
    x = dict(verdict='healthy', evidence={'drop_mean': evidence})
    odd = dict(modalities={'text': x}, k=10, users=300, items=80, errors=errors, fuse=fuse, per_user=per_user)
    drift = compare_reports(odd | dict(protocol=protocol, masked=False), reports[0])
    assert set(drift.data['modalities']) == {'text', 'image'}
    json.dumps(drift.to_dict(), allow_nan=False)


# ---- what machines are told


@settings(max_examples=200, deadline=None)
@given(modality=NAMES, text=NAMES, outcome=st.sampled_from(['passed', 'failed', 'error', 'skipped']))
def test_junit_is_xml_whatever_names_hold(modality, text, outcome):
    xml = junit_xml([Check(modality, 'verdict', outcome, text)], name=text)
    suite = ElementTree.fromstring(xml).find('testsuite')
    (case,) = suite.iter('testcase')
    legal = not re.search('[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]', modality)
    assert not legal or case.get('classname') == modality
    assert len(case) == 1 and suite.get('failures') == str(int(outcome == 'failed'))


@settings(max_examples=200, deadline=None)
@given(title=NAMES | st.just('a,b::c\n::error::d'), text=NAMES | st.just('x\r\n::set-env name=PATH::y%0A'))
def test_an_annotation_is_one_line_that_says_what_was_said(title, text):
    line = annotation('error', title, text)
    assert len(line.splitlines()) == 1 and line.startswith('::error title=')
    head, message = line.removeprefix('::error title=').split('::', 1)
    assert ':' not in head and ',' not in head
    plain = all(c.isprintable() or c in '\r\n' for c in title + text)
    for coded, given_ in ((head, title), (message, text)):
        for sign, code in ((':', '%3A'), (',', '%2C'), ('\r', '%0D'), ('\n', '%0A'), ('%', '%25')):
            coded = coded.replace(code, sign)
        assert not plain or coded == given_


def obeyed(output):
    "The lines that GitHub would obey."
    word, out = None, []
    for line in output.splitlines():
        if word is not None:
            word = None if line == f'::{word}::' else word
        elif line.startswith('::stop-commands::'):
            word = line.removeprefix('::stop-commands::')
        elif line.startswith('::') or line.startswith('##['):
            out.append(line)
    assert word is None, 'the silence ends'
    return out


def test_a_name_gives_no_command(tmp_path):
    "Modalities and files with names that are commands of GitHub."
    bad = 'image\n::set-env name=PATH::/tmp\n##[error]x'
    first, second = weeks()
    for name, w in (('first', first), ('second', hurt(second, 'image', 'noise', 1.0))):
        sides = {s: {{'image': bad}.get(m, m): z for m, z in w[s].items()} for s in ('items', 'sequences')}
        np.savez(
            tmp_path / f'{name}.npz',
            targets=w['targets'],
            **{f'{s}/{m}': z for s, side in sides.items() for m, z in side.items()},
        )
    with contextlib.chdir(tmp_path):
        status, out, err = said('report', 'first.npz', '--out', 'first.json')
        assert status == 0, err
        argv = [
            'report',
            'second.npz',
            '--out',
            'x.json',
            '--against',
            'first.json',
            '--fail-on-drift',
            '--annotations',
        ]
        status, out, err = said(*argv, 'github', '--junit', 'j.xml')
    assert status == 4, err
    lines = obeyed(out)
    assert lines and all(re.match(r'::(error|warning|notice) title=', line) for line in lines)
    assert not obeyed(err) and any('%0A::set-env' in line for line in lines)
    names = {c.get('classname') for c in ElementTree.parse(tmp_path / 'j.xml').iter('testcase')}
    assert names == {'text', bad}


def test_the_silence_has_a_word_of_its_own_each_time():
    assert not_obeyed('x') != not_obeyed('x')
    assert obeyed(not_obeyed('::error::x\n::stop-commands::y')) == []


def test_names_are_escaped_where_they_are_shown(reports):
    bad = '<script>alert(1)</script>|"'
    d = reports[2].data
    renamed = [r | dict(modalities={{'image': bad}.get(m, m): x for m, x in r['modalities'].items()}) for r in (d, d)]
    renamed[0] |= dict(name=bad, fuse=bad)
    found = compare_reports(*renamed).data

    class Tags(HTMLParser):
        seen = set()

        def handle_starttag(self, tag, attrs):
            self.seen.add(tag)

    Tags().feed(drift_html(dict(drift=found)))
    assert 'script' not in Tags.seen and 'table' in Tags.seen
    assert '<script' not in '\n'.join(drift_markdown(dict(drift=found)))


def test_a_finding_without_a_comparison_has_verdict_checks_only(reports):
    assert {c.name for c in checks_of(reports[0])} == {'verdict'}
    lines = annotations(checks_of(reports[2], 'collapsed'))
    assert [line.split('::')[1] for line in lines] == ['error title=verdict of image']
    assert annotations([], '') == []


# ---- the command


def report(folder, *argv):
    with contextlib.chdir(folder):
        return said('report', *argv)


def test_a_sound_week_passes_and_a_broken_one_does_not(files):
    watch = ['--against', 'last-week.json', '--fail-on-drift', '--junit', 'junit.xml']
    status, out, _ = report(files, 'second.npz', *watch, '--out', 'sound.json')
    assert status == 0 and 'No contribution has surely fallen.' in out
    status, out, err = report(files, 'broken.npz', *watch, '--out', 'drift.json')
    assert status == 4 and 'drift: 1 contribution fell, 0 contributions not compared' in err
    found = json.loads((files / 'drift.json').read_text())['drift']
    assert found['modalities']['image']['alarm'] and found['earlier'] == 'first.npz'
    cases = {(c.get('classname'), c.get('name')): c for c in ElementTree.parse(files / 'junit.xml').iter('testcase')}
    assert set(cases) == {(m, n) for m in ('text', 'image') for n in ('verdict', 'contribution')}
    assert [k for k, c in cases.items() if c.find('failure') is not None] == [('image', 'contribution')]
    assert report(files, 'broken.npz', *watch, '--fail-on', 'collapsed', '--out', 'x.html')[0] == 3, '3 comes first'
    assert 'Since the earlier report' in (files / 'x.html').read_text()
    wide = ['--against', 'last-week.json', '--fail-on-drift', '0.9', '--out', 'x.md']
    assert report(files, 'broken.npz', *wide)[0] == 0
    assert report(files, 'broken.npz', '--against', 'last-week.json', '--out', 'x.md')[0] == 0, 'nobody asked to fail'


def test_what_could_not_be_compared_fails_for_whoever_asked(files):
    watch = ['--against', 'last-week.json', '--k', 5, '--out', 'x.json']
    status, out, err = report(files, 'second.npz', *watch, '--fail-on-drift')
    assert status == 4 and '2 contributions not compared' in err and 'NDCG@10, this one NDCG@5' in out
    assert report(files, 'second.npz', *watch)[0] == 0


def test_figures_of_users_are_kept_when_asked_for(files):
    assert report(files, 'first.npz', '--keep-users', '--out', 'kept.json')[0] == 0
    status, out, _ = report(files, 'first.npz', '--keep-users', '--against', 'kept.json', '--out', 'again.json')
    assert status == 0 and 'the same users, compared one by one' in out
    assert 'per_user' not in json.loads((files / 'last-week.json').read_text())


@pytest.mark.parametrize(
    'argv, why',
    [
        (['--fail-on-drift'], 'there is nothing to compare with; give --against'),
        (['--against', 'none.json'], 'there is no file none.json'),
        (['--against', 'first.npz'], 'is no JSON'),
        (['--keep-users', '--out', 'x.html'], 'give --out a file that ends in .json'),
        (['--junit', 'x.txt'], '--junit x.txt: name a file that ends in .xml'),
        (['--annotations', 'gitlab'], 'github'),
        (['--against', 'last-week.json', '--fail-on-drift', '-1'], '-1'),
        (['--fail-on-drift=x'], "'x' is no finite number of at least 0"),
    ],
)
def test_mistakes(files, argv, why):
    status, _, err = report(files, 'first.npz', *argv)
    assert status == 2 and why in err and len(err.splitlines()) == 1


# ---- the workflow


@pytest.fixture(scope='module')
def steps():
    yaml = pytest.importorskip('yaml')  # comes with other packages, not with this one
    job = yaml.safe_load(WORKFLOW.read_text())
    assert set(job['permissions'].values()) == {'read'} and set(job['permissions']) == {'contents', 'actions'}
    assert set(job[True]) == {'schedule', 'workflow_dispatch'}, 'YAML reads `on` as true'
    return job['jobs']['watch']['steps']


def test_actions_are_pinned_and_nothing_untrusted_is_in_a_script(steps):
    for step in steps:
        assert 'run' in step or re.fullmatch(r'actions/[a-z-]+@v\d+\.\d+\.\d+', step['uses'])
        assert '${{' not in step.get('run', ''), 'what comes from outside goes through env'


def run_step(steps, name, folder, **env):
    "A step as the runner's shell would."
    (step,) = (s for s in steps if s.get('name') == name)
    bin_ = folder / 'bin'
    bin_.mkdir(exist_ok=True)
    root = Path(__file__).parent.parent
    script = f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(root))} exec {shlex.quote(sys.executable)} -m vlm2rec_lab "$@"\n'
    (bin_ / 'vlm2rec').write_text(script)
    (bin_ / 'vlm2rec').chmod(0o755)
    how = dict(
        cwd=folder, env=os.environ | {'PATH': f'{bin_}:{os.environ["PATH"]}'} | env, capture_output=True, text=True
    )
    return subprocess.run(['bash', '-e', '-c', step['run']], **how)


def test_the_workflow_week_by_week(steps, files, tmp_path):
    "First no earlier report, then a sound week, then a broken one, which somebody accepts."
    for name in ('first', 'second', 'broken'):
        (tmp_path / f'{name}.npz').write_bytes((files / f'{name}.npz').read_bytes())

    def week(name, **env):
        (tmp_path / 'today.npz').write_bytes((tmp_path / f'{name}.npz').read_bytes())
        done = run_step(steps, 'Report', tmp_path, **{'ACCEPT': 'false'} | env)
        assert (tmp_path / 'report.json').exists() and (tmp_path / 'junit.xml').exists(), done.stderr
        return done

    assert run_step(steps, "Fetch today's vectors", tmp_path).returncode == 1, 'to be filled in'
    assert week('first').returncode == 0
    (tmp_path / 'earlier').mkdir()
    (tmp_path / 'report.json').rename(tmp_path / 'earlier/report.json')
    assert week('second').returncode == 0
    broken = week('broken')
    assert broken.returncode in (3, 4) and 'error title=contribution of image' in ' '.join(obeyed(broken.stdout))
    assert run_step(steps, 'A page to read', tmp_path).returncode == 0 and (tmp_path / 'report.html').exists()
    assert week('broken', ACCEPT='true').returncode == 0


def test_a_report_that_is_no_report_of_ours():
    assert checks_of(SimpleNamespace(data=dict(modalities={}))) == []


# ---- figures and names that nobody expects


def plain_report(**more):
    "A report as a file has it, of two modalities."
    one = dict(verdict='healthy', sentence='ok', evidence=dict(drop_mean=dict(value=0.2, low=0.19, high=0.21)))
    kept = dict(schema_version=1, k=10, users=200, items=100, fuse='concat', masked=True, name='x')
    return (
        kept | dict(modalities=dict(text=one, image=one), errors=dict(drop_mean=dict(text=0.005, image=0.005))) | more
    )


@pytest.mark.parametrize('old', ['"k": 10', '"users": 200'])
def test_a_number_that_no_float_holds_is_no_figure(tmp_path, old):
    text = json.dumps(plain_report()).replace(old, f'{old.split()[0]} {"9" * 400}')
    (tmp_path / 'r.json').write_text(text)
    with pytest.raises(DataError, match='no collapse report'):
        read_report(tmp_path / 'r.json')


def test_a_figure_that_no_float_holds_is_not_compared(tmp_path):
    (tmp_path / 'r.json').write_text(json.dumps(plain_report()).replace('"value": 0.2', f'"value": {"9" * 400}', 1))
    found = compare_reports(read_report(tmp_path / 'r.json'), plain_report())
    assert set(found.unknown) == {'text'}


@pytest.mark.parametrize(
    'wrong', [dict(size=x) for x in (-0.2, np.nan, 'x', None, 2)] + [dict(level=x) for x in (0, 1, np.nan)]
)
def test_sizes_and_levels_that_would_never_or_always_alarm(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        compare_reports(plain_report(), plain_report(), **wrong)


def test_a_name_does_not_break_out_of_its_line():
    name, one = 'im\n::error::x\x1b[31m\u202e', plain_report()['modalities']['text']
    text = repr(compare_reports(plain_report(modalities={name: one}), plain_report()))
    assert not any(line.lstrip().startswith('::') for line in text.splitlines())
    assert '\x1b' not in text and '\u202e' not in text

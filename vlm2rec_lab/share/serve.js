// The page of `vlm2rec serve`. All text from the catalogue goes through textContent;
// nothing is asked for but the service.
'use strict';

const $ = (id) => document.getElementById(id);
const state = { health: null, token: '', history: [], start: 0, asked: 0, looked: 0 };
const COUNT = 24;

// An element with a class, a text and children.
function make(tag, name, text, ...children) {
  const e = document.createElement(tag);
  if (name) e.className = name;
  if (text !== undefined && text !== null) e.textContent = text;
  e.append(...children);
  return e;
}

function button(text, label, does) {
  const b = make('button', '', text);
  b.type = 'button';
  b.setAttribute('aria-label', label);
  b.addEventListener('click', does);
  return b;
}

function say(text, alarm) {
  $('said').textContent = text;
  $('said').className = alarm ? 'alarm' : 'soft';
}

// Ask the service; an error is a sentence of its own.
async function ask(path, body) {
  const headers = {};
  if (state.token) headers.Authorization = `Bearer ${state.token}`;
  if (body) headers['Content-Type'] = 'application/json';
  const how = { method: body ? 'POST' : 'GET', headers, body: body && JSON.stringify(body) };
  let answer;
  try {
    answer = await fetch(path, how);
  } catch {
    throw new Error('The service does not answer.');
  }
  if (answer.status === 401) $('key').hidden = false;
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error || `The service answers ${answer.status}.`);
  return found;
}

// A picture beside its title, so it says nothing of its own to a screen reader. Asked for where the service says that
// there is one; should it be none that can be shown, its place is left out.
function picture(id, side) {
  const img = make('img');
  const path = `pictures?id=${encodeURIComponent(id)}&side=${side}`;
  img.alt = '';
  img.addEventListener('error', () => { img.hidden = true; });
  if (!state.token) {
    img.loading = 'lazy';
    img.src = path;
    return img;
  }
  fetch(path, { headers: { Authorization: `Bearer ${state.token}` } })
    .then((a) => (a.ok ? a.blob() : Promise.reject(a.status)))
    .then((blob) => {
      img.src = URL.createObjectURL(blob);
      img.addEventListener('load', () => URL.revokeObjectURL(img.src), { once: true });
    })
    .catch(() => { img.hidden = true; });
  return img;
}

function card(tag, item, side, heading, ...more) {
  const words = make('div', 'words', null, make(heading, '', item.title));
  if (item.id !== item.title) words.append(make('p', 'soft', item.id));
  const e = make(tag, 'card', null, words, ...more);
  if (item.picture) e.prepend(picture(item.id, side));
  return e;
}

const signed = (x) => (x < 0 ? '−' : '') + Math.abs(x).toFixed(3);

function bars(parts, most) {
  const e = make('div', 'bars');
  state.health.modalities.forEach((m, n) => {
    if (!(m in parts)) return;
    const bar = make('div', `bar m${state.health.colours[n]}${parts[m] < 0 ? ' below' : ''}`);
    bar.style.width = `${Math.min(100, (100 * Math.abs(parts[m])) / (most || 1))}%`;
    e.append(make('span', 'name', m), make('div', 'rail', null, bar), make('span', 'number', signed(parts[m])));
  });
  return e;
}

// ---- what can be chosen

async function look(more) {
  const mine = ++state.looked;
  state.start = more ? state.start + COUNT : 0;
  const words = encodeURIComponent($('find').value);
  try {
    const found = await ask(`items?find=${words}&start=${state.start}&count=${COUNT}`);
    if (mine !== state.looked) return;
    const cards = found.items.map((i) =>
      card('li', i, 96, 'h3', button('Add', `Add ${i.title} to the history`, () => add(i))));
    if (more) $('found').append(...cards);
    else $('found').replaceChildren(...cards);
    const shown = $('found').children.length;
    $('count').textContent = `${shown.toLocaleString('en')} of ${found.total.toLocaleString('en')} items`;
    $('more').hidden = shown >= found.total;
  } catch (e) {
    say(e.message, true);
  }
}

// ---- the history

function add(item) {
  const { id, title, picture: there } = item;
  if (!state.history.some((h) => h.id === id)) state.history.push({ id, title, picture: there });
  changed(`${title} is in the history.`);
}

function changed(said) {
  const list = $('history');
  list.replaceChildren(...state.history.map((item, n) => {
    const gone = button('Remove', `Remove ${item.title} from the history`, () => {
      state.history.splice(n, 1);
      changed(`${item.title} is no longer in the history.`);
      (list.querySelectorAll('button')[Math.min(n, state.history.length - 1)] || $('find')).focus();
    });
    return card('li', item, 96, 'h3', gone);
  }));
  $('empty').hidden = state.history.length > 0;
  $('clear').hidden = state.history.length === 0;
  recommend(said);
}

// ---- weights

function slide(box, key, name, value) {
  const input = make('input');
  const output = make('output', '', value.toFixed(2));
  const label = make('label', '', name);
  Object.assign(input, { type: 'range', min: 0, max: 1, step: 0.05, value, id: `slide-${key}` });
  label.htmlFor = input.id;
  output.htmlFor = input.id;
  input.addEventListener('input', () => {
    output.textContent = Number(input.value).toFixed(2);
    clearTimeout(state.timer);
    state.timer = setTimeout(() => recommend(), 150);
  });
  box.append(make('div', 'slide', null, label, input, output));
}

const weights = () => Object.fromEntries(
  state.health.modalities.map((m, n) => [m, Number($(`slide-m${n}`).value)]));

function question() {
  const asked = { history: state.history.map((h) => h.id), weights: weights() };
  if (Object.values(asked.weights).every((w) => w === 0)) throw new Error('All weights are 0: give one modality some.');
  return asked;
}

// ---- what is recommended

async function recommend(said) {
  const mine = ++state.asked;
  if (!state.history.length) {
    $('offers').replaceChildren();
    say(said || '');
    return;
  }
  try {
    const diversity = Number($('slide-diversity').value);
    const asked = { ...question(), k: 12 };
    if (diversity) asked.diversity = diversity;
    const found = await ask('recommend', asked);
    if (mine !== state.asked) return;
    const parts = found.items.flatMap((i) => Object.values(i.parts).map(Math.abs));
    $('offers').replaceChildren(...found.items.map((i) => offer(i, Math.max(...parts, 0))));
    const by = found.by === 'encoder' ? 'the model read the history' : 'the history is the mean of its items';
    say(`${said ? `${said} ` : ''}${found.items.length} recommendations; ${by}.`);
  } catch (e) {
    if (mine === state.asked) say(e.message, true);
  }
}

function offer(item, most) {
  const reason = make('div', 'reason');
  reason.hidden = true;
  const ask1 = button('Why?', `Why ${item.title}?`, () => why(item, reason, ask1));
  ask1.setAttribute('aria-expanded', 'false');
  const does = make('div', 'does', null, ask1, button('Add', `Add ${item.title} to the history`, () => add(item)));
  const e = card('div', item, 240, 'h3', make('span', 'number', signed(item.score)));
  e.querySelector('.words').append(bars(item.parts, most));
  return make('li', 'offer', null, e, does, reason);
}

async function why(item, reason, from) {
  const open = from.getAttribute('aria-expanded') === 'true';
  from.setAttribute('aria-expanded', String(!open));
  reason.hidden = open;
  if (open) return;
  try {
    const found = await ask('why', { ...question(), item: item.id });
    reason.replaceChildren(table(found));
  } catch (e) {
    reason.replaceChildren(make('p', 'alarm', e.message));
  }
}

function cells(head, parts, names) {
  const row = make('tr', '', null, Object.assign(make('th', '', null, make('span', '', head)), { scope: 'row' }));
  names.forEach((m) => row.append(make('td', '', signed(parts[m]))));
  row.append(make('td', '', signed(names.reduce((sum, m) => sum + parts[m], 0))));
  return row;
}

function table(found) {
  const names = Object.keys(found.parts);
  const head = make('tr', '', null, ...['', ...names, 'together'].map((t) =>
    Object.assign(make('th', '', t), { scope: 'col' })));
  const each = found.history.every((h) => h.parts);
  const body = make('tbody');
  if (each) found.history.forEach((h) => body.append(cells(h.title, h.parts, names)));
  const said = each ? 'What each item of the history adds to the score'
    : 'What each modality adds to the score; the model reads the history as a whole';
  return make('table', '', null, make('caption', '', said), make('thead', '', null, head), body,
    make('tfoot', '', null, cells('the score', found.parts, names)));
}

// ---- the beginning

async function begin() {
  try {
    state.health = await ask('health');
    if (state.health.locked && !state.token) {
      $('key').hidden = false;
      say('This service asks for its token.');
      return;
    }
    const h = state.health;
    $('about').textContent =
      `${h.items.toLocaleString('en')} items, ${h.modalities.join(' and ')}, version ${h.version} of the index`;
    $('weights').querySelectorAll('.slide').forEach((s) => s.remove());
    $('variety').querySelectorAll('.slide').forEach((s) => s.remove());
    h.modalities.forEach((m, n) => slide($('weights'), `m${n}`, m, 1));
    slide($('variety'), 'diversity', 'how unlike each other', 0);
    await look(false);
  } catch (e) {
    say(e.message, true);
  }
}

$('find').addEventListener('input', () => {
  clearTimeout(state.typing);
  state.typing = setTimeout(() => look(false), 200);
});
$('more').addEventListener('click', () => look(true));
$('clear').addEventListener('click', () => {
  state.history = [];
  changed('The history is empty.');
  $('find').focus();
});
$('key').addEventListener('submit', (event) => {
  event.preventDefault();
  state.token = $('token').value.trim();
  $('key').hidden = true;
  begin();
});
begin();

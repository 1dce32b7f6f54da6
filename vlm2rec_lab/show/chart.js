// Curves over the steps of training. It needs live.js before it.

const TALL = {ratio: 150, grad: 130, loss: 96, valid: 120} // pixels of each panel
const LEFT = 54
const RIGHT = 14
const GAP = 30
const STEPS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]
const SOON = 400 // ms after which a press that Python has not heard counts as queued
const PREFIX = {ratio: '', grad: 'gradient ', loss: 'loss', valid: 'NDCG '}
const SHARE = ', as a share of its first value' // as in chart.py
const WAYS = 'Curves over the steps of training. Left and right arrows move along the steps.'
const NONE = 'No step has been done yet: the curves appear with the first one.'
const NOTE =
  'Lines are running medians, over seeds the median with a band from lowest to highest; ' +
  'dotted upright: a control was changed. A ratio of 1 is no target.'

// The axis of steps: it leaves some room for the steps to come.
function stepAxis(scene, shown, width) {
  const ends = shown.flatMap(r => r.lines).map(l => l.steps.at(-1) ?? 0)
  const done = Math.max(1, ...ends)
  const last = Math.max(done, Math.min((scene.total || 1) - 1, Math.ceil(Math.max(20, done * 1.2))))
  const right = width - RIGHT
  return {
    last,
    right,
    x: s => LEFT + ((right - LEFT) * s) / last,
    back: px => Math.round(((px - LEFT) / (right - LEFT)) * last),
  }
}

// Losses of several runs have no common unit: each is shown as a share of its first value.
function fromFirst(lines) {
  if (lines.length < 2 || !lines.every(l => l.mid[0] > 0)) return null
  const share = (l, key) => l[key]?.map(v => (v === null ? v : v / l.mid[0]))
  return lines.map(l => ({...l, mid: share(l, 'mid'), low: share(l, 'low'), high: share(l, 'high')}))
}

// A name that keeps its own direction, and leaves the figures beside it where they are; of a ratio, each of the two.
const apart = name =>
  name
    .split(' / ')
    .map(part => (/[\u0590-\u08ff]/.test(part) ? `\u2068${part}\u2069` : part))
    .join(' / ')

// The headings, ticks and grid of one panel. Returns its upright scale.
function panelFrame(svg, axis, panel, name, lines, top, tall) {
  const log = panel === 'ratio' || panel === 'grad'
  const one = panel === 'ratio' ? [1] : []
  const values = lines.flatMap(l => [...l.mid, ...(l.low ?? []), ...(l.high ?? []), ...one])
  const y = scale(values, top, tall, log, panel === 'valid')
  const ratios = panel === 'ratio' ? ': ' + [...new Set(lines.map(l => apart(l.key)))].join(', ') : ''
  const room = Math.floor((axis.right - LEFT) / 7) // letters
  const fits = (name + ratios).length <= room
  add(svg, 'text', {x: LEFT, y: top - 7, class: 'name'}, fits ? name + ratios : name)
  for (const t of y.ticks) {
    add(svg, 'path', {d: `M${LEFT} ${y.at(t)}H${axis.right}`, stroke: 'var(--line)'})
    add(svg, 'text', {x: LEFT - 8, y: y.at(t) + 4, 'text-anchor': 'end'}, short(t))
  }
  if (panel === 'ratio') {
    const d = `M${LEFT} ${y.at(1)}H${axis.right}`
    add(svg, 'path', {d, stroke: 'var(--soft)', 'stroke-dasharray': '2 4'})
  }
  return {y, fit: v => v !== null && (!log || v > 0)}
}

// One line with its band over seeds, and dots where a line would not be seen.
function panelLine(svg, axis, panel, l, {y, fit}) {
  const points = values =>
    values.map((v, i) => (fit(v) ? [axis.x(l.steps[i]), y.at(v)] : null)).filter(p => p)
  const text = ps => ps.map(p => p.map(v => v.toFixed(1)).join(' '))
  const fill = colour(l.tint)
  if (l.low) {
    const edge = [...text(points(l.high)), ...text(points(l.low)).reverse()]
    if (edge.length) add(svg, 'path', {d: `M${edge.join('L')}Z`, fill, opacity: 0.16})
  }
  const mid = points(l.mid)
  if (mid.length) {
    add(svg, 'path', {
      d: 'M' + text(mid).join('L'),
      fill: 'none',
      stroke: fill,
      'stroke-width': 2,
      'stroke-dasharray': l.dash,
      'stroke-linejoin': 'round',
      'data-line': `${panel}/${l.key}`,
    })
  }
  if (panel === 'valid' || mid.length === 1) {
    for (const [cx, cy] of mid) add(svg, 'circle', {cx, cy, r: 3.4, fill})
  }
}

// Where controls were changed. From the right: where changes crowd, the last one is told.
function changes(svg, axis, shown, bottom) {
  let free = Infinity
  for (const t of shown.flatMap(r => r.turns.slice(1)).sort((a, b) => b.step - a.step)) {
    const x = axis.x(t.step)
    const d = `M${x} ${GAP}V${bottom}`
    add(svg, 'path', {d, stroke: 'var(--soft)', 'stroke-dasharray': '1 3', class: 'turn'})
    const words = Object.entries(t.set)
      .map(([k, v]) => `${k} ${short(v)}`)
      .join(', ')
    const wide = words.length * 7
    const near = x > axis.right - wide // too near to the right edge to stand to the right of the line
    const from = x + (near ? -wide - 4 : 4)
    if (from + wide >= free) continue
    const anchor = near ? 'end' : 'start'
    add(svg, 'text', {x: near ? from + wide : from, y: GAP + 11, 'text-anchor': anchor}, words)
    free = from - 8
  }
}

function stepTicks(svg, axis, top, width) {
  const by = STEPS.find(b => axis.last / b <= Math.max(4, width / 110)) ?? axis.last
  for (let s = 0; s <= axis.last; s += by) {
    add(svg, 'text', {x: axis.x(s), y: top + 8, 'text-anchor': 'middle'}, s)
  }
  add(svg, 'text', {x: axis.right, y: top + 26, 'text-anchor': 'end'}, 'step')
}

// All panels, one below the other. Returns the axis of steps and where the panels end.
function panels(svg, scene, shown, width) {
  svg.replaceChildren()
  const axis = stepAxis(scene, shown, width)
  let top = 8
  for (const panel of Object.keys(scene.panels)) {
    const own = r =>
      r.lines.filter(l => l.panel === panel).map(l => ({...l, dash: DASH[r.rank % DASH.length]}))
    const plain = shown.flatMap(own)
    const shares = panel === 'loss' ? fromFirst(plain) : null
    const lines = shares ?? plain
    const name = scene.panels[panel] + (shares ? SHARE : '')
    if (!lines.length) continue
    top += GAP - 8
    const tall = TALL[panel] ?? 110
    const frame = panelFrame(svg, axis, panel, name, lines, top, tall)
    for (const l of lines) panelLine(svg, axis, panel, l, frame)
    top += tall + 8
  }
  changes(svg, axis, shown, top - 8)
  stepTicks(svg, axis, top, width)
  svg.setAttribute('width', width)
  svg.setAttribute('height', top + 34)
  svg.setAttribute('viewBox', `0 0 ${width} ${top + 34}`)
  return {...axis, bottom: top - 8}
}

// What a run had reached at a step, in words; at its end where no step is given.
function said(r, cursor) {
  const pick = l => {
    let at = l.steps.length - 1
    if (cursor !== null) while (at > 0 && l.steps[at] > cursor) at--
    return at
  }
  const told = r.lines.filter(l => l.mid.length)
  const words = told.map(l => `${PREFIX[l.panel]}${apart(l.key)} ${short(l.mid[pick(l)])}`)
  const loss = told.find(l => l.panel === 'loss')
  const step = loss ? loss.steps[pick(loss)] : 0
  const set = {}
  for (const t of r.turns) if (t.step <= step) Object.assign(set, t.set)
  for (const [k, v] of Object.entries(set)) words.push(`${k} = ${short(v)}`)
  return {head: `${r.name}, step ${step}: `, words: words.join(' · ')}
}

// The colours of the modalities.
function tintKeys(tints, runs) {
  tints.replaceChildren()
  const named = l => l.panel === 'grad' || l.key === 'fused'
  const found = new Map(runs.flatMap(r => r.lines.filter(named).map(l => [l.key, l.tint])))
  for (const [m, t] of found) {
    add(tints, 'span', {class: 'swatch', style: `background:${colour(t)}`})
    add(tints, 'span', {class: 'tint'}, m)
  }
}

// A button that shows and hides a run, with the dash of its line.
function runKey(keys, r, on) {
  const key = add(keys, 'button', {type: 'button', 'aria-pressed': on, 'data-run': r.name})
  const mark = add(key, 'svg', {width: 30, height: 8, 'aria-hidden': 'true'})
  const dash = DASH[r.rank % DASH.length]
  add(mark, 'path', {d: 'M0 4H30', stroke: 'var(--ink)', 'stroke-width': 2, 'stroke-dasharray': dash})
  add(key, 'span', {}, r.name + (r.seeds > 1 ? ` (${r.seeds} seeds)` : ''))
  return key
}

// A bench's buttons answer at once: until Python has heard of a press, it is said to be queued.
function heed(model, root, said) {
  let asked = null // what was pressed last, and how many presses Python had heard before
  const tell = () => {
    if (asked && model.get('heard') > asked.heard) asked = null
    said.hidden = !asked
    if (asked) said.textContent = `${asked.what}: queued. Python is busy with a cell, and comes to it after that.`
  }
  const press = e => {
    const button = e.target.closest?.('.v2l-bench .jupyter-button')
    if (!button || button.disabled || !button.closest('.v2l-bench').contains(root)) return
    const mine = {what: button.textContent.trim(), heard: model.get('heard')}
    asked = mine
    if (mine.what === 'recommend') button.closest('.v2l-bench').dataset.wants = Date.now()
    said.hidden = true
    setTimeout(() => asked === mine && tell(), SOON)
  }
  document.addEventListener('click', press, true)
  model.on('change:heard', tell)
  said.hidden = true
  return () => document.removeEventListener('click', press, true)
}

// The bench's sliders: ipywidgets leaves their handles without a name. Returns what ends the watch.
function nameSliders(root) {
  const box = root.closest('.v2l-bench')
  if (!box) return () => {}
  const say = () => {
    for (const handle of box.querySelectorAll('.widget-slider .noUi-handle:not([aria-label])')) {
      handle.setAttribute('aria-label', handle.closest('.widget-slider').querySelector('.widget-label').textContent)
    }
  }
  const watch = new MutationObserver(say)
  watch.observe(box, {childList: true, subtree: true})
  say()
  return () => watch.disconnect()
}

function render({model, el}) {
  const root = add(el, 'div', {class: 'v2l', 'data-lm-suppress-shortcuts': 'true'})
  if (model.get('mark')) root.dataset.v2rMark = model.get('mark')
  const title = add(root, 'h3')
  const pressed = add(root, 'p', {class: 'pressed', role: 'status'})
  const status = add(root, 'p', {class: 'soft', role: 'status'})
  const bad = add(root, 'p', {class: 'bad', role: 'alert'})
  const tints = add(root, 'p', {class: 'soft'})
  const keys = add(root, 'div', {class: 'keys'})
  const none = add(root, 'p', {}, NONE)
  const hold = add(root, 'div', {tabindex: 0, role: 'group', 'aria-label': WAYS})
  const svg = add(hold, 'svg', {'aria-hidden': 'true'})
  const read = add(root, 'div', {class: 'read'})
  add(root, 'p', {class: 'soft'}, NOTE)
  const off = new Set() // names of hidden runs
  let cursor = null // step under the pointer
  let frame = null
  let rule = null
  let shown = []

  function readout() {
    if (rule) rule.remove()
    rule = null
    if (cursor !== null && frame) {
      const d = `M${frame.x(cursor)} ${GAP}V${frame.bottom}`
      rule = add(svg, 'path', {d, stroke: 'var(--ink)', opacity: 0.6})
    }
    read.replaceChildren()
    for (const r of shown) {
      const {head, words} = said(r, cursor)
      const line = add(read, 'div')
      add(line, 'b', {}, head)
      add(line, 'span', {}, words)
    }
  }

  function drawKeys(runs) {
    const focused = keys.contains(document.activeElement) ? document.activeElement.dataset.run : null
    keys.replaceChildren()
    for (const r of runs) {
      const key = runKey(keys, r, !off.has(r.name))
      key.onclick = () => {
        off.has(r.name) ? off.delete(r.name) : off.add(r.name)
        draw()
      }
      if (focused === r.name) key.focus()
    }
  }

  function draw() {
    const scene = model.get('scene')
    if (!scene || !scene.runs) return
    title.textContent = scene.title
    status.textContent = scene.status ?? ''
    status.hidden = !scene.status
    bad.textContent = scene.error ?? ''
    bad.hidden = !scene.error
    none.hidden = hold.hidden = false
    if (scene.runs.length) none.hidden = true
    else hold.hidden = true
    const runs = scene.runs.map((r, rank) => ({...r, rank}))
    shown = runs.filter(r => !off.has(r.name))
    tintKeys(tints, runs)
    drawKeys(runs)
    frame = panels(svg, scene, shown, Math.max(240, hold.clientWidth || 600))
    readout()
  }

  function point(step) {
    cursor = step === null ? null : Math.max(0, Math.min(frame.last, step))
    readout()
  }

  hold.addEventListener('pointermove', e => {
    if (frame) point(frame.back(e.clientX - svg.getBoundingClientRect().left))
  })
  hold.addEventListener('pointerleave', () => point(null))
  hold.addEventListener('keydown', e => {
    if (!frame) return
    const now = cursor ?? frame.last
    const ways = {
      ArrowLeft: now - 1,
      ArrowRight: now + 1,
      PageDown: now - 10,
      PageUp: now + 10,
      Home: 0,
      End: frame.last,
      Escape: null,
    }
    const to = ways[e.key]
    if (to === undefined) return
    read.setAttribute('aria-live', 'polite')
    point(to)
    e.preventDefault()
    e.stopPropagation()
  })
  hold.addEventListener('blur', () => {
    read.removeAttribute('aria-live')
    point(null)
  })
  model.on('change:scene', draw)
  let wide = 0
  let unname = null // once it stands in the page
  const watch = new ResizeObserver(() => {
    if (root.isConnected) unname ??= nameSliders(root)
    if (Math.abs(hold.clientWidth - wide) <= 1) return
    wide = hold.clientWidth
    if (wide) draw()
  })
  watch.observe(hold)
  draw()
  const unheed = heed(model, root, pressed)
  return () => {
    watch.disconnect()
    unname?.()
    unheed()
  }
}

export default {render}

// The linked pictures of `vlm2rec_lab.widgets`, in plain JavaScript: an anywidget module in a notebook, inlined in a saved page.
// Text from data reaches the page through textContent and attributes only, never as markup.

const CSS = `
.v2w{--bg:#fff;--card:#f6f7f9;--ink:#1a1f2b;--soft:#586174;--line:#d9dee7;--focus:#0b62d6;--lo:#0072B2;--mid:#fbfbfb;--hi:#D55E00;--bar:#0072B2;color-scheme:light;
background:var(--bg);color:var(--ink);font:14px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;padding:14px;position:relative;container-type:inline-size;text-align:left}
.v2w.dark{--bg:#12151c;--card:#1a1f29;--ink:#e8ecf3;--soft:#a3aec0;--line:#323a4a;--focus:#7db4ff;--lo:#4FA8E0;--mid:#1d222c;--hi:#F58A3C;--bar:#4FA8E0;color-scheme:dark}
.v2w.lab{--bg:var(--jp-layout-color0,#fff);--ink:var(--jp-ui-font-color0,#1a1f2b);--card:color-mix(in srgb,var(--ink) 5%,var(--bg));--line:color-mix(in srgb,var(--ink) 18%,var(--bg))}
.v2w *{box-sizing:border-box}.v2w h4.h{font:inherit;font-weight:650;margin:0}
.v2w .bar,.v2w .legend,.v2w .strip,.v2w .tools{display:flex;flex-wrap:wrap;gap:6px 8px;align-items:center}.v2w .bar{gap:8px 16px;margin-bottom:8px}
.v2w label{display:inline-flex;gap:6px;align-items:center;color:var(--soft);margin:0;font-size:13px}
.v2w select,.v2w button{font:inherit;font-size:13px;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:7px;padding:4px 9px;min-height:30px;margin:0;max-width:100%}
.v2w button{cursor:pointer}.v2w button:hover{border-color:var(--soft)}.v2w button[aria-pressed=true]{background:var(--ink);color:var(--bg);border-color:var(--ink)}
.v2w button:focus-visible,.v2w select:focus-visible,.v2w .plot:focus-visible{outline:3px solid var(--focus);outline-offset:2px}
.v2w .tools button{min-width:32px}.v2w .legend{margin:4px 0 8px;gap:4px 6px}.v2w .legend button{background:none;border-color:transparent;padding:2px 7px;min-height:26px;display:inline-flex;gap:6px;align-items:center}
.v2w .legend button[aria-pressed=true]{border-color:var(--ink);background:var(--card);color:var(--ink)}.v2w .dot{width:11px;height:11px;border-radius:50%;flex:none}.v2w .ramp{width:130px;height:11px;border-radius:6px}
.v2w .panels{display:flex;flex-wrap:wrap;gap:12px;position:relative}.v2w .panel{flex:1 1 250px;min-width:0;margin:0}.v2w .panel.thin{flex:.42 1 110px;display:flex;flex-direction:column}
.v2w .panel .head{display:flex;flex-wrap:wrap;gap:0 8px;align-items:baseline;margin:0 2px 4px;justify-content:space-between}.v2w .panel .head span{color:var(--soft);font-size:12.5px}
.v2w .plot{position:relative;border:1px solid var(--line);border-radius:10px;overflow:hidden;height:clamp(200px,36cqw,430px);cursor:crosshair;touch-action:pan-y;background:var(--bg)}
.v2w .plot.armed{touch-action:none}.v2w .plot.move{cursor:grab}.v2w .plot canvas,.v2w .wires{position:absolute;inset:0;width:100%;height:100%;display:block}.v2w .wires{pointer-events:none;z-index:2}
.v2w .heat{height:auto;aspect-ratio:1}.v2w .thin .heat{aspect-ratio:auto;flex:1;min-height:150px}.v2w .panel .head{min-height:21px}
.v2w .soft{color:var(--soft);font-size:13px}.v2w .note{margin:8px 2px 0}.v2w .foot{display:grid;grid-template-columns:minmax(210px,270px) 1fr;gap:14px 20px;margin-top:12px;padding:12px;background:var(--card);border:1px solid var(--line);border-radius:10px;min-height:190px;align-items:start}
.v2w .item{min-width:0}.v2w .item .name{font-weight:650;overflow-wrap:anywhere;margin:6px 0 2px}.v2w .item dl{display:grid;grid-template-columns:auto 1fr;gap:0 10px;margin:4px 0 0;font-size:13px}.v2w .item dt{color:var(--soft);font-weight:400}.v2w .item dd{margin:0;overflow-wrap:anywhere}
.v2w .tile{display:block;border-radius:7px;background:var(--line);flex:none;object-fit:contain}
.v2w .near{display:grid;gap:8px 16px;min-width:0;grid-template-columns:repeat(auto-fit,minmax(min(380px,100%),1fr))}.v2w .near h4.h{font-size:13px}.v2w .near h4.h small{font-weight:400;color:var(--soft);font-size:12.5px}.v2w .row{display:flex;flex-wrap:wrap;gap:6px;margin-top:3px;min-height:58px}
.v2w .row button,.v2w .strip button.pic{padding:2px;border-width:2px;border-radius:9px;background:none;position:relative;min-height:0;line-height:0}.v2w .row button.both{border-color:var(--hi)}.v2w .row button.both::after{content:"";position:absolute;right:-3px;top:-3px;width:9px;height:9px;border-radius:50%;background:var(--hi);border:1px solid var(--bg)}
.v2w .row button.word,.v2w .strip button.word{line-height:1.3;max-width:150px;overflow:hidden;text-overflow:ellipsis;white-space:nowrap;padding:4px 8px}
.v2w .strip{margin-top:10px;min-height:34px}.v2w .tip{position:absolute;z-index:5;pointer-events:none;display:none;gap:9px;align-items:center;max-width:290px;background:var(--bg);border:1px solid var(--soft);border-radius:9px;padding:6px 9px;box-shadow:0 3px 12px #0004;font-size:13px;overflow-wrap:anywhere}
.v2w .tip.on{display:flex}.v2w .live{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.v2w table.like{width:auto;border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:0;border:0;background:none;color:inherit}.v2w .like th,.v2w .like td{padding:3px 12px 3px 0;text-align:right;border:0;background:none;font-weight:400;color:inherit}.v2w .like th:first-child,.v2w .like td:first-child,.v2w .like th:last-child,.v2w .like td:last-child{text-align:left}.v2w .like thead th{color:var(--soft)}.v2w .like tr{background:none}
.v2w .duet{display:grid;grid-template-columns:1fr 1fr;gap:14px}.v2w .scale{display:inline-flex;align-items:center;gap:8px;color:var(--soft);font-size:12.5px}.v2w .scale i{width:120px;height:11px;border-radius:6px;border:1px solid var(--line)}
.v2w .duo{display:inline-flex;gap:3px;padding:2px;border-radius:9px;line-height:0;min-height:0}
@container (max-width:560px){.v2w .foot{grid-template-columns:1fr}.v2w .panel{flex-basis:150px}.v2w .panel.thin{flex:1 1 150px}.v2w .panel .head{flex-direction:column}.v2w .panel .head span:empty{display:none}.v2w .row{gap:4px}.v2w .panels{gap:10px 8px}.v2w .plot{height:210px}.v2w .heat{height:auto}.v2w .item.one{display:grid;grid-template-columns:auto 1fr;gap:0 12px}.v2w .item.one .tile{grid-row:1/span 3}}
`
const LIGHT = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#882255', '#44474d'], DARK = ['#4FA8E0', '#F07B2E', '#1FBF92', '#E59AC6', '#F5B83D', '#A5DBF8', '#C9B3FF', '#F0E442']
const RAMP = {light: ['#00224e', '#3f5a8c', '#7d7c78', '#b3a05c', '#d9b93a'], dark: ['#4a6fb8', '#7f97b5', '#a5a5a0', '#d3c06b', '#fdea45']}, OTHER = '#8b93a1'

// ---- small tools
function el(tag, props = {}, ...kids) {
  const e = document.createElement(tag)
  for (const [k, v] of Object.entries(props)) {
    if (k.startsWith('on')) e.addEventListener(k.slice(2), v)
    else if (k === 'class' || k.includes('-') || k === 'role') e.setAttribute(k, v)
    else e[k] = v
  }
  if (tag === 'button' || tag === 'select' || props.tabIndex === 0) e.setAttribute('data-lm-suppress-shortcuts', 'true') // JupyterLab's keys (d d deletes a cell) stay away from what has the focus
  e.append(...kids)
  return e
}
const bytes = v => v instanceof Uint8Array ? v : ArrayBuffer.isView(v) ? new Uint8Array(v.buffer, v.byteOffset, v.byteLength) : new Uint8Array(v || 0)
const typed = (T, v) => new T(bytes(v).slice().buffer)
const lines = v => new TextDecoder().decode(bytes(v)).split('\n')
const fit = (canvas, most = 2) => { // canvas at the screen's resolution: [width, height, pixels per CSS pixel]
  const w = canvas.clientWidth, h = canvas.clientHeight, d = Math.min(most, window.devicePixelRatio || 1)
  if (canvas.width !== Math.round(w * d) || canvas.height !== Math.round(h * d)) { canvas.width = Math.round(w * d); canvas.height = Math.round(h * d) }
  return [w, h, d]
}
const probe = document.createElement('canvas').getContext('2d', {willReadFrequently: true})
function rgb(css) { probe.clearRect(0, 0, 1, 1); probe.fillStyle = '#888'; probe.fillStyle = css; probe.fillRect(0, 0, 1, 1); return [...probe.getImageData(0, 0, 1, 1).data.slice(0, 3)] }
const mix = (a, b, t) => a.map((x, i) => Math.round(x + (b[i] - x) * t))
const ramp = (stops, t) => { const x = Math.max(0, Math.min(1, t)) * (stops.length - 1), k = Math.min(stops.length - 2, Math.floor(x)); return mix(stops[k], stops[k + 1], x - k) }
const word = x => x.toLocaleString('en-US')
function later(draw) { let asked = false; return () => { if (!asked) { asked = true; requestAnimationFrame(() => { asked = false; draw() }) } } }

function isDark() {
  const jp = document.body.dataset.jpThemeLight, html = document.documentElement.dataset.theme
  if (jp) return jp === 'false'
  if (document.body.classList.contains('vscode-dark')) return true
  if (html === 'dark' || html === 'light') return html === 'dark'
  return matchMedia('(prefers-color-scheme: dark)').matches
}
function theme(root, changed) { // follows JupyterLab, the docs site or the system
  const apply = () => { root.classList.toggle('dark', isDark()); root.classList.toggle('lab', !!document.body.dataset.jpThemeLight); changed() }
  const media = matchMedia('(prefers-color-scheme: dark)'), watch = new MutationObserver(apply)
  media.addEventListener('change', apply)
  for (const e of [document.body, document.documentElement]) watch.observe(e, {attributes: true, attributeFilter: ['data-jp-theme-light', 'data-theme', 'class']})
  apply()
  return () => { media.removeEventListener('change', apply); watch.disconnect() }
}

// ---- pictures: from sprite sheets, or asked of the kernel
class Pictures {
  constructor(src) { this.src = src; this.p = src.meta.pictures; this.sheets = new Map(); this.had = new Map(); this.wait = new Map(); this.blank = new Set(this.p?.blank || []) }
  async get(i) { // {img, x, y, w, h} or null
    const p = this.p
    if (!p || this.blank.has(i)) return null
    if (!p.sheets) return this.asked(i)
    const per = p.columns * p.columns, s = Math.floor(i / per), k = i % per
    if (!this.sheets.has(s)) this.sheets.set(s, this.decode(this.src.blob('sheet' + s)))
    return {img: await this.sheets.get(s), x: (k % p.columns) * p.tile, y: Math.floor(k / p.columns) * p.tile, w: p.tile, h: p.tile}
  }
  async decode(data) { return createImageBitmap(new Blob([bytes(data)], {type: 'image/jpeg'})) }
  asked(i) {
    if (this.had.has(i)) return this.had.get(i)
    const promise = new Promise(done => {
      if (!this.wait.size) queueMicrotask(() => this.send())
      this.wait.set(i, done)
    })
    this.had.set(i, promise)
    if (this.had.size > 3000) this.had.delete(this.had.keys().next().value)
    return promise
  }
  async send() {
    const wait = this.wait; this.wait = new Map()
    const [, buffers] = await this.src.ask({what: 'pictures', items: [...wait.keys()]})
    let k = 0
    for (const done of wait.values()) {
      const b = bytes(buffers[k++])
      if (!b.length) { done(null); continue }
      const img = await this.decode(b)
      done({img, x: 0, y: 0, w: img.width, h: img.height})
    }
  }
  tile(i, size, label = '') { // a canvas that fills when the picture is there
    const c = el('canvas', {class: 'tile', role: 'img', 'aria-label': label}), d = Math.min(2, window.devicePixelRatio || 1)
    c.width = c.height = Math.round(size * d); c.style.width = c.style.height = size + 'px'
    this.get(i).then(p => {
      const g = c.getContext('2d')
      if (p) { const k = Math.min(c.width / p.w, c.height / p.h), w = p.w * k, h = p.h * k; g.imageSmoothingQuality = 'high'; g.drawImage(p.img, p.x, p.y, p.w, p.h, (c.width - w) / 2, (c.height - h) / 2, w, h) }
      else { g.fillStyle = '#888'; g.font = `${Math.round(c.width / 6)}px system-ui,sans-serif`; g.textAlign = 'center'; g.fillText('no', c.width / 2, c.height * .46); g.fillText('picture', c.width / 2, c.height * .66) }
      c.dataset.ready = p ? 'picture' : 'none'; c.dataset.item = i
    })
    return c
  }
}

// ---- parts that both views use
function frame(root, label) {
  root.classList.add('v2w'); root.setAttribute('role', 'region'); root.setAttribute('aria-label', label)
  const live = el('div', {class: 'live', 'aria-live': 'polite'}), tip = el('div', {class: 'tip', 'aria-hidden': 'true'})
  root.replaceChildren(el('style', {textContent: CSS}))
  const place = (x, y) => { // beside the pointer, inside the view
    const w = tip.offsetWidth, box = root.getBoundingClientRect(); x -= box.left; y -= box.top
    tip.style.left = Math.max(4, Math.min(x + 16, box.width - w - 4)) + 'px'; tip.style.top = (y + 20 + tip.offsetHeight > box.height ? y - tip.offsetHeight - 12 : y + 16) + 'px'
  }
  return {live, tip, place}
}
function plot(label, kind, extra = '') {
  const base = el('canvas', {'aria-hidden': 'true'}), top = el('canvas', {'aria-hidden': 'true'})
  const box = el('div', {class: 'plot ' + extra, tabIndex: 0, role: 'application', 'aria-roledescription': kind, 'aria-label': label}, base, top)
  return {base, top, box}
}
const tipAt = e => e.pointerType === 'touch' ? [] : [e.clientX, e.clientY] // a finger would hide it
function copy(text, button) {
  const said = ok => { const was = button.textContent; button.textContent = ok ? 'Copied' : 'Not allowed'; setTimeout(() => { button.textContent = was }, 1200) }
  if (!navigator.clipboard) return said(false)
  navigator.clipboard.writeText(text).then(() => said(true), () => said(false))
}

// ---- two spaces and more, linked
class Grid { // points in the unit square by cell, for the nearest one under the pointer
  constructor(xy) {
    const n = xy.length / 2, g = this.g = Math.max(4, Math.min(256, Math.round(Math.sqrt(n / 2)))), at = this.at = new Int32Array(g * g + 1), cell = new Int32Array(n)
    this.xy = xy
    for (let i = 0; i < n; i++) at[(cell[i] = this.col(xy[2 * i]) + g * this.col(xy[2 * i + 1])) + 1]++
    for (let c = 0; c < g * g; c++) at[c + 1] += at[c]
    const next = at.slice(), order = this.order = new Int32Array(n)
    for (let i = 0; i < n; i++) order[next[cell[i]]++] = i
  }
  col(v) { return Math.max(0, Math.min(this.g - 1, Math.floor(v * this.g))) }
  near(x, y, r) {
    let best = -1, least = r * r
    for (let b = this.col(y - r); b <= this.col(y + r); b++) for (let a = this.col(x - r); a <= this.col(x + r); a++)
      for (let k = this.at[a + this.g * b]; k < this.at[a + this.g * b + 1]; k++) {
        const i = this.order[k], d = (this.xy[2 * i] - x) ** 2 + (this.xy[2 * i + 1] - y) ** 2
        if (d < least) { least = d; best = i }
      }
    return best
  }
}
function unit(xy) { // to the unit square, one scale for both axes
  let lo = [Infinity, Infinity], hi = [-Infinity, -Infinity]
  for (let k = 0; k < xy.length; k++) { const v = xy[k]; if (v < lo[k & 1]) lo[k & 1] = v; if (v > hi[k & 1]) hi[k & 1] = v }
  const s = Math.max(hi[0] - lo[0], hi[1] - lo[1]) || 1, out = new Float32Array(xy.length)
  for (let k = 0; k < xy.length; k++) out[k] = .5 + (xy[k] - (lo[k & 1] + hi[k & 1]) / 2) / s
  return out
}
function within(poly, x, y) {
  let inside = false
  for (let i = 0, j = poly.length - 1; i < poly.length; j = i++) {
    const [a, b] = poly[i], [c, d] = poly[j]
    if ((b > y) !== (d > y) && x < (c - a) * (y - b) / (d - b) + a) inside = !inside
  }
  return inside
}

function spaces(root, src) {
  const meta = src.meta, n = meta.n, S = meta.spaces.length, {live, tip, place} = frame(root, meta.heading), pictures = new Pictures(src)
  const titles = lines(src.blob('titles')), ids = lines(src.blob('ids')), codes = meta.columns.map((_, c) => bytes(src.blob('column' + c)))
  const st = {hover: -1, pin: -1, method: '', column: meta.column, lines: false, mode: 'lasso', lit: -1, mask: new Uint8Array(n), count: 0, near: [], told: -1}
  const focus = () => st.hover >= 0 ? st.hover : st.pin
  let tints = [], dims = [], ink = '#000', bg = '#fff', soft = '#888'

  // toolbar
  const option = (value, text) => el('option', {value, textContent: text})
  const colourBy = el('select', {onchange: e => { st.column = +e.target.value; st.lit = -1; paint() }}, option(-1, 'nothing'), ...meta.columns.map((c, k) => option(k, c.name)))
  const map = el('select', {onchange: e => { st.method = e.target.value; lay() }})
  const tool = (text, name, title, run, pressed) => { const b = el('button', {type: 'button', textContent: text, title, 'aria-label': title, onclick: run}); if (pressed !== undefined) b.setAttribute('aria-pressed', pressed); if (name) b.dataset.tool = name; return b }
  const modes = [['lasso', 'Lasso', 'Draw around points to select them (Shift adds)'], ['box', 'Box', 'Drag a box around points to select them (Shift adds)'], ['move', 'Move', 'Drag to move, turn the wheel to zoom']]
    .map(([m, text, title]) => tool(text, m, title, () => arm(m), m === 'lasso'))
  function arm(m) { st.mode = m; modes.forEach(b => b.setAttribute('aria-pressed', b.dataset.tool === m)); panels.forEach(p => { p.box.classList.toggle('move', m === 'move'); p.box.classList.add('armed') }) }
  const wire = tool('Lines', 'lines', 'Lines between a product\'s places in the spaces', () => { st.lines = !st.lines; wire.setAttribute('aria-pressed', st.lines); over() }, false)
  const legend = el('div', {class: 'legend', role: 'group', 'aria-label': 'colours'}), wires = el('canvas', {class: 'wires', 'aria-hidden': 'true'}), status = el('span')
  const bar = el('div', {class: 'bar'}, el('label', {}, 'Colour', colourBy), el('label', {}, 'Map', map), el('div', {class: 'tools', role: 'group', 'aria-label': 'what dragging does'}, ...modes), el('div', {class: 'tools'}, wire,
    tool('+', 'in', 'Zoom in', () => panels.forEach(p => zoom(p, 1.5))), tool('−', 'out', 'Zoom out', () => panels.forEach(p => zoom(p, 1 / 1.5))), tool('Whole', 'whole', 'Show everything', () => { panels.forEach(p => { p.view = {k: 1, x: .5, y: .5} }); paint() })))

  // panels
  const panels = meta.spaces.map((name, s) => {
    const p = plot(`${name} space, ${word(n)} products. Arrow keys move from product to product, Enter pins, Space selects, Escape clears.`, 'map'), said = el('span')
    Object.assign(p, {s, name, said, view: {k: 1, x: .5, y: .5}, path: null, fig: el('div', {class: 'panel'}, el('div', {class: 'head'}, el('h4', {class: 'h', textContent: name}), said), p.box)})
    p.scale = () => .92 * Math.min(p.w, p.h) * p.view.k
    p.to = i => { const k = p.scale(); return [p.w / 2 + (p.xy[2 * i] - p.view.x) * k, p.h / 2 - (p.xy[2 * i + 1] - p.view.y) * k] }
    p.back = (x, y) => { const k = p.scale(); return [p.view.x + (x - p.w / 2) / k, p.view.y - (y - p.h / 2) / k] }
    listen(p)
    return p
  })
  const grid = el('div', {class: 'panels'}, ...panels.map(p => p.fig), wires)
  const card = el('div', {class: 'item one'}), near = el('div', {class: 'near'}), strip = el('div', {class: 'strip'})
  root.append(bar, legend, grid, el('p', {class: 'soft note'}, el('span', {textContent: meta.note + ' '}), status), el('div', {class: 'foot'}, card, near), strip, live, tip)

  function lay() { // positions of the chosen map
    const all = src.positions(), names = Object.keys(all)
    if (!names.includes(st.method)) st.method = names[names.length - 1]
    map.replaceChildren(...names.map(m => option(m, m.toUpperCase()))); map.value = st.method
    const xy = typed(Float32Array, all[st.method].xy)
    panels.forEach(p => { p.xy = unit(xy.subarray(2 * n * p.s, 2 * n * (p.s + 1))); p.grid = new Grid(p.xy); p.said.textContent = `trustworthiness ${all[st.method].trust[p.s].toFixed(2)}` })
    paint()
  }
  function palette() {
    const css = getComputedStyle(root), dark = root.classList.contains('dark'), c = meta.columns[st.column]
    ;[ink, bg, soft] = ['--ink', '--bg', '--soft'].map(v => css.getPropertyValue(v).trim())
    const named = dark ? DARK : LIGHT, stops = RAMP[dark ? 'dark' : 'light'].map(rgb)
    tints = !c ? [rgb(named[0])] : c.kind === 'number' ? Array.from({length: 256}, (_, k) => k === 255 ? rgb(OTHER) : ramp(stops, k / 254)) : c.labels.map((_, k) => rgb(k < c.named ? named[k] : OTHER))
    dims = tints.map(t => mix(rgb(bg), t, .2))
    legend.replaceChildren()
    if (c?.kind === 'number') legend.append(el('span', {class: 'soft', textContent: c.lo}), el('span', {class: 'ramp', style: `background:linear-gradient(90deg,${stops.map(s => `rgb(${s})`)})`}), el('span', {class: 'soft', textContent: c.hi}))
    else if (c) c.labels.forEach((text, k) => legend.append(el('button', {type: 'button', 'aria-pressed': st.lit === k, title: 'Bring these to the front', onclick: () => { st.lit = st.lit === k ? -1 : k; paint(); legend.children[k]?.focus() }},
      el('span', {class: 'dot', style: `background:rgb(${tints[k]})`}), el('span', {textContent: text}))))
  }
  const code = i => st.column < 0 ? 0 : codes[st.column][i]
  const bright = i => (!st.count || st.mask[i]) && (st.lit < 0 || code(i) === st.lit)
  function points(p) {
    ;[p.w, p.h, p.d] = fit(p.base, n > 20000 ? 1.5 : 2)
    if (!p.w || !p.h || !p.xy) return
    const g = p.base.getContext('2d'), dimming = st.count || st.lit >= 0, grow = Math.min(2, Math.sqrt(p.view.k)), small = p.w < 260 ? .75 : 1
    g.setTransform(1, 0, 0, 1, 0, 0); g.fillStyle = bg; g.fillRect(0, 0, p.base.width, p.base.height)
    if (n <= 4000) {
      const r = small * grow * (n <= 1000 ? 3.6 : 2.6)
      g.setTransform(p.d, 0, 0, p.d, 0, 0)
      for (const pass of dimming ? [0, 1] : [1]) {
        const paths = tints.map(() => null)
        for (let i = 0; i < n; i++) if (!dimming || +bright(i) === pass) { const [x, y] = p.to(i), q = paths[code(i)] ||= new Path2D(); q.moveTo(x + r, y); q.arc(x, y, r, 0, 7) }
        g.globalAlpha = pass ? .85 : 1
        paths.reverse().forEach((q, k) => { const c = paths.length - 1 - k; if (q) { g.fillStyle = `rgb(${pass ? tints[c] : dims[c]})`; g.fill(q) } })
      }
      g.globalAlpha = 1
      return
    }
    const image = g.getImageData(0, 0, p.base.width, p.base.height), px = new Uint32Array(image.data.buffer), W = p.base.width, H = p.base.height, pack = t => (255 << 24 | t[2] << 16 | t[1] << 8 | t[0]) >>> 0
    const on = tints.map(pack), off = dims.map(pack), size = Math.max(2, Math.round(p.d * small * grow * (n <= 30000 ? 3 : 2))), k = p.scale() * p.d, cx = W / 2 - p.view.x * k, cy = H / 2 + p.view.y * k
    const column = meta.columns[st.column], named = column?.kind === 'words' && column.named < column.labels.length ? column.named : 0   // "other" goes below
    for (const pass of dimming ? [0, 1] : [1]) for (const below of named ? [true, false] : [false]) for (let i = 0; i < n; i++) {
      if (dimming && +bright(i) !== pass || named && code(i) >= named !== below) continue
      const x = Math.round(cx + p.xy[2 * i] * k - size / 2), y = Math.round(cy - p.xy[2 * i + 1] * k - size / 2), t = (pass ? on : off)[code(i)]
      if (x < 0 || y < 0 || x + size > W || y + size > H) continue
      for (let b = 0, at = y * W + x; b < size; b++, at += W) for (let a = 0; a < size; a++) px[at + a] = t
    }
    g.putImageData(image, 0, 0)
  }
  function ring(g, x, y, r, wide) { for (const [w, c] of [[wide + 2.5, bg], [wide, ink]]) { g.lineWidth = w; g.strokeStyle = c; g.beginPath(); g.arc(x, y, r, 0, 7); g.stroke() } }
  const over = later(() => { // what moves with the pointer: rings, lines, the lasso
    const i = focus()
    for (const p of panels) {
      const [w, h, d] = fit(p.top), g = p.top.getContext('2d')
      g.setTransform(d, 0, 0, d, 0, 0); g.clearRect(0, 0, w, h)
      if (!p.xy || !p.w) continue
      if (i >= 0) { if (st.told === i) for (const j of st.near[p.s] || []) ring(g, ...p.to(j), 5, 1.3); ring(g, ...p.to(i), 8.5, 2.6) }
      if (p.path) { g.strokeStyle = ink; g.lineWidth = 1.5; g.setLineDash([5, 4]); g.beginPath(); shape(p).forEach((q, k) => g[k ? 'lineTo' : 'moveTo'](...q)); g.closePath(); g.stroke(); g.setLineDash([]); g.globalAlpha = .07; g.fillStyle = ink; g.fill(); g.globalAlpha = 1 }
    }
    const [w, h, d] = fit(wires), g = wires.getContext('2d'), home = grid.getBoundingClientRect()
    g.setTransform(d, 0, 0, d, 0, 0); g.clearRect(0, 0, w, h)
    if (!st.lines) return
    const chosen = st.count && st.count <= 400 ? [...st.mask.keys()].filter(j => st.mask[j]) : [], boxes = panels.map(p => p.base.getBoundingClientRect())
    const line = (j, alpha, wide) => {
      g.globalAlpha = alpha; g.lineWidth = wide; g.beginPath()
      panels.forEach((p, s) => { const [x, y] = p.to(j); if (x >= 0 && y >= 0 && x <= p.w && y <= p.h) g.lineTo(x + boxes[s].left - home.left, y + boxes[s].top - home.top) })
      g.stroke()
    }
    g.strokeStyle = ink
    chosen.forEach(j => line(j, Math.max(.07, Math.min(.45, 14 / chosen.length)), 1)); if (i >= 0) line(i, .9, 1.8)
  })
  const paint = later(() => { palette(); panels.forEach(points); over() })

  // what is known of the product under the pointer
  let turn = 0
  function show() {
    const i = focus(), mine = ++turn
    over()
    card.style.gridColumn = i < 0 ? '1/-1' : ''
    if (i < 0) { card.replaceChildren(el('p', {class: 'soft', textContent: 'Point at a product, or move to a map with Tab and use the arrow keys. A click or Enter keeps it here; dragging selects; Escape clears.'})); near.replaceChildren(); return }
    const facts = el('dl', {}, el('dt', {textContent: 'id'}), el('dd', {textContent: ids[i]}))
    meta.columns.forEach((c, k) => { if (c.kind !== 'number') facts.append(el('dt', {textContent: c.name}), el('dd', {textContent: c.labels[codes[k][i]]})) })
    card.replaceChildren(...(meta.pictures ? [pictures.tile(i, 104, titles[i])] : []), el('p', {class: 'name', textContent: titles[i]}), facts)
    if (st.told === i) return neighbours(i)
    setTimeout(async () => {
      if (mine !== turn) return
      const found = await src.near(i)
      if (mine !== turn) return
      st.near = found; st.told = i; neighbours(i); over()
    }, src.slow && st.pin !== i ? 90 : 0)
  }
  function small(j, both) {
    const b = el('button', {type: 'button', title: titles[j] + (both ? ' (near in every space)' : ''), 'aria-label': titles[j], class: both ? 'both' : '', onclick: () => pin(j)})
    if (meta.pictures) b.append(pictures.tile(j, root.clientWidth < 430 ? 44 : 50, titles[j])); else { b.classList.add('word'); b.textContent = titles[j] }
    b.classList.add('pic')
    return b
  }
  function neighbours(i) {
    const common = S > 1 ? st.near.reduce((a, b) => a.filter(j => b.includes(j))) : []
    near.replaceChildren(...panels.map(p => el('div', {}, el('h4', {class: 'h'}, `Nearest in ${p.name} `, el('small', {textContent: p.s || S < 2 ? '' : `${common.length} of ${st.near[0].length} in every space${common.length ? ', dotted' : ''}`})), el('div', {class: 'row'}, ...st.near[p.s].map(j => small(j, common.includes(j)))))))
  }
  function hover(i, x, y) {
    if (i !== st.hover) { st.hover = i; if (i >= 0) tip.replaceChildren(...(meta.pictures ? [pictures.tile(i, 72, titles[i])] : []), el('span', {textContent: titles[i]})); show() }
    tip.classList.toggle('on', i >= 0 && x !== undefined)
    if (i >= 0 && x !== undefined) place(x, y)
  }
  function pin(i) { st.pin = i; st.hover = -1; tip.classList.remove('on'); show(); if (i >= 0) speak(i) }
  function speak(i) { live.textContent = titles[i]; src.near(i).then(found => { if (focus() === i) live.textContent = `${titles[i]}. ` + panels.map(p => `Nearest in ${p.name}: ${found[p.s].slice(0, 3).map(j => titles[j]).join(', ')}`).join('. ') }) }

  // selection
  function select(mask, tell = true) {
    st.mask = mask; st.count = 0
    for (let i = 0; i < n; i++) st.count += mask[i]
    const chosen = new Uint32Array(st.count)
    for (let i = 0, k = 0; i < n; i++) if (mask[i]) chosen[k++] = i
    if (tell) src.choose(chosen)
    const first = [...chosen.slice(0, Math.max(6, Math.min(14, Math.floor((root.clientWidth - 420) / 66))))], button = el('button', {type: 'button', textContent: 'Copy ids', onclick: () => copy([...chosen].map(i => ids[i]).join('\n'), button)})
    strip.replaceChildren(el('strong', {textContent: st.count ? `${word(st.count)} selected` : 'None selected'}), ...(st.count ? [button, el('button', {type: 'button', textContent: 'Clear', onclick: () => select(new Uint8Array(n))}), ...first.map(i => small(i, false))] : []))
    if (st.count > first.length) strip.append(el('span', {class: 'soft', textContent: `and ${word(st.count - first.length)} more`}))
    if (tell) live.textContent = `${word(st.count)} selected`
    paint()
  }
  const shape = p => st.mode === 'box' ? (([[a, b]], [c, d]) => [[a, b], [c, b], [c, d], [a, d]])(p.path, p.path[p.path.length - 1]) : p.path
  function finish(p, add) {
    const poly = shape(p).map(q => p.back(...q)), xs = poly.map(q => q[0]), ys = poly.map(q => q[1]), [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)], mask = add ? st.mask.slice() : new Uint8Array(n)
    for (let i = 0; i < n; i++) { const x = p.xy[2 * i], y = p.xy[2 * i + 1]; if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && within(poly, x, y)) mask[i] = 1 }
    select(mask)
  }
  function zoom(p, factor, x = p.w / 2, y = p.h / 2) {
    const [a, b] = p.back(x, y), k = Math.max(1, Math.min(200, p.view.k * factor)), r = p.view.k / k
    p.view = k === 1 ? {k, x: .5, y: .5} : {k, x: a + (p.view.x - a) * r, y: b + (p.view.y - b) * r}
    paint()
  }
  function step(p, dx, dy) { // the next product in a direction
    let i = focus(), best = -1, least = Infinity
    const [x, y] = i >= 0 ? p.to(i) : [p.w / 2, p.h / 2]
    for (let j = 0; j < n; j++) {
      if (j === i) continue
      const [a, b] = p.to(j), along = (a - x) * dx + (b - y) * dy, aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx)
      if (i >= 0 && (along <= 0 || aside > along) || a < 0 || b < 0 || a > p.w || b > p.h) continue
      const d = (a - x) ** 2 + (b - y) ** 2
      if (d < least) { least = d; best = j }
    }
    if (best >= 0) { st.pin = -1; hover(best); speak(best) }
  }
  function listen(p) {
    const at = e => { const b = p.base.getBoundingClientRect(); return [e.clientX - b.left, e.clientY - b.top] }
    let drag = null, last = null
    const look = later(() => { if (last && !p.path && p.xy) { const [x, y] = at(last), [a, b] = p.back(x, y); hover(p.grid.near(a, b, 14 / p.scale()), ...tipAt(last)) } })
    p.box.addEventListener('pointermove', e => {
      if (!drag) { last = e; return look() }
      const [x, y] = at(e)
      if (st.mode === 'move') { const k = p.scale(); p.view.x -= (x - drag.x) / k; p.view.y += (y - drag.y) / k; drag.moved += Math.abs(x - drag.x) + Math.abs(y - drag.y); drag.x = x; drag.y = y; return paint() }
      if (!p.path && Math.hypot(x - drag.x, y - drag.y) > 5) { p.path = [[drag.x, drag.y]]; hover(-1) }
      if (p.path) { p.path.push([x, y]); over() }
    })
    p.box.addEventListener('pointerdown', e => { if (e.button) return; const [x, y] = at(e); drag = {x, y, moved: 0}; p.box.setPointerCapture(e.pointerId) })
    p.box.addEventListener('pointerup', e => {
      if (!drag) return
      const was = drag, path = p.path; drag = null
      if (path) { finish(p, e.shiftKey); p.path = null; return over() }
      if (was.moved > 5) return
      const [a, b] = p.back(...at(e)), i = p.grid.near(a, b, 14 / p.scale())
      pin(i === st.pin ? -1 : i)
    })
    p.box.addEventListener('pointercancel', () => { drag = p.path = null; over() })
    p.box.addEventListener('pointerleave', () => { last = null; if (!drag) hover(-1) })
    p.box.addEventListener('wheel', e => { if (st.mode !== 'move' && !e.ctrlKey && !e.metaKey) return; e.preventDefault(); zoom(p, Math.exp(-e.deltaY / 400), ...at(e)) }, {passive: false})
    p.box.addEventListener('keydown', e => {
      const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}, i = focus()
      if (ways[e.key]) step(p, ...ways[e.key])
      else if (e.key === 'Enter') pin(i)
      else if (e.key === ' ' && i >= 0) { const mask = st.mask.slice(); mask[i] = 1 - mask[i]; select(mask) }
      else if (e.key === '+' || e.key === '=') zoom(p, 1.5, ...(i >= 0 ? p.to(i) : []))
      else if (e.key === '-') zoom(p, 1 / 1.5)
      else if (e.key === '0') { p.view = {k: 1, x: .5, y: .5}; paint() }
      else return
      e.preventDefault(); e.stopPropagation()
    })
  }
  root.addEventListener('keydown', e => {
    if (e.key !== 'Escape') return
    e.stopPropagation(); st.lit = st.pin = -1; panels.forEach(p => { p.path = null }); hover(-1); show()
    if (st.count) select(new Uint8Array(n)); else paint()
    live.textContent = 'cleared'
  })

  // start
  colourBy.value = st.column
  const untheme = theme(root, paint), sizes = new ResizeObserver(paint); panels.forEach(p => sizes.observe(p.box))
  const chosen = () => { const mask = new Uint8Array(n); for (const i of src.chosen()) mask[i] = 1; if (mask.some((v, i) => v !== st.mask[i])) select(mask, false) }
  const say = () => { status.textContent = src.status() }
  src.on('positions', () => { st.method = ''; lay(); say() }); src.on('status', say); src.on('chosen', chosen)
  lay(); say(); select(st.mask, false); chosen(); show()
  root.view = {place: (s, i) => { const b = panels[s].base.getBoundingClientRect(), [x, y] = panels[s].to(i); return [b.left + x, b.top + y] }, state: st, panels}
  return () => { untheme(); sizes.disconnect() }
}

// ---- topology: who is like whom, in each space
function topology(root, src) {
  const meta = src.meta, m = meta.n, S = meta.spaces.length, {live, tip, place} = frame(root, meta.heading), pictures = new Pictures(src)
  const titles = lines(src.blob('titles')), ids = lines(src.blob('ids')), like = typed(Float32Array, src.blob('similarity')), both = S > 1 ? typed(Float32Array, src.blob('consistency')) : null, agree = S > 1 ? typed(Float32Array, src.blob('agreement')) : null
  const st = {hover: null, pin: null, from: 0}
  const sd = (s, i, j) => (like[(s * m + i) * m + j] - meta.mean[s]) / meta.sd[s], value = (k, i, j) => k < S ? sd(k, i, j) : both[i * m + j]
  const alike = z => z > 1 ? 'alike' : z < -1 ? 'unlike' : 'neither alike nor unlike'
  const how = 'Arrow keys move from pair to pair, Enter keeps the pair, Escape clears.'
  const names = [...meta.spaces, ...(both ? [`consistency of ${meta.between[0]} and ${meta.between[1]}`] : [])]
  const panels = names.map((name, k) => {
    const p = plot(`${name}: ${m} by ${m} products. ${how}`, 'heat map', 'heat')
    return Object.assign(p, {k, name, fig: el('div', {class: 'panel'}, el('div', {class: 'head'}, el('h4', {class: 'h', textContent: k < S ? name : 'consistency'}), el('span', {textContent: k < S ? '' : `r = ${meta.r.toFixed(2)}`})), p.box)})
  })
  if (agree) {
    const p = plot(`agreement of ${meta.between[0]} and ${meta.between[1]} for each product. Up and down move, Enter opens its most disputed pair.`, 'bar chart', 'heat')
    panels.push(Object.assign(p, {k: -1, name: 'agreement', fig: el('div', {class: 'panel thin'}, el('div', {class: 'head'}, el('h4', {class: 'h', textContent: 'agreement'})), p.box)}))
  }
  const scale = el('span', {class: 'scale'}, 'unlike', el('i', {style: 'background:linear-gradient(90deg,var(--lo),var(--mid),var(--hi))'}), 'alike', el('span', {textContent: '(±3 standard deviations)'}))
  const card = el('div', {class: 'duet'}), table = el('div'), strip = el('div', {class: 'strip'})
  root.append(el('div', {class: 'bar'}, scale), el('div', {class: 'panels'}, ...panels.map(p => p.fig)), el('p', {class: 'soft note', textContent: meta.note}), el('div', {class: 'foot', style: 'grid-template-columns:repeat(auto-fit,minmax(min(290px,100%),1fr));min-height:205px'}, card, table), strip, live, tip)
  if (both) strip.append(el('strong', {textContent: 'Most disputed'}), ...meta.disputed.map(([i, j]) => {
    const b = el('button', {type: 'button', class: 'duo', title: `${titles[i]} and ${titles[j]}`, 'aria-label': `${titles[i]} and ${titles[j]}`, onclick: () => pin([i, j])})
    if (meta.pictures) b.append(pictures.tile(i, 44), pictures.tile(j, 44)); else { b.style.lineHeight = 1.3; b.append(`${titles[i]} and ${titles[j]}`) }
    return b
  }))

  const partner = i => { let best = i ? 0 : 1; for (let j = 0; j < m; j++) if (j !== i && both[i * m + j] < both[i * m + best]) best = j; return best } // the most disputed
  const focus = () => st.hover || st.pin
  function heat(p) {
    ;[p.w, p.h, p.d] = fit(p.base)
    if (!p.w || !p.h) return
    const g = p.base.getContext('2d'), css = getComputedStyle(root), [lo, mid, hi, bg, bar, line] = ['--lo', '--mid', '--hi', '--bg', '--bar', '--line'].map(v => rgb(css.getPropertyValue(v).trim()))
    g.setTransform(1, 0, 0, 1, 0, 0); g.fillStyle = `rgb(${bg})`; g.fillRect(0, 0, p.base.width, p.base.height)
    if (p.k < 0) {
      const W = p.base.width, H = p.base.height, x = v => W / 2 + v * (W / 2 - 4)
      g.fillStyle = `rgb(${bar})`
      for (let i = 0; i < m; i++) { const y = Math.floor(i * H / m), to = Math.floor((i + 1) * H / m), a = x(0), b = x(agree[i]); g.fillRect(Math.min(a, b), y, Math.max(1, Math.abs(b - a)), Math.max(1, to - y - (H / m > 3 ? 1 : 0))) }
      g.fillStyle = `rgb(${mix(line, hi, .0)})`; g.fillRect(x(0) - .5, 0, 1.5, H)
      return
    }
    if (!p.small || p.tone !== css.getPropertyValue('--mid')) {
      const c = p.small = document.createElement('canvas'); c.width = c.height = m; p.tone = css.getPropertyValue('--mid')
      const q = c.getContext('2d'), image = q.createImageData(m, m)
      for (let i = 0, at = 0; i < m; i++) for (let j = 0; j < m; j++, at += 4) {
        const t = Math.max(-1, Math.min(1, value(p.k, i, j) / 3)), own = i === j ? mix(bg, mid, .5) : mix(mid, t < 0 ? lo : hi, Math.abs(t))
        image.data.set([...own, 255], at)
      }
      q.putImageData(image, 0, 0)
    }
    g.imageSmoothingEnabled = false; g.drawImage(p.small, 0, 0, p.base.width, p.base.height)
  }
  const over = later(() => {
    const at = focus(), ink = getComputedStyle(root).getPropertyValue('--ink').trim()
    for (const p of panels) {
      const [w, h, d] = fit(p.top), g = p.top.getContext('2d')
      g.setTransform(d, 0, 0, d, 0, 0); g.clearRect(0, 0, w, h)
      if (!at) continue
      const [i, j] = at, y = (i + .5) * h / m, x = (j + .5) * w / m
      g.strokeStyle = ink; g.lineWidth = 1; g.globalAlpha = .55; g.beginPath(); g.moveTo(0, y); g.lineTo(w, y)
      if (p.k >= 0) { g.moveTo(x, 0); g.lineTo(x, h) }
      g.stroke(); g.globalAlpha = 1
      if (p.k >= 0) { g.lineWidth = 2; const a = Math.max(w / m, 7); g.strokeRect(x - a / 2, y - a / 2, a, a) }
    }
  })
  const paint = later(() => { panels.forEach(heat); over() })
  function show() {
    over()
    const at = focus()
    if (!at) { card.replaceChildren(el('p', {class: 'soft', style: 'grid-column:1/-1', textContent: 'Point at a cell, or move to a map with Tab and use the arrow keys. A click or Enter opens the pair and keeps it.'})); table.replaceChildren(); return }
    const [i, j] = at, item = k => el('div', {class: 'item'}, ...(meta.pictures ? [pictures.tile(k, 104, titles[k])] : []), el('p', {class: 'name', textContent: titles[k]}), el('span', {class: 'soft', textContent: ids[k]}))
    card.replaceChildren(item(i), ...(i === j ? [] : [item(j)]))
    const row = (tag, ...cells) => el('tr', {}, ...cells.map(c => el(tag, {textContent: c}))), num = v => v.toFixed(2).replace('-', '−')
    const rows = i === j ? [] : meta.spaces.map((name, s) => row('td', name, num(like[(s * m + i) * m + j]), num(sd(s, i, j)), alike(sd(s, i, j))))
    table.replaceChildren()
    if (i !== j) table.append(el('table', {class: 'like'}, el('thead', {}, row('th', 'space', 'cosine', 'in sd', 'these two are')), el('tbody', {}, ...rows, ...(both ? [row('td', 'consistency', '', num(both[i * m + j]), both[i * m + j] < -1 ? 'disputed' : both[i * m + j] > 1 ? 'agreed' : 'undecided')] : []))))
    if (agree) table.append(el('p', {class: 'soft', style: 'margin:8px 0 0', textContent: `Agreement of ${meta.between[0]} and ${meta.between[1]}: ${num(agree[i])} for the first${i === j ? '' : `, ${num(agree[j])} for the second`}.`}))
  }
  function hover(at, x, y) {
    if (String(at) !== String(st.hover)) {
      st.hover = at
      if (at) tip.replaceChildren(...[...new Set(at)].flatMap(k => [...(meta.pictures ? [pictures.tile(k, 56, titles[k])] : []), el('span', {textContent: titles[k]})]))
      show()
    }
    tip.classList.toggle('on', !!at && x !== undefined)
    if (at && x !== undefined) place(x, y)
  }
  function pin(at) { st.pin = at; st.hover = null; tip.classList.remove('on'); show(); src.choose(Uint32Array.from(at || [])); if (at) speak(at) }
  function speak([i, j]) { live.textContent = `Row ${i + 1}, column ${j + 1}: ${titles[i]} and ${titles[j]}. ` + meta.spaces.map((name, s) => `${name}: ${alike(sd(s, i, j))}`).join(', ') }
  panels.forEach(p => {
    const at = e => { const b = p.base.getBoundingClientRect(), cell = (v, size) => Math.max(0, Math.min(m - 1, Math.floor(v / size * m))), i = cell(e.clientY - b.top, b.height); return [i, p.k < 0 ? i : cell(e.clientX - b.left, b.width)] }
    const open = a => pin(p.k < 0 ? [a[0], partner(a[0])] : a)
    let last = null
    const look = later(() => { if (last) hover(at(last), ...tipAt(last)) })
    p.box.addEventListener('pointermove', e => { last = e; look() })
    p.box.addEventListener('pointerleave', () => { last = null; hover(null) })
    p.box.addEventListener('click', e => open(at(e)))
    p.box.addEventListener('keydown', e => {
      const ways = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}, now = focus() || [0, 0], far = e.shiftKey ? 10 : 1, clip = v => Math.max(0, Math.min(m - 1, v))
      if (ways[e.key]) { const [a, b] = ways[e.key], next = focus() ? [clip(now[0] + far * a), clip(now[1] + far * b)] : now; st.pin = null; hover(p.k < 0 ? [next[0], next[0]] : next); speak(st.hover) }
      else if (e.key === 'Enter') open(now)
      else return
      e.preventDefault(); e.stopPropagation()
    })
  })
  root.addEventListener('keydown', e => { if (e.key === 'Escape') { e.stopPropagation(); st.hover = null; pin(null); live.textContent = 'cleared' } })
  const untheme = theme(root, () => { panels.forEach(p => { p.small = null }); paint() }), sizes = new ResizeObserver(paint); panels.forEach(p => sizes.observe(p.box))
  const chosen = () => { const c = [...src.chosen()]; if (c.length === 2 && String(c) !== String(st.pin)) { st.pin = c; show() } }
  src.on('chosen', chosen); show(); chosen()
  root.view = {place: (k, i, j) => { const b = panels[k].base.getBoundingClientRect(); return [b.left + (j + .5) / m * b.width, b.top + (i + .5) / m * b.height] }, state: st, panels}
  return () => { untheme(); sizes.disconnect() }
}

// ---- where the data come from: a kernel, or the page itself
function fromKernel(model) {
  const wait = new Map(), me = Math.random().toString(36).slice(2), near = new Map(); let count = 0
  const heard = (content, buffers) => { const done = wait.get(content?.to); if (done) { wait.delete(content.to); done([content, buffers || []]) } }
  model.on('msg:custom', heard)
  const ask = content => new Promise(done => { const to = me + count++; wait.set(to, done); model.send({...content, to}) }), ons = []
  return {
    meta: model.get('meta'), slow: true, ask, blob: name => model.get('blobs')[name], positions: () => model.get('positions'), status: () => model.get('status'), chosen: () => typed(Uint32Array, model.get('chosen')),
    choose: v => { model.set('chosen', new DataView(v.buffer)); model.save_changes() },
    near: i => { if (!near.has(i)) near.set(i, ask({what: 'near', item: i}).then(([c]) => c.near)); return near.get(i) },
    on: (name, f) => { model.on('change:' + name, f); ons.push([name, f]) },
    close: () => { model.off('msg:custom', heard); ons.forEach(([name, f]) => model.off('change:' + name, f)) },
  }
}
function fromPage(host) {
  const found = name => host.parentNode.querySelector(`script[data-blob="${name}"]`)
  const blob = name => { const s = atob(found(name)?.textContent.trim() || ''), out = new Uint8Array(s.length); for (let k = 0; k < s.length; k++) out[k] = s.charCodeAt(k); return out }
  const meta = JSON.parse(found('meta').textContent), k = meta.k, n = meta.n; let near = null
  return {
    meta, blob, slow: false, status: () => meta.status || '', chosen: () => [], choose: () => {}, on: () => {}, ask: () => new Promise(() => {}), close: () => {},
    positions: () => Object.fromEntries(meta.maps.map(m => [m.name, {xy: blob('map-' + m.name), trust: m.trust}])),
    near: async i => { near ||= typed(Uint32Array, blob('near')); return meta.spaces.map((_, s) => [...near.subarray((s * n + i) * k, (s * n + i + 1) * k)]) },
  }
}
function mount(root, src) { const stop = (src.meta.kind === 'spaces' ? spaces : topology)(root, src); return () => { stop(); src.close() } }
function mountPage() { for (const host of document.querySelectorAll('[data-v2r-view]:not(.v2w)')) mount(host, fromPage(host)) }

export default {render({model, el: root}) { const host = el('div'); root.append(host); return mount(host, fromKernel(model)) }}
export {mount, mountPage}

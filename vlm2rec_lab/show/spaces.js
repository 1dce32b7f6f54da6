// Two spaces and more, linked: the same products in each. It needs views.js behind it.

const ABOUT_PRODUCT =
  'Point at a product, or move to a map with Tab and use the arrow keys. ' +
  'A click or Enter keeps it here; dragging selects; Escape clears.'
const MODES = [
  ['lasso', 'Lasso', 'Draw around points to select them (Shift adds)'],
  ['box', 'Box', 'Drag a box around points to select them (Shift adds)'],
  ['move', 'Move', 'Drag to move, turn the wheel to zoom'],
]
const MANY = 50000 // products; above, the maps show density until one zooms in
const whole = () => ({k: 1, x: 0.5, y: 0.5}) // the view that shows everything

// Points in the unit square by cell, for the nearest one under the pointer.
class Grid {
  constructor(xy) {
    const n = xy.length / 2
    const g = (this.g = Math.max(4, Math.min(256, Math.round(Math.sqrt(n / 2)))))
    const at = (this.at = new Int32Array(g * g + 1))
    const cell = new Int32Array(n)
    this.xy = xy
    for (let i = 0; i < n; i++) at[(cell[i] = this.col(xy[2 * i]) + g * this.col(xy[2 * i + 1])) + 1]++
    for (let c = 0; c < g * g; c++) at[c + 1] += at[c]
    const next = at.slice()
    const order = (this.order = new Int32Array(n))
    for (let i = 0; i < n; i++) order[next[cell[i]]++] = i
  }
  col(v) {
    return Math.max(0, Math.min(this.g - 1, Math.floor(v * this.g)))
  }
  near(x, y, r) {
    let best = -1
    let least = r * r
    for (let b = this.col(y - r); b <= this.col(y + r); b++)
      for (let a = this.col(x - r); a <= this.col(x + r); a++)
        for (let k = this.at[a + this.g * b]; k < this.at[a + this.g * b + 1]; k++) {
          const i = this.order[k]
          const d = (this.xy[2 * i] - x) ** 2 + (this.xy[2 * i + 1] - y) ** 2
          if (d < least) {
            least = d
            best = i
          }
        }
    return best
  }
}

// Positions in the unit square, with one scale for both axes.
function unit(xy) {
  let lo = [Infinity, Infinity]
  let hi = [-Infinity, -Infinity]
  for (let k = 0; k < xy.length; k++) {
    const v = xy[k]
    if (v < lo[k & 1]) lo[k & 1] = v
    if (v > hi[k & 1]) hi[k & 1] = v
  }
  const s = Math.max(hi[0] - lo[0], hi[1] - lo[1]) || 1
  const out = new Float32Array(xy.length)
  for (let k = 0; k < xy.length; k++) out[k] = 0.5 + (xy[k] - (lo[k & 1] + hi[k & 1]) / 2) / s
  return out
}

// Does a point lie inside a polygon?
function within(poly, x, y) {
  let inside = false
  for (let i = 0, j = poly.length - 1; i < poly.length; j = i++) {
    const [a, b] = poly[i]
    const [c, d] = poly[j]
    if (b > y !== d > y && x < ((c - a) * (y - b)) / (d - b) + a) inside = !inside
  }
  return inside
}

function spaces(root, src) {
  const meta = src.meta
  const n = meta.n
  const S = meta.spaces.length
  const {live, tip, place} = frame(root, meta.heading)
  const pictures = new Pictures(src)
  let titles = []
  let ids = []
  const named = () => {
    titles = lines(src.blob('titles'))
    ids = lines(src.blob('ids'))
  }
  if (src.ready) src.ready.then(named) // a large page shows its points before it has arrived
  else named()
  const values = new Values(meta, src)
  const codes = meta.columns.map((_, c) => bytes(src.blob('column' + c)))
  const st = {
    hover: -1,
    pin: -1,
    method: '',
    column: meta.column,
    lines: false,
    mode: 'lasso',
    lit: -1,
    mask: new Uint8Array(n),
    count: 0,
    near: [],
    told: -1,
  }
  const focus = () => (st.hover >= 0 ? st.hover : st.pin)
  let tints = []
  let dims = []
  let ink = ''
  let bg = ''

  // toolbar
  const option = (value, text) => el('option', {value, textContent: text})
  const colourBy = el(
    'select',
    {
      onchange: e => {
        st.column = +e.target.value
        st.lit = -1
        paint()
      },
    },
    option(-1, 'nothing'),
    ...meta.columns.map((c, k) => option(k, c.name)),
  )
  const map = el('select', {
    onchange: e => {
      st.method = e.target.value
      lay()
    },
  })
  const tool = (text, name, title, run, pressed) => {
    const said = {title, 'aria-label': buttonName(text, title)}
    const b = el('button', {type: 'button', textContent: text, ...said, onclick: run})
    if (pressed !== undefined) b.setAttribute('aria-pressed', pressed)
    if (name) b.dataset.tool = name
    return b
  }
  const modes = MODES.map(([m, text, title]) => tool(text, m, title, () => arm(m), m === 'lasso'))
  function arm(m) {
    st.mode = m
    modes.forEach(b => b.setAttribute('aria-pressed', b.dataset.tool === m))
    panels.forEach(p => {
      p.box.classList.toggle('move', m === 'move')
      p.box.classList.add('armed')
    })
  }
  const wire = tool(
    'Lines',
    'lines',
    "Lines between a product's places in the spaces",
    () => {
      st.lines = !st.lines
      wire.setAttribute('aria-pressed', st.lines)
      over()
    },
    false,
  )
  const legend = el('div', {class: 'legend', role: 'group', 'aria-label': 'colours'})
  const wires = el('canvas', {class: 'wires', 'aria-hidden': 'true'})
  const status = el('span')
  const bar = el(
    'div',
    {class: 'bar'},
    el('label', {}, 'Colour', colourBy),
    ...(meta.film ? [] : [el('label', {}, 'Map', map)]),
    el('div', {class: 'tools', role: 'group', 'aria-label': 'what dragging does'}, ...modes),
    el(
      'div',
      {class: 'tools'},
      wire,
      tool('+', 'in', 'Zoom in', () => panels.forEach(p => zoom(p, 1.5))),
      tool('−', 'out', 'Zoom out', () => panels.forEach(p => zoom(p, 1 / 1.5))),
      tool('Whole', 'whole', 'Show everything', () => {
        panels.forEach(p => {
          p.view = whole()
        })
        paint()
      }),
    ),
  )

  // panels
  const panels = meta.spaces.map((name, s) => {
    const ways = 'Arrow keys move from product to product, Enter pins, Space selects, Escape clears.'
    const p = plot(`${name} space, ${word(n)} products. ${ways}`, 'map')
    const said = el('span')
    const short = meta.film ? meta.film.spaces[s % meta.film.spaces.length] : name // its model stands above
    const head = el('div', {class: 'head'}, el('h4', {class: 'h', textContent: short}), said)
    const fig = el('div', {class: 'panel'}, head, p.box)
    Object.assign(p, {s, name, said, view: whole(), path: null, fig})
    p.scale = () => 0.92 * Math.min(p.w, p.h) * p.view.k
    p.at = (x, y) => [p.w / 2 + (x - p.view.x) * p.scale(), p.h / 2 - (y - p.view.y) * p.scale()]
    p.to = i => p.at(p.xy[2 * i], p.xy[2 * i + 1])
    p.back = (x, y) => {
      const k = p.scale()
      return [p.view.x + (x - p.w / 2) / k, p.view.y - (y - p.h / 2) / k]
    }
    listen(p)
    return p
  })
  const grid = el('div', {class: 'panels'}, ...rowsOf(panels), wires)
  // The panels; where several models stand side by side, a row for each under its name.
  function rowsOf(all) {
    const models = meta.film?.models || ['']
    if (models.length < 2) return all.map(p => p.fig)
    const per = all.length / models.length
    return models.map((m, k) =>
      el(
        'div',
        {class: 'model', role: 'group', 'aria-label': m},
        el('h3', {class: 'h', textContent: m}),
        el('div', {class: 'panels'}, ...all.slice(k * per, (k + 1) * per).map(p => p.fig)),
      ),
    )
  }
  const card = el('div', {class: 'item one'})
  const near = el('div', {class: 'near'})
  const strip = el('div', {class: 'strip'})
  const film = meta.film && new Film(meta, src.blob('film'), panels, () => paint(), filmTurned)
  // Another checkpoint: its neighbours, and its figures in words.
  function filmTurned() {
    if (focus() >= 0 && st.told === focus()) neighbours()
    live.textContent = film.said()
    paint()
  }
  const nearIn = p => st.near[(film ? film.now * S : 0) + p.s] || []
  const finder = new Finder({
    root,
    meta,
    src,
    values,
    panels,
    pictures,
    film,
    link: src.name,
    titles: () => titles,
    ids: () => ids,
    select: mask => select(mask),
    paint: () => paint(),
    pin: i => pin(i),
    say: text => {
      status.textContent = text
    },
    shade: i => `rgb(${(bright(i) ? tints : dims)[code(i)]})`,
    state,
    restore,
  })
  root.append(
    bar,
    finder.bar,
    legend,
    ...(film ? [film.bar] : []),
    grid,
    el('p', {class: 'soft note'}, el('span', {textContent: meta.note + ' '}), status),
    el('div', {class: 'foot'}, card, near),
    strip,
    finder.grid,
    live,
    tip,
  )
  // What a link restores. A selection that does not fit in an address is left out, and `left` says how large it is.
  function state() {
    const whole = packed(
      [...st.mask.keys()].filter(i => st.mask[i]),
      n,
    )
    const [chosen, left] = whole.length <= Finder.most ? [whole, 0] : ['', st.count]
    const views = panels.map(p => [p.view.k, p.view.x, p.view.y].map(v => Math.round(v * 1e4) / 1e4))
    return {map: st.method, colour: st.column, lit: st.lit, pin: st.pin, frame: film?.now, views, chosen, left}
  }
  // Show what a link asks for, as far as it fits this view.
  function restore(asked) {
    const place = (v, below) => (Number.isInteger(v) && v >= -1 && v < below ? v : -1)
    st.column = place(asked.colour, meta.columns.length)
    colourBy.value = st.column
    st.lit = place(asked.lit, 256)
    if (typeof asked.map === 'string') st.method = asked.map
    panels.forEach((p, s) => {
      const v = asked.views?.[s]
      if (Array.isArray(v) && v.every(Number.isFinite) && v[0] >= 1 && v[0] <= 200) {
        p.view = {k: v[0], x: v[1], y: v[2]}
      }
    })
    lay()
    if (film) film.go(place(asked.frame, film.frames.length))
    const mask = asked.mask || new Uint8Array(n)
    for (const i of Array.isArray(asked.chosen) ? asked.chosen : []) if (place(i, n) >= 0) mask[i] = 1
    select(mask)
    pin(place(asked.pin, n))
  }

  // Positions of the chosen map.
  function lay() {
    if (film) return paint()
    const all = src.positions()
    const names = Object.keys(all)
    if (!names.includes(st.method)) st.method = names[names.length - 1]
    map.replaceChildren(...names.map(m => option(m, m.toUpperCase())))
    map.value = st.method
    const chosen = all[st.method]
    const packed = chosen.bits === 16
    const xy = packed ? Float32Array.from(typed(Uint16Array, chosen.xy)) : typed(Float32Array, chosen.xy)
    panels.forEach(p => {
      p.xy = unit(xy.subarray(2 * n * p.s, 2 * n * (p.s + 1)))
      p.grid = new Grid(p.xy)
      const trust = all[st.method].trust[p.s]
      p.said.textContent = trust === null ? 'all vectors are equal' : `trustworthiness ${trust.toFixed(2)}`
    })
    paint()
  }
  // The colours of the chosen column, as the theme has them now.
  function palette() {
    const c = meta.columns[st.column]
    ink = tone(root, '--ink')
    bg = tone(root, '--bg')
    const other = mix(rgb(bg), rgb(tone(root, '--soft')), 0.7)
    const series = k => rgb(tone(root, `--c${k + 1}`))
    const stops = RAMP[getComputedStyle(root).colorScheme === 'dark' ? 'dark' : 'light'].map(rgb)
    if (!c) tints = [series(0)]
    else if (c.kind === 'number') {
      tints = Array.from({length: 256}, (_, k) => (k === 255 ? other : ramp(stops, k / 254)))
    } else tints = c.labels.map((_, k) => (k < c.named ? series(k) : other))
    dims = tints.map(t => mix(rgb(bg), t, 0.2))
    drawLegend(c, stops)
  }
  function drawLegend(c, stops) {
    legend.replaceChildren()
    if (!c) return
    if (c.kind === 'number') {
      const style = `background:linear-gradient(90deg,${stops.map(s => `rgb(${s})`)})`
      const end = textContent => el('span', {class: 'soft', textContent})
      legend.append(end(c.lo), el('span', {class: 'ramp', style}), end(c.hi))
      return
    }
    c.labels.forEach((text, k) => legend.append(legendKey(text, k)))
  }
  function legendKey(text, k) {
    const onclick = () => {
      st.lit = st.lit === k ? -1 : k
      paint()
      legend.children[k]?.focus()
    }
    const title = `${text}: bring these to the front` // a long name is cut
    const props = {type: 'button', 'aria-pressed': st.lit === k, title, onclick}
    const dot = el('span', {class: 'dot', style: `background:rgb(${tints[k]})`})
    return el('button', props, dot, el('span', {textContent: text}))
  }
  const code = i => (st.column < 0 ? 0 : codes[st.column][i])
  const bright = i =>
    (!finder.found || finder.found[i]) && (!st.count || st.mask[i]) && (st.lit < 0 || code(i) === st.lit)
  const someDimmed = () => st.count || st.lit >= 0 || finder.found
  function points(p) {
    ;[p.w, p.h, p.d] = fit(p.base, n > 20000 ? 1.5 : 2)
    if (!p.w || !p.h || !p.xy) return
    const g = p.base.getContext('2d')
    g.setTransform(1, 0, 0, 1, 0, 0)
    g.fillStyle = bg
    g.fillRect(0, 0, p.base.width, p.base.height)
    const passes = someDimmed() ? [0, 1] : [1] // where some are dimmed, the bright ones lie on top
    const grow = Math.min(2, Math.sqrt(p.view.k)) * (p.w < 260 ? 0.75 : 1)
    const dense = n > MANY && seenIn(p) > 8000
    p.dense = dense
    if (dense) density(p, g)
    else if (n <= 4000) discs(p, g, passes, grow)
    else squares(p, g, passes, grow)
  }
  // How many points the panel's window holds.
  function seenIn(p) {
    const [x0, y1] = p.back(0, 0)
    const [x1, y0] = p.back(p.w, p.h)
    let seen = 0
    for (let i = 0; i < n; i++) {
      const x = p.xy[2 * i]
      const y = p.xy[2 * i + 1]
      seen += x >= x0 && x <= x1 && y >= y0 && y <= y1
    }
    return seen
  }
  // Very many points: how many lie in each small square, in the mean of their colours. What is dimmed hardly counts.
  function density(p, g) {
    const size = 2 * Math.max(1, Math.round(p.d))
    const [W, H] = [Math.ceil(p.base.width / size), Math.ceil(p.base.height / size)]
    const sum = new Float32Array(4 * W * H)
    const k = (p.scale() * p.d) / size
    const cx = W / 2 - p.view.x * k
    const cy = H / 2 + p.view.y * k
    const plain = !someDimmed()
    let most = 0
    for (let i = 0; i < n; i++) {
      const x = Math.floor(cx + p.xy[2 * i] * k)
      const y = Math.floor(cy - p.xy[2 * i + 1] * k)
      if (x < 0 || y < 0 || x >= W || y >= H) continue
      const t = tints[code(i)]
      const weight = plain || bright(i) ? 1 : 0.04
      const at = 4 * (y * W + x)
      for (let c = 0; c < 3; c++) sum[at + c] += weight * t[c]
      most = Math.max(most, (sum[at + 3] += weight))
    }
    const image = new ImageData(W, H)
    const paper = rgb(bg)
    for (let at = 0; at < sum.length; at += 4) {
      const count = sum[at + 3]
      const level = count && 0.22 + 0.78 * Math.min(1, Math.log1p(count) / Math.log1p(0.6 * most || 1))
      const faint = count < 1 ? count * level : level
      for (let c = 0; c < 3; c++) {
        image.data[at + c] = count ? paper[c] + (sum[at + c] / count - paper[c]) * faint : paper[c]
      }
      image.data[at + 3] = 255
    }
    const small = new OffscreenCanvas(W, H)
    small.getContext('2d').putImageData(image, 0, 0)
    g.imageSmoothingEnabled = false
    g.drawImage(small, 0, 0, W * size, H * size)
  }
  // Few points: a disc each, one path per colour.
  function discs(p, g, passes, grow) {
    const r = grow * (n <= 1000 ? 3.6 : 2.6)
    g.setTransform(p.d, 0, 0, p.d, 0, 0)
    for (const pass of passes) {
      const paths = tints.map(() => null)
      for (let i = 0; i < n; i++) {
        if (passes.length > 1 && +bright(i) !== pass) continue
        const [x, y] = p.to(i)
        const q = (paths[code(i)] ||= new Path2D())
        q.moveTo(x + r, y)
        q.arc(x, y, r, 0, 7)
      }
      g.globalAlpha = pass ? 0.85 : 1
      for (let c = paths.length - 1; c >= 0; c--) {
        if (!paths[c]) continue
        g.fillStyle = `rgb(${pass ? tints[c] : dims[c]})`
        g.fill(paths[c])
      }
    }
    g.globalAlpha = 1
  }
  // Many points: squares of pixels, written straight into the image.
  function squares(p, g, passes, grow) {
    const W = p.base.width
    const H = p.base.height
    const image = g.getImageData(0, 0, W, H)
    const px = new Uint32Array(image.data.buffer)
    const pack = t => ((255 << 24) | (t[2] << 16) | (t[1] << 8) | t[0]) >>> 0
    const shades = [dims.map(pack), tints.map(pack)]
    const size = Math.max(2, Math.round(p.d * grow * (n <= 30000 ? 3 : 2)))
    const k = p.scale() * p.d
    const cx = W / 2 - p.view.x * k
    const cy = H / 2 + p.view.y * k
    const square = (i, shade) => {
      const x = Math.round(cx + p.xy[2 * i] * k - size / 2)
      const y = Math.round(cy - p.xy[2 * i + 1] * k - size / 2)
      if (x < 0 || y < 0 || x + size > W || y + size > H) return
      for (let b = 0, at = y * W + x; b < size; b++, at += W) {
        for (let a = 0; a < size; a++) px[at + a] = shade
      }
    }
    const column = meta.columns[st.column]
    const named = column?.kind === 'words' && column.named < column.labels.length ? column.named : 0
    for (const pass of passes) {
      // "other" lies below the values that have a colour of their own
      for (const below of named ? [true, false] : [false]) {
        for (let i = 0; i < n; i++) {
          if (passes.length > 1 && +bright(i) !== pass) continue
          if (named && code(i) >= named !== below) continue
          square(i, shades[pass][code(i)])
        }
      }
    }
    g.putImageData(image, 0, 0)
  }
  function ring(g, x, y, r, wide) {
    for (const [w, c] of [
      [wide + 2.5, bg],
      [wide, ink],
    ]) {
      g.lineWidth = w
      g.strokeStyle = c
      g.beginPath()
      g.arc(x, y, r, 0, 7)
      g.stroke()
    }
  }
  // Where a product came from and where it goes, over the checkpoints.
  function trail(g, places) {
    g.strokeStyle = ink
    g.lineWidth = 1
    g.globalAlpha = 0.55
    g.beginPath()
    places.forEach((q, k) => g[k ? 'lineTo' : 'moveTo'](...q))
    g.stroke()
    g.globalAlpha = 1
  }
  function lasso(p, g) {
    g.strokeStyle = ink
    g.lineWidth = 1.5
    g.setLineDash([5, 4])
    g.beginPath()
    shape(p).forEach((q, k) => g[k ? 'lineTo' : 'moveTo'](...q))
    g.closePath()
    g.stroke()
    g.setLineDash([])
    g.globalAlpha = 0.07
    g.fillStyle = ink
    g.fill()
    g.globalAlpha = 1
  }
  // What moves with the pointer: rings, lines, the lasso.
  const over = later(() => {
    const i = focus()
    for (const p of panels) {
      const [w, h, d] = fit(p.top)
      const g = p.top.getContext('2d')
      g.setTransform(d, 0, 0, d, 0, 0)
      g.clearRect(0, 0, w, h)
      if (!p.xy || !p.w) continue
      if (i >= 0) {
        if (film) trail(g, film.trail(p, i))
        if (st.told === i) for (const j of nearIn(p)) ring(g, ...p.to(j), 5, 1.3)
        ring(g, ...p.to(i), 8.5, 2.6)
      }
      if (p.path) lasso(p, g)
    }
    linesBetween(i)
  })
  // Lines between a product's places in the spaces.
  function linesBetween(i) {
    const [w, h, d] = fit(wires)
    const g = wires.getContext('2d')
    const home = grid.getBoundingClientRect()
    g.setTransform(d, 0, 0, d, 0, 0)
    g.clearRect(0, 0, w, h)
    if (!st.lines) return
    const chosen = st.count && st.count <= 400 ? [...st.mask.keys()].filter(j => st.mask[j]) : []
    const boxes = panels.map(p => p.base.getBoundingClientRect())
    const line = (j, alpha, wide) => {
      g.globalAlpha = alpha
      g.lineWidth = wide
      g.beginPath()
      panels.forEach((p, s) => {
        const [x, y] = p.to(j)
        if (x >= 0 && y >= 0 && x <= p.w && y <= p.h)
          g.lineTo(x + boxes[s].left - home.left, y + boxes[s].top - home.top)
      })
      g.stroke()
    }
    g.strokeStyle = ink
    chosen.forEach(j => line(j, Math.max(0.07, Math.min(0.45, 14 / chosen.length)), 1))
    if (i >= 0) line(i, 0.9, 1.8)
  }
  let again = false
  const paint = later(() => {
    // JupyterLab hides everything while it changes its theme: what has no size is drawn a moment later
    if (!panels[0].box.clientWidth) {
      if (!again) setTimeout(paint, 300)
      again = !again
      return
    }
    again = false
    palette()
    panels.forEach(points)
    over()
  })

  // what is known of the product under the pointer
  let turn = 0
  function show() {
    const i = focus()
    const mine = ++turn
    over()
    card.style.gridColumn = i < 0 ? '1/-1' : ''
    if (i < 0) {
      card.replaceChildren(el('p', {class: 'soft', textContent: ABOUT_PRODUCT}))
      near.replaceChildren()
      return
    }
    describe(i)
    if (st.told === i) return neighbours()
    const ask = async () => {
      if (mine !== turn) return
      const found = await src.near(i)
      if (mine !== turn) return
      st.near = found
      st.told = i
      neighbours()
      over()
    }
    setTimeout(ask, src.slow && st.pin !== i ? 90 : 0)
  }
  function describe(i) {
    const facts = el('dl')
    const fact = (name, value) => facts.append(el('dt', {textContent: name}), el('dd', {textContent: value}))
    fact('id', ids[i])
    if (titles.length) meta.columns.forEach((c, k) => fact(c.name, values.text(k, i) || 'missing'))
    values.lacking(i).forEach(m => fact(m, 'missing'))
    const name = el('p', {class: 'name', textContent: titles[i]})
    card.replaceChildren(...(meta.pictures ? [pictures.tile(i, 104, titles[i])] : []), name, facts)
  }
  function small(j, both) {
    const b = el('button', {
      type: 'button',
      title: titles[j] + (both ? ' (near in every space)' : ''),
      'aria-label': titles[j],
      class: both ? 'both' : '',
      onclick: () => pin(j),
    })
    if (meta.pictures) b.append(pictures.tile(j, root.clientWidth < 430 ? 44 : 50, titles[j]))
    else {
      b.classList.add('word')
      b.textContent = titles[j]
    }
    b.classList.add('pic')
    return b
  }
  function neighbours() {
    const lists = panels.map(nearIn)
    const common = S > 1 ? lists.reduce((a, b) => a.filter(j => b.includes(j))) : []
    const dotted = common.length ? ', dotted' : ''
    const shared = S > 1 ? `${common.length} of ${lists[0].length} in every space${dotted}` : ''
    const row = p => {
      const note = el('small', {textContent: p.s ? '' : shared})
      const head = el('h4', {class: 'h'}, `Nearest in ${p.name} `, note)
      const tiles = lists[p.s].map(j => small(j, common.includes(j)))
      return el('div', {}, head, el('div', {class: 'row'}, ...tiles))
    }
    near.replaceChildren(...panels.map(row))
  }
  function hover(i, x, y) {
    if (i !== st.hover) {
      st.hover = i
      if (i >= 0)
        tip.replaceChildren(
          ...(meta.pictures ? [pictures.tile(i, 72, titles[i])] : []),
          el('span', {textContent: titles[i]}),
        )
      show()
    }
    tip.classList.toggle('on', i >= 0 && x !== undefined)
    if (i >= 0 && x !== undefined) place(x, y)
  }
  function pin(i) {
    st.pin = i
    st.hover = -1
    tip.classList.remove('on')
    show()
    if (i >= 0) speak(i)
  }
  function speak(i) {
    live.textContent = titles[i]
    src.near(i).then(found => {
      if (focus() !== i) return
      const first = p =>
        found[(film ? film.now * S : 0) + p.s]
          .slice(0, 3)
          .map(j => titles[j])
          .join(', ')
      live.textContent = `${titles[i]}. ` + panels.map(p => `Nearest in ${p.name}: ${first(p)}`).join('. ')
    })
  }

  // selection
  function select(mask, tell = true) {
    st.mask = mask
    st.count = 0
    for (let i = 0; i < n; i++) st.count += mask[i]
    const chosen = new Uint32Array(st.count)
    for (let i = 0, k = 0; i < n; i++) if (mask[i]) chosen[k++] = i
    if (tell) src.choose(chosen)
    drawStrip(chosen)
    if (!st.count || !finder.grid.hidden) finder.gallery([...chosen])
    if (tell) live.textContent = `${word(st.count)} selected`
    paint()
  }
  function drawStrip(chosen) {
    strip.replaceChildren(
      el('strong', {textContent: st.count ? `${word(st.count)} selected` : 'None selected'}),
    )
    if (!st.count) return
    const room = Math.max(6, Math.min(14, Math.floor((root.clientWidth - 600) / 66)))
    const first = [...chosen.slice(0, room)]
    const onclick = () => copy([...chosen].map(i => ids[i]).join('\n'), button)
    const button = el('button', {type: 'button', textContent: 'Copy ids', onclick})
    const clear = () => select(new Uint8Array(n))
    const csv = el('button', {
      type: 'button',
      textContent: 'Copy as CSV',
      onclick: () => copy(finder.csv(chosen), csv),
    })
    const grid = el('button', {type: 'button', textContent: 'Grid', onclick: () => finder.gallery([...chosen])})
    grid.title = 'All of them with their pictures'
    strip.append(button, csv, grid, el('button', {type: 'button', textContent: 'Clear', onclick: clear}))
    strip.append(...first.map(i => small(i, false)))
    const more = st.count - first.length
    if (more > 0) strip.append(el('span', {class: 'soft', textContent: `and ${word(more)} more`}))
  }
  // The corners of what was drawn: the lasso's path, or the box between its ends.
  function shape(p) {
    if (st.mode !== 'box') return p.path
    const [a, b] = p.path[0]
    const [c, d] = p.path.at(-1)
    // prettier-ignore
    return [[a, b], [c, b], [c, d], [a, d]]
  }
  function finish(p, add) {
    const poly = shape(p).map(q => p.back(...q))
    const xs = poly.map(q => q[0])
    const ys = poly.map(q => q[1])
    const x0 = Math.min(...xs)
    const x1 = Math.max(...xs)
    const y0 = Math.min(...ys)
    const y1 = Math.max(...ys)
    const mask = add ? st.mask.slice() : new Uint8Array(n)
    for (let i = 0; i < n; i++) {
      const x = p.xy[2 * i]
      const y = p.xy[2 * i + 1]
      if (x >= x0 && x <= x1 && y >= y0 && y <= y1 && within(poly, x, y)) mask[i] = 1
    }
    select(mask)
  }
  function zoom(p, factor, x = p.w / 2, y = p.h / 2) {
    const [a, b] = p.back(x, y)
    const k = Math.max(1, Math.min(200, p.view.k * factor))
    const r = p.view.k / k
    p.view = k === 1 ? whole() : {k, x: a + (p.view.x - a) * r, y: b + (p.view.y - b) * r}
    paint()
  }
  // The next product in a direction.
  function step(p, dx, dy) {
    let i = focus()
    let best = -1
    let least = Infinity
    const [x, y] = i >= 0 ? p.to(i) : [p.w / 2, p.h / 2]
    for (let j = 0; j < n; j++) {
      if (j === i) continue
      const [a, b] = p.to(j)
      const along = (a - x) * dx + (b - y) * dy
      const aside = Math.abs((a - x) * dy) + Math.abs((b - y) * dx)
      if ((i >= 0 && (along <= 0 || aside > along)) || a < 0 || b < 0 || a > p.w || b > p.h) continue
      const d = (a - x) ** 2 + (b - y) ** 2
      if (d < least) {
        least = d
        best = j
      }
    }
    if (best >= 0) {
      st.pin = -1
      hover(best)
      speak(best)
    }
  }
  function listen(p) {
    const at = e => {
      const b = p.base.getBoundingClientRect()
      return [e.clientX - b.left, e.clientY - b.top]
    }
    let drag = null
    let last = null
    const look = later(() => {
      if (last && !p.path && p.xy) {
        const [x, y] = at(last)
        const [a, b] = p.back(x, y)
        hover(p.grid.near(a, b, 14 / p.scale()), ...tipAt(last))
      }
    })
    p.box.addEventListener('pointermove', e => {
      if (!drag) {
        last = e
        return look()
      }
      const [x, y] = at(e)
      if (st.mode === 'move') {
        const k = p.scale()
        p.view.x -= (x - drag.x) / k
        p.view.y += (y - drag.y) / k
        drag.moved += Math.abs(x - drag.x) + Math.abs(y - drag.y)
        drag.x = x
        drag.y = y
        return paint()
      }
      if (!p.path && Math.hypot(x - drag.x, y - drag.y) > 5) {
        p.path = [[drag.x, drag.y]]
        hover(-1)
      }
      if (p.path) {
        p.path.push([x, y])
        over()
      }
    })
    p.box.addEventListener('pointerdown', e => {
      if (e.button) return
      const [x, y] = at(e)
      drag = {x, y, moved: 0}
      p.box.setPointerCapture(e.pointerId)
    })
    p.box.addEventListener('pointerup', e => {
      if (!drag) return
      const was = drag
      const path = p.path
      drag = null
      if (path) {
        finish(p, e.shiftKey)
        p.path = null
        return over()
      }
      if (was.moved > 5) return
      const [a, b] = p.back(...at(e))
      const i = p.grid.near(a, b, 14 / p.scale())
      pin(i === st.pin ? -1 : i)
      if (i >= 0 && i === st.pin) intoSight(card)
    })
    p.box.addEventListener('pointercancel', () => {
      drag = p.path = null
      over()
    })
    p.box.addEventListener('pointerleave', () => {
      last = null
      if (!drag) hover(-1)
    })
    p.box.addEventListener(
      'wheel',
      e => {
        if (st.mode !== 'move' && !e.ctrlKey && !e.metaKey) return
        e.preventDefault()
        zoom(p, Math.exp(-e.deltaY / 400), ...at(e))
      },
      {passive: false},
    )
    p.box.addEventListener('keydown', e => {
      const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}
      const i = focus()
      if (ways[e.key]) step(p, ...ways[e.key])
      else if (e.key === 'Enter') pin(i)
      else if (e.key === ' ' && i >= 0) {
        const mask = st.mask.slice()
        mask[i] = 1 - mask[i]
        select(mask)
      } else if (e.key === '+' || e.key === '=') zoom(p, 1.5, ...(i >= 0 ? p.to(i) : []))
      else if (e.key === '-') zoom(p, 1 / 1.5)
      else if (e.key === '0') {
        p.view = whole()
        paint()
      } else return
      e.preventDefault()
      e.stopPropagation()
    })
  }
  root.addEventListener('keydown', e => {
    if (e.key !== 'Escape') return
    e.stopPropagation()
    st.lit = st.pin = -1
    panels.forEach(p => {
      p.path = null
    })
    hover(-1)
    finder.clear()
    show()
    if (st.count) select(new Uint8Array(n))
    else paint()
    live.textContent = 'cleared'
  })

  // start
  colourBy.value = st.column
  const untheme = theme(paint, paint.now)
  const sizes = new ResizeObserver(paint)
  panels.forEach(p => sizes.observe(p.box))
  const chosen = () => {
    const mask = new Uint8Array(n)
    for (const i of src.chosen()) mask[i] = 1
    if (mask.some((v, i) => v !== st.mask[i])) select(mask, false)
  }
  const say = () => {
    status.textContent = src.status()
  }
  src.on('positions', () => {
    st.method = ''
    lay()
    say()
  })
  src.on('status', say)
  src.on('chosen', chosen)
  lay()
  say()
  select(st.mask, false)
  chosen()
  show()
  if (src.ready) src.ready.then(() => finder.restore())
  else finder.restore()
  root.view = {
    finder,
    place: (s, i) => {
      const b = panels[s].base.getBoundingClientRect()
      const [x, y] = panels[s].to(i)
      return [b.left + x, b.top + y]
    },
    state: st,
    panels,
    film,
  }
  return () => {
    film?.close()
    untheme()
    sizes.disconnect()
  }
}

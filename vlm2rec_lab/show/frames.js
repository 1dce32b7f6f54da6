// The checkpoints of a training, one frame each: a slider, a play button, and the figures under every space.
// It stands before spaces.js and takes its panels; views.js behind both has the small tools.

const CALM = matchMedia('(prefers-reduced-motion: reduce)')
const TWEEN = 600 // milliseconds from one frame to the next
const STAY = 1500 // milliseconds that a frame is shown while it plays

// A line of values with a dot at one of them, all panels on one scale. A missing value is a gap.
function spark(values, top, at) {
  const [w, h, pad] = [92, 24, 4]
  const svg = (tag, props) => {
    const e = document.createElementNS('http://www.w3.org/2000/svg', tag)
    for (const [k, v] of Object.entries(props)) e.setAttribute(k, v)
    return e
  }
  const x = k => pad + (k * (w - 2 * pad)) / Math.max(1, values.length - 1)
  const y = v => h - pad - (v / (top || 1)) * (h - 2 * pad)
  const out = svg('svg', {viewBox: `0 0 ${w} ${h}`, width: w, height: h, 'aria-hidden': 'true'})
  let path = ''
  values.forEach((v, k) => {
    if (v !== null) path += `${path && values[k - 1] !== null ? 'L' : 'M'}${x(k)} ${y(Math.max(0, v))}`
  })
  out.append(svg('path', {d: path, class: 'course'}))
  if (values[at] !== null) out.append(svg('circle', {cx: x(at), cy: y(Math.max(0, values[at])), r: 3.5}))
  return out
}

class Film {
  // `moved` is called while points move, `turned` when another frame is shown.
  constructor(meta, blob, panels, moved, turned) {
    const {frames, models, figures} = meta.film
    Object.assign(this, {frames, models, figures, panels, moved, turned, now: 0, n: meta.n, timer: 0, raf: 0})
    const packed = typed(Uint16Array, blob)
    this.xy = Float32Array.from(packed, v => v / 65535)
    this.tops = figures.map(f => Math.max(...f.values.flat().filter(v => v !== null), 1e-9))
    panels.forEach(p => {
      p.figures = el('dl', {class: 'figures'})
      p.fig.append(p.figures)
    })
    this.bar = this.controls()
    this.show(0)
  }
  at(f, s) {
    const from = 2 * this.n * (f * this.panels.length + s)
    return this.xy.subarray(from, from + 2 * this.n)
  }
  controls() {
    const last = this.frames.length - 1
    this.play = el('button', {type: 'button', class: 'play', onclick: () => this.run(!this.timer)})
    this.slider = el('input', {
      type: 'range',
      min: 0,
      max: last,
      step: 1,
      value: 0,
      'aria-label': 'Checkpoint',
      oninput: e => this.press(+e.target.value),
      onkeydown: e => {
        if (e.key !== 'Escape') e.stopPropagation()
      },
    })
    this.name = el('strong', {class: 'frame'})
    this.place = el('span', {class: 'soft'})
    this.stops = this.frames.map((f, k) =>
      el('button', {type: 'button', textContent: f, onclick: () => this.press(k)}),
    )
    const stops = {class: 'stops', role: 'group', 'aria-label': 'checkpoints'}
    return el(
      'div',
      {class: 'film', role: 'group', 'aria-label': 'before and after'},
      el('div', {class: 'turn'}, this.play, this.slider, el('span', {class: 'said'}, this.name, ' ', this.place)),
      ...(last < 12 ? [el('div', stops, ...this.stops)] : []),
    )
  }
  press(f) {
    this.run(false)
    this.go(f)
  }
  // Play from here to the last frame; from the first, where the last is shown.
  run(on) {
    clearTimeout(this.timer)
    this.timer = 0
    if (on) {
      const next = (wait, f) => {
        this.timer = setTimeout(() => {
          this.go(f)
          if (f < this.frames.length - 1) next(STAY, f + 1)
          else this.run(false)
        }, wait)
      }
      const end = this.now === this.frames.length - 1
      next(end ? 0 : 150, end ? 0 : this.now + 1)
    }
    this.label()
  }
  label() {
    this.play.textContent = this.timer ? 'Pause' : 'Play'
    this.play.setAttribute('aria-label', this.timer ? 'Pause' : 'Play the checkpoints one after the other')
  }
  go(f) {
    if (f === this.now || f < 0 || f >= this.frames.length) return
    const from = this.panels.map(p => p.xy.slice())
    const start = performance.now()
    this.show(f)
    this.turned()
    cancelAnimationFrame(this.raf)
    if (CALM.matches) return this.moved()
    const draw = now => {
      const t = Math.min(1, Math.max(0, (now - start) / TWEEN))
      const ease = t * t * (3 - 2 * t)
      this.panels.forEach((p, s) => {
        const to = this.at(f, s)
        p.xy = t < 1 ? from[s].map((v, k) => v + (to[k] - v) * ease) : to
      })
      this.moved()
      if (t < 1) this.raf = requestAnimationFrame(draw)
    }
    draw(start)
  }
  show(f) {
    this.now = f
    this.panels.forEach((p, s) => {
      p.xy = this.at(f, s)
      p.grid = new Grid(p.xy)
      p.figures.replaceChildren(...this.figures.map((g, k) => this.figure(g, this.tops[k], f, s)))
    })
    const [name, place] = [this.frames[f], `${f + 1} of ${this.frames.length}`]
    this.name.textContent = name
    this.place.textContent = place
    this.slider.value = f
    this.slider.setAttribute('aria-valuetext', `${name}, ${place}`)
    this.stops.forEach((b, k) => b.setAttribute('aria-pressed', k === f))
    this.label()
  }
  figure(g, top, f, s) {
    const value = g.values[f][s]
    const said = value === null ? 'unknown' : value.toFixed(g.digits)
    const course = spark(
      g.values.map(row => row[s]),
      top,
      f,
    )
    return el('div', {}, el('dt', {textContent: g.name}), el('dd', {textContent: said}), course)
  }
  // What the frame shows, in words.
  said() {
    const g = this.figures[0]
    const each = this.panels.map((p, s) => {
      const v = g.values[this.now][s]
      return `${p.name} ${v === null ? 'unknown' : v.toFixed(g.digits)}`
    })
    return `${this.frames[this.now]}. ${g.name}: ${each.join(', ')}`
  }
  // Where a product was in every frame, as places of a panel.
  trail(p, i) {
    return this.frames.map((_, f) => {
      const xy = this.at(f, p.s)
      return p.at(xy[2 * i], xy[2 * i + 1])
    })
  }
  close() {
    clearTimeout(this.timer)
    cancelAnimationFrame(this.raf)
  }
}

// What the live widgets share: elements, numbers in words, colours and scales. It stands before chart.js or shelf.js.
// Words from data reach the page through textContent and attributes only, never as markup.

const NS = 'http://www.w3.org/2000/svg'
const DASH = ['', '7 4', '2 3', '9 3 2 3'] // one run after another

// A new element, in SVG where its parent is.
function add(parent, tag, attributes = {}, text) {
  const svg = tag === 'svg' || (parent && parent.namespaceURI === NS)
  const n = svg ? document.createElementNS(NS, tag) : document.createElement(tag)
  for (const [k, v] of Object.entries(attributes)) n.setAttribute(k, v)
  if (text !== undefined) n.textContent = text
  if (parent) parent.append(n)
  return n
}

// The series of the theme are --c1, --c2, ...; a line without a modality is drawn in ink.
const colour = tint => (tint < 0 ? 'var(--ink)' : `var(--c${tint + 1})`)

function short(v) {
  if (v === null || v === undefined || !isFinite(v)) return '–'
  const a = Math.abs(v)
  if (a === 0) return '0'
  return a >= 1e4 || a < 0.001 ? v.toExponential(0) : String(Number(v.toPrecision(3)))
}

// Ticks of a logarithmic axis from 10 ** lo to 10 ** hi.
function decades(lo, hi) {
  const by = Math.ceil((hi - lo) / 4)
  const fine = hi - lo < 2 ? [1, 3] : [1]
  const ticks = []
  for (let e = Math.floor(lo); e <= hi; e += by) {
    for (const m of fine) {
      const at = Math.log10(m) + e
      if (at >= lo && at <= hi) ticks.push(m * 10 ** e)
    }
  }
  return ticks
}

// Ticks of a plain axis from a to b, about three of them.
function rounds(a, b) {
  const raw = (b - a) / 3
  const unit = 10 ** Math.floor(Math.log10(raw))
  const by = unit * [1, 2, 5, 10].find(m => m * unit >= raw * 0.999)
  const ticks = []
  for (let k = Math.ceil(a / by); k * by <= b; k++) ticks.push(Number((k * by).toPrecision(6)))
  return ticks
}

// An upright scale: `at(value)` in pixels, and the values that get a tick.
function scale(values, top, height, log, zero) {
  const f = log ? Math.log10 : v => v
  let lo = Infinity
  let hi = -Infinity
  for (const v of values) {
    if (v === null || !isFinite(v) || (log && v <= 0)) continue
    lo = Math.min(lo, f(v))
    hi = Math.max(hi, f(v))
  }
  if (lo > hi) [lo, hi] = [0, 1]
  if (zero) lo = Math.min(0, lo)
  const pad = Math.max((hi - lo) * 0.06, log ? 0.04 : Math.abs(hi) * 0.02 + 1e-6)
  if (!zero || lo < 0) lo -= pad
  hi += pad
  const at = v => top + height * (1 - (f(v) - lo) / (hi - lo))
  if (log && hi - lo > 1) return {at, ticks: decades(lo, hi)}
  return {at, ticks: log ? rounds(10 ** lo, 10 ** hi) : rounds(lo, hi)}
}

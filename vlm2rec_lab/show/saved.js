// A linked view that a notebook has kept. It is unpacked when it comes into sight, unless the widget itself is alive:
// until then, and where no script runs, the still picture before it is what one sees.
;(() => {
  const WAIT = 300 // ms between two looks at a widget that is still being loaded

  // JupyterLab, Notebook 7 and pages of nbconvert: the widget stands two outputs before this, its picture one.
  const before = (host, n) => {
    let e = host.closest('.jp-OutputArea-child')
    for (; e && n; n--) e = e.previousElementSibling
    return e
  }
  const views = e => [...(e?.querySelectorAll('.v2w, .v2l') ?? [])].filter(v => !v.closest('.v2r-saved'))
  const named = mark => document.querySelector(`[data-v2r-mark="${mark}"]`) // elsewhere: by the widget's mark

  function state(host) {
    const widget = before(host, 2)
    if (views(widget).length || named(host.dataset.of)) return 'alive'
    const text = widget?.querySelector('.jp-OutputArea-output')?.textContent ?? ''
    return /^Loading widget/.test(text) ? 'loading' : /^Error displaying widget/.test(text) ? 'dead' : 'none'
  }

  async function unpack(host) {
    const packed = host.querySelector('script[type="text/plain"]')?.textContent.trim()
    if (!packed || host.dataset.on) return
    host.dataset.on = 'opening'
    const raw = Uint8Array.from(atob(packed), c => c.charCodeAt(0))
    const text = new Blob([raw]).stream().pipeThrough(new DecompressionStream('deflate'))
    const inner = document.createElement('div')
    const note = document.createElement('p')
    note.textContent = host.dataset.note
    note.hidden = !host.dataset.note
    const page = new DOMParser().parseFromString(await new Response(text).text(), 'text/html')
    inner.append(...page.head.childNodes, ...page.body.childNodes)
    host.append(note, inner)
    for (const old of inner.querySelectorAll('script:not([type="text/plain"])')) {
      const fresh = document.createElement('script')
      fresh.type = old.type
      fresh.textContent = old.textContent
      old.replaceWith(fresh)
    }
    host.dataset.on = 'yes'
  }

  async function look(host, tries = 0) {
    const found = state(host)
    if (found === 'alive' || !host.isConnected) return
    if (found === 'loading' || (found === 'none' && tries < 4)) {
      setTimeout(() => look(host, tries + 1), WAIT)
      return
    }
    if (found === 'dead') before(host, 2).classList.add('v2r-dead')
    try {
      await unpack(host)
    } catch {
      host.dataset.on = '' // an old browser: the still picture stays
    }
  }

  for (const host of document.querySelectorAll('.v2r-saved:not([data-seen])')) {
    host.dataset.seen = 'yes'
    const picture = before(host, 1)?.querySelector('.jp-RenderedImage img:not([alt])')
    if (picture) picture.alt = host.dataset.alt
    new IntersectionObserver(seen => seen.some(s => s.isIntersecting) && look(host)).observe(host)
    addEventListener('beforeprint', () => look(host, 9))
  }
})()

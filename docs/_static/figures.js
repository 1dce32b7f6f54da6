// Draws the figures of a page when they come into view, in the colours of its theme, again when the theme changes, and
// all of them before a page is printed, on white.
(function () {
  let printing = false;
  const dark = () => !printing && document.documentElement.dataset.theme === 'dark';
  function themed(layout) {
    const ink = dark() ? '#ced6dd' : '#323232',
      grid = dark() ? '#3a414b' : '#e4e8ee';
    const axis = { gridcolor: grid, zerolinecolor: grid, linecolor: grid };
    const out = JSON.parse(JSON.stringify(layout));
    const base = ((out.template = out.template || {}).layout = out.template.layout || {});
    Object.assign(base, { paper_bgcolor: 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)' });
    base.font = Object.assign({}, base.font, { color: ink, family: 'inherit' });
    for (const a of ['xaxis', 'yaxis']) base[a] = Object.assign({}, base[a], axis);
    for (const k of ['paper_bgcolor', 'plot_bgcolor']) delete out[k];
    delete out.width;
    out.autosize = true;
    return out;
  }
  function draw(place) {
    const f = place.figure,
      beside = new Set(
        Object.entries(f.layout)
          .filter(([k]) => k.startsWith('xaxis'))
          .map(([, a]) => (a.domain || [0])[0]),
      ).size;
    if (beside > 2) place.style.minWidth = '640px'; // three panels side by side scroll on a phone
    const narrow = place.clientWidth < 560,
      layout = themed(f.layout);
    if (narrow) narrowed(layout, place.clientWidth);
    name(place, f.layout);
    return Plotly.react(place, f.data, layout, {
      responsive: true,
      displaylogo: false,
      displayModeBar: narrow ? false : 'hover',
    }).then(() => place.classList.add('drawn'));
  }
  function name(place, layout) {
    // what a screen reader says of the figure: its title, its axes and what is drawn in it
    const some = (texts, most) => {
      const all = [...new Set(texts.filter(Boolean))];
      return all.slice(0, most).join(', ') + (all.length > most ? ` and ${all.length - most} more` : '');
    };
    const axes = Object.entries(layout)
      .filter(([k, a]) => /^[xy]axis/.test(k) && a.title && a.title.text)
      .map(([, a]) => a.title.text);
    const title = (layout.title && layout.title.text) || 'Figure';
    const panels = some((layout.annotations || []).map(a => a.text), 6);
    const drawn = some(place.figure.data.map(d => d.name), 12);
    const parts = [title, axes.length && `axes: ${some(axes, 6)}`];
    parts.push(panels && `panels: ${panels}`, drawn && `drawn: ${drawn}`);
    place.setAttribute('role', 'img');
    const words = parts.filter(Boolean).join('; ').replace(/<[^>]*>/g, ' ');
    place.setAttribute('aria-label', words.replace(/\s+/g, ' ').trim());
  }
  function narrowed(layout, width) {
    layout.margin = Object.assign({}, layout.margin, { l: 42, r: 12 });
    layout.font = Object.assign({}, layout.font, { size: 10 });
    if (layout.title && layout.title.text) layout.title.text = wrapped(layout.title.text, Math.floor(width / 7.5));
    if (layout.title) layout.title.font = Object.assign({}, layout.title.font, { size: 12 });
    if (layout.legend && layout.legend.orientation === 'h')
      layout.legend = Object.assign({}, layout.legend, { x: 0, xanchor: 'left', y: -0.18, yanchor: 'top' });
    for (const a of layout.annotations || []) a.font = Object.assign({}, a.font, { size: 9 });
  }
  function wrapped(text, most) {
    return text
      .split('<br>')
      .map(line => {
        let out = '',
          n = 0;
        for (const w of line.split(' ')) {
          if (n + w.length > most && n) {
            out += '<br>';
            n = 0;
          } else if (n) out += ' ';
          out += w;
          n += w.length + 1;
        }
        return out;
      })
      .join('<br>');
  }
  function pages() {
    // saved pages inside a page: as high as they are, in its theme
    for (const frame of document.querySelectorAll('iframe.lab-page')) {
      const fit = () => {
        const inside = frame.contentDocument;
        if (!inside || !inside.body) return;
        inside.documentElement.dataset.theme = dark() ? 'dark' : 'light';
        inside.body.style.background = 'transparent';
        const high = inside.body.scrollHeight + 12;
        if (Math.abs(high - frame.clientHeight) > 4) frame.style.height = high + 'px';
      };
      const watch = () => {
        fit();
        new ResizeObserver(fit).observe(frame.contentDocument.body);
      };
      if (
        frame.contentDocument &&
        frame.contentDocument.readyState === 'complete' &&
        frame.contentDocument.body.childElementCount
      )
        watch();
      frame.addEventListener('load', watch);
      new MutationObserver(fit).observe(document.documentElement, {
        attributes: true,
        attributeFilter: ['data-theme'],
      });
    }
  }
  function start() {
    pages();
    const places = [...document.querySelectorAll('.lab-figure')];
    for (const p of places) {
      const s = p.querySelector('script');
      p.figure = JSON.parse(s.textContent);
      s.remove();
    }
    const eye = new IntersectionObserver(
      seen => {
        for (const e of seen)
          if (e.isIntersecting) {
            eye.unobserve(e.target);
            draw(e.target);
          }
      },
      { rootMargin: '300px' },
    );
    places.forEach(p => eye.observe(p));
    const redraw = () => places.forEach(p => p.classList.contains('drawn') && draw(p));
    new MutationObserver(redraw).observe(document.documentElement, {
      attributes: true,
      attributeFilter: ['data-theme'],
    });
    addEventListener('beforeprint', () => {
      printing = true;
      places.forEach(draw);
    });
    addEventListener('afterprint', () => {
      printing = false;
      redraw();
    });
  }
  if (document.readyState === 'loading') document.addEventListener('DOMContentLoaded', start);
  else start();
})();

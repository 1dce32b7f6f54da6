"Pages judged by axe-core: what keeps people from using them."

RULES = ('wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice')
RUN = """([where, tags]) => axe.run(where || document, {
  resultTypes: ['violations'], runOnly: {type: 'tag', values: tags}})"""


def hindrances(
    page,  # of Playwright
    axe,  # the script
    where=None,  # CSS selector of a part; None: all of the page, frames included
):  # -> list of str, empty where nothing hinders
    "Serious and critical findings, a line for each kind, with the first elements."
    for frame in page.frames:
        frame.evaluate(axe)
    found = page.evaluate(RUN, [where, RULES])['violations']
    return [
        f'{v["impact"]}: {v["id"]}, {len(v["nodes"])} times, such as {v["nodes"][0]["html"][:200]} '
        f'({" ".join(v["nodes"][0]["failureSummary"].split())})'
        for v in found
        if v['impact'] in ('serious', 'critical')
    ]

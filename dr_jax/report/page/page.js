/* The page: it unpacks its data, or asks the server that it came from, and shows one of three views. */

const POLL_MS = 2000;
const DEADLINE_MS = 20000;
const view = { runs: [], charts: new Map(), episodes: null, columns: [], block: 1, live: false };

function byId(id) {
  return document.getElementById(id);
}

/* An episode's row of the index as an object, with the text that the search looks through. */
function indexed(run, values, at) {
  const row = { run, at };
  view.columns.forEach((name, column) => (row[name] = values[column]));
  row.score = row.reward ?? (row.step == null && row.outcome !== 'world_failed' ? row.f1 : null);
  row.text = [row.question, row.answer, ...row.answers, row.asked, row.id].join('\n').toLowerCase();
  return row;
}

function takeRun(run, at) {
  run.at = at;
  run.rows = run.index.map((values, number) => indexed(run, values, number));
  return run;
}

function linesOf(id) {
  const several = view.runs.length > 1;
  const labels = [...new Set(view.runs.flatMap((run) => Object.keys(run.lines[id] ?? {})))];
  return view.runs.flatMap((run) => labels.filter((label) => run.lines[id]?.[label]).map((label) =>
    ({ label, run: run.name, colour: (several ? run.at : labels.indexOf(label)) % COLOURS, points: run.lines[id][label] })));
}

function drawOverview(charts) {
  const place = byId('overview');
  const several = view.runs.length > 1;
  const legend = several ? element('p', { class: 'runs' }, view.runs.map((run) => element('span', { class: `c${run.at % COLOURS}` }, element('i', {}), run.name))) : null;
  const top = view.runs.map((run) => [several ? element('h2', { class: `c${run.at % COLOURS}` }, element('i', {}), run.name) : null, tiles(run)]);
  const head = element('div', { id: 'head-of-runs' }, top, evaluations(view.runs));
  if (byId('head-of-runs')) byId('head-of-runs').replaceWith(head);
  else place.append(head, legend ?? '', element('div', { id: 'charts' }));
  for (const group of [...new Set(charts.map((chart) => chart.group))]) {
    const known = charts.filter((chart) => chart.group === group && linesOf(chart.id).length);
    if (!known.length) continue;
    const id = `group-${group.replaceAll(' ', '-')}`;
    if (!byId(id)) byId('charts').append(element('h2', {}, group), element('div', { class: 'grid', id }));
    for (const chart of known) {
      if (!view.charts.has(chart.id)) {
        view.charts.set(chart.id, new LineChart(chart, several));
        byId(id).append(view.charts.get(chart.id).node);
      }
      view.charts.get(chart.id).show(linesOf(chart.id));
    }
  }
  anyMetric();
}

/* A chart of whatever metric one likes to see. */
function anyMetric() {
  const names = [...new Set(view.runs.flatMap((run) => Object.keys(run.metrics)))].filter((name) => name !== 'step').sort();
  if (!names.length) return;
  if (!view.any) {
    const select = element('select', { 'aria-label': 'Metric', onchange: anyMetric });
    view.any = { select, chart: new LineChart({ id: 'any', title: 'Any number of metrics.jsonl', about: '' }, true) };
    const shown = view.any.chart.node;
    shown.querySelector('figcaption p').replaceWith(select);
    byId('charts').append(element('h2', {}, 'Anything else'), element('div', { class: 'grid' }, shown));
  }
  const { select, chart } = view.any;
  const kept = select.value || 'wall_s';
  select.replaceChildren(...names.map((value) => element('option', { value }, value)));
  select.value = names.includes(kept) ? kept : names[0];
  chart.show(view.runs.map((run) => {
    const values = run.metrics[select.value] ?? [];
    const points = values.map((value, at) => [run.metrics.step[at], value]).filter((point) => typeof point[1] === 'number');
    return { label: select.value, run: run.name, colour: run.at % COLOURS, points };
  }));
}

function drawAll(charts) {
  byId('title').textContent = view.runs.map((run) => run.name).join(', ');
  drawOverview(charts);
  view.episodes.show(view.runs.flatMap((run) => run.rows));
  settings(view.runs, byId('settings'));
}

function route() {
  const [name, run, at] = location.hash.slice(1).split('/');
  const shown = ['overview', 'episodes', 'settings'].includes(name) ? name : 'overview';
  for (const id of ['overview', 'episodes', 'settings']) byId(id).hidden = id !== shown;
  for (const link of document.querySelectorAll('nav a')) {
    if (link.hash === `#${shown}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  if (at !== undefined) view.episodes.open(view.runs[Number(run)]?.rows[Number(at)]);
}

function theme() {
  const button = byId('theme');
  const names = ['system', 'light', 'dark'];
  let at = Math.max(0, names.indexOf(remembered()));
  const apply = () => {
    document.documentElement.dataset.theme = names[at];
    button.textContent = { system: '◐ system', light: '☀ light', dark: '☾ dark' }[names[at]];
  };
  button.addEventListener('click', () => {
    at = (at + 1) % names.length;
    apply();
    try {
      localStorage.setItem('dr_jax.theme', names[at]);
    } catch { /* a page from a file may have nowhere to remember it */ }
  });
  apply();
}

function remembered() {
  try {
    return localStorage.getItem('dr_jax.theme');
  } catch {
    return null;
  }
}

/* Episodes that stand in the page: one block is unpacked, and the last few are kept. */
function embedded() {
  const texts = [...document.querySelectorAll('script[type="application/x-episodes"]')].map((one) => one.textContent.split('\n'));
  const kept = new Map();
  return async (row) => {
    const block = Math.floor(row.at / view.block);
    const key = `${row.run.at}/${block}`;
    if (!kept.has(key)) kept.set(key, unpacked(texts[row.run.at][block]).then((text) => text.split('\n')));
    if (kept.size > 8) kept.delete(kept.keys().next().value);
    return JSON.parse((await kept.get(key))[row.at % view.block]);
  };
}

async function asked(path) {
  const answer = await fetch(path, { signal: AbortSignal.timeout(DEADLINE_MS), cache: 'no-store' });
  if (!answer.ok) throw new Error(`${answer.status} ${(await answer.text()).slice(0, 300)}`);
  return answer.status === 204 ? null : answer.json();
}

/* Ask for what is new, again and again; rows that are known are kept, unless the run was cut. */
async function watch(charts) {
  let [state, generation, changed] = ['', 0, Date.now()];
  for (;;) {
    try {
      const have = view.runs[0]?.rows.length ?? 0;
      const found = await asked(`run?state=${encodeURIComponent(state)}&generation=${generation}&have=${have}`);
      if (found) {
        const old = found.generation === generation ? view.runs[0] : null;
        const run = takeRun({ ...found.run, index: found.index }, 0);
        run.rows.forEach((row, at) => (row.at = (old?.rows.length ?? 0) + at));
        if (old) {
          run.rows = [...old.rows, ...run.rows];
          for (const row of run.rows) row.run = run;
        }
        view.runs = [run];
        [state, generation, changed] = [found.state, found.generation, Date.now()];
        drawAll(charts);
        if (!old) route();
      }
      const last = view.runs[0].metrics.step?.at(-1) ?? 0;
      byId('status').textContent = `live · update ${last} · last change ${duration(Math.round((Date.now() - changed) / 1000))} ago`;
      byId('status').className = 'live';
    } catch (error) {
      byId('status').textContent = `not reached, trying again: ${error.message}`;
      byId('status').className = 'lost';
    }
    byId('loading').hidden = true;
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}

async function main() {
  theme();
  const content = JSON.parse(await unpacked(byId('head').textContent));
  Object.assign(view, { columns: content.columns, block: content.block, live: content.live });
  const load = content.live ? (row) => asked(`episode?generation=${view.runs[0].generation}&at=${row.at}`) : embedded();
  view.episodes = new Episodes(byId('episodes'), load);
  view.runs = content.runs.map(takeRun);
  window.addEventListener('hashchange', route);
  document.addEventListener('keydown', (event) => {
    if (!byId('episodes').hidden && !event.ctrlKey && !event.metaKey && !event.altKey) view.episodes.key(event);
  });
  if (content.live) {
    route();
    await watch(content.charts);
  } else {
    drawAll(content.charts);
    byId('loading').hidden = true;
    route();
  }
}

main().catch((error) => {
  byId('loading').hidden = false;
  byId('loading').textContent = `The page could not be drawn: ${error.message}`;
  throw error;
});

/* One episode as a person wants to read it. What the world wrote is grey, what the policy wrote is in colour. */

function episodeView(episode, row, siblings, open) {
  const facts = [
    ['outcome', badge(episode.outcome, episode.failure)],
    ['answer', episode.answer ?? '–'],
    ['accepted', episode.answers.join('  |  ')],
    ['update', episode.step ?? 'none: an evaluation'],
    ['source', episode.hops ? `${episode.source}, ${episode.hops} hop${episode.hops > 1 ? 's' : ''}` : episode.source || '–'],
    ['took', Object.entries(episode.seconds).map(([name, value]) => `${name} ${duration(value)}`).join(', ')],
    ['sampled', sampled(episode)],
    ['id', episode.id],
  ];
  return element('article', { class: 'episode', tabindex: -1, 'aria-label': 'Episode' },
    element('h2', {}, episode.question),
    element('dl', {}, facts.map(([name, value]) => [element('dt', {}, name), element('dd', {}, value)])),
    rewardView(episode, row, siblings, open),
    callsView(episode.tools),
    transcript(episode));
}

function badge(outcome, failure) {
  return element('span', { class: `badge ${outcome === 'answered' ? 'good' : outcome === 'world_failed' ? 'world' : 'bad'}` }, words(outcome) + (failure ? `: ${failure}` : ''));
}

function policySegments(episode) {
  return episode.trajectories.flat().filter((segment) => segment.author === 'policy');
}

function sampled(episode) {
  const own = policySegments(episode);
  const logprobs = own.flatMap((segment) => segment.logprobs);
  if (!logprobs.length) return 'nothing';
  const versions = [...new Set(own.flatMap((segment) => segment.versions))].sort((a, b) => a - b);
  const mean = logprobs.reduce((sum, one) => sum + one, 0) / logprobs.length;
  const least = logprobs.reduce((low, one) => Math.min(low, one), 0);
  return `${number(logprobs.length)} tokens with version${versions.length > 1 ? 's' : ''} ${versions.join(', ')}; log-probability ${mean.toFixed(3)} on average, ${least.toFixed(2)} at the lowest`;
}

/* What it earned, part by part, and why: its answer against the nearest accepted one, and its siblings. */
function rewardView(episode, row, siblings, open) {
  const parts = Object.entries(episode.rewards);
  const weights = row.run.config.reward?.parts ?? {};
  const lines = parts.map(([name, value]) => element('tr', {}, element('th', { scope: 'row' }, name), element('td', {}, signed(value, 3)), element('td', {}, weights[name] == null ? '' : `weight ${number(weights[name])}`)));
  if (parts.length > 1) lines.push(element('tr', { class: 'total' }, element('th', { scope: 'row' }, 'in all'), element('td', {}, signed(row.reward, 3)), element('td', {})));
  const steps = episode.step_rewards?.length ? element('p', {}, `Per turn: ${episode.step_rewards.map((value) => signed(value)).join(', ')}`) : null;
  return element('section', { class: 'reward' }, element('h3', {}, 'Reward'),
    parts.length ? element('table', {}, element('tbody', {}, lines)) : null, steps,
    element('ul', {}, [...why(episode), ...against(row, siblings)].map((one) => element('li', {}, one))),
    siblings.length > 1 ? element('p', { class: 'siblings' }, 'Siblings: ', siblings.map((one) =>
      element('button', { type: 'button', 'aria-current': String(one === row), title: one.answer ?? words(one.outcome), onclick: () => open(one) }, fixed(one.reward, 2)))) : null);
}

function why(episode) {
  const found = [];
  const { compared, rewards, outcome } = episode;
  if (outcome === 'world_failed') found.push('The world failed it, not the policy: it is neither rewarded nor trained on.');
  else if (!Object.keys(rewards).length) found.push('It was measured, not rewarded.');
  if (compared) {
    const { nearest, shared, missing, extra } = compared;
    const list = (some) => some.map((one) => `“${one}”`).join(', ');
    if (compared.em) found.push(`The answer is the accepted “${nearest}”, word for word: F1 1.`);
    else if (!shared.length) found.push(`The answer shares no word with any accepted one; the nearest is “${nearest}”: F1 0.`);
    else found.push(`The answer shares ${list(shared)} with “${nearest}”${missing.length ? `, lacks ${list(missing)}` : ''}${extra.length ? `, and adds ${list(extra)}` : ''}: F1 ${number(compared.f1)}.`);
  } else if (outcome !== 'world_failed') found.push(`It gave no answer: it ended ${words(outcome)}.`);
  if (Object.values(rewards).some((value) => value < 0)) found.push('A part below zero is the price of a broken form.');
  return found;
}

function against(row, siblings) {
  const rewards = siblings.map((one) => one.reward).filter((value) => value != null);
  if (row.reward == null || rewards.length < 2) return [];
  const mean = rewards.reduce((sum, one) => sum + one, 0) / rewards.length;
  const gap = row.reward - mean;
  if (rewards.every((one) => Math.abs(one - rewards[0]) < 1e-9)) return [`All ${rewards.length} siblings earned the same, so there was nothing to learn from them.`];
  return [`The ${rewards.length} siblings earned ${number(mean)} on average; this one is ${number(Math.abs(gap))} ${gap < 0 ? 'below, so what it wrote was made less likely' : 'above, so what it wrote was made more likely'}.`];
}

function callsView(tools) {
  return element('section', { class: 'calls' }, element('h3', {}, `Tool calls (${tools.length})`), tools.map((tool, at) =>
    element('details', {},
      element('summary', {}, element('b', {}, `${at + 1}. ${tool.name || 'no readable call'}`), ' ', element('code', {}, JSON.stringify(tool.arguments)), ' ',
        element('span', { class: tool.error ? 'badge bad' : 'muted' }, tool.error || duration(tool.seconds))),
      element('pre', { tabindex: 0 }, indented(tool.observation)))));
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function transcript(episode) {
  const readout = element('p', { class: 'readout', 'aria-live': 'polite' }, 'Point at a token: the paler it is, the surer the policy was of it.');
  const tell = (event) => {
    const told = event.target.closest?.('[data-told]');
    if (told) readout.textContent = told.dataset.told;
  };
  const many = episode.trajectories.length > 1;
  return element('section', { class: 'transcript', onpointerover: tell }, element('h3', {}, 'Transcript'),
    element('p', { class: 'legend' }, element('span', { class: 'author policy' }, 'policy: sampled, and what training moves'), ' ', element('span', { class: 'author world' }, 'world: never trained on')),
    readout,
    episode.trajectories.map((segments, at) => [
      many ? element('h4', {}, `Trajectory ${at + 1} of ${episode.trajectories.length}`) : null,
      segments.map(segmentView)]));
}

function segmentView(segment) {
  const count = segment.count ?? segment.ids.length;
  return element('div', { class: `segment ${segment.author}` },
    element('span', { class: 'author' }, `${segment.author} · ${number(count)} token${count === 1 ? '' : 's'}`),
    element('pre', { tabindex: segment.author === 'world' ? 0 : null }, segment.author === 'policy' ? tokens(segment) : segment.text));
}

/* Every token with its shade; where the weights changed while it was written, the new version stands in between. */
function tokens(segment) {
  const parts = segment.pieces ?? segment.ids.map((id) => `⟨${id}⟩`);
  const found = parts.map((piece, at) => {
    const [logprob, version] = [segment.logprobs[at], segment.versions[at]];
    const chance = Math.exp(logprob);
    const told = `token ${at + 1}: id ${segment.ids[at]}, log-probability ${logprob == null ? '−∞' : logprob.toFixed(4)} (${(100 * chance).toFixed(chance < 0.1 ? 2 : 1)} %), version ${version}`;
    const token = element('span', { class: `token h${shade(logprob)}`, 'data-told': told }, piece);
    const changed = at > 0 && version !== segment.versions[at - 1];
    return changed ? [element('sup', { class: 'version' }, `v${version}`), token] : token;
  });
  return segment.pieces ? found.flat() : [segment.text, '\n\n', ...found.flat()];
}

/* From 0, certain, to 5, hardly to be believed. */
function shade(logprob) {
  const limits = [-0.01, -0.1, -0.5, -1.5, -3];
  return limits.filter((limit) => logprob < limit).length;
}
